"""Whole trainings on studies in which something is odd: they end well, or say what is wrong."""

import csv
import json

import numpy as np
import pytest

from hyperfusion_rt.config import load_config
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.training.run_folder import Run
from hyperfusion_rt.training.train import Callbacks, train

TINY = {
    "network": {"features": 2},
    "tabular": {"imputer": "median"},
    "training": {"epochs": 1, "embedding_epochs": 1, "batch_size": 8, "parts": 5},
}


class Killed(Exception):
    pass


@pytest.fixture
def study(session_cohort, tmp_path):
    """A copy of the cohort whose table can be changed: `study(edit)` gives folder and rows."""

    def make(edit=None):
        (tmp_path / "scans").mkdir(exist_ok=True)
        for scan in (session_cohort / "scans").iterdir():
            place = tmp_path / "scans" / scan.name
            if not place.exists():
                place.symlink_to(scan)
        with open(session_cohort / "data.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        rows = edit(rows) or rows if edit else rows
        with open(tmp_path / "data.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        (tmp_path / "hfrt.yaml").write_text((session_cohort / "hfrt.yaml").read_text())
        return tmp_path

    return make


def config_of(root, **training):
    change = {**TINY, "training": {**TINY["training"], **training}}
    return load_config(root / "hfrt.yaml", change)


def splits(run, member=0):
    with open(run.folder / "splits.csv", newline="") as file:
        return {row["subject"]: row[f"member_{member}"] for row in csv.DictReader(file)}


def with_site(config):
    tabular = config.tabular.model_copy(
        update={
            "features": (
                *config.tabular.features[:2],
                type(config.tabular.features[0])(name="SITE", kind="categorical"),
            )
        }
    )
    return config.model_copy(update={"tabular": tabular})


def test_a_category_that_is_only_in_the_test_part_is_an_error_of_its_case(study, session_run):
    """Part and stratum do not depend on SITE, so the test set is known beforehand."""
    in_test = sorted(s for s, split in splits(session_run).items() if split == "test")
    in_validation = sorted(s for s, split in splits(session_run).items() if split == "validation")

    def edit(rows):
        for row in rows:
            row["SITE"] = "new" if row["subject"] in (in_test[0], in_validation[0]) else "old"
        rows[0]["SITE"] = rows[0]["SITE"].replace("old", "third")
        rows[1]["SITE"] = rows[1]["SITE"].replace("old", "third")

    root = study(edit)
    said = []
    run = train(
        with_site(config_of(root, members=2)), root, callbacks=Callbacks(on_check=said.append)
    )
    assert run.metrics["test"]["cases"] == len(in_test) - 1
    assert run.metrics["cases"]["not_evaluated"] == 1
    assert run.metrics["validation"][0]["cases"] == len(in_validation) - 1
    (check,) = said
    found = " | ".join(finding.text for finding in check.warnings)
    assert "'SITE': 'new' is in no training case of member 0" in found
    assert in_test[0] in found
    kept = json.loads((run.folder / "check.json").read_text())
    assert [item["text"] for item in kept["findings"]] == [f.text for f in check.findings]

    from safetensors.numpy import load_file

    cases = load_file(run.folder / "cases.safetensors")
    assert all(np.isfinite(values).all() for values in cases.values())


@pytest.mark.parametrize("batch", [2, 3, 23, 24, 100])
def test_batches_of_any_size_train(study, batch):
    """24 training cases: a last batch of one (23), a batch larger than the part (100)."""
    run = train(config_of(study(), batch_size=batch), study())
    assert np.isfinite(run.metrics["test"]["balanced_accuracy"])


def test_a_class_that_training_does_not_have_is_said_and_the_figures_know(study, session_run):
    absent = sorted(s for s, split in splits(session_run).items() if split == "test")[0]

    def edit(rows):
        for row in rows:
            row["DX"] = "AD" if row["subject"] == absent else "CN" if row["APOE4"] == "0" else "MCI"

    root = study(edit)
    said = []
    for seed in range(3):
        run = train(config_of(root, seed=seed), root, callbacks=Callbacks(on_check=said.append))
        figures = run.metrics["test"]
        assert figures["chance"] == pytest.approx(1 / (3 - len(figures["absent"])))
        found = " | ".join(finding.text for finding in said[-1].warnings)
        lost = "the training part has no case of class AD" in found
        assert lost == (splits(run)[absent] != "train")
        assert ("the test part has no case of AD" in found) == ("AD" in figures["absent"])


def test_a_test_part_of_one_case_is_trained_and_measured(study):
    root = study(lambda rows: rows[:7])
    (root / "hfrt.yaml").write_text("preset: brain-age-small\n")
    change = {
        "network": {"features": 2},
        "training": {"epochs": 1, "parts": 7, "batch_size": 100},
        "preprocessing": {"shape": [40, 40, 40], "spacing": 4.5},
    }
    run = train(load_config(root / "hfrt.yaml", change), root)
    assert run.metrics["test"]["cases"] == 1
    assert run.metrics["test"]["mae_95"] is None
    json.loads((run.folder / "metrics.json").read_text(), parse_constant=pytest.fail)


def test_a_run_is_only_resumed_on_the_same_cells_and_scans(study):
    root = study()

    def kill(member, epoch, row):
        raise Killed

    with pytest.raises(Killed):
        train(config_of(root, epochs=2), root, callbacks=Callbacks(on_epoch=kill))
    run = Run.latest(root / "runs", finished=False)

    def edit(rows):
        rows[0]["PTEDUCAT"] = "20" if rows[0]["PTEDUCAT"] != "20" else "19"

    study(edit)
    first = sorted(splits(run))[0]
    with pytest.raises(ConfigError, match=f"the row of {first} has changed since") as caught:
        train(run.config, root, resume=run)
    assert caught.value.code == "run-cohort-changed"
    study()
    scans = sorted((root / "scans").iterdir())
    content = scans[1].read_bytes()
    scans[0].unlink()
    scans[0].write_bytes(content)
    with pytest.raises(ConfigError, match=f"the scan of {first} has changed since"):
        train(run.config, root, resume=run)
    scans[0].unlink()
    study()
    for spoilt in ("", "[1]", '{"a": 1}'):
        (run.folder / "inputs.json").write_text(spoilt)
        with pytest.raises(ConfigError, match=r"inputs\.json: cannot be read"):
            train(run.config, root, resume=run)
    (run.folder / "inputs.json").unlink()  # as an older version left it
    assert train(run.config, root, resume=run).metrics["test"]["cases"] == 8


def test_the_command_says_what_is_odd_on_standard_error(study, hfrt):
    def edit(rows):
        for row in rows[::6]:
            row["PTEDUCAT"] = "999"

    root = study(edit)
    flags = ["--set", "network.features=2", "--set", "training.epochs=1", "--set",
             "training.embedding_epochs=1", "--set", "tabular.imputer=median", "--set",
             "training.parts=5"]  # fmt: skip
    status, out, err = hfrt(root, "train", "--json", *flags)
    assert status == 0
    assert json.loads(out)["test"]["cases"] == 8
    assert "checked: 40 cases; train 24, validation 8, test 8" in err
    assert "warning: 'PTEDUCAT' has 999 in 7 rows" in err

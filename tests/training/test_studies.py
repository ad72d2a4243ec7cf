"""Studies of one's own: any target, any network, several images, every part a test set once."""

import csv
import json
import re
import shutil

import numpy as np
import pytest

from hyperfusion_rt.config import load_config
from hyperfusion_rt.data.simulate import bayes_optimum, simulate_cohort
from hyperfusion_rt.errors import ConfigError, HyperFusionError
from hyperfusion_rt.export import export_run
from hyperfusion_rt.runtime.evaluation import agreement
from hyperfusion_rt.runtime.outputs.table import record
from hyperfusion_rt.runtime.predictor import load
from hyperfusion_rt.training.cross_validation import CrossValidation, cross_validate
from hyperfusion_rt.training.dataset import check_study
from hyperfusion_rt.training.learner import Learner
from hyperfusion_rt.training.train import Callbacks, train

SMALL = {
    "network": {"features": 2},
    "training": {"epochs": 2, "embedding_epochs": 3, "batch_size": 8, "parts": 5},
}
WHOLE = {"boxes": [{"name": "brain", "center": [0, -17, 5]}], "shape": [36, 48, 40], "spacing": 4.2}
SEX = [{"name": "PTGENDER", "kind": "categorical"}]
ML = {"target": "VENTRICLES_ML", "unit": "ml", "features": SEX, "stratify": []}
BINARY = {"classes": {"no": ["CN"], "yes": ["MCI", "EMCI", "LMCI", "AD", "Dementia"]}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """20 subjects with two images each, and their volumes in the table."""
    folder = tmp_path_factory.mktemp("study")
    simulate_cohort(
        folder, task="ad", subjects=20, seed=8, spacing=2, jobs=2, flair=True, volumes=True
    )
    return folder


def merged(*changes):
    found = {}
    for change in changes:
        for section, fields in change.items():
            both = isinstance(fields, dict) and isinstance(found.get(section), dict)
            found[section] = {**found[section], **fields} if both else fields
    return found


STUDIES = {
    "binary, hippocampi": {"tabular": BINARY},
    "ml, hippocampi": {"task": "regression", "tabular": ML},
    "ml, whole brain": {
        "task": "regression",
        "tabular": ML,
        "preprocessing": WHOLE,
        "network": {"architecture": "brain-age"},
    },
    "binary, whole brain": {
        "tabular": BINARY,
        "preprocessing": WHOLE,
        "network": {"architecture": "brain-age", "fusion": "film"},
    },
    "ml and its deviation, hippocampi": {
        "task": "regression",
        "tabular": ML,
        "training": {"loss": "gaussian", "members": 2},
    },
    "ml, table alone": {
        "task": "regression",
        "tabular": ML,
        "network": {"fusion": "tabular"},
    },
}


@pytest.mark.parametrize("name", STUDIES)
def test_from_the_study_to_predictions(root, tmp_path, name):
    change = merged(SMALL, STUDIES[name])
    config = load_config(root / "hfrt.yaml", change)
    assert len(config.preprocessing.channels) == 2
    run = train(config, root, name=name)
    with open(run.folder / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 * (1 if config.training.members == 1 else 3)
    assert {row["split"] for row in rows} == {"train", "validation", "test"}
    artifact = export_run(run, tmp_path / "x.hfrt", engines=("native", "onnx"))
    manifest = artifact.manifest
    spread = run.metrics["target"]["spread"]
    if config.tabular.classes:
        columns, tolerance = ["p_no", "p_yes"], 0.01
        assert (manifest.unit, spread) == ("probability", None)
        assert {row["truth"] for row in rows} == {"no", "yes"}
    else:
        columns, tolerance = ["predicted_VENTRICLES_ML"], 0.01 * spread
        if config.training.loss == "gaussian":
            columns.append("sd")
            rows = [row for row in rows if row["member"] == "all"]
            assert 0 <= run.metrics["test"]["coverage_95"] <= 1
        assert (manifest.unit, manifest.target_spread) == ("ml", spread)
        said = json.dumps([run.metrics, manifest.model_dump(mode="json")["table"]])
        assert "years" not in said
    assert {e.comparison.drift_tolerance for e in manifest.engines} == {tolerance}
    # What training wrote is what the engine says.
    predictions = list(load(artifact.folder).predict(root / "scans", root / "data.csv"))
    found = {p.subject: [record(manifest, p)[column] for column in columns] for p in predictions}
    agreed = agreement(manifest, predictions)
    assert agreed.figures["cases"] == 4
    assert ("coverage_95" in agreed.figures) == ("sd" in columns)
    for row in rows:
        exact = [float(row[column]) for column in columns]
        assert np.allclose(found[row["subject"]], exact, rtol=1e-3, atol=tolerance)


def test_the_optimum_says_what_it_does_not_count(root):
    found = json.loads((root / "optimum.json").read_text())
    plain = bayes_optimum("ad")
    assert found == bayes_optimum("ad", volumes=True)
    assert {name: found[name] for name in ("image", "both")} == {
        name: plain[name] for name in ("image", "both")
    }
    assert "table" not in found
    assert "table" not in found["standard_error"]
    assert found["table_without_volumes"] == plain["table"]
    assert "the volumes in the table are not counted" in found["method"]


def test_any_unit_trains_alike(root):
    """The target in another unit and from another zero: the same predictions in that unit."""
    found = []
    for factor, shift in ((1.0, 0.0), (1e-3, 0.01), (1e5, -70.0)):
        with open(root / "data.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            row["V"] = repr(factor * float(row["VENTRICLES_ML"]) + shift)
        table = root / f"unit-{factor:g}.csv"
        with open(table, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        change = merged(SMALL, {"task": "regression", "table": table.name, "tabular": ML})
        change["tabular"] = {**ML, "target": "V"}
        run = train(load_config(root / "hfrt.yaml", change), root, name=f"unit-{factor:g}")
        with open(run.folder / "predictions.csv", newline="") as file:
            values = np.array([float(row["predicted_V"]) for row in csv.DictReader(file)])
        found.append((values - shift) / factor)
        assert run.metrics["test"]["unit"] == "ml"
    spread = found[0].std()
    assert spread > 0
    assert np.abs(found[1] - found[0]).max() < 0.02 * spread
    assert np.abs(found[2] - found[0]).max() < 0.02 * spread


@pytest.mark.slow
def test_every_case_is_tested_once(root):
    change = merged(SMALL, {"training": {"parts": 4, "epochs": 1, "members": 2}})
    config = load_config(root / "hfrt.yaml", change)
    folds = []
    calls = Callbacks(on_epoch=lambda member, epoch, row: stop(folds))

    def stop(folds):
        if len(folds) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cross_validate(
            config, root, name="cv", callbacks=calls, on_fold=lambda n, _: folds.append(n)
        )
    begun = CrossValidation.latest(root / "runs")
    assert begun.folder.name == "cv"
    first = (begun.fold(0) / "metrics.json").stat().st_mtime_ns
    made = cross_validate(config, root, resume=begun)
    assert (begun.fold(0) / "metrics.json").stat().st_mtime_ns == first  # kept
    with open(made.folder / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["subject"] for row in rows) == [f"S8-{i + 1:04d}" for i in range(20)]
    assert {row["part"] for row in rows} == {"0", "1", "2", "3"}
    assert {(row["split"], row["member"]) for row in rows} == {("test", "all")}
    metrics = json.loads((made.folder / "metrics.json").read_text())
    assert metrics["test"]["cases"] == 20
    assert [fold["cases"] for fold in metrics["folds"]] == [5, 5, 5, 5]
    right = np.mean([row["truth"] == row["prediction"] for row in rows])
    confusion = np.array(metrics["test"]["confusion"])
    assert np.trace(confusion) / 20 == pytest.approx(right)
    with pytest.raises(ConfigError, match="is no cross-validation"):
        CrossValidation.open(made.fold(0))


def test_an_image_in_two_places_is_said(root, tmp_path):
    """A FLAIR file that is a copy of the T1, and one that is another subject's."""
    shutil.copy(root / "data.csv", tmp_path)
    (tmp_path / "scans").mkdir()
    files = {file.name: file for file in (root / "scans").iterdir()}
    files["S8-0001_FLAIR.nii.gz"] = files["S8-0001_T1w.nii.gz"]
    files["S8-0002_FLAIR.nii.gz"] = files["S8-0003_FLAIR.nii.gz"]
    for name, file in files.items():
        shutil.copy(file, tmp_path / "scans" / name)
    config = load_config(root / "hfrt.yaml")
    said = [finding.text for finding in check_study(config, tmp_path, scans=True).warnings]
    text = "S8-0001 (T1w) = S8-0001 (FLAIR); S8-0002 (FLAIR) = S8-0003 (FLAIR)."
    assert [text in one for one in said if "the same image" in one] == [True]
    said = [finding.text for finding in check_study(config, root, scans=True).warnings]
    assert not [one for one in said if "the same image" in one]


@pytest.mark.slow
def test_folds_of_another_cohort_or_damaged_ones_are_not_mixed(root, tmp_path, hfrt):
    for name in ("data.csv", "hfrt.yaml"):
        shutil.copy(root / name, tmp_path / name)
    (tmp_path / "scans").symlink_to(root / "scans")
    change = merged(SMALL, {"training": {"parts": 3, "epochs": 1, "members": 1}})
    made = cross_validate(load_config(tmp_path / "hfrt.yaml", change), tmp_path, name="cv")

    def resumed():
        arguments = "train", "--cross-validate", "--resume"
        status, _, err = hfrt(tmp_path, *arguments)
        return status, err

    for arguments in (("export",), ("export", "--run", "runs/cv"), ("train", "--resume")):
        status, _, err = hfrt(tmp_path, *arguments)
        assert status == 1
        assert "is a cross-validation, and each of its folds is a run: name one with --run" in err
        assert "runs/cv/fold-0" in err

    figures = (made.folder / "metrics.json").read_text()
    table = made.fold(1) / "predictions.csv"
    whole = table.read_text()
    table.write_text("".join(whole.splitlines(keepends=True)[:8]))
    status, err = resumed()
    assert status == 1
    assert "predictions.csv does not hold all cases of its test set; delete this folder" in err
    table.write_text(whole)
    (made.fold(2) / "config.json").unlink()
    status, err = resumed()
    assert status == 1
    assert "fold-2: it has no config.json; delete this folder" in err
    shutil.rmtree(made.fold(2))
    text = (tmp_path / "data.csv").read_text()
    lines = text.splitlines(keepends=True)
    row = re.sub(r"ale,\d+,", "ale,11,", lines[1])  # years of education: no stratum
    for changed, what in (
        ([lines[0], row, *lines[2:]], "the row of"),
        (lines[:-1], "the cohort has changed"),
    ):
        (tmp_path / "data.csv").write_text("".join(changed))
        status, err = resumed()
        assert status == 1
        assert what in err
        assert not made.fold(2).exists()
    (tmp_path / "data.csv").write_text(text)
    status, err = resumed()
    assert status == 0, err
    assert (made.folder / "metrics.json").read_text() == figures


def test_a_fold_that_diverges_says_what_helps_and_leaves_the_others(root, monkeypatch):
    change = merged(SMALL, {"training": {"parts": 3, "epochs": 1}})
    config = load_config(root / "hfrt.yaml", change)
    folds, step = [], Learner.step

    def diverge_in_the_second(*arguments):
        return step(*arguments) * (float("nan") if len(folds) == 2 else 1)

    monkeypatch.setattr(Learner, "step", diverge_in_the_second)
    with pytest.raises(HyperFusionError) as caught:
        cross_validate(config, root, name="diverging", on_fold=lambda n, _: folds.append(n))
    assert caught.value.code == "training-diverged"
    for word in ("fold-1", "training.lr", "training.clip_gradient", "training.seed", "are kept"):
        assert word in str(caught.value)
    assert "delete" not in str(caught.value)
    made = CrossValidation.latest(root / "runs")
    assert made.folder.name == "diverging"
    assert (made.fold(0) / "metrics.json").exists()
    monkeypatch.setattr(Learner, "step", step)
    first = (made.fold(0) / "metrics.json").stat().st_mtime_ns
    assert cross_validate(config, root, resume=made).metrics["test"]["cases"] == 20
    assert (made.fold(0) / "metrics.json").stat().st_mtime_ns == first


@pytest.mark.slow
def test_the_command_line_trains_folds_and_takes_a_split(root, hfrt, tmp_path):
    lines = [f"S8-{i + 1:04d},{i % 3 + 1}" for i in range(20)]
    (tmp_path / "split.csv").write_text("\n".join(["subject,part", *lines]))
    sets = ["network.features=2", "training.epochs=1", "training.embedding_epochs=1"]
    options = [word for text in sets for word in ("--set", text)]
    config = root / "hfrt.yaml"
    status, out, err = hfrt(
        tmp_path, "train", "--config", config, "--split-file", "split.csv", "--cross-validate",
        "--name", "folds", *options,
    )  # fmt: skip
    assert status == 0, err
    assert "fold 3 of 3" in err
    assert "epoch   1 of 1: train loss" in err
    assert out.splitlines()[-1].endswith("fold-1")  # a part of this study, which has no part 0
    metrics = json.loads((root / "runs" / "folds" / "metrics.json").read_text())
    assert metrics["parts"] == [1, 2, 3]
    assert (root / "runs" / "folds" / "fold-3" / "member-0" / "weights.safetensors").exists()
    status, _, err = hfrt(
        tmp_path, "train", "--config", config, "--resume", "--split-file", "split.csv"
    )
    assert status == 1
    assert "leave out --set, --split-file and --name" in err

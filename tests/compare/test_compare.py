"""`hfrt compare` end to end on a small simulated cohort."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from hyperfusion_rt.compare.compare import compare
from hyperfusion_rt.compare.executor import JobTask
from hyperfusion_rt.compare.options import CompareOptions
from hyperfusion_rt.compare.plan import Comparison, Job, models_of
from hyperfusion_rt.compare.table_models import TableModel
from hyperfusion_rt.config import LAYERS, load_config
from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.metrics import classification
from hyperfusion_rt.training.train import train

SMALL = {
    "network": {"features": 2, "dropout": 0},
    "training": {"epochs": 1, "embedding_epochs": 1, "batch_size": 16},
}
SETTINGS = [
    *("--set", "network.features=2", "--set", "training.epochs=1"),
    *("--set", "training.batch_size=16", "--set", "training.embedding_epochs=1"),
]


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def compared(session_cohort):
    """Two seeds of three parts; the models differ in what they see."""
    options = CompareOptions(models="image,logistic", folds=3, seeds=2, name="whole")
    return compare(session_cohort / "hfrt.yaml", options, SMALL)


def test_every_case_is_predicted_once_under_each_seed_by_each_model(compared, session_cohort):
    rows = rows_of(compared.comparison.folder / "predictions.csv")
    subjects = {row["subject"] for row in rows_of(session_cohort / "data.csv")}
    assert len(subjects) == 40
    for model in ("image", "logistic"):
        for seed in "01":
            own = [r["subject"] for r in rows if (r["model"], r["seed"]) == (model, seed)]
            assert len(own) == 40
            assert set(own) == subjects


def test_the_parts_are_the_same_for_all_models_and_others_under_another_seed(compared):
    rows = rows_of(compared.comparison.folder / "predictions.csv")
    parts = {}
    for row in rows:
        parts.setdefault((row["model"], row["seed"]), {})[row["subject"]] = row["fold"]
    for seed in "01":
        assert parts["image", seed] == parts["logistic", seed]
    assert parts["image", "0"] != parts["image", "1"]
    kept = {
        row["subject"]: row["seed_1"] for row in rows_of(compared.comparison.folder / "cases.csv")
    }
    assert parts["image", "1"] == kept


def test_a_figure_is_the_mean_over_the_seeds(compared):
    rows = rows_of(compared.comparison.folder / "predictions.csv")
    classes = ["CN", "MCI", "AD"]
    (result,) = [item for item in compared.models if item.name == "logistic"]
    each = []
    for seed in "01":
        own = [r for r in rows if (r["model"], r["seed"]) == ("logistic", seed)]
        truth = np.array([classes.index(r["truth"]) for r in own])
        answers = np.array([[float(r[f"p_{name}"]) for name in classes] for r in own])
        each.append(classification(truth, answers, classes))
    for name in ("balanced_accuracy", "auc", "brier", "ece"):
        assert result.figures[name] == pytest.approx(np.mean([f[name] for f in each]))
    assert result.figures["subjects"] == 40
    assert result.figures["confusion"] == np.sum([f["confusion"] for f in each], 0).tolist()


def test_a_fold_of_a_network_is_what_training_alone_gives(compared, session_cohort):
    job = Job(model="image", seed=1, fold=2)
    config = compared.comparison.config(job)
    run = train(config, session_cohort, name="alone")
    metrics = json.loads((compared.comparison.place(job) / "metrics.json").read_text())
    assert run.metrics == metrics
    assert compared.models[0].folds[1, 2] == pytest.approx(metrics["test"]["balanced_accuracy"])


def test_encoders_saw_training_rows_only(compared):
    run = compared.comparison.place(Job(model="image", seed=0, fold=0))
    encoder = json.loads((run / "member-0" / "encoder.json").read_text())
    part = {
        row["subject"]: row["seed_0"] for row in rows_of(compared.comparison.folder / "cases.csv")
    }
    assert encoder["training_rows"] == sum(p not in ("0", "1") for p in part.values())


def test_pairs(compared):
    found = {(p.figure, p.a, p.b): p for p in compared.pairs}
    assert set(found) == {(f, "image", "logistic") for f in ("balanced_accuracy", "auc")}
    values = {item.name: item.figures for item in compared.models}
    for (figure, a, b), pair in found.items():
        assert pair.difference == pytest.approx(values[a][figure] - values[b][figure])
        assert pair.interval[0] <= pair.difference <= pair.interval[1]
        assert pair.folds == 6
        assert 0 < pair.p_folds <= pair.p_folds_holm <= 1
        assert 0 < pair.p_cases <= pair.p_cases_holm <= 1
        assert pair.test == ("DeLong" if figure == "auc" else "permutation")


def test_the_tables_say_the_same(compared):
    folder = compared.comparison.folder
    lines = {row["model"]: row for row in rows_of(folder / "comparison.csv")}
    for item in compared.models:
        value = item.figures["balanced_accuracy"]
        assert float(lines[item.name]["balanced_accuracy"]) == pytest.approx(value, rel=1e-5)
        assert lines[item.name]["trainings"] == lines[item.name]["of"] == "6"
        for name in ("comparison.md", "comparison.tex"):
            assert f"{value:.3f}" in (folder / name).read_text()
    assert len(rows_of(folder / "pairs.csv")) == 2
    groups = rows_of(folder / "groups.csv")
    assert {row["group"] for row in groups if row["by"] == "sex"} == {"Female", "Male"}
    total = sum(int(r["cases"]) for r in groups if r["by"] == "age" and r["model"] == "image")
    assert total == 40
    for name in ("predictions.csv", "cases.csv", "inputs.json", "splits/seed-0.csv"):
        assert (folder / name).stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_going_on_keeps_what_is_done_and_takes_a_further_model(session_cohort, hfrt):
    command = ["compare", "--models", "logistic", "--folds", 3, "--name", "later", *SETTINGS]
    status, out, err = hfrt(session_cohort, *command)
    assert status == 0, err
    assert "logistic" in out
    place = session_cohort / "compare" / "later" / "jobs" / "logistic-seed0-fold1"
    before = (place / "metrics.json").stat().st_mtime_ns
    shutil.rmtree(place.with_name("logistic-seed0-fold2"))
    status, out, err = hfrt(
        session_cohort, "compare", "--resume", "--name", "later", "--models", "table", "--json"
    )
    assert status == 0, err
    found = json.loads(out)
    assert [(m["name"], m["done"]) for m in found["models"]] == [("logistic", 3), ("table", 3)]
    assert (place / "metrics.json").stat().st_mtime_ns == before
    assert len(found["pairs"]) == 2


def test_a_changed_cohort_does_not_go_on(session_cohort, tmp_path, hfrt):
    root = copy_of(session_cohort, tmp_path)
    command = ["compare", "--models", "logistic", "--folds", 3]
    assert hfrt(root, *command)[0] == 0
    lines = (root / "data.csv").read_text().splitlines()
    (root / "data.csv").write_text("\n".join(lines[:-1]))
    status, _, err = hfrt(root, "compare", "--resume")
    assert status == 1
    assert "the cohort has changed" in err


def copy_of(cohort, tmp_path):
    """The cohort's files, to be spoilt; its decoded scans are linked."""
    root = tmp_path / "copy"
    root.mkdir()
    for name in ("data.csv", "hfrt.yaml"):
        shutil.copy(cohort / name, root / name)
    (root / "scans").symlink_to(cohort / "scans")
    (cohort / ".hfrt_cache").mkdir(exist_ok=True)
    (root / ".hfrt_cache").symlink_to(cohort / ".hfrt_cache")
    return root


def change(root, function):
    """Change every row of the table."""
    rows = rows_of(root / "data.csv")
    for index, row in enumerate(rows):
        function(index, row)
    with open(root / "data.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_a_failed_training_does_not_stop_the_others(session_cohort, tmp_path, hfrt):
    root = copy_of(session_cohort, tmp_path)
    command = ["compare", "--models", "logistic,table", "--folds", 3, "--name", "a", *SETTINGS]
    # A rate of learning that no network survives; the table-only rival knows none.
    diverging = ["--set", "training.lr=1e30", "--set", "training.epochs=3"]
    status, out, err = hfrt(root, *command, *diverging, "--json")
    found = json.loads(out)
    assert status == 3, err
    models = {m["name"]: m for m in found["models"]}
    assert models["logistic"]["done"] == 3
    assert models["table"]["done"] < 3
    assert any("training-diverged" in reason for reason in models["table"]["failures"])
    assert "failed: the" in err
    assert "lower training.lr (now 1e+30)" in err
    kept = Comparison.open(root / "compare" / "a")
    assert kept.failure(Job(model="table", seed=0, fold=0))[0] == "training-diverged"


@pytest.mark.slow
def test_trainings_in_processes_of_their_own_give_the_same(compared, session_cohort, hfrt):
    command = ["compare", "--models", "logistic", "--folds", 3, *SETTINGS]
    status, out, err = hfrt(session_cohort, *command, "--jobs", 2, "--name", "two", "--json")
    assert status == 0, err
    assert [m["done"] for m in json.loads(out)["models"]] == [3]
    alone = rows_of(compared.comparison.folder / "predictions.csv")
    own = rows_of(session_cohort / "compare" / "two" / "predictions.csv")

    def chosen(rows):
        return [r for r in rows if (r["model"], r["seed"]) == ("logistic", "0")]

    assert chosen(own) == chosen(alone)


@dataclass(frozen=True)
class DiesOnce(JobTask):
    """Fold 1: its process is killed at the first try; fold 2: at every one."""

    def run(self):
        tried = self.place.with_name(f"{self.place.name}.tried")
        if self.job.fold == 2 or (self.job.fold == 1 and not tried.exists()):
            tried.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super().run()


@pytest.mark.slow
def test_a_training_whose_process_dies_is_tried_once_more(compared, session_cohort, monkeypatch):
    options = {"models": "logistic", "folds": 3, "name": "dies", "jobs": 2}
    with monkeypatch.context() as patch:
        # So that other processes find this module.
        patch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[2])])
        patch.setattr("hyperfusion_rt.compare.executor.JobTask", DiesOnce)
        found = compare(session_cohort / "hfrt.yaml", CompareOptions(**options), SMALL)
    assert found.failed == 1
    [(reason, count)] = found.models[0].failures.items()
    assert count == 1
    assert "died twice, the last time by signal 9" in reason
    comparison = found.comparison
    job = Job(model="logistic", seed=0, fold=2)
    assert str(comparison.place(job).with_name("logistic-seed0-fold2.log")) in reason
    assert ": ".join(comparison.failure(job)) == reason
    assert reason.startswith("training-process-died: ")
    done = [comparison.place(Job(model="logistic", seed=0, fold=fold)) for fold in (0, 1)]
    before = [(place / "metrics.json").stat().st_mtime_ns for place in done]
    del options["folds"]
    found = compare(session_cohort / "hfrt.yaml", CompareOptions(**options, resume=True))
    assert found.failed == 0
    assert [(place / "metrics.json").stat().st_mtime_ns for place in done] == before
    alone = rows_of(compared.comparison.folder / "predictions.csv")
    own = rows_of(comparison.folder / "predictions.csv")
    assert own == [r for r in alone if (r["model"], r["seed"]) == ("logistic", "0")]


@pytest.mark.slow
def test_trainings_on_a_cluster_give_the_same(compared, session_cohort):
    pytest.importorskip("ray", reason="ray is not installed: the cluster was not tested")
    command = [sys.executable, "-m", "hyperfusion_rt.cli", "compare", "--models", "logistic"]
    command += ["--folds", "3", *SETTINGS, "--executor", "ray", "--threads", "1"]
    # Of its own: Ray leaves processes and signal handlers behind.
    made = subprocess.run(
        [*command, "--name", "ray"], cwd=session_cohort, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    own = rows_of(session_cohort / "compare" / "ray" / "predictions.csv")
    alone = rows_of(compared.comparison.folder / "predictions.csv")
    assert own == [r for r in alone if (r["model"], r["seed"]) == ("logistic", "0")]


@pytest.mark.slow
def test_an_external_test_set(session_cohort, tmp_path, hfrt):
    other = tmp_path / "other"
    (other / "scans").mkdir(parents=True)
    scans = sorted((session_cohort / "scans").iterdir())[:6]
    rows = rows_of(session_cohort / "data.csv")[:6]
    names = ["N0", "N1", "N2", "N3", rows[4]["subject"], "N5"]
    for i, (scan, name) in enumerate(zip(scans, names, strict=True)):
        image = nib.load(scan)
        # Brighter: another file, but what the networks see of it is the same. The last is a copy.
        voxels = image.get_fdata(dtype=np.float32) * (1.25 if i < 5 else 1)
        nib.save(nib.Nifti1Image(voxels, image.affine), other / "scans" / f"{name}.nii.gz")
    with open(other / "data.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "subject": name} for row, name in zip(rows, names, strict=True))
    models = "image,logistic,late"
    command = ["compare", "--models", models, "--folds", 3, "--name", "out", *SETTINGS]
    command += ["--test", other / "scans", "--test-table", other / "data.csv", "--json"]
    status, out, err = hfrt(session_cohort, *command)
    assert status == 0, err
    found = json.loads(out)
    for model in found["external"]:
        assert (model["done"], model["figures"]["cases"]) == (3, 4)
    assert any(note.startswith("2 external cases are in the cohort") for note in found["notes"])
    # A network that did not see a subject says the same of its copy.
    folder = session_cohort / "compare" / "out"
    for own in rows_of(folder / "predictions.csv"):
        if own["subject"] not in [row["subject"] for row in rows[:4]]:
            continue
        name = names[[row["subject"] for row in rows].index(own["subject"])]
        job = f"{own['model']}-seed0-fold{own['fold']}"
        (copy,) = [
            r for r in rows_of(folder / "jobs" / job / "external.csv") if r["subject"] == name
        ]
        for column in ("p_CN", "p_MCI", "p_AD"):
            assert float(copy[column]) == pytest.approx(float(own[column]), abs=2e-4)


# ---- bad input


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--models", "image,imagine"], "option-wrong", "there is no model 'imagine'"),
        (["--models", "image,image"], "option-wrong", "stands there twice"),
        (["--models", "table,tabular"], "option-wrong", "stands there twice"),
        (["--models", "ridge"], "option-wrong", "take logistic"),
        (["--against", "film"], "option-wrong", "--against film"),
        (["--folds", "12"], "cohort-too-small", "lower --folds"),
        (["--folds", "2"], "usage-wrong", "--folds"),
        (["--test", "scans"], "option-conflict", "--test and --test-table go together"),
        (["--models", "hyper,late"], "option-conflict", "name image, too"),
        (["--ablate", "network.features"], "option-wrong", "section.field=value;value"),
        (["--ablate", "tabular.target=AGE;DX"], "option-wrong", "have this alike"),
        (["--ablate", "network.fetures=2;4"], "config-invalid", "fetures"),
        (["--ablate", "network.features=0;4"], "config-invalid", "features"),
        (
            ["--ablate", "network.hyper_layers", "--models", "film,image"],
            "option-conflict",
            "changes none of film, image; name hyper",
        ),
        (
            ["--ablate", "network.features=4;8", "--models", "logistic"],
            "option-conflict",
            "changes none of logistic; name a network",
        ),
        (["--resume", "--name", "never"], "run-not-found", "never"),
        (["--ray-address", "here"], "option-conflict", "--executor ray"),
    ],
)
def test_bad_options(session_cohort, hfrt, options, code, said):
    status, out, _ = hfrt(session_cohort, "compare", *options, "--json")
    error = json.loads(out)["error"]
    assert status in (1, 2)
    assert (error["code"], said in error["message"]) == (code, True), error


def test_more_parts_than_the_smallest_class_has_subjects(session_cohort, tmp_path, hfrt):
    root = copy_of(session_cohort, tmp_path)
    change(root, lambda i, row: row.update(DX="AD" if i < 4 else "CN"))
    settings = ["--set", "tabular.classes={CN: [], AD: []}", "--models", "logistic"]
    status, _, err = hfrt(root, "compare", "--folds", 5, *settings)
    assert status == 1
    assert "5 parts, but class AD has 4 subjects" in err


@pytest.mark.slow
def test_a_class_without_a_case_in_a_part(session_cohort, tmp_path, hfrt):
    root = copy_of(session_cohort, tmp_path)
    change(
        root,
        lambda i, row: row.update(PART=str(i % 4), DX="AD" if i % 4 and i // 4 % 2 else "CN"),
    )
    settings = ["--set", "training.split_column=PART", "--set", "tabular.classes={CN: [], AD: []}"]
    status, out, err = hfrt(root, "compare", "--models", "logistic,boosting", *settings, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert "no case of AD is in part 0 under seed 0" in found["notes"]
    assert found["folds"] == [0, 1, 2, 3]
    for model in found["models"]:
        assert model["figures"]["cases"] == 40
        assert model["figures"]["recall"]["AD"] is not None


@pytest.mark.slow
def test_five_subjects(session_cohort, tmp_path, hfrt):
    root = copy_of(session_cohort, tmp_path)
    lines = (root / "data.csv").read_text().splitlines()
    (root / "data.csv").write_text("\n".join(lines[:6]) + "\n")
    numbers = {
        "preset": "ad-small",
        "task": "regression",
        "tabular": {
            "target": "AGE",
            "unit": "years",
            "features": [{"name": "PTEDUCAT", "kind": "numeric"}],
            "stratify": [],
        },
    }
    (root / "hfrt.yaml").write_text(yaml.safe_dump(numbers))
    models = ["--models", "ridge,boosting,table,image,late"]
    status, out, err = hfrt(root, "compare", "--folds", 5, *models, *SETTINGS, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert [m["figures"]["cases"] for m in found["models"]] == [5] * 5
    assert all(np.isfinite(m["figures"]["mae"]) for m in found["models"])
    assert {pair["figure"] for pair in found["pairs"]} == {"mae"}
    status, _, err = hfrt(root, "compare", "--folds", 6, *models)
    assert status == 1
    assert "5 subjects cannot be split into 6 parts" in err


def test_a_constant_and_an_empty_column(session_cohort, tmp_path, hfrt):
    root = copy_of(session_cohort, tmp_path)
    change(root, lambda i, row: row.update(PTEDUCAT="12"))
    command = ["compare", "--models", "logistic,boosting", "--folds", 3]
    status, out, err = hfrt(root, *command, "--json")
    assert status == 0, err
    assert all(m["done"] == 3 for m in json.loads(out)["models"])
    change(root, lambda i, row: row.update(PTEDUCAT=""))
    status, _, err = hfrt(root, *command)
    assert status == 1
    assert "'PTEDUCAT'" in err


def test_a_column_that_a_training_part_lacks_fails_there_alone(session_cohort, tmp_path, hfrt):
    root = copy_of(session_cohort, tmp_path)
    # Known in part 1 only, which is trained on where part 2 is the test set, and 0 validates.
    change(root, lambda i, row: row.update(PART=str(i % 3), PTEDUCAT="12" if i % 3 == 1 else ""))
    settings = ["--set", "training.split_column=PART"]
    status, out, _ = hfrt(root, "compare", "--models", "logistic", *settings, "--json")
    (model,) = json.loads(out)["models"]
    assert status == 3
    assert model["done"] == 1
    assert any("table-feature-empty" in reason for reason in model["failures"])


def test_targets_that_are_no_number_are_left_out(session_cohort, tmp_path, hfrt):
    root = copy_of(session_cohort, tmp_path)
    change(root, lambda i, row: row.update(DX="nan" if i < 3 else row["DX"]))
    status, out, err = hfrt(root, "compare", "--models", "logistic", "--folds", 3, "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["models"][0]["figures"]["cases"] == 37
    assert "left out: 3 cases" in found["notes"]


def test_a_subject_on_two_sides_is_refused(session_cohort, tmp_path, hfrt):
    root = copy_of(session_cohort, tmp_path)
    (root / "scans").unlink()
    for i, scan in enumerate(sorted((session_cohort / "scans").iterdir())):
        name = f"sub-{i // 2:02d}/ses-{i % 2 + 1}/anat/sub-{i // 2:02d}_ses-{i % 2 + 1}_T1w.nii.gz"
        (root / "scans" / name).parent.mkdir(parents=True)
        (root / "scans" / name).symlink_to(scan)
    change(
        root,
        lambda i, row: row.update(subject=f"{i // 2:02d}", session=str(i % 2 + 1), PART=str(i % 3)),
    )
    settings = ["--set", "training.split_column=PART"]
    status, out, _ = hfrt(root, "compare", "--models", "logistic", *settings, "--json")
    assert status == 1
    assert json.loads(out)["error"]["code"] == "split-subject-twice"
    # Of its own accord it never does that.
    classes = ["--set", "tabular.classes={CN: [CN], other: [MCI, EMCI, LMCI, AD, Dementia]}"]
    status, out, err = hfrt(
        root, "compare", "--models", "logistic", "--folds", 3, *classes, "--json"
    )
    assert status == 0, err
    sides = {}
    for row in rows_of(next((root / "compare").iterdir()) / "predictions.csv"):
        sides.setdefault(row["subject"], set()).add(row["fold"])
    assert len(sides) == 20
    assert all(len(folds) == 1 for folds in sides.values())


def test_an_image_under_two_names_is_reported(session_cohort, tmp_path, hfrt):
    root = copy_of(session_cohort, tmp_path)
    (root / "scans").unlink()
    (root / "scans").mkdir()
    scans = sorted((session_cohort / "scans").iterdir())
    for scan in scans:
        (root / "scans" / scan.name).symlink_to(scan)
    for i in (0, 1, 2):  # the first, under other subjects' names
        (root / "scans" / scans[i].name).unlink()
        shutil.copy(scans[0], root / "scans" / scans[i].name)
    status, out, err = hfrt(root, "compare", "--models", "logistic", "--folds", 3, "--json")
    assert status == 0, err
    (note,) = [n for n in json.loads(out)["notes"] if "more than one subject" in n]
    assert note.startswith("images that stand under more than one subject: 1; in two parts: ")
    assert "the same image stands in several places" in err


# ---- the rivals


def test_classes_weigh_as_in_the_networks_training(session_cohort):
    change = {"training": {"class_weights": (1.0, 2.0, 4.0), "sampling": "balanced"}}
    config = load_config(session_cohort / "hfrt.yaml", change)
    model = object.__new__(TableModel)  # of its fit only the weights are looked at
    model.config, model.classes = config, 3
    assert model._class_weights(np.array([0, 0, 0, 2])) == {0: 4 / 3, 2: 16.0}


# ---- the plan


def test_the_usual_models(session_cohort):
    base = load_config(session_cohort / "hfrt.yaml")
    assert [m.name for m in models_of(base, None)] == [
        *("image", "table", "logistic", "boosting", "hyper"),
    ]  # fmt: skip


def test_variants_of_each_network(session_cohort):
    base = load_config(session_cohort / "hfrt.yaml")
    found = models_of(base, ["image", "logistic", "hyper"], "network.features=2; 4")
    assert [(m.name, m.config.network.features) for m in found if m.kind == "network"] == [
        ("image features=2", 2),
        ("image features=4", 4),
        ("hyper features=2", 2),
        ("hyper features=4", 4),
    ]
    assert [m.name for m in found if m.kind != "network"] == ["logistic"]
    assert found[0].folder == "image_features=2"


def test_each_layer_generated_alone(session_cohort):
    base = load_config(session_cohort / "hfrt.yaml")
    found = models_of(base, ["film", "hyper"], "network.hyper_layers")
    assert [(m.name, m.config.network.generated) for m in found] == [
        ("film", ()),
        *((f"hyper hyper_layers=[{one}]", (one,)) for one in LAYERS["ad"]),
    ]
    given = models_of(base, ["film", "hyper"], "network.hyper_layers=[fc1];[fc1,fc2]")
    assert [(m.name, m.config.network.generated) for m in given] == [
        ("film", ()),
        ("hyper hyper_layers=[fc1]", ("fc1",)),
        ("hyper hyper_layers=[fc1,fc2]", ("fc1", "fc2")),
    ]


def test_nothing_to_show(session_cohort, tmp_path):
    root = copy_of(session_cohort, tmp_path)
    change = {**SMALL, "training": {**SMALL["training"], "lr": 1e30, "epochs": 3}}
    with pytest.raises(HyperFusionError, match="no training has a result") as raised:
        compare(root / "hfrt.yaml", CompareOptions(models="image", folds=3), change)
    assert raised.value.code == "comparison-no-result"

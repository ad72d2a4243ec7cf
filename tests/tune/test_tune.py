"""`hfrt tune` end to end on a small simulated cohort."""

import csv
import html
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="optuna is not installed: hfrt tune was not tested")

from hyperfusion_rt.cli.train import overrides
from hyperfusion_rt.cli.tune import command_of
from hyperfusion_rt.config import load_config
from hyperfusion_rt.config.load import read_mapping
from hyperfusion_rt.errors import HyperFusionError, MissingExtraError
from hyperfusion_rt.training.run_folder import Run
from hyperfusion_rt.training.train import Callbacks
from hyperfusion_rt.tune import results
from hyperfusion_rt.tune import tune as tune_module
from hyperfusion_rt.tune.options import TuneOptions
from hyperfusion_rt.tune.page import search_page
from hyperfusion_rt.tune.results import as_dict
from hyperfusion_rt.tune.search import Search
from hyperfusion_rt.tune.tune import tune

SMALL = {
    "network": {"fusion": "tabular"},
    "training": {"epochs": 2, "embedding_epochs": 1, "batch_size": 16, "parts": 5},
    "augmentation": {"policy": "none"},
}
SETTINGS = [
    *("--set", "network.fusion=tabular", "--set", "training.epochs=2"),
    *("--set", "training.embedding_epochs=1", "--set", "training.batch_size=16"),
    *("--set", "training.parts=5", "--set", "augmentation.policy=none"),
]


def options(name, **more):
    return TuneOptions(name=name, **{"trials": 3, "pruner": "none", **more})


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def tuned(session_cohort):
    """Three trials of two epochs."""
    return tune(session_cohort / "hfrt.yaml", options("whole"), SMALL)


def test_every_trial_is_a_run_and_the_first_is_the_study(tuned, session_cohort):
    assert [trial.number for trial in tuned.of("complete")] == [0, 1, 2]
    for trial in tuned.trials:
        run = Run.open(tuned.search.place(trial.number))
        assert run.config == tuned.search.plan.config_of(trial.fields)
        history = rows_of(run.member(0).folder / "history.csv")
        # `keep: last` of the recipe: the weights of the last epoch.
        assert trial.figure == float(history[-1]["validation_balanced_accuracy"])
        assert trial.loss == float(history[-1]["validation_loss"])
        assert [epoch for epoch, _ in trial.course] == [1, 2]
        assert trial.figure == pytest.approx(run.metrics["validation"][0]["balanced_accuracy"])
    first = Run.open(tuned.search.place(0)).config
    assert first == load_config(session_cohort / "hfrt.yaml", SMALL)
    assert tuned.study_itself.number == 0


def test_the_best_is_what_its_files_and_the_command_say(tuned, session_cohort):
    best = max(tuned.trials, key=lambda t: (t.figure, -t.loss))
    assert tuned.best == best
    config = Run.open(tuned.search.place(best.number)).config
    change = read_mapping(tuned.search.folder / "best.yaml")
    assert load_config(session_cohort / "hfrt.yaml", change) == config
    program, verb, *rest = shlex.split(command_of(tuned))
    assert (program, verb, set(rest[::2])) == ("hfrt", "train", {"--set"})
    assert load_config(session_cohort / "hfrt.yaml", overrides(rest[1::2])) == config
    rows = rows_of(tuned.search.folder / "trials.csv")
    assert [row["state"] for row in rows] == ["complete"] * 3
    for row, trial in zip(rows, tuned.trials, strict=True):
        assert float(row["figure"]) == pytest.approx(trial.figure, abs=1e-6)
        assert float(row["training.lr"]) == trial.fields["training.lr"]


def test_nothing_reads_the_figures_of_the_test_part(tuned, tmp_path):
    """The same is written where they are wrong, and where they are not there."""
    files = [tuned.search.place(n) / "metrics.json" for n in range(3)]
    kept = [path.read_text() for path in files]
    written = []
    try:
        for texts in (kept, ['{"test": "nonsense"}'] * 3, [None] * 3):
            for path, text in zip(files, texts, strict=True):
                path.unlink(missing_ok=True)
                if text is not None:
                    path.write_text(text)
            with tuned.search.opened() as study:
                found = results.read(tuned.search, study)
            search_page(found).write(tmp_path / "tune.html")
            written.append((tmp_path / "tune.html").read_text() + json.dumps(as_dict(found)))
    finally:
        for path, own in zip(files, kept, strict=True):
            path.write_text(own)
    assert written[0] == written[1] == written[2]
    page = (tuned.search.folder / "tune.html").read_text()
    assert "The search looked at the validation part only" in page
    assert "://" not in page  # it needs no network
    assert " ".join(tuned.settings) in html.unescape(page)


def test_the_study_goes_on_to_the_number_asked_for(tuned, session_cohort, hfrt):
    before = [trial.fields for trial in tuned.trials]
    stamps = [tuned.search.place(n).joinpath("metrics.json").stat().st_mtime_ns for n in range(3)]
    command = ["tune", "--resume", "--name", "whole", "--trials", 4, "--json"]
    status, out, err = hfrt(session_cohort, *command)
    assert status == 0, err
    found = json.loads(out)
    assert [trial["number"] for trial in found["trials"]] == [0, 1, 2, 3]
    assert [trial["fields"] for trial in found["trials"]][:3] == before
    after = [tuned.search.place(n).joinpath("metrics.json").stat().st_mtime_ns for n in range(3)]
    assert after == stamps
    assert "4 of 4: trial 3 complete" in err
    # Enough is enough.
    status, out, err = hfrt(session_cohort, *command)
    assert status == 0, err
    assert len(json.loads(out)["trials"]) == 4


class Killed(BaseException):
    pass


def test_an_interrupted_trial_goes_on_from_its_last_epoch(session_cohort):
    told = []

    def die(member, epoch, row):
        told.append(epoch)
        raise Killed

    with pytest.raises(Killed):
        tune(
            session_cohort / "hfrt.yaml",
            options("stopped", trials=2),
            SMALL,
            callbacks=Callbacks(on_epoch=die),
        )
    search = Search.open(session_cohort / "tune" / "stopped")
    with search.opened() as study:
        (trial,) = results.read(search, study).trials
    assert (trial.number, trial.state) == (0, "running")
    fields = trial.fields
    found = tune(
        session_cohort / "hfrt.yaml",
        TuneOptions(name="stopped", resume=True, trials=2),
        callbacks=Callbacks(on_epoch=lambda member, epoch, row: told.append(epoch)),
    )
    # Epoch 0 was trained once: its checkpoint was kept.
    assert told == [0, 1, 0, 1]
    assert [trial.state for trial in found.trials] == ["complete"] * 2
    assert found.trials[0].fields == fields
    rows = rows_of(search.place(0) / "member-0" / "history.csv")
    assert [row["epoch"] for row in rows] == ["0", "1"]


def test_a_trial_whose_process_dies_twice_has_failed(tuned, tmp_path):
    search = Search.create(tmp_path, tuned.search.plan, "a")
    with search.opened() as study:
        for _ in range(2):
            claim = search.claim(study, 2)
            assert claim.number == 0
            claim.close()  # as the system does when its process dies
        claim = search.claim(study, 2)
        found = results.read(search, study).trials
    assert claim.number == 1
    claim.close()
    assert [trial.state for trial in found] == ["failed", "running"]
    assert found[0].reason.startswith("training-process-died")


def test_a_trial_that_lives_is_nobody_elses(tuned, tmp_path):
    search = Search.create(tmp_path, tuned.search.plan, "a")
    with search.opened() as one, search.opened() as two:
        first, second = search.claim(one, 2), search.claim(two, 2)
        assert (first.number, second.number) == (0, 1)
        assert search.claim(two, 2) is None
        first.close()  # as its process would, whatever ends it
        again = search.claim(two, 2)
        assert (again.number, again.fields) == (0, first.fields)
        assert search.claim(one, 2) is None
        second.close()
        again.close()


def test_pruning_prunes(session_cohort, monkeypatch):
    """Trials that are bad from the first epoch on end before the last."""
    figures = {}

    def row_of(row):
        number = len([n for n in numbers if n is not None]) - 1
        figures.setdefault(number, []).append(1)
        good = 0.9 if number < 4 else 0.1
        return good, 1.0

    numbers = []
    monkeypatch.setattr("hyperfusion_rt.tune.trial._of_row", row_of)
    changes = {**SMALL, "training": {**SMALL["training"], "epochs": 3}}
    found = tune(
        session_cohort / "hfrt.yaml",
        TuneOptions(name="pruned", trials=5),
        changes,
        on_claim=lambda claim: numbers.append(claim.number),
    )
    assert [trial.state for trial in found.trials] == ["complete"] * 4 + ["pruned"]
    assert found.trials[4].epochs == 2  # the first third of the epochs is not judged
    assert not Run.open(found.search.place(4)).metrics
    assert found.best.number < 4
    text = (found.search.folder / "tune.html").read_text()
    assert "1 of 5 trials were pruned, after 2 epochs in all instead of 3" in text


def test_what_diverges_is_told_and_others_go_on(session_cohort, tmp_path, hfrt):
    space = tmp_path / "space.yaml"
    space.write_text("training.lr: [0.001, 1.0e+30]")
    command = ["tune", "--space", space, "--name", "wild", "--trials", 3, "--json"]
    status, out, err = hfrt(session_cohort, *command, *SETTINGS, "--set", "training.epochs=3")
    found = json.loads(out)
    assert status == 0, err
    states = {trial["fields"]["training.lr"]: trial["state"] for trial in found["trials"]}
    assert states == {0.001: "complete", 1e30: "diverged"}
    diverged = next(t for t in found["trials"] if t["state"] == "diverged")
    assert diverged["reason"].startswith("training-diverged")


def test_a_cohort_that_has_changed_is_refused(tuned, session_cohort, tmp_path, hfrt):
    root = tmp_path / "copy"
    root.mkdir()
    for name in ("hfrt.yaml", "data.csv"):
        (root / name).write_bytes((session_cohort / name).read_bytes())
    (root / "scans").symlink_to(session_cohort / "scans")
    (root / ".hfrt_cache").symlink_to(session_cohort / ".hfrt_cache")
    command = ["tune", "--name", "a", "--trials", 1, *SETTINGS]
    status, _, err = hfrt(root, *command)
    assert status == 0, err
    lines = (root / "data.csv").read_text().splitlines()
    (root / "data.csv").write_text("\n".join(lines[:-1]))
    status, out, err = hfrt(root, "tune", "--resume", "--trials", 2, "--json")
    assert status == 1, err
    assert json.loads(out)["error"]["code"] == "run-cohort-changed"
    with Search.open(root / "tune" / "a").opened() as study:
        assert len(study.trials) == 1  # no trial was spent on it


@pytest.mark.slow
def test_processes_and_two_commands_give_each_trial_once(session_cohort):
    command = [sys.executable, "-m", "hyperfusion_rt.cli", "tune", "--trials", "6", "--name", "two"]
    given = {"cwd": session_cohort, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen([*command, "--jobs", "2", *SETTINGS], **given)
    folder = session_cohort / "tune" / "two"
    while not (folder / "splits.csv").exists():
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.1)
    second = subprocess.Popen([*command, "--resume"], **given)
    for process in (first, second):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    search = Search.open(folder)
    with search.opened() as study:
        found = results.read(search, study)
    assert [trial.number for trial in found.trials] == list(range(6))
    for trial in found.trials:
        if trial.state == "complete":
            assert [epoch for epoch, _ in trial.course] == [1, 2]
        assert (search.place(trial.number) / "config.json").exists()
    assert {trial.state for trial in found.trials} <= {"complete", "pruned"}
    assert len(rows_of(folder / "trials.csv")) == 6


@pytest.mark.slow
def test_a_process_that_is_killed_is_replaced(session_cohort):
    """Its trial goes on in another process, from its last epoch; nothing else is lost."""
    command = [sys.executable, "-m", "hyperfusion_rt.cli", "tune", "--trials", "3", "--jobs", "2"]
    settings = [*SETTINGS, "--set", "training.epochs=12"]
    process = subprocess.Popen(
        [*command, "--name", "killed", "--pruner", "none", *settings],
        cwd=session_cohort, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    place = session_cohort / "tune" / "killed" / "trials" / "trial-0000"
    history = place / "member-0" / "history.csv"
    while not history.exists() or len(rows_of(history)) < 2:  # the first of them is reported
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    lock = (session_cohort / "tune" / "killed" / "locks" / "trial-0000").stat().st_ino
    holders = [
        line.split()[4]
        for line in Path("/proc/locks").read_text().splitlines()
        if line.endswith(" 0 EOF") and line.split()[5].endswith(f":{lock}")
    ]
    os.kill(int(holders[0]), signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    search = Search.open(session_cohort / "tune" / "killed")
    with search.opened() as study:
        found = results.read(search, study)
    assert [trial.state for trial in found.trials] == ["complete"] * 3
    assert [int(row["epoch"]) for row in rows_of(history)] == list(range(12))
    kept = [trial.user_attrs["tries"] for trial in study_trials(search)]
    assert kept[0]["epochs"] > 0  # it was taken up again after an epoch
    assert kept[1] == {"epochs": 0, "times": 1}


def study_trials(search):
    with search.opened() as study:
        return study.get_trials(deepcopy=True)


# ---- bad input


def test_without_optuna(session_cohort, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"hyperfusion_rt\[tune\]"):
        tune(session_cohort / "hfrt.yaml", options("never"), SMALL)
    assert not (session_cohort / "tune" / "never").exists()


@pytest.mark.slow
def test_processes_that_all_die_end_the_search(tuned, session_cohort, monkeypatch):
    monkeypatch.setattr(tune_module, "_process", dies)
    monkeypatch.setattr(tune_module, "_DEATHS", 1)
    told = TuneOptions(name="whole", resume=True, trials=9, jobs=2)
    with pytest.raises(HyperFusionError, match="processes ended without a word") as error:
        tune(session_cohort / "hfrt.yaml", told)
    assert error.value.code == "training-process-died"


def dies(*given):
    os._exit(1)


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (["--trials", "0"], "usage-wrong", "--trials"),
        (["--timeout", "0"], "option-wrong", "--timeout"),
        (["--metric", "test"], "usage-wrong", "--metric"),
        (["--tracker", "paper"], "option-wrong", "--tracker paper"),
        (["--space", "never.yaml"], "config-not-found", "never.yaml"),
        (["--resume", "--name", "never"], "run-not-found", "never"),
        (["--resume", "--metric", "loss"], "option-conflict", "leave out --metric"),
        (["--resume", "--set", "training.lr=1"], "option-conflict", "leave out --set"),
        (["--name", "whole"], "run-exists", "continue it with --resume"),
        (["--device", "cuda:99"], "device-unavailable", "cuda"),
    ],
)
def test_bad_options(tuned, session_cohort, hfrt, given, code, said):
    status, out, _ = hfrt(session_cohort, "tune", *given, "--json")
    error = json.loads(out)["error"]
    assert status in (1, 2)
    assert (error["code"], said in error["message"]) == (code, True), error

"""Trainings in processes of their own and on a cluster: the same numbers, each once, and kills."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hyperfusion_rt.config import load_config
from hyperfusion_rt.errors import ConfigError, HyperFusionError
from hyperfusion_rt.training.cross_validation import CrossValidation, cross_validate
from hyperfusion_rt.training.executor import run_elsewhere
from hyperfusion_rt.training.members import MemberTask
from hyperfusion_rt.training.options import TrainOptions
from hyperfusion_rt.training.run_folder import Run
from hyperfusion_rt.training.train import Callbacks, train

TWO = TrainOptions(jobs=2, threads=1)
SETTINGS = {
    "network": {"features": 2},
    "training": {"epochs": 2, "embedding_epochs": 1, "members": 3, "batch_size": 8, "parts": 5},
}


def settings(root, **training):
    change = {**SETTINGS, "training": {**SETTINGS["training"], **training}}
    return load_config(root / "hfrt.yaml", change)


def rows(member):
    """The history without the times."""
    lines = (member.folder / "history.csv").read_text().splitlines()
    return [line.rpartition(",")[0] for line in lines]


def same(a, b):
    """That two runs came to the same, to the bit, each member once."""
    assert a.metrics == b.metrics
    assert len(a.members) == len(b.members) == a.config.training.members
    for one, other in zip(a.members, b.members, strict=True):
        weights, others = load_file(one.weights), load_file(other.weights)
        assert all(torch.equal(weights[name], others[name]) for name in weights)
        assert rows(one) == rows(other)
        assert len(rows(one)) == 1 + a.config.training.epochs
    for name in ("predictions.csv", "splits.csv"):
        assert (a.folder / name).read_text() == (b.folder / name).read_text()


TESTS = str(Path(__file__).parents[1])
ENVIRONMENT = {**os.environ, "PYTHONPATH": TESTS}


@pytest.fixture(autouse=True)
def tasks_of_this_module(monkeypatch):
    """Other processes import it by the name that it has here."""
    monkeypatch.setattr(sys, "path", [*sys.path, TESTS])


@pytest.fixture(scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone(session_cohort, one_thread):
    """Three members, one after the other in this process, on one thread."""
    return train(settings(session_cohort), session_cohort, name="members-alone")


# ---- tasks


@dataclass(frozen=True)
class Dies:
    """Writes a line at each try, and dies by SIGKILL at the first `times`."""

    place: Path
    times: int
    wrong: str = ""

    @property
    def name(self):
        return self.place.name

    @property
    def log(self):
        return self.place / "task.log"

    def run(self):
        with open(self.place / "tries", "a") as file:
            file.write("a try\n")
        if self.wrong:
            print("before the end")
            raise HyperFusionError(self.wrong, code="training-diverged")
        if len((self.place / "tries").read_text().splitlines()) <= self.times:
            os.kill(os.getpid(), signal.SIGKILL)


def three(place):
    """One that dies once, one that dies twice, one that says what is wrong."""
    tasks = []
    for name, times, wrong in (("once", 1, ""), ("twice", 2, ""), ("wrong", 0, "no good")):
        (place / name).mkdir()
        tasks.append(Dies(place / name, times, wrong))
    return tasks


def check_three(tasks, told):
    found = dict(told)
    assert len(told) == len(found) == 3
    assert found["once"] is None
    assert (found["wrong"].code, str(found["wrong"])) == ("training-diverged", "no good")
    assert found["twice"].code == "training-process-died"
    assert str(found["twice"]).startswith("twice: its process died twice")
    assert str(tasks[1].log) in str(found["twice"])
    tries = [len((task.place / "tries").read_text().splitlines()) for task in tasks]
    assert tries == [2, 2, 1]
    assert tasks[2].log.read_text() == "before the end\n"


@pytest.mark.slow
def test_a_dead_process_is_tried_once_more_and_each_task_is_told_once(tmp_path):
    tasks, told = three(tmp_path), []
    run_elsewhere(tasks, TWO, lambda task, error: told.append((task.name, error)))
    check_three(tasks, told)
    assert "signal 9 (SIGKILL)" in str(dict(told)["twice"])
    assert tasks[0].log.read_text() == "try 1: the process died by signal 9 (SIGKILL)\n"


@dataclass(frozen=True)
class Sleeps(Dies):
    """Never ends."""

    def run(self):
        (self.place / "pid").write_text(str(os.getpid()))
        time.sleep(600)


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(tmp_path):
    script = "from training.test_executor import *; run_elsewhere("
    script += "[Sleeps(Path(), 0)], TWO, lambda *_: None)"
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=ENVIRONMENT)
    pid = tmp_path / "pid"
    while not pid.exists() or not pid.read_text():
        assert parent.poll() is None
        time.sleep(0.02)
    child = Path("/proc", pid.read_text())
    assert child.exists()
    parent.kill()
    parent.wait()
    end = time.time() + 60
    while child.exists() and time.time() < end:
        time.sleep(0.02)
    assert not child.exists()


def test_an_address_needs_ray():
    with pytest.raises(ConfigError, match="`executor` ray"):
        TrainOptions(address="here")


# ---- members


@dataclass(frozen=True)
class Killed(MemberTask):
    """A member; the process of member 1 is killed in the middle of an epoch."""

    epoch: int = 1
    always: bool = False

    def run(self):
        from hyperfusion_rt.training.loop import Trainer

        mark, inputs, batches = self.folder / "killed", Trainer._inputs, []

        def deadly(trainer, cases, sides, epoch):
            batches.append(epoch)
            if batches.count(self.epoch) == 2 and (self.always or not mark.exists()):
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return inputs(trainer, cases, sides, epoch)

        if self.index == 1:
            Trainer._inputs = deadly
        super().run()


@dataclass(frozen=True)
class KilledAlways(Killed):
    epoch: int = 0
    always: bool = True


@pytest.mark.slow
def test_members_in_processes_of_which_one_is_killed_in_an_epoch(
    session_cohort, alone, monkeypatch
):
    monkeypatch.setattr("hyperfusion_rt.training.members.MemberTask", Killed)
    told = []
    calls = Callbacks(on_epoch=lambda member, epoch, row: told.append((member, epoch, {*row})))
    run = train(
        settings(session_cohort), session_cohort, name="killed-1", options=TWO, callbacks=calls
    )
    assert (run.folder / "killed").exists()
    assert "SIGKILL" in (run.member(1).folder / "training.log").read_text()
    same(run, alone)
    assert sorted((m, e) for m, e, _ in told) == [(m, e) for m in range(3) for e in range(2)]
    assert {"epoch", "train_loss", "validation_loss", "seconds"} <= told[0][2]


@pytest.mark.slow
def test_a_member_that_dies_twice_is_named_and_the_others_are_kept(
    session_cohort, alone, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr("hyperfusion_rt.training.members.MemberTask", KilledAlways)
        with pytest.raises(HyperFusionError, match=r"dead, member 1: .*SIGKILL") as caught:
            train(settings(session_cohort), session_cohort, name="dead", options=TWO)
    run = Run.open(session_cohort / "runs" / "dead")
    assert caught.value.code == "training-process-died"
    log = run.member(1).folder / "training.log"
    assert str(log) in str(caught.value)
    assert log.read_text().count("SIGKILL") == 2
    assert not run.metrics
    kept = [run.member(0).weights, run.member(2).weights]
    before = [path.stat().st_mtime_ns for path in kept]
    told = []
    calls = Callbacks(on_epoch=lambda member, epoch, row: told.append((member, epoch)))
    train(run.config, session_cohort, resume=run, options=TWO, callbacks=calls)
    assert told == [(1, 0), (1, 1)]
    assert [path.stat().st_mtime_ns for path in kept] == before
    same(run, alone)


# ---- folds


@pytest.fixture(scope="module")
def folds_alone(session_cohort, one_thread):
    config = settings(session_cohort, members=1, epochs=1, parts=3)
    return cross_validate(config, session_cohort, name="folds-alone")


@pytest.mark.slow
def test_folds_in_processes_are_those_of_one_process(session_cohort, folds_alone):
    told = []
    made = cross_validate(
        folds_alone.config,
        session_cohort,
        name="folds-2",
        options=TWO,
        callbacks=Callbacks(on_epoch=lambda *epoch: told.append(epoch[:2])),
        on_fold=lambda fold, folds: told.append(f"{fold} of {folds}"),
    )
    assert made.metrics == folds_alone.metrics
    for part in made.parts:
        same(Run.open(made.fold(part)), Run.open(folds_alone.fold(part)))
    assert told.count((0, 0)) == 3
    assert {"1 of 3", "2 of 3", "3 of 3"} <= {t for t in told if isinstance(t, str)}


# ---- a cluster


def command(root, name, *more):
    command = [sys.executable, "-m", "hyperfusion_rt.cli", "train", "--name", name, "--json"]
    for section, fields in SETTINGS.items():
        for field, value in fields.items():
            command += ["--set", f"{section}.{field}={value}"]
    return [*command, "--executor", "ray", "--threads", "1", *more]


def processes(name, mark):
    """Ids of the processes of this name that have `mark` in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if command.startswith(name.encode()) and mark.encode() in environment:
            found.append(int(folder.name))
    return found


def three_on_ray(place):
    """In a process of its own: Ray leaves processes and signal handlers behind."""
    tasks, told = three(place), []
    on_ray = TrainOptions(executor="ray", threads=1)
    run_elsewhere(tasks, on_ray, lambda task, error: told.append((task.name, error)))
    check_three(tasks, told)


@pytest.mark.slow
def test_a_dead_worker_is_tried_once_more_and_each_task_is_told_once(tmp_path):
    pytest.importorskip("ray", reason="ray is not installed: the cluster was not tested")
    script = "from training.test_executor import *; three_on_ray(Path.cwd())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_members_on_a_cluster_with_workers_killed(session_cohort, alone, tmp_path):
    pytest.importorskip("ray", reason="ray is not installed: the cluster was not tested")
    mark = f"HFRT_TEST={tmp_path}"
    process = subprocess.Popen(
        command(session_cohort, "members-ray", "--jobs", "2"),
        cwd=session_cohort,
        env={**os.environ, "HFRT_TEST": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = session_cohort / "runs" / "members-ray" / "member-0" / "checkpoint.pt"
    while process.poll() is None and not first.exists():
        time.sleep(0.01)
    workers = processes("ray::_attempt", mark)
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert len(json.loads(out)["validation"]) == 3
    same(Run.open(session_cohort / "runs" / "members-ray"), alone)
    assert "member 2, epoch   2 of 2" in err


@pytest.mark.slow
def test_folds_on_a_cluster(session_cohort, folds_alone):
    pytest.importorskip("ray", reason="ray is not installed: the cluster was not tested")
    training = ["training.members=1", "training.epochs=1", "training.parts=3"]
    more = [part for field in training for part in ("--set", field)]
    made = subprocess.run(
        command(session_cohort, "folds-ray", "--cross-validate", *more),
        cwd=session_cohort,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    folds = CrossValidation.open(session_cohort / "runs" / "folds-ray")
    assert folds.metrics == folds_alone.metrics

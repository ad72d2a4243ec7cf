"""Members of a comparison's networks in processes of their own: the same numbers, and kills."""

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from hyperfusion_rt.compare.executor import run
from hyperfusion_rt.compare.options import CompareOptions
from hyperfusion_rt.compare.plan import External, Job
from hyperfusion_rt.compare.prepare import begin
from hyperfusion_rt.config import load_config
from hyperfusion_rt.training.loop import Trainer
from hyperfusion_rt.training.members import MemberTask
from hyperfusion_rt.training.train import Callbacks

pytestmark = pytest.mark.slow

CHANGES = {
    "network": {"features": 2},
    "training": {"epochs": 2, "embedding_epochs": 1, "batch_size": 16, "members": 2},
}
NETWORK, RIVAL = (Job(model=name, seed=0, fold=0) for name in ("table", "logistic"))
TWO = CompareOptions(jobs=2, threads=1)


@dataclass(frozen=True)
class Killed(MemberTask):
    """A member; the process of member 1 is killed in its second epoch, once or always."""

    always: bool = False

    def run(self):
        mark, epoch = self.folder / "killed", Trainer._epoch

        def deadly(trainer, learner, number):
            if number == 1 and (self.always or not mark.exists()):
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return epoch(trainer, learner, number)

        if self.index == 1:
            Trainer._epoch = deadly
        super().run()


@dataclass(frozen=True)
class KilledAlways(Killed):
    always: bool = True


@pytest.fixture
def killing(monkeypatch):
    """Makes members of a class of this module, which other processes find."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[2])])
    return lambda kind: monkeypatch.setattr("hyperfusion_rt.training.members.MemberTask", kind)


def comparison(root, name):
    """Prepared, with the cohort itself as external test set, so that it is predicted, too."""
    config = load_config(root / "hfrt.yaml", CHANGES)
    options = CompareOptions(models="table,logistic", folds=3, name=name)
    made = begin(root.resolve(), config, options, Callbacks())
    external = External(scans=str(root / "scans"), table=str(root / "data.csv"))
    made = type(made)(made.folder, made.plan.model_copy(update={"external": external}))
    made.keep()
    return made


def train(made, options, *jobs):
    """What is told of `jobs`."""
    told = []
    run(made, jobs, options, lambda job, reason: told.append((job, reason)))
    return told


@pytest.fixture(scope="module")
def alone(session_cohort):
    """Both jobs in this process, on one thread."""
    threads = torch.get_num_threads()
    made = comparison(session_cohort, "members-alone")
    assert train(made, CompareOptions(threads=1), NETWORK, RIVAL) == [(NETWORK, ""), (RIVAL, "")]
    torch.set_num_threads(threads)
    return made


def same(made, alone, job):
    """That a job came to the same in two comparisons, to the bit, each member once."""
    places = made.place(job), alone.place(job)
    one, other = (json.loads((place / "metrics.json").read_text()) for place in places)
    assert one == other
    for name in ("predictions.csv", "external.csv"):
        assert (places[0] / name).read_bytes() == (places[1] / name).read_bytes()
    for member in ("member-0", "member-1") if job == NETWORK else ():
        one, other = (rows(place / member) for place in places)
        assert one == other
        assert len(one) == 3


def rows(member):
    """The history without the times."""
    lines = (member / "history.csv").read_text().splitlines()
    return [line.rpartition(",")[0] for line in lines]


def test_a_member_whose_process_is_killed_goes_on(session_cohort, alone, killing):
    killing(Killed)
    made = comparison(session_cohort, "members-killed")
    assert train(made, TWO, NETWORK) == [(NETWORK, "")]
    log = made.place(NETWORK) / "member-1" / "training.log"
    assert log.read_text() == "try 1: the process died by signal 9 (SIGKILL)\n"
    same(made, alone, NETWORK)


def test_a_member_that_dies_twice_fails_its_job_alone(session_cohort, alone, killing):
    killing(KilledAlways)
    made = comparison(session_cohort, "members-dead")
    told = train(made, TWO, NETWORK, RIVAL)
    assert (len(told), dict(told)[RIVAL]) == (2, "")
    reason = dict(told)[NETWORK]
    assert reason.startswith("table-seed0-fold0, member 1: its process died twice, the last time")
    assert made.failure(NETWORK) == ("training-process-died", reason)
    assert made.done(RIVAL)
    same(made, alone, RIVAL)
    killing(MemberTask)
    other = made.place(NETWORK) / "member-0" / "checkpoint.pt"
    before = other.stat().st_mtime_ns
    assert train(made, TWO, NETWORK) == [(NETWORK, "")]
    assert other.stat().st_mtime_ns == before
    assert made.done(NETWORK)
    same(made, alone, NETWORK)

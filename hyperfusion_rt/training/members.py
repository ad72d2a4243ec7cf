"""Members of ensembles as tasks: each in a process of its own, of one run or of many."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.training.executor import run_elsewhere
from hyperfusion_rt.training.options import TrainOptions
from hyperfusion_rt.training.run_folder import Run

# Told of an epoch of a member of a run: (run, member, epoch from 0, its figures).
OnEpoch = Callable[[Run, int, int, dict[str, Any]], None]


@dataclass(frozen=True)
class MemberTask:
    """One member of the run in `folder`, which has been prepared."""

    folder: Path
    index: int
    options: TrainOptions

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.folder.name}, member {self.index}"

    @property
    def log(self) -> Path:
        """Beside the member's weights."""
        return self.folder / f"member-{self.index}" / "training.log"

    def run(self) -> None:
        """Train it, or what is left of its epochs.

        Raises:
            HyperFusionError: it came to nothing, or the cohort is another one now.
        """
        # Here, where it is done: `train` itself makes these tasks.
        from hyperfusion_rt.training.train import choose_device, dataset_again, train_member

        run = Run.open(self.folder)
        device = choose_device(self.options.device)
        train_member(run, dataset_again(run), self.index, device, resume=True, options=self.options)

    def history(self) -> list[dict[str, Any]]:
        """The figures of the epochs that are done."""
        try:
            with open(self.log.with_name("history.csv"), newline="", encoding="utf-8") as file:
                rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
        except OSError:  # not yet there, or not yet seen on this machine
            return []
        return [{**row, "epoch": int(row["epoch"])} for row in rows]


class Members:
    """The members of a run as tasks, and what they came to.

    `failures`: the name of each that has no result, and why.
    """

    def __init__(self, run: Run, options: TrainOptions) -> None:
        self.run = run
        members = range(run.config.training.members)
        self.tasks = [MemberTask(run.folder.resolve(), i, options) for i in members]
        self.failures: list[tuple[str, HyperFusionError]] = []
        self._left = set(self.tasks)

    def done(self, task: MemberTask, error: HyperFusionError | None) -> bool:
        """Note what a task came to; whether it was the last."""
        self._left.remove(task)
        if error is not None:
            self.failures.append((task.name, error))
        return not self._left


def failure_of(failures: Sequence[tuple[str, HyperFusionError]]) -> HyperFusionError:
    """The first of `failures`, which says of the others that they are, too."""
    (_, first), *more = failures
    names = "; ".join(name for name, _ in more)
    also = f". Without a result, too: {names}" if more else ""
    return HyperFusionError(f"{first}{also}", code=first.code)


def train_members(
    runs: Iterable[Run],
    options: TrainOptions,
    on_trained: Callable[[Run], None],
    on_epoch: OnEpoch | None = None,
) -> None:
    """Train all members of `runs` in processes of their own; one that fails stops no other.

    Args:
        runs: prepared; the next is asked for when a member of it can begin.
        on_trained: called for each run when it has all its members.

    Raises:
        HyperFusionError: some have no result, of which the first says why; or as `runs` raises.
    """
    known: list[Members] = []
    left: dict[MemberTask, Members] = {}
    told: dict[MemberTask, int] = {}  # how many epochs

    def tasks() -> Iterator[MemberTask]:
        for run in runs:
            members = Members(run, options)
            known.append(members)
            for task in members.tasks:
                left[task], told[task] = members, len(task.history())
            yield from members.tasks

    def look(task: MemberTask) -> None:
        if on_epoch is None:
            return
        for row in task.history()[told[task] :]:
            told[task] += 1
            on_epoch(left[task].run, task.index, row["epoch"], row)

    def done(task: MemberTask, error: HyperFusionError | None) -> None:
        look(task)
        members = left.pop(task)
        if members.done(task, error) and not members.failures:
            try:
                on_trained(members.run)
            except HyperFusionError as wrong:
                members.failures.append((members.run.folder.name, wrong))

    def wait() -> None:
        for task in left:
            look(task)

    run_elsewhere(tasks(), options, done, wait)
    failures = [failure for members in known for failure in members.failures]
    if failures:
        raise failure_of(failures)

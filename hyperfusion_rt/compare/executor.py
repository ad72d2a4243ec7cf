"""Where the trainings of a comparison run: in this process, in several, or on a Ray cluster.

With several, each training has a process of its own, and of a network with several members each of
them: one that dies takes none of the others along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hyperfusion_rt.compare.job import begin, end, work
from hyperfusion_rt.compare.options import CompareOptions
from hyperfusion_rt.compare.plan import Comparison, Job
from hyperfusion_rt.errors import HyperFusionError, reason_of
from hyperfusion_rt.machine import usable_cores
from hyperfusion_rt.training.executor import run_elsewhere
from hyperfusion_rt.training.members import Members, MemberTask, failure_of
from hyperfusion_rt.training.options import TrainOptions
from hyperfusion_rt.training.run_folder import Run
from hyperfusion_rt.training.train import Callbacks

# Told what became of a training: "" if it is done, else why not.
OnJob = Callable[[Job, str], None]


@dataclass(frozen=True)
class JobTask:
    """A training of the comparison in `folder`; `place`: its run folder; `do`: how much of it."""

    folder: Path
    place: Path
    job: Job
    device: str | None
    do: Callable[[Path, Job, str | None], None] = work

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.job.model

    @property
    def log(self) -> Path:
        """Beside the run folder."""
        return self.place.with_name(f"{self.place.name}.log")

    def run(self) -> None:
        """As `do`."""
        self.do(self.folder, self.job, self.device)


def run(
    comparison: Comparison,
    jobs: Sequence[Job],
    options: CompareOptions,
    on_job: OnJob,
    callbacks: Callbacks | None = None,
) -> None:
    """Do `jobs`; one that fails is kept as failed, and the others go on.

    Raises:
        HyperFusionError: what stops all of them.
    """

    def done(job: Job, error: HyperFusionError | None) -> None:
        if error is not None:
            comparison.fail(job, error.code, str(error))
        on_job(job, "" if error is None else str(error))

    if options.elsewhere:
        _elsewhere(comparison, jobs, options, done)
        return
    import torch

    torch.set_num_threads(options.threads or usable_cores())
    for job in jobs:
        try:
            work(comparison.folder, job, options.device, callbacks)
        except Exception as error:
            kind, reason = reason_of(error, job.model)
            done(job, HyperFusionError(reason, code=kind))
        else:
            done(job, None)


def _elsewhere(
    comparison: Comparison,
    jobs: Sequence[Job],
    options: CompareOptions,
    on_done: Callable[[Job, HyperFusionError | None], None],
) -> None:
    """Do `jobs` in processes of their own; `on_done` is told of each once."""
    # A worker's folder is not this one.
    folder = comparison.folder.resolve()
    left: dict[MemberTask, tuple[Members, JobTask]] = {}

    def tasks() -> Iterator[JobTask | MemberTask]:
        for job in jobs:
            task = JobTask(folder, comparison.place(job).resolve(), job, options.device)
            several = comparison.config(job).training.members > 1
            trained = (task.place / "metrics.json").exists()
            yield replace(task, do=begin) if several and not trained else task

    def done(
        task: JobTask | MemberTask, error: HyperFusionError | None
    ) -> Sequence[JobTask | MemberTask]:
        if isinstance(task, MemberTask):
            members, whole = left.pop(task)
            if not members.done(task, error):
                return []
            if not members.failures:
                return [replace(whole, do=end)]
            on_done(whole.job, failure_of(members.failures))
        elif task.do is begin and error is None:
            run = Run(task.place, comparison.config(task.job))
            members = Members(run, TrainOptions(device=options.device))
            left.update((one, (members, task)) for one in members.tasks)
            return members.tasks
        else:
            on_done(task.job, error)
        return []

    run_elsewhere(tasks(), options, done)

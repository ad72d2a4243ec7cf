"""Where the trainings of a comparison run: in this process, in several, or on a Ray cluster.

With several, each training has a process of its own: one that dies takes none of the others along.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hyperfusion_rt.compare.job import work
from hyperfusion_rt.compare.options import CompareOptions
from hyperfusion_rt.compare.plan import Comparison, Job
from hyperfusion_rt.errors import HyperFusionError, reason_of
from hyperfusion_rt.machine import usable_cores
from hyperfusion_rt.training.executor import run_elsewhere
from hyperfusion_rt.training.train import Callbacks

# Told what became of a training: "" if it is done, else why not.
OnJob = Callable[[Job, str], None]


@dataclass(frozen=True)
class JobTask:
    """A training of the comparison in `folder`; `place`: its run folder."""

    folder: Path
    place: Path
    job: Job
    device: str | None

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.job.model

    @property
    def log(self) -> Path:
        """Beside the run folder."""
        return self.place.with_name(f"{self.place.name}.log")

    def run(self) -> None:
        """As `work`."""
        work(self.folder, self.job, self.device)


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
    # Of the plan as it was when they began: a worker's folder is not this one.
    folder = comparison.folder.resolve()

    def done(job: Job, code: str = "", reason: str = "") -> None:
        if reason:
            comparison.fail(job, code, reason)
        on_job(job, reason)

    def task_done(task: JobTask, error: HyperFusionError | None) -> None:
        done(task.job, *((error.code, str(error)) if error is not None else ()))

    if options.elsewhere:
        places = {job: comparison.place(job).resolve() for job in jobs}
        tasks = [JobTask(folder, places[job], job, options.device) for job in jobs]
        run_elsewhere(tasks, options, task_done)
        return
    import torch

    torch.set_num_threads(options.threads or usable_cores())
    for job in jobs:
        try:
            work(folder, job, options.device, callbacks)
        except Exception as error:
            done(job, *reason_of(error, job.model))
        else:
            done(job)

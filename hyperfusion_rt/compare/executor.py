"""Where the trainings of a comparison run: in this process, in several, or on a Ray cluster.

With several, each training has a process of its own: one that dies takes none of the others along.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, cast

from hyperfusion_rt.compare.job import work
from hyperfusion_rt.compare.options import CompareOptions
from hyperfusion_rt.compare.plan import Comparison, Job
from hyperfusion_rt.errors import HyperFusionError, MissingExtraError
from hyperfusion_rt.machine import usable_cores
from hyperfusion_rt.training.train import Callbacks

# Told what became of a training: "" if it is done, else why not.
OnJob = Callable[[Job, str], None]


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
    if options.executor == "ray":
        _on_ray(comparison, folder, jobs, options, on_job)
    elif (options.jobs or 1) == 1:
        import torch

        torch.set_num_threads(options.threads or usable_cores())
        for job in jobs:
            on_job(job, work(folder, job, options.device, callbacks))
    else:
        _in_processes(comparison, folder, jobs, options, on_job)


def _threads(options: CompareOptions) -> int:
    return options.threads or max(1, usable_cores() // (options.jobs or 1))


def _in_processes(
    comparison: Comparison,
    folder: Path,
    jobs: Sequence[Job],
    options: CompareOptions,
    on_job: OnJob,
) -> None:
    context = multiprocessing.get_context("spawn")
    waiting = list(jobs)
    running: dict[int, tuple[Any, Job]] = {}  # by sentinel
    try:
        while waiting or running:
            while waiting and len(running) < (options.jobs or 1):
                job = waiting.pop(0)
                given = (str(folder), job, options.device, _threads(options))
                process = context.Process(target=_process, args=given, daemon=True)
                process.start()
                running[process.sentinel] = process, job
            for sentinel in wait(list(running)):
                process, job = running.pop(cast(int, sentinel))
                process.join()
                on_job(job, _ending(comparison, job, process.exitcode))
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()


def _ending(comparison: Comparison, job: Job, status: int) -> str:
    """What became of a training whose process has ended."""
    failure = comparison.failure(job)
    if failure is not None:
        return failure[1]
    if status == 0 and comparison.done(job):
        return ""
    how = f"signal {-status}" if status < 0 else f"status {status}"
    log = _log(comparison.place(job))
    reason = f"{job.model}: its process ended with {how}, without a word; was there too little "
    comparison.fail(job, "training-process-died", f"{reason}memory? See {log}")
    return f"{reason}memory? See {log}"


def _log(place: Path) -> Path:
    return place.with_name(f"{place.name}.log")


def _process(folder: str, job: Job, device: str | None, threads: int) -> None:
    """What a process of its own does."""
    place = Comparison.open(Path(folder)).place(job)
    _log(place).parent.mkdir(parents=True, exist_ok=True)
    with open(_log(place), "w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            _limited(folder, job, device, threads)
        except KeyboardInterrupt:
            sys.exit(130)
        except HyperFusionError as error:  # of the machine, not of the job
            Comparison.open(Path(folder)).fail(job, error.code, str(error))
            sys.exit(1)
    if not _log(place).stat().st_size:
        _log(place).unlink()


def _limited(folder: str, job: Job, device: str | None, threads: int) -> str:
    """`work` on so many threads."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        return work(Path(folder), job, device)


def _on_ray(
    comparison: Comparison,
    folder: Path,
    jobs: Sequence[Job],
    options: CompareOptions,
    on_job: OnJob,
) -> None:
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "ray", "`executor` ray") from None
    from hyperfusion_rt.runtime.cohort.ray_executor import connect

    connect(options.address)
    cores = int(ray.cluster_resources().get("CPU", 1))
    threads = min(_threads(options), cores)
    gpus = 1 if (options.device or "").startswith("cuda") else 0
    remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=1)(_limited)
    waiting = list(jobs)
    running: dict[Any, Job] = {}
    most = options.jobs or len(waiting)
    while waiting or running:
        while waiting and len(running) < most:
            job = waiting.pop(0)
            running[remote.remote(str(folder), job, options.device, threads)] = job
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            job = running.pop(reference)
            try:
                reason = ray.get(reference)
            except (HyperFusionError, ray.exceptions.RayError) as error:
                reason = f"{job.model}: Ray: {str(error).splitlines()[0]}"
                comparison.fail(job, "ray-failed", reason)
            on_job(job, reason)

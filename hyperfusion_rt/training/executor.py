"""Trainings in processes of their own, on this machine or on a Ray cluster.

A task whose process or worker dies is done once more: it goes on after its checkpoint. What a task
writes to its standard output and error, and how its process died, is in its log.
"""

from __future__ import annotations

import faulthandler
import math
import multiprocessing
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

from hyperfusion_rt.cluster import connect
from hyperfusion_rt.errors import HyperFusionError, reason_of
from hyperfusion_rt.machine import usable_cores
from hyperfusion_rt.training.child import end_with_parent, ending, logged, on_threads
from hyperfusion_rt.training.options import WhereOptions

_TRIES = 2  # of a task whose process dies
_PAUSE = 1.0  # seconds between two looks at how far tasks are


class Task(Protocol):
    """A training that any process can do. It can be pickled, and is done twice like once."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def log(self) -> Path:
        """The file for what it writes; there only if it writes something."""

    def run(self) -> None:
        """Do it, or what is left of it.

        Raises:
            HyperFusionError: why it has no result.
        """


T = TypeVar("T", bound=Task)
# Told of each task once: what it came to. It may answer tasks that can be done now.
OnDone = Callable[[T, HyperFusionError | None], Iterable[T] | None]


def run_elsewhere(
    tasks: Iterable[T],
    options: WhereOptions,
    on_done: OnDone[T],
    on_wait: Callable[[], None] = lambda: None,
) -> None:
    """Do `tasks` in processes of their own; one that fails does not stop the others.

    Args:
        tasks: the next one is asked for when it can begin.
        on_done: what it answers goes before the next of `tasks`.
        on_wait: called every second or so.

    Raises:
        HyperFusionError: the cluster cannot be reached; or as `tasks` and `on_done` raise.
    """
    queue = _Queue(tasks, on_done)
    if options.executor == "ray":
        _on_ray(queue, options, on_wait)
    else:
        _in_processes(queue, options, on_wait)


class _Queue(Generic[T]):
    """The tasks that are left; it grows by those that follow from one that is done."""

    def __init__(self, tasks: Iterable[T], on_done: OnDone[T]) -> None:
        self._tasks: Iterator[T] = iter(tasks)
        self._on_done = on_done
        self._next: deque[T] = deque()

    def next(self) -> T | None:
        """The next that can begin; None if there is none now."""
        task = self._next.popleft() if self._next else next(self._tasks, None)
        if task is not None:
            task.log.unlink(missing_ok=True)
        return task

    def done(self, task: T, error: HyperFusionError | None) -> None:
        """Say what a task came to."""
        self._next.extend(self._on_done(task, error) or ())


def _attempt(task: Task, threads: int) -> HyperFusionError | None:
    """Do a task in this process, on so many threads; why it has no result, or None."""
    with logged(task.log):
        try:
            with on_threads(threads):
                task.run()
        except HyperFusionError as error:
            return error
        except Exception as error:
            traceback.print_exc()
            try:
                kind, reason = reason_of(error, task.name)
            except HyperFusionError as missing:
                return missing
            return HyperFusionError(f"{reason}; see {task.log}", code=kind)
    return None


def _died(task: Task, how: str, log: str) -> HyperFusionError:
    return HyperFusionError(
        f"{task.name}: its process died twice, {how}, without a word; was there too little "
        f"memory? See {log}. What is done is kept: continue with `resume`",
        code="training-process-died",
    )


# ---- processes of this machine


def _in_processes(queue: _Queue[T], options: WhereOptions, on_wait: Callable[[], None]) -> None:
    context = multiprocessing.get_context("spawn")
    jobs = options.jobs or 1
    threads = options.threads or max(1, usable_cores() // jobs)
    running: dict[Connection, tuple[Any, T, int]] = {}  # by its end of a pipe

    def start(task: T, tried: int) -> None:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_process, args=(task, threads, sender), daemon=True)
        process.start()
        sender.close()  # so that its death closes the pipe
        running[receiver] = process, task, tried + 1

    try:
        while True:
            while len(running) < jobs and (new := queue.next()) is not None:
                start(new, 0)
            if not running:
                return
            for ready in wait(list(running), _PAUSE):
                receiver = cast("Connection[Any, Any]", ready)
                process, task, tried = running.pop(receiver)
                try:
                    queue.done(task, receiver.recv())
                except EOFError:
                    process.join()
                    how = ending(process.exitcode)
                    _note(task.log, f"try {tried}: the process died {how}")
                    if tried < _TRIES:
                        start(task, tried)
                    else:
                        queue.done(task, _died(task, f"the last time {how}", str(task.log)))
                finally:
                    receiver.close()
                process.join()
            on_wait()
    finally:
        for process, _, _ in running.values():
            process.terminate()
        for process, _, _ in running.values():
            process.join()


def _process(task: Task, threads: int, sender: Connection) -> None:
    """What a process of its own does."""
    end_with_parent()
    faulthandler.enable()
    sender.send(_attempt(task, threads))


def _note(log: Path, text: str) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"{text}\n")


# ---- a Ray cluster


def _on_ray(queue: _Queue[T], options: WhereOptions, on_wait: Callable[[], None]) -> None:
    ray = connect(options.address)
    cores = [int(n["Resources"].get("CPU", 0)) for n in ray.nodes() if n["Alive"]]
    largest = max(1, *cores)
    # A task is on one machine.
    share = sum(cores) // options.jobs if options.jobs else largest
    threads = min(options.threads or max(1, share), largest)
    gpus = 1 if (options.device or "").startswith("cuda") else 0
    remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=_TRIES - 1)(_attempt)
    running: dict[Any, T] = {}
    most = options.jobs or math.inf
    try:
        while True:
            while len(running) < most and (new := queue.next()) is not None:
                running[remote.remote(new, threads)] = new
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1, timeout=_PAUSE)
            for reference in done:
                task = running.pop(reference)
                queue.done(task, _answer(ray, reference, task))
            on_wait()
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _answer(ray: Any, reference: Any, task: Task) -> HyperFusionError | None:
    """What a task on the cluster came to."""
    try:
        found: HyperFusionError | None = ray.get(reference)
    except ray.exceptions.WorkerCrashedError:
        return _died(task, "a worker of the cluster", f"{task.log}, and Ray's own")
    except ray.exceptions.RayError as error:
        reason = str(error).splitlines()[0]
        return HyperFusionError(f"{task.name}: Ray: {reason}", code="ray-failed")
    return found

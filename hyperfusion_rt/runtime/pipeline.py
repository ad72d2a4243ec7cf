"""Two stages with bounded queues between them: many threads prepare cases, one runs the engine.

    cases ─► prepare (workers) ─► ready ─► execute (one thread) ─► done ─► the caller, who writes

A queue that is full stops the stage before it, so memory does not grow with the cohort, and a slow
writer slows the rest. `Usage` says how busy each stage was: the busiest bounds the throughput.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from hyperfusion_rt.errors import ScanError

Case = TypeVar("Case")
Ready = TypeVar("Ready")
Done = TypeVar("Done")
Item = TypeVar("Item")


class Usage:
    """Seconds of work of one run, per stage and summed over the stage's threads.

    `steps` are the parts of `prepare`: read, decode, preprocess. `wall`: from start to end. Any
    thread may add; one run owns it.
    """

    def __init__(self) -> None:
        self.workers: dict[str, int] = {}
        self.busy: dict[str, float] = {}
        self.steps: dict[str, float] = {}
        self.wall = 0.0
        self._lock = threading.Lock()

    def work(self, stage: str, seconds: float) -> None:
        """Add work of a stage; what a stage only waited for is taken off again."""
        with self._lock:
            self.busy[stage] = self.busy.get(stage, 0.0) + seconds

    def step(self, name: str, seconds: float) -> None:
        """Add to a part of `prepare`."""
        with self._lock:
            self.steps[name] = self.steps.get(name, 0.0) + seconds

    def utilisation(self) -> dict[str, float]:
        """Of each stage: the part of its threads' time in which they worked, 0 to 1."""
        if not self.wall:
            return {}
        return {name: self.busy[name] / (self.wall * n) for name, n in self.workers.items()}

    def bound(self) -> str:
        """The stage that bounds the throughput: the busiest. Empty before a run."""
        found = self.utilisation()
        return max(found, key=lambda name: found[name]) if found else ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON; seconds."""
        use = self.utilisation()
        stages = {
            name: {"workers": n, "busy_seconds": self.busy[name], "utilisation": use.get(name, 0.0)}
            for name, n in self.workers.items()
        }
        steps = dict(self.steps)
        return {"wall_seconds": self.wall, "bound": self.bound(), "stages": stages, "steps": steps}


class Budget:
    """Bytes that cases in flight may hold together. `limit` None: no bound."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._used = 0
        self._changed = threading.Condition()

    def take(self, size: int, what: str) -> float:
        """Wait until `size` bytes are free; returns the seconds of waiting.

        Raises:
            ScanError: more than there will ever be.
        """
        if self.limit is None:
            return 0.0
        if size > self.limit:
            raise ScanError(
                f"{what}: needs {size / 2**20:,.0f} MiB, and `max_memory` leaves "
                f"{self.limit / 2**20:,.0f} MiB for scans; allow more",
                code="out-of-budget",
            )
        start = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self.limit is None or self._used + size <= self.limit)
            self._used += size
        return time.perf_counter() - start

    def give(self, size: int) -> None:
        """Give back what was taken."""
        with self._changed:
            self._used -= size
            self._changed.notify_all()

    def lift(self) -> None:
        """Let everybody pass who waits: the run is over."""
        with self._changed:
            self.limit = None
            self._changed.notify_all()


class _Closed(Exception):
    """The other side has gone."""


class _Queue(Generic[Item]):
    """A bounded queue that either side can close."""

    def __init__(self, size: int) -> None:
        self._items: collections.deque[Item] = collections.deque()
        self._size = size
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: Item) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._size)
            if self._closed:
                raise _Closed
            self._items.append(item)
            self._changed.notify_all()

    def get(self, most: int) -> list[Item]:
        """What is there, at most `most`; waits for one. Raises _Closed when nothing will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._items)
            if not self._items:
                raise _Closed
            found = [self._items.popleft() for _ in range(min(most, len(self._items)))]
            self._changed.notify_all()
            return found

    def close(self, *, drop: bool = False) -> None:
        """Nothing more is put; what is there can still be taken unless `drop`."""
        with self._changed:
            self._closed = True
            if drop:
                self._items.clear()
            self._changed.notify_all()


class Stream(Iterator[Done]):
    """What becomes of the cases of one run, in the order in which they are done.

    `usage` is the run's own. `close` ends the run early; so does dropping the stream.
    """

    def __init__(self, items: Generator[Done, None, None], usage: Usage) -> None:
        self._items = items
        self.usage = usage

    def __next__(self) -> Done:
        return next(self._items)

    def close(self) -> None:
        """Stop the threads and wait for them."""
        self._items.close()


def run(
    cases: Iterable[Case],
    prepare: Callable[[Case], Ready],
    execute: Callable[[Sequence[Ready]], Sequence[Done]],
    *,
    workers: int,
    batch: int = 1,
    usage: Usage | None = None,
    on_stop: Callable[[], None] = lambda: None,
) -> Stream[Done]:
    """Start when the first result is asked for, and yield what becomes of `cases`.

    `prepare` runs in `workers` threads, one case each; `execute` in one thread, with up to `batch`
    cases that are ready (it never waits for more). At most `3 workers + 2 batch` cases are in
    flight. An exception in either ends the run and is raised here. Leaving the iterator early stops
    the threads; `on_stop` is called before they are waited for, and lets go whatever `prepare` may
    wait for. `usage`: of this run and no other.
    """
    usage = usage if usage is not None else Usage()
    usage.workers = {"prepare": workers, "engine": 1, "write": 1}
    usage.busy = dict.fromkeys(usage.workers, 0.0)
    stages = _Stages(cases, prepare, execute, workers, batch, usage, on_stop)
    return Stream(stages.results(), usage)


class _Stages(Generic[Case, Ready, Done]):
    """The threads of one run and the queues between them."""

    def __init__(
        self,
        cases: Iterable[Case],
        prepare: Callable[[Case], Ready],
        execute: Callable[[Sequence[Ready]], Sequence[Done]],
        workers: int,
        batch: int,
        usage: Usage,
        on_stop: Callable[[], None],
    ) -> None:
        self.source, self.lock, self.left = iter(cases), threading.Lock(), workers
        self.prepare, self.execute, self.batch = prepare, execute, batch
        self.usage, self.on_stop = usage, on_stop
        self.ready: _Queue[Ready] = _Queue(workers + batch)
        self.done: _Queue[Done] = _Queue(workers + batch)
        self.failed: list[BaseException] = []
        named = [(f"prepare-{n}", self.prepare_all) for n in range(workers)]
        self.threads = [
            threading.Thread(target=self.guard, args=(work,), name=name, daemon=True)
            for name, work in [*named, ("engine", self.execute_all)]
        ]

    def guard(self, work: Callable[[], None]) -> None:
        """Run `work`; its error ends the run."""
        try:
            work()
        except _Closed:
            pass
        except BaseException as error:  # raised again by the caller's thread
            self.failed.append(error)
            self.stop()

    def stop(self) -> None:
        """Nothing more is taken, and nobody waits."""
        self.on_stop()
        self.ready.close(drop=True)
        self.done.close(drop=True)

    def prepare_all(self) -> None:
        """One thread's part of the first stage."""
        try:
            while True:
                with self.lock:
                    case = next(self.source, _END)
                if case is _END:
                    break
                start = time.perf_counter()
                item = self.prepare(case)  # type: ignore[arg-type]
                self.usage.work("prepare", time.perf_counter() - start)
                self.ready.put(item)
        finally:
            with self.lock:
                self.left -= 1
                if not self.left:
                    self.ready.close()

    def execute_all(self) -> None:
        """The second stage."""
        try:
            while True:
                items = self.ready.get(self.batch)
                start = time.perf_counter()
                found = self.execute(items)
                self.usage.work("engine", time.perf_counter() - start)
                for result in found:
                    self.done.put(result)
        finally:
            self.done.close()

    def results(self) -> Generator[Done, None, None]:
        """The last stage: the caller writes between two results."""
        begin = time.perf_counter()
        for thread in self.threads:
            thread.start()
        try:
            while True:
                try:
                    results = self.done.get(1)
                except _Closed:
                    break
                for result in results:
                    start = time.perf_counter()
                    yield result
                    self.usage.work("write", time.perf_counter() - start)
        finally:
            self.stop()
            for thread in self.threads:
                thread.join()
            self.usage.wall += time.perf_counter() - begin
        if self.failed:
            raise self.failed[0]


_END = object()

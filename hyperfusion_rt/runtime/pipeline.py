"""Two stages with bounded queues between them: many threads prepare cases, one runs the engine.

    cases ─► prepare (workers) ─► ready ─► execute (one thread) ─► done ─► the caller, who writes

A queue that is full stops the stage before it, so memory does not grow with the cohort, and a slow
writer slows the rest. `Usage` says how busy each stage was: the busiest bounds the throughput.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from hyperfusion_rt.errors import ScanError

Case = TypeVar("Case")
Ready = TypeVar("Ready")
Done = TypeVar("Done")
Item = TypeVar("Item")


@dataclass
class Usage:
    """Seconds of work per stage, summed over the stage's threads; `wall`: from start to end.

    `steps` are the parts of `prepare`: read, decode, preprocess (seconds).
    """

    workers: dict[str, int] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)
    wall: float = 0.0

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
                f"{what}: needs {size / 2**20:,.0f} MiB, and --max-memory leaves "
                f"{self.limit / 2**20:,.0f} MiB for scans; allow more"
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


def run(
    cases: Iterable[Case],
    prepare: Callable[[Case], Ready],
    execute: Callable[[Sequence[Ready]], Sequence[Done]],
    *,
    workers: int,
    batch: int = 1,
    usage: Usage | None = None,
    on_stop: Callable[[], None] = lambda: None,
) -> Iterator[Done]:
    """Yield what becomes of `cases`, in the order in which they are done.

    `prepare` runs in `workers` threads, one case each; `execute` in one thread, with up to `batch`
    cases that are ready (it never waits for more). At most `3 workers + 2 batch` cases are in
    flight. An exception in either ends the run and is raised here. Leaving the iterator early stops
    the threads; `on_stop` is called before they are waited for, and lets go whatever `prepare` may
    wait for.
    """
    usage = usage if usage is not None else Usage()
    usage.workers = {"prepare": workers, "engine": 1, "write": 1}
    usage.busy = dict.fromkeys(usage.workers, 0.0)
    ready: _Queue[Ready] = _Queue(workers + batch)
    done: _Queue[Done] = _Queue(workers + batch)
    source = iter(cases)
    lock = threading.Lock()
    failed: list[BaseException] = []
    left = workers

    def guard(work: Callable[[], None]) -> None:
        try:
            work()
        except _Closed:
            pass
        except BaseException as error:  # raised again by the caller's thread
            failed.append(error)
            on_stop()
            ready.close(drop=True)
            done.close(drop=True)

    def prepare_all() -> None:
        nonlocal left
        busy = 0.0
        try:
            while True:
                with lock:
                    case = next(source, _END)
                if case is _END:
                    break
                start = time.perf_counter()
                item = prepare(case)  # type: ignore[arg-type]
                busy += time.perf_counter() - start
                ready.put(item)
        finally:
            with lock:
                usage.busy["prepare"] += busy
                left -= 1
                if not left:
                    ready.close()

    def execute_all() -> None:
        try:
            while True:
                items = ready.get(batch)
                start = time.perf_counter()
                found = execute(items)
                usage.busy["engine"] += time.perf_counter() - start
                for result in found:
                    done.put(result)
        finally:
            done.close()

    threads = [
        threading.Thread(target=guard, args=(prepare_all,), name=f"prepare-{n}", daemon=True)
        for n in range(workers)
    ]
    threads.append(threading.Thread(target=guard, args=(execute_all,), name="engine", daemon=True))
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    try:
        while True:
            try:
                results = done.get(1)
            except _Closed:
                break
            for result in results:
                start = time.perf_counter()
                yield result
                usage.busy["write"] += time.perf_counter() - start
    finally:
        on_stop()
        ready.close(drop=True)
        done.close(drop=True)
        for thread in threads:
            thread.join()
        usage.wall += time.perf_counter() - begin
    if failed:
        raise failed[0]


_END = object()

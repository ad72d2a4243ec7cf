"""What a process that trains for another one has to do: end with it, and say what it has to say."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path


def end_with_parent() -> None:
    """From now on this process ends as soon as the one that started it is gone.

    So that a run whose parent was killed can be resumed: nobody else writes there. An interrupt of
    the terminal is the parent's, which ends this one.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def on_threads(count: int) -> Iterator[None]:
    """While the block runs, this process computes on so many threads."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(count)
    with threadpool_limits(count):
        yield


@contextlib.contextmanager
def logged(log: Path) -> Iterator[None]:
    """What this process writes goes to the end of `log`, which is there only if it writes."""
    log.parent.mkdir(parents=True, exist_ok=True)
    before = os.dup(1), os.dup(2)
    with open(log, "a", encoding="utf-8") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, old in zip((1, 2), before, strict=True):
                os.dup2(old, number)
                os.close(old)
    with contextlib.suppress(OSError):
        if not log.stat().st_size:
            log.unlink()


def ending(status: int) -> str:
    """How a process ended, by its exit status: `by signal 9 (SIGKILL)`, `with status 1`."""
    if status >= 0:
        return f"with status {status}"
    try:
        return f"by signal {-status} ({signal.Signals(-status).name})"
    except ValueError:
        return f"by signal {-status}"

"""Starts the processes of a training on this machine, and ends all of them where one ends.

Each gets what `torchrun` would give it in its environment. They tell this process what happens
through a pipe each, and end when it is gone, so that none is left behind.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperfusion_rt.errors import ConfigError, HyperFusionError, reason_of
from hyperfusion_rt.machine import usable_cores
from hyperfusion_rt.training.child import end_with_parent, ending
from hyperfusion_rt.training.group import Place
from hyperfusion_rt.training.options import TrainOptions

if TYPE_CHECKING:
    from hyperfusion_rt.training.train import Callbacks

# Seconds in which the process that is to blame speaks, after another one has missed it.
_BLAME = 5.0
_END = 5.0
_SPOKE = 3  # the status of a process that has said what is wrong


@dataclass(frozen=True)
class _Process:
    place: Place
    process: Any
    pipe: Connection


def launch(
    arguments: dict[str, Any], options: TrainOptions, callbacks: Callbacks, done: Path | None
) -> Path:
    """`train(**arguments)` in the processes of this machine; the run's folder.

    `done`: the run that goes on, for messages.

    Raises:
        HyperFusionError: what one of them raises; or one has died.
    """
    processes = list(_started(arguments, options))
    told = _Told(callbacks, done)
    try:
        return _watch(processes, told)
    finally:
        _end(processes)


def _started(arguments: dict[str, Any], options: TrainOptions) -> Iterator[_Process]:
    count = options.devices or 1
    address, port = _rendezvous(options)
    context = multiprocessing.get_context("spawn")
    threads = options.threads or max(1, usable_cores() // count)
    for local in range(count):
        rank, size = options.node_rank * count + local, options.nodes * count
        place = Place(rank, size, local, count, address, port)
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_work, args=(place, threads, theirs, arguments), daemon=True
        )
        process.start()
        theirs.close()
        yield _Process(place, process, mine)


def _rendezvous(options: TrainOptions) -> tuple[str, int]:
    """Where rank 0 waits: what the user says, or a free port of this machine."""
    if options.rendezvous is not None:
        host, _, port = options.rendezvous.rpartition(":")
        return host, int(port)
    if options.nodes > 1:
        raise ConfigError(
            "`nodes` needs `rendezvous`, HOST:PORT of the first machine, the same on all of them; "
            "and `node_rank` on each. Or start the command with torchrun or srun",
            code="option-conflict",
        )
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return "127.0.0.1", found.getsockname()[1]


class _Told:
    """What the processes say, passed on to the caller."""

    def __init__(self, callbacks: Callbacks, folder: Path | None) -> None:
        self.calls, self.folder = callbacks, folder
        self.epoch: int | None = None

    def hear(self, kind: str, values: tuple[Any, ...]) -> None:
        """A message of rank 0."""
        if kind == "on_run":
            self.folder = values[0]
        if kind == "on_epoch":
            self.epoch = values[1] + 1
        call: Callable[..., None] | None = getattr(self.calls, kind, None)
        if call is not None:
            call(*values)

    @property
    def state(self) -> str:
        """What is left of the training."""
        if self.folder is None:
            return "no epoch was done"
        after = "no epoch was done" if self.epoch is None else f"epoch {self.epoch} is kept"
        return f"{after}: continue {self.folder} with `resume`"


def _watch(processes: list[_Process], told: _Told) -> Path:
    """Until all have ended well; the run's folder."""
    running = {one.process.sentinel: one for one in processes}
    pipes = {one.pipe for one in processes}
    errors: list[HyperFusionError] = []
    blame = float("inf")

    def hear(pipe: Connection) -> None:
        try:
            kind, values = pipe.recv()
        except (EOFError, OSError):
            pipes.discard(pipe)
            return
        if kind == "error":
            errors.append(values[0])
        else:
            told.hear(kind, values)

    while running:
        left = max(0.0, blame - time.monotonic()) if errors else None
        ready = wait([*running, *pipes], timeout=left)
        for item in ready:
            if isinstance(item, Connection):
                hear(item)
        for item in ready:
            if not isinstance(item, int):
                continue
            one = running.pop(item)
            one.process.join()
            while one.pipe in pipes and one.pipe.poll():  # what it said last
                hear(one.pipe)
            if one.process.exitcode not in (0, _SPOKE):
                errors.append(_died(one, told))
        # One that has lost another is not to blame, if the other still speaks.
        causes = [error for error in errors if error.code != "training-peer-lost"]
        if causes:
            raise causes[0]
        if errors and blame == float("inf"):
            blame = time.monotonic() + _BLAME
        if errors and time.monotonic() >= blame:
            raise errors[0]
    if errors:
        raise errors[0]
    assert told.folder is not None
    return told.folder


def _died(one: _Process, told: _Told) -> HyperFusionError:
    status = one.process.exitcode
    how = f"{'was killed' if status < 0 else 'ended'} {ending(status)}"
    return HyperFusionError(
        f"process {one.place.rank} of {one.place.size} (pid {one.process.pid}) {how}; was there "
        f"too little memory? All were ended. {told.state}",
        code="training-process-died",
    )


def _end(processes: list[_Process]) -> None:
    for one in processes:
        one.pipe.close()
        one.process.terminate()
    until = time.monotonic() + _END
    for one in processes:
        one.process.join(max(0.0, until - time.monotonic()))
        if one.process.is_alive():
            one.process.kill()
            one.process.join()


# ---- in a process of the training


def _work(place: Place, threads: int, pipe: Connection, arguments: dict[str, Any]) -> None:
    end_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ |= {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.size),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.local_size),
        "MASTER_ADDR": place.address,
        "MASTER_PORT": str(place.port),
    }
    import torch

    from hyperfusion_rt.training.train import Callbacks, train

    torch.set_num_threads(threads)

    def say(kind: str) -> Callable[..., None]:
        return lambda *values: pipe.send((kind, values))

    calls = Callbacks()
    if place.rank == 0:
        names = ("on_scan", "on_check", "on_epoch", "on_features", "on_run")
        calls = Callbacks(**{name: say(name) for name in names})
    try:
        train(**arguments, callbacks=calls)
    except Exception as error:
        if not isinstance(error, HyperFusionError):
            traceback.print_exc()
            kind, text = reason_of(error, f"process {place.rank}")
            error = HyperFusionError(text, code=kind)
        say("error")(error)
        os._exit(_SPOKE)  # without waiting for the others, which wait for this one

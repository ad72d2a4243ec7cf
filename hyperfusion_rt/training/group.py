"""The processes that train one network together, and what they say to each other.

They are started by `training.launch`, by `torchrun` or by SLURM's `srun`. Each has a part of every
batch. What they exchange is summed in the order of their ranks, so that all hold the same bits.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hyperfusion_rt.errors import ConfigError, HyperFusionError

# A step waits for the slowest process; decoding and the last figures may take hours.
_STEP = timedelta(minutes=30)
_LONG = timedelta(days=7)
# How a lost connection reads, of gloo, NCCL and the store.
_LOST = re.compile(r"gloo|NCCL|[Cc]onnection|[Ss]ocket|Broken pipe|recvValue|TCPStore")


@dataclass(frozen=True)
class Place:
    """Which process this is: `rank` of `size`, `local_rank` of `local_size` on its machine.

    `address`, `port`: where rank 0 waits for the others.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    address: str = "127.0.0.1"
    port: int = 0


def place_given() -> Place | None:
    """What `torchrun` or `srun` says in the environment; None: neither has started this process.

    Raises:
        ConfigError: it says something that cannot be.
    """
    given = os.environ
    try:
        if "RANK" in given and "WORLD_SIZE" in given:
            size = int(given["WORLD_SIZE"])
            return Place(
                int(given["RANK"]),
                size,
                int(given.get("LOCAL_RANK", "0")),
                int(given.get("LOCAL_WORLD_SIZE", "1")),
                given.get("MASTER_ADDR", "127.0.0.1"),
                int(given.get("MASTER_PORT", "29500")),
            )
        # Of a step that srun started; a batch script has tasks, too, but is one process.
        if int(given.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
            return Place(
                int(given["SLURM_PROCID"]),
                int(given["SLURM_STEP_NUM_TASKS"]),
                int(given["SLURM_LOCALID"]),
                _tasks_here(given.get("SLURM_STEP_TASKS_PER_NODE", "1"), given["SLURM_NODEID"]),
                given.get("MASTER_ADDR") or _first_host(given["SLURM_STEP_NODELIST"]),
                int(given.get("MASTER_PORT") or 20000 + int(given["SLURM_JOB_ID"]) % 20000),
            )
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"the environment of torchrun or SLURM is incomplete ({error}): start all processes "
            "with one launcher, or unset RANK and WORLD_SIZE and give `devices`",
            code="option-conflict",
        ) from None
    return None


def _first_host(nodes: str) -> str:
    """`node07` of `node[07-09,12],other3`."""
    found = re.match(r"([^\[,]+)(?:\[(\w+))?", nodes)
    if found is None:
        raise ValueError(f"SLURM_STEP_NODELIST {nodes!r}")
    return found[1] + (found[2] or "")


def _tasks_here(text: str, node: str) -> int:
    """Tasks of node 2 in `2(x2),1`, which is 2, 2, 1."""
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found is None:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE {text!r}")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts[min(int(node), len(counts) - 1)]


class Group:
    """`size` processes, of which this is `rank`. One alone exchanges nothing.

    Rank 0 writes the run.
    """

    def __init__(self, place: Place | None = None) -> None:
        self.place = place or Place()
        self.rank, self.size = self.place.rank, self.place.size
        self._talk: Any = None

    def __deepcopy__(self, memo: object) -> Group:
        return self  # a network that knows its group may be copied

    @property
    def alone(self) -> bool:
        """Whether there is one process."""
        return self.size == 1

    @property
    def writes(self) -> bool:
        """Whether this process writes the run."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Which of `count` samples are this process's: as many for each as can be."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    # ---- exchange; each process must call it, in the same order

    def all(self, value: Any) -> list[Any]:
        """What each process gives, in the order of ranks. It may take long until all have come."""
        if self.alone:
            return [value]
        found: list[Any] = [None] * self.size
        with losses():
            dist.all_gather_object(found, value, group=self._talk)
        return found

    def first(self, value: Any) -> Any:
        """What rank 0 gives."""
        if self.alone:
            return value
        found = [value]
        with losses():
            dist.broadcast_object_list(found, src=0, group=self._talk)
        return found[0]

    def wait(self) -> None:
        """Until all processes are here."""
        self.all(None)

    def stack(self, own: Tensor) -> Tensor:
        """`own` of each process, `[size, ...]`, on this device; for small tensors."""
        if self.alone:
            return own[None]
        found = [torch.empty_like(own) for _ in range(self.size)]
        with losses():
            dist.all_gather(found, own.contiguous())
        return torch.stack(found)

    def sum(self, own: Tensor) -> Tensor:
        """The sum of `own` over the processes, added in the order of ranks."""
        total = self.stack(own)
        return total[0] if self.alone else total.sum(0)


@contextmanager
def losses() -> Iterator[None]:
    """An exchange that fails because a process is gone says so.

    Raises:
        HyperFusionError: another process of the training has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        raise HyperFusionError(
            "another process of this training has ended, so this one ends, too; look at what that "
            "one said, and continue the run with `resume`",
            code="training-peer-lost",
        ) from error


@contextmanager
def joined(place: Place | None, device: torch.device) -> Iterator[Group]:
    """The group of `place` while the block runs; None: this process alone.

    Raises:
        ConfigError: the GPUs need NCCL, and this torch has none.
        HyperFusionError: the processes do not find each other.
    """
    group = Group(place)
    if group.alone or place is None:
        yield Group()
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if backend == "nccl" and not dist.is_nccl_available():
        raise ConfigError(
            "several GPUs need NCCL, and this torch has none: install a build of torch for CUDA, "
            "or train with `device` cpu",
            code="device-unavailable",
        )
    try:
        dist.init_process_group(
            backend,
            init_method=f"tcp://{place.address}:{place.port}",
            rank=place.rank,
            world_size=place.size,
            timeout=_STEP,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise HyperFusionError(
            f"process {place.rank} of {place.size} does not find the others at "
            f"{place.address}:{place.port}: {str(error).splitlines()[0]}",
            code="training-peer-lost",
        ) from error
    try:
        group._talk = dist.new_group(backend="gloo", timeout=_LONG)
        yield group
    finally:
        dist.destroy_process_group()

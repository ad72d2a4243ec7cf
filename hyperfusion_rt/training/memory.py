"""What a training takes of this machine's memory, known before its first epoch."""

from __future__ import annotations

import contextlib
import copy
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.machine import resident_memory

_TRIED = 2  # samples whose step is looked at: batch norm needs two
# Fitted to what trainings took, within a fifth (benchmarks/training.py). Of what a step keeps for
# its gradients: with what comes and goes beside it; what answers to 16 validation samples take.
_STEP, _ANSWERS = 2.0, 0.5 * 16
# Copies of the parameters that are kept, or are on their way to the disk: averaged, best, in a
# checkpoint; and bytes of the libraries that write boards and charts.
_KEPT, _LIBRARIES = 11, 128 << 20


def step_memory(network: nn.Module, image: Tensor, tabular: Tensor) -> float:
    """Bytes that a step keeps per sample for its gradients.

    `image [2, C, D, H, W]`, `tabular [2, T]`: any two samples. The network stays as it is.
    """
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tried = copy.deepcopy(network).train()
    own |= {p.untyped_storage().data_ptr() for p in tried.parameters()}
    devices = [image.device] if image.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        # The sum keeps the graph, and so every tensor, until all are counted.
        output = tried(image, tabular).sum()
    del output
    return sum(kept.values()) / _TRIED


def estimate(per_sample: float, samples: int, network: nn.Module, copies: int, feed: int) -> float:
    """Bytes of the whole process, from what it occupies now.

    Without the cache of decoded scans, which is mapped: the system takes back what it needs of it.

    Args:
        per_sample: as `step_memory`.
        samples: of a step's part in this process.
        copies: of the parameters that are still to come: gradients, the optimiser's moments.
        feed: bytes of the samples made ahead.
    """
    parameters = sum(p.numel() * p.element_size() for p in network.parameters())
    volumes = (_STEP * samples + _ANSWERS) * per_sample
    return resident_memory() + volumes + (copies + _KEPT) * parameters + feed + _LIBRARIES


def peak_memory() -> int:
    """The most bytes that this process has occupied so far."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        # What getrusage says is the parent's, too, where that was larger.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


def check_budget(
    needed: Callable[[int], float], most: int, batch: int, parts: int, processes: int
) -> None:
    """Refuse a training that needs more than `most` bytes.

    `needed(parts)`: bytes where a step of `batch` samples is split into so many parts.

    Raises:
        HyperFusionError: it does; says what would fit.
    """
    if needed(parts) <= most:
        return
    text = (
        f"`max_memory` {most / 2**20:,.0f} MiB: a step of {batch} samples"
        + (f" in {processes} processes" if processes > 1 else "")
        + f" needs about {needed(parts) / 2**20:,.0f} MiB in a process"
    )
    fits = next((k for k in range(parts + 1, batch // 2 + 1) if needed(k) <= most), None)
    if fits is None:
        raise HyperFusionError(
            f"{text}, and two samples at a time {needed(batch // 2) / 2**20:,.0f} MiB: give it "
            "more, or use a smaller network, or coarser boxes (preprocessing.spacing)",
            code="out-of-budget",
        )
    raise HyperFusionError(
        f"{text}: set training.accumulate to {fits}, which needs {needed(fits) / 2**20:,.0f} MiB "
        "(batch norm then sees a part of the samples at a time), or lower training.batch_size",
        code="out-of-budget",
    )

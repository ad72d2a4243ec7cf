"""Which tensors the native kernels of training take, and how they see them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperfusion_rt import _native

LAYOUT = torch.channels_last_3d


def eager(x: Tensor, others: Iterable[Tensor | None]) -> bool:
    """Whether the native kernels run: eager, float32, on the CPU; x `[B, C, D, H, W]` as LAYOUT."""
    return (
        plain_float32(x)
        and x.is_contiguous(memory_format=LAYOUT)
        and x.numel() > 0
        and all(plain_float32(t) for t in others if t is not None)
        and native_here()
    )


def native_here() -> bool:
    """Whether operations run one by one as they are called, and there are kernels for this CPU."""
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and _threads_shared()
    )


def plain_float32(t: Tensor) -> bool:
    """Whether a tensor is float32 on the CPU, and nothing but a tensor."""
    kinds = (Tensor, torch.nn.Parameter)
    return type(t) in kinds and t.device.type == "cpu" and t.dtype == torch.float32


@cache
def _threads_shared() -> bool:
    """Have the kernels run on PyTorch's own threads; whether there are kernels for this machine."""
    try:
        found = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (OSError, AttributeError):
        pass  # not built with GNU's OpenMP: threads of their own
    else:
        _native.set_team(ctypes.cast(found, ctypes.c_void_p).value or 0)
    return bool(_native.available_isas())


def scans(x: Tensor) -> NDArray[np.float32]:
    """As the kernels see it: `[B, D, H, W, C]`, the same memory."""
    found: NDArray[np.float32] = x.movedim(1, -1).numpy()
    return found

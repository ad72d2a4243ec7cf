"""The choice of a backend, for all ops and only here. Triton is not imported until it is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor

whole = False  # see `whole_ops`

# Devices whose tensors Triton kernels take; tests with Triton's interpreter add the CPU.
TRITON_DEVICES = {"cuda"}
_TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

HAS_TRITON = find_spec("triton") is not None


def on_triton(x: Tensor) -> bool:
    """Whether an op on `x` runs Triton kernels."""
    return x.device.type in TRITON_DEVICES and x.dtype in _TRITON_DTYPES and HAS_TRITON


def inferring(tensors: Sequence[Tensor | None]) -> bool:
    """Whether an op on these tensors may run in the native engine: eagerly, without gradients.

    A compiler or an exporter gets the composition, of which it sees every part.
    """
    return (
        not torch.compiler.is_compiling()
        and not (
            torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        )
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and "cpu" not in TRITON_DEVICES
    )


@contextmanager
def whole_ops() -> Iterator[None]:
    """While it is on, each op with generated weights is traced as one node: `hfrt::hyper_conv3d`,
    `hfrt::hyper_conv_transpose3d`, `hfrt::hyper_linear`.

    For graphs that will be folded, without gradients. It holds for the whole process: the compiler
    cannot trace a context variable.
    """
    global whole
    whole = True
    try:
        yield
    finally:
        whole = False


def autocast(x: Tensor) -> Tensor:
    """`x` in the dtype of autocast, where that is on."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def layout(x: Tensor) -> torch.memory_format:
    """Of what a convolution of `x` makes."""
    return torch.channels_last_3d if on_triton(x) else torch.contiguous_format

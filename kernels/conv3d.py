"""`conv3d`: a convolution in training whose weight gradient has a native kernel.

Where a convolution has few channels, oneDNN's gradient of the weights takes three times as long as
its forward pass; ours half of that (`kernels/cpu/isa/filter_gradient.hpp`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hyperfusion_rt import _native
from hyperfusion_rt.kernels.cpu.plain import LAYOUT, eager, scans

# Above, oneDNN's own is as fast.
_MOST = 2048  # Cin * Cout


def conv3d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    """`torch.nn.functional.conv3d(x, weight, bias, stride, padding=1)`, 3x3x3; see there.

    `x [B, Cin, D, H, W]`, `weight [Cout, Cin, 3, 3, 3]`, `bias [Cout]` or None. On the CPU, float32
    in channels_last_3d with at most 2048 pairs of channels takes the native kernel for the
    gradients of weight and bias: differentiable once, the same bits for every count of threads.
    """
    if _native_takes(x, weight, bias):
        y: Tensor = _Conv3d.apply(x, weight, bias, stride)  # type: ignore[no-untyped-call]
        return y
    return functional.conv3d(x, weight, bias, stride, 1)


def _native_takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        weight.requires_grad
        and weight.shape[2:] == (3, 3, 3)
        and weight.shape[0] * weight.shape[1] <= _MOST
        and eager(x, (weight, bias))
    )


class _Conv3d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.biased = stride, bias is not None
        return functional.conv3d(x, weight, bias, stride, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, dy = ctx.stride, dy.contiguous(memory_format=LAYOUT)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = torch.ops.aten.convolution_backward(
                dy, x, weight, None, [stride] * 3, [1] * 3, [1] * 3, False, [0] * 3, 1,
                [True, False, False],
            )[0]  # fmt: skip
        cout, cin = weight.shape[:2]
        made, dbias = x.new_empty(cout, 3, 3, 3, cin), x.new_empty(cout)
        _native.filter_gradient(
            scans(x), scans(dy), stride, made.numpy(), dbias.numpy(), torch.get_num_threads()
        )
        return dx, made.movedim(-1, 1), dbias if ctx.biased else None, None

"""`norm_relu`: batch norm in training with what follows it, in two passes forward and two back.

Statistics first, then one pass that applies them; backward, too, sums come first. Between the two,
several processes can add up their sums: synchronised batch norm.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import batch_norm, max_pool3d

from hyperfusion_rt import _native
from hyperfusion_rt.kernels.cpu.plain import LAYOUT, eager, scans
from hyperfusion_rt.kernels.weights import check_devices

_PERIOD = 32  # vectors of 16 numbers after which the channels repeat: kNormPeriod of training.hpp

# Sums [K, C] float64 of this process → those over all processes.
Merge = Callable[[Tensor], Tensor]


class _Options(NamedTuple):
    momentum: float
    eps: float
    relu: bool
    pool: bool
    merge: Merge | None
    counts: bool


def norm_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    momentum: float,
    eps: float = 1e-5,
    factor: Tensor | None = None,
    relu: bool = True,
    pool: bool = False,
    merge: Merge | None = None,
    counts: bool = True,
) -> Tensor:
    """`factor · pool(relu(weight · (x - mean) / √(variance + eps) + bias))`, with x's statistics.

    `x [B, C, D, H, W]`; `weight`, `bias`, `running_mean`, `running_var [C]`; `factor [B, C]`, not
    negative (dropout of channels) → `[B, C, D, H, W]`. The running statistics move by `momentum`,
    as in PyTorch. `pool`: 2x2x2 max-pooling, an odd voxel at the end is left out. Differentiable,
    once, in x, weight and bias.

    `merge`: adds up, over processes, sums `[3, C]` float64 in the forward pass (count, sum and sum
    of squares) and `[2, C]` in the backward pass (gradients of bias and weight); both passes call
    it in every process. The gradients of weight and bias are this process's part. `counts`: whether
    x is part of the statistics; if not, its gradients are 0.

    On the CPU, float32 in channels_last_3d runs native kernels (`kernels/cpu/isa/norm.hpp`), which
    keep that layout: numbers do not depend on the count of threads.

    Raises:
        ValueError: shapes that do not fit together; without `merge`, one number per channel.
    """
    op = "norm_relu"
    check_devices(op, x, weight=weight, bias=bias, factor=factor)
    if x.dim() != 5:
        raise ValueError(f"{op}: x needs 5 dimensions, not {tuple(x.shape)}")
    of_channels = {
        "weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var
    }  # fmt: skip
    for name, tensor in of_channels.items():
        if tensor.shape != x.shape[1:2]:
            raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}, x {tuple(x.shape)}")
    if factor is not None and factor.shape != x.shape[:2]:
        raise ValueError(f"{op}: factor has shape {tuple(factor.shape)}, x {tuple(x.shape)}")
    options = _Options(momentum, eps, relu, pool, merge, counts)
    if merge is not None and x.device.type == "cpu":
        # All processes must go one way, and a single sample may lie as if it were contiguous.
        x = x.contiguous(memory_format=LAYOUT)
    tensors = (x, weight, bias, running_mean, running_var, factor)
    if _native_takes(tensors, options):
        y: Tensor = _NormRelu.apply(*tensors, options)  # type: ignore[no-untyped-call]
        return y
    return _composed(x, weight, bias, running_mean, running_var, factor, options)


def _native_takes(tensors: tuple[Tensor | None, ...], options: _Options) -> bool:
    """Whether the native kernels run: eagerly, on plain tensors."""
    x = tensors[0]
    assert x is not None
    return (
        eager(x, tensors[1:])
        and all(t.is_contiguous() for t in tensors[1:] if t is not None)
        and x.shape[1] // gcd(x.shape[1], 16) <= _PERIOD
        # PyTorch says what is wrong with these.
        and (options.merge is not None or x.numel() > x.shape[1])
        and (not options.pool or min(x.shape[2:]) > 1)
    )


class _NormRelu(torch.autograd.Function):
    """The native kernels."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        factor: Tensor | None,
        options: _Options,
    ) -> Tensor:
        threads, channels = torch.get_num_threads(), x.shape[1]
        sums = torch.zeros(3, channels, dtype=torch.float64)
        if options.counts:
            _native.norm_sums(scans(x), sums.numpy(), threads)
        if options.merge is not None:
            sums = options.merge(sums).contiguous()
        statistics = x.new_empty(3, channels)
        _native.norm_statistics(
            sums.numpy(), weight.numpy(), options.eps, options.momentum,
            running_mean.numpy(), running_var.numpy(), statistics.numpy(),
        )  # fmt: skip
        size = (n // 2 if options.pool else n for n in x.shape[2:])
        y = torch.empty(*x.shape[:2], *size, memory_format=LAYOUT)
        _native.norm(*_arguments(x, statistics, bias, factor, options), scans(y), threads)
        ctx.save_for_backward(x, bias, factor, statistics, sums)
        ctx.options = options
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, bias, factor, statistics, forward = ctx.saved_tensors
        options: _Options = ctx.options
        threads, given = torch.get_num_threads(), scans(dy.contiguous(memory_format=LAYOUT))
        arguments = _arguments(x, statistics, bias, factor, options)
        own = torch.zeros(2, x.shape[1], dtype=torch.float64)
        if options.counts:
            _native.norm_gradient_sums(*arguments, given, own.numpy(), threads)
        # `merge` may add up in place.
        sums = own if options.merge is None else options.merge(own.clone()).contiguous()
        dx = None
        if not options.counts:
            dx = torch.zeros_like(x)
        elif ctx.needs_input_grad[0]:
            dx = torch.empty_like(x, memory_format=LAYOUT)
            _native.norm_gradient(
                *arguments, given, sums.numpy(), forward.numpy(), scans(dx), threads
            )
        dbias, dweight = own.float()
        return dx, dweight, dbias, None, None, None, None


# What the kernels begin with: x, statistics, bias, factor, relu, pool.
_Arguments = tuple[
    NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None,
    bool, bool,
]  # fmt: skip


def _arguments(
    x: Tensor, statistics: Tensor, bias: Tensor, factor: Tensor | None, options: _Options
) -> _Arguments:
    factors = None if factor is None else factor.numpy()
    return scans(x), statistics.numpy(), bias.numpy(), factors, options.relu, options.pool


class _Merged(torch.autograd.Function):
    """A sum over processes, whose gradient is one, too."""

    @staticmethod
    def forward(ctx: Any, sums: Tensor, merge: Merge) -> Tensor:
        ctx.merge = merge
        return merge(sums.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.merge(gradient.clone()), None


class _Unheard(torch.autograd.Function):
    """What it is given, whose gradient is 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient)


def _composed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    factor: Tensor | None,
    options: _Options,
) -> Tensor:
    """In plain PyTorch."""
    momentum, eps, relu, pool, merge, counts = options
    if merge is None and counts:
        y = batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps)
    else:
        across = (0, 2, 3, 4)
        wide = x.double()
        size = torch.full_like(weight, x.numel() / x.shape[1], dtype=torch.float64)
        sums = torch.stack([size, wide.sum(across), wide.square().sum(across)]) * counts
        if merge is not None:
            sums = _Merged.apply(sums, merge)  # type: ignore[no-untyped-call]
        n, mean = sums[0], sums[1] / sums[0]
        variance = (sums[2] / n - mean.square()).clamp(min=0)
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * n / (n - 1)).to(running_var.dtype), momentum)
        mean, scale = mean[:, None, None, None], (variance + eps).rsqrt()[:, None, None, None]
        y = ((wide - mean) * scale).to(x.dtype)
        y = y * weight[:, None, None, None] + bias[:, None, None, None]
        if not counts:
            y = _Unheard.apply(y)  # type: ignore[no-untyped-call]
    if relu:
        y = y.relu()
    if pool:
        y = max_pool3d(y, 2)
    return y if factor is None else y * factor[:, :, None, None, None]

"""Layers that see a whole batch, though each process has only a part of its samples.

Batch norm takes its statistics over the samples of all processes; dropout draws for all of them,
from the same random numbers in each process, and keeps its own. So the number of processes changes
nothing but rounding. It holds for modules (`nn.BatchNorm1d`, `nn.Dropout3d`, ...); a network of a
study's own that calls the functions instead gets what each process makes of its own samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from hyperfusion_rt.training.group import Group


@dataclass
class Share:
    """Which samples of a step this process has: `part` of `total`.

    `counts`: whether it has any; without, it runs a sample that weighs nothing, as the others wait
    for it in every layer.
    """

    group: Group
    total: int = 0
    part: slice = field(default_factory=lambda: slice(0, 0))
    counts: bool = True

    def __deepcopy__(self, memo: object) -> Share:
        return self  # of a step, whatever network is copied

    def of(self, count: int) -> slice:
        """From now on a batch of `count`; which of it to run."""
        part = self.group.part(count)
        self.total, self.counts = count, part.stop > part.start
        self.part = part if self.counts else slice(0, 1)
        return self.part

    def sums(self, own: Tensor) -> Tensor:
        """The sum of `own` over all samples."""
        return self.group.sum(own if self.counts else torch.zeros_like(own))


def share_layers(network: nn.Module, share: Share, *, norms: bool) -> None:
    """Let dropouts and, where `norms`, batch norms of `network` see the whole batch; in place."""
    for module in network.modules():
        if norms and isinstance(module, _BatchNorm):
            module.__class__ = _shared(type(module), _SharedBatchNorm)
            module.share = share  # type: ignore[assignment]
        elif isinstance(module, _DropoutNd):
            module.__class__ = _shared(type(module), _SharedDropout)
            module.share = share  # type: ignore[assignment]


_made: dict[tuple[type, type], type] = {}


def _shared(kind: type, way: type) -> type:
    """A subclass of the module's own class: what it is, it stays."""
    if issubclass(kind, way):
        return kind
    return _made.setdefault(
        (kind, way), type(kind.__name__, (way, kind), {"__module__": kind.__module__})
    )


class _SharedBatchNorm(nn.Module):
    share: Share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            made: Tensor = super().forward(x)
            return made
        return _Normalise.apply(x, self.weight, self.bias, self)  # type: ignore[no-untyped-call, no-any-return]


class _Normalise(torch.autograd.Function):
    """`weight · (x - mean) / sqrt(var + eps) + bias`, mean and var over all processes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Any
    ) -> Tensor:
        share: Share = norm.share
        axes = [0, *range(2, x.dim())]
        variance, mean = torch.var_mean(_wide(x), axes, correction=0)
        n = x.numel() // x.shape[1]
        if n // len(x) * share.total < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got {x.shape}")
        local, spread = mean.double(), variance.double()
        own = torch.stack([torch.full_like(local, n), n * local, n * (spread + local**2)])
        count, total, squares = share.sums(own)
        whole = total / count
        spread = (squares / count - whole**2).clamp(min=0)
        scale = (spread + norm.eps).rsqrt().to(mean.dtype)
        mean = whole.to(mean.dtype)
        update_statistics(norm, whole, spread * count / (count - 1))
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.share, ctx.count = share, count[0].to(mean.dtype)
        y = (_wide(x) - _of(mean, x)) * _of(scale, x)
        if weight is not None:
            y = y * _of(weight, x)
        if bias is not None:
            y = y + _of(bias, x)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        axes = [0, *range(2, x.dim())]
        known = (_wide(x) - _of(mean, x)) * _of(scale, x)
        gradient = _wide(dy)
        own = torch.stack([gradient.sum(axes), (gradient * known).sum(axes)])
        whole = (ctx.share.sums(own.double()) / ctx.count).to(own.dtype)
        dx = gradient - _of(whole[0], x) - known * _of(whole[1], x)
        dx = dx * _of(scale if weight is None else scale * weight, x)
        if not ctx.share.counts:
            dx = torch.zeros_like(dx)
        return (
            dx.to(x.dtype),
            None if weight is None else own[1].to(weight.dtype),
            None if weight is None else own[0].to(weight.dtype),
            None,
        )


def update_statistics(norm: Any, mean: Tensor, variance: Tensor) -> None:
    """The running statistics, as torch's batch norm keeps them; `variance`: the unbiased one."""
    if not norm.track_running_stats:
        return
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        weight = norm.momentum
        if weight is None:
            weight = 1 / float(norm.num_batches_tracked)
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), weight)
        norm.running_var.lerp_(variance.to(norm.running_var.dtype), weight)


def _wide(x: Tensor) -> Tensor:
    """Float32 at least."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _of(values: Tensor, x: Tensor) -> Tensor:
    """`[C]` against `[B, C, ...]`."""
    return values.view(-1, *[1] * (x.dim() - 2))


class _SharedDropout(nn.Module):
    share: Share
    p: float

    def forward(self, x: Tensor) -> Tensor:
        share = self.share
        if not self.training or self.p == 0:
            return x
        # Whole channels, where the module's name has a number of dimensions.
        each = x.shape[1:] if isinstance(self, nn.Dropout) else (x.shape[1], *[1] * (x.dim() - 2))
        if self.p == 1:
            return x * 0
        drawn = torch.empty((share.total, *each), dtype=x.dtype, device=x.device)
        drawn.bernoulli_(1 - self.p).div_(1 - self.p)
        return x * drawn[share.part]

"""Batch norm with what follows it, as one operation where a network trains."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from hyperfusion_rt.kernels import norm_relu as op


class Share(Protocol):
    """What a norm has as `share` where several processes share its statistics."""

    counts: bool  # whether this process's samples are part of them

    def sums(self, own: Tensor) -> Tensor:
        """The sum of `own` over all processes, each of which must call this."""


def norm_relu(
    norm: nn.Module,
    x: Tensor,
    *,
    relu: bool = True,
    pool: nn.MaxPool3d | None = None,
    drop: nn.Dropout3d | None = None,
) -> Tensor:
    """`drop(pool(relu(norm(x))))`; `x [B, C, D, H, W]`, `pool` of 2x2x2 voxels.

    One operation where `norm` is a batch norm in training on a CPU; else the modules one by one.
    """
    if (
        not isinstance(norm, nn.BatchNorm3d)
        or not norm.training
        or x.device.type != "cpu"
        or norm.momentum is None
        or norm.num_batches_tracked is None
    ):
        y: Tensor = norm(x)
        y = y.relu() if relu else y
        y = y if pool is None else pool(y)
        return y if drop is None else drop(y)
    factor = None
    if drop is not None and drop.training and drop.p > 0:
        # Of the noise's own shape: the same random numbers as dropping y itself.
        factor = drop(torch.ones_like(x[:, :, :1, :1, :1])).flatten(1)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.num_batches_tracked.add_(1)
    share: Share | None = getattr(norm, "share", None)
    merge, counts = (None, True) if share is None else (share.sums, share.counts)
    return op(
        x, norm.weight, norm.bias, norm.running_mean, norm.running_var, momentum=norm.momentum,
        eps=norm.eps, factor=factor, relu=relu, pool=pool is not None, merge=merge, counts=counts,
    )  # fmt: skip

"""`conv3d_block`: a convolution of a folded trunk with what follows it, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv3d, max_pool3d

from hyperfusion_rt.kernels import backend
from hyperfusion_rt.kernels.epilogue import Epilogue, apply, check_epilogue
from hyperfusion_rt.kernels.geometry import Geometry, Triple, three, triple
from hyperfusion_rt.kernels.weights import check_devices, join_samples


def conv3d_block(
    x: Tensor,
    weight: Tensor,
    stride: int | Triple = 1,
    padding: int | Triple = 0,
    dilation: int | Triple = 1,
    groups: int = 1,
    epilogue: Epilogue | None = None,
    pool: bool = False,
) -> Tensor:
    """`pool(act(scale · conv3d(x, weight) + shift + residual))` for inference: no gradients.

    Members of an ensemble, or hemispheres, are `groups`: their channels stand side by side, their
    weights one after the other, and one launch computes all.

    `x [B, groups · Cin, D, H, W]`, or `[B, Cin, D, H, W]` that all groups read (the members' common
    scan); `weight [groups · Cout, Cin, kD, kH, kW]` → `[B, groups · Cout, D', H', W']`. A folded
    bias is the epilogue's `shift`. `pool`: 2x2x2 max-pooling, an odd voxel at the end is left out;
    the residual has the size before it. On CUDA x may be float32, float16 or bfloat16; weights are
    cast to it, sums are float32; under autocast x is cast.

    Raises:
        ValueError: shapes that do not fit together.
    """
    op = "conv3d_block"
    after = epilogue or Epilogue()
    check_devices(op, x, weight=weight, **after.tensors)
    if x.dim() != 5 or weight.dim() != 5:
        raise ValueError(
            f"{op}: x and weight need 5 dimensions, not {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    cin = weight.shape[1]
    if x.shape[1] not in (cin, cin * groups):
        raise ValueError(
            f"{op}: weight reads {cin} channels in each of {groups} groups, but x has {x.shape[1]}"
        )
    if weight.shape[0] % groups:
        raise ValueError(f"{op}: {groups} groups cannot share {weight.shape[0]} channels")
    geometry = Geometry.of(
        weight.shape[2:],
        three(stride, "stride", 1),
        three(padding, "padding", 0),
        three(dilation, "dilation", 1),
        groups,
    )
    size = geometry.out(triple(x.shape[2:]))
    check_epilogue(op, after, (x.shape[0], weight.shape[0], *size))
    if min(size) < 1 + pool:
        raise ValueError(f"{op}: x of {tuple(x.shape[2:])} voxels is too small: y has {size}")
    if backend.on_triton(x):
        x = backend.autocast(x)
    if after.residual is not None:
        after = after._replace(residual=after.residual.to(x.dtype))
    _, *positions, groups = geometry
    made: Tensor = _op(x, weight, *(list(p) for p in positions), groups, *after, pool)
    return made


def _block(x: Tensor, weight: Tensor, geometry: Geometry, epilogue: Epilogue, pool: bool) -> Tensor:
    """In plain PyTorch."""
    _, stride, padding, dilation, groups = geometry
    y = conv3d(x, weight.to(x.dtype), None, stride, padding, dilation, groups)
    y = apply(y, epilogue).to(x.dtype)
    return max_pool3d(y, 2) if pool else y


@torch.library.custom_op("hfrt::conv3d_block", mutates_args=())
def _op(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    slope: float,
    pool: bool,
) -> Tensor:
    geometry = Geometry.of(weight.shape[2:], stride, padding, dilation, groups)
    epilogue = Epilogue(scale, shift, residual, slope)
    if backend.on_triton(x):
        from hyperfusion_rt.kernels.gpu import conv3d_block as gpu

        with torch.cuda.device_of(x):
            return gpu.forward(x, weight, geometry, epilogue, pool)
    # Members that read the same channels are one convolution.
    shared = x.shape[1] == weight.shape[1]
    geometry = geometry._replace(groups=1 if shared else groups)
    if x.device.type == "cpu":
        from hyperfusion_rt.kernels.cpu import native

        if native.covers([x, weight, scale, shift, residual], geometry):
            return native.conv3d_block(x, weight, geometry, epilogue, pool)
    return _block(x, weight, geometry, epilogue, pool).contiguous()


@_op.register_fake
def _(x: Tensor, weight: Tensor, *others: Any) -> Tensor:
    *positions, _scale, _shift, _residual, _slope, pool = others
    size = Geometry.of(weight.shape[2:], *positions).out(triple(x.shape[2:]))
    shape = (x.shape[0], weight.shape[0], *(n // 2 if pool else n for n in size))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=backend.layout(x))


@_op.register_vmap
def _(info: Any, dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
    # x and residual are per sample.
    return join_samples(_op, info, dims, arguments, of_samples=(0, 8))

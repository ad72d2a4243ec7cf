"""`warp`: volumes of brains that were moved and bent, as training samples are at random."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hyperfusion_rt import _native
from hyperfusion_rt.kernels.cpu.plain import native_here, plain_float32


def warp(
    images: Tensor, matrix: Tensor, shift: Tensor, elastic: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The brain of `images`, where another one lies, and where that is.

    A new voxel v takes the value at `matrix (v - centre) + centre + shift + elastic[v]` of the old
    volume, in voxels: trilinear, of those of the eight neighbours that are not 0, and 0 where those
    weigh less than half. Beyond the border the volume is repeated. Not differentiable.

    Args:
        images: `[B, C, D, H, W]`, 0 outside the brain.
        matrix: `[B, 3, 3]`.
        shift: `[B, 3]`.
        elastic: `[B, 3, D, H, W]`.

    Returns:
        `values` and `inside` `[B, C, D, H, W]`; `inside` is 1 or 0. float32 on the CPU has a native
        kernel, which rounds otherwise in the last place.
    """
    given = [images, matrix, shift, *([] if elastic is None else [elastic])]
    if all(plain_float32(t) for t in given) and native_here() and images.numel() < 1 << 31:
        read = [t.contiguous().numpy() for t in given]
        values, inside = torch.empty(images.shape), torch.empty(images.shape)
        _native.warp(
            read[0], read[1], read[2], read[3] if elastic is not None else None,
            values.numpy(), inside.numpy(), torch.get_num_threads(),
        )  # fmt: skip
        return values, inside
    return _composed(images, matrix, shift, elastic)


def _composed(
    images: Tensor, matrix: Tensor, shift: Tensor, elastic: Tensor | None
) -> tuple[Tensor, Tensor]:
    shape = images.shape[2:]
    centred = [torch.arange(n, device=images.device) - (n - 1) / 2 for n in shape]
    points = []
    for axis, size in enumerate(shape):
        # Where the old volume is read along this axis: a sum of what each new axis adds.
        d, h, w = (matrix[:, axis, i, None] * centred[i] for i in range(3))
        at = (d[:, :, None] + h[:, None])[..., None] + (w + shift[:, axis, None])[:, None, None]
        at = at if elastic is None else at.add_(elastic[:, axis])
        points.append(at.mul_(2 / max(size - 1, 1)))  # from -1 to 1
    both = torch.cat([images, images.sign().abs_()], 1)
    grid = torch.stack(points[::-1], -1)
    read = functional.grid_sample(both, grid, padding_mode="border", align_corners=True)
    values, weight = read.chunk(2, 1)
    # The brain's edge is made of brain voxels alone, as the background has no value.
    inside = weight.gt(0.5).to(images.dtype)
    return values / weight.clamp_min(0.5) * inside, inside

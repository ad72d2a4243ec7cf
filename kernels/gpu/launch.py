"""From torch tensors to kernel launches: layouts, strides, grids. Called by the ops only."""

from __future__ import annotations

from math import gcd, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hyperfusion_rt.kernels.epilogue import Epilogue
from hyperfusion_rt.kernels.geometry import Geometry, Triple, triple
from hyperfusion_rt.kernels.gpu import configs
from hyperfusion_rt.kernels.gpu import conv3d as kernels
from hyperfusion_rt.kernels.gpu.configs import Config, tiles

LIMIT = 2**31
GRID_LIMIT = 65535  # programs along the second and third axis of a grid (CUDA)
NO_EPILOGUE = Epilogue()


class Weights(NamedTuple):
    """Weights as the kernel reads them: `data` with element strides, `e [B or 1, K1]`, `h`.

    `sample` is the stride between samples (0: shared), `k` between generators (generated inside).
    """

    data: Tensor
    e: Tensor
    h: Tensor | None
    sample: int
    k: int


def channels_last(x: Tensor) -> Tensor:
    """`x [B, C, D, H, W]` in memory order `[B, D, H, W, C]`; offsets in a sample must be int32."""
    if (count := prod(x.shape[1:])) >= LIMIT:
        raise ValueError(
            f"a sample of {count} numbers is too large: it must have less than {LIMIT}"
        )
    return x.contiguous(memory_format=torch.channels_last_3d)


def _within_grid(samples: int, groups: int) -> None:
    """Raise a ValueError where a launch would have too many programs along an axis."""
    if samples * groups > GRID_LIMIT:
        raise ValueError(
            f"{samples} samples of {groups} groups are more than {GRID_LIMIT} in one launch: "
            "split the batch"
        )


def size_of(x: Tensor) -> Triple:
    """D, H, W."""
    return triple(x.shape[2:])


def pack(generators: list[Tensor], groups: int) -> Tensor:
    """`[k_i, Cout, Cin/groups, kD, kH, kW]` → `[K1, groups, taps · Cin/groups, Cout/groups]`."""
    views = [g.unflatten(1, (groups, -1)).flatten(4).permute(0, 1, 4, 3, 2) for g in generators]
    # One that lies like this already is not copied.
    joined = views[0] if len(views) == 1 else torch.cat(views)
    return joined.contiguous().flatten(2, 3)


def unpack(packed: Tensor, kernel: Triple) -> Tensor:
    """The inverse: `[K, groups, taps · Cin, Cout/groups]` → `[K, Cout, Cin, kD, kH, kW]`."""
    taps = prod(kernel)
    parts: Tensor = packed.unflatten(2, (taps, -1)).permute(0, 1, 4, 3, 2)
    found: Tensor = parts.flatten(1, 2).unflatten(3, kernel)
    return found


def write_weights(e: Tensor, packed: Tensor, dtype: torch.dtype) -> Tensor:
    """`W [B, groups, taps · Cin, Cout]` of every sample, written once."""
    samples, n = len(e), packed[0].numel()
    made = torch.empty((samples, *packed.shape[1:]), dtype=dtype, device=packed.device)
    tile = configs.GENERATE["all"]
    grid = (tiles(n, tile.columns), tiles(samples, tile.rows))
    kernels.generate[grid](
        e, packed, made, samples, n, K1=len(packed), SAMPLES=tile.rows, BLOCK=tile.columns,
        **tile.options,
    )  # fmt: skip
    return made


def precision_of(dtype: torch.dtype, *, convolution: bool = True) -> str:
    """One of `configs.DTYPES`; TF32 where torch's own convolutions (or products) may use it."""
    if dtype == torch.float32:
        of: Any = torch.backends.cudnn if convolution else torch.backends.cuda.matmul
        # Since torch 2.9 this switch is the one that can always be read.
        switch = getattr(of, "conv", of)
        if hasattr(switch, "fp32_precision"):
            allowed = switch.fp32_precision == "tf32"
        else:
            allowed = of.allow_tf32
        return "tf32" if allowed else "fp32"
    return "fp16" if dtype == torch.float16 else "bf16"


def _constants(geometry: Geometry, config: Config, precision: str) -> dict[str, Any]:
    """What both kernels of a convolution are compiled for, and how they are launched."""
    return {
        "KERNEL": geometry.kernel, "STRIDE": geometry.stride, "PADDING": geometry.padding,
        "DILATION": geometry.dilation, "GROUPS": geometry.groups, **config.constants(precision),
    }  # fmt: skip


def conv3d(
    x: Tensor,
    weights: Weights,
    geometry: Geometry,
    *,
    channels: int,
    transposed_size: Triple | None = None,
    pool: bool = False,
    epilogue: Epilogue = NO_EPILOGUE,
) -> Tensor:
    """One launch for all samples. `x [B, C, D, H, W]` → `[B, channels, D', H', W']`, channels-last.

    With `transposed_size` x is a gradient of the output, and what comes out has that size. Where x
    has the channels of one group, all groups read them. `pool`: 2x2x2 max-pooling at the end.
    """
    x = channels_last(x)
    groups = geometry.groups
    _within_grid(len(x), groups)
    transposed = transposed_size is not None
    _, _, read, made = weights.data.shape
    cin = made if transposed else read // prod(geometry.kernel)
    cout = channels // groups
    out = transposed_size or geometry.out(size_of(x))
    stored = triple(n // 2 for n in out) if pool else out
    rows = 8 * prod(stored) if pool else prod(out)
    phases = 1
    steps = (1, 1, 1)
    if transposed:
        phases = prod(geometry.stride)
        rows = prod(tiles(n, s) for n, s in zip(out, geometry.stride, strict=True))
        pairs = zip(geometry.stride, geometry.dilation, strict=True)
        steps = tuple(s // gcd(s, step) for s, step in pairs)  # type: ignore[assignment]
    y = torch.empty(
        (x.shape[0], channels, *stored),
        dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d,
    )  # fmt: skip
    if y.numel() == 0:
        return y
    channels_last(y)
    unread = y  # a pointer for arguments that the kernel does not read
    scale = shift = residual = unread
    affine = epilogue.scale is not None or epilogue.shift is not None
    if affine:
        constants = y.new_ones(channels), y.new_zeros(channels)
        pairs_of = zip((epilogue.scale, epilogue.shift), constants, strict=True)
        scale, shift = (
            (constant if given is None else given).float().contiguous()
            for given, constant in pairs_of
        )
    if epilogue.residual is not None:
        residual = channels_last(epilogue.residual)
    precision = precision_of(x.dtype)
    config = configs.CONV3D[configs.conv3d_config(rows, cout, precision)]
    grid = (tiles(rows, config.rows) * tiles(cout, config.columns), len(x) * groups, phases)
    kernels.conv3d[grid](
        x, weights.data, weights.e, unread if weights.h is None else weights.h,
        scale, shift, residual, y,
        *size_of(x), *out,
        weights.sample, weights.k,
        0 if len(weights.e) == 1 else weights.e.shape[1],
        epilogue.slope,
        CIN=cin, COUT=cout, XGROUPS=x.shape[1] // cin, K1=weights.e.shape[1],
        STEP=steps,
        TRANSPOSED=transposed,
        GENERATE=weights.k != 0,
        BIAS=weights.h is not None,
        AFFINE=affine,
        RESIDUAL=epilogue.residual is not None,
        ACTIVATION=epilogue.slope != 1.0,
        POOL=pool,
        **_constants(geometry, config, precision),
    )  # fmt: skip
    return y


def weight_gradient(
    x: Tensor, dy: Tensor, e: Tensor, packed: Tensor, geometry: Geometry, *, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients `(de [B, K], dG [K, ...], dg0 [...])` in float32, laid out as `pack` lays them.

    `e [B, K]` and `packed [K, groups, taps · Cin, Cout]` without the constant. The sums over voxels
    and over the batch have one order: the result is the same in every run.
    """
    x, dy = channels_last(x), channels_last(dy)
    batch, groups = len(x), geometry.groups
    count, rows, cout = len(packed), packed.shape[2], packed.shape[3]
    cin, size, out = x.shape[1] // groups, size_of(x), size_of(dy)
    precision = precision_of(x.dtype)
    config = configs.WEIGHT_GRADIENT[configs.weight_gradient_config(cout, precision, keep=keep)]
    programs = tiles(rows, config.step) * tiles(cout, config.columns)
    voxels = prod(out)

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    splits = 1
    if keep:
        dG, dg0, de = (
            new(*packed.shape),
            new(*packed.shape[1:]),
            new(batch, groups * programs, count),
        )
        dw, depth = dG, 1
    else:
        # Enough programs to fill a chip; each share keeps a few steps of work.
        wanted = tiles(4 * 132, programs * groups * batch)
        splits = max(1, min(wanted, voxels // (4 * config.rows)))
        dw = new(splits, batch, *packed.shape[1:])
        dG = dg0 = de = dw
        depth = batch * splits
    kernels.conv3d_weight_gradient[(programs, groups, depth)](
        x, dy, e, packed, dw, dG, dg0, de,
        batch, *size, *out, splits,
        CIN=cin, COUT=cout, K=count, KP=1 << (count - 1).bit_length(),
        WRITE=not keep,
        **_constants(geometry, config, precision),
    )  # fmt: skip
    if keep:
        return de.sum(1), dG, dg0
    own = dw.sum(0) if splits > 1 else dw[0]
    flat = own.flatten(1)
    return flat @ packed.float().flatten(1).T, (e.T @ flat).view(packed.shape), own.sum(0)

"""What the kernels of `conv3d.py` are made of: which voxels and taps a tile meets, and its numbers.

A triple `(d, h, w)` is a tuple: of scalars, or of tensors of the shape that the comment gives. The
triples of constants, KERNEL, STRIDE, PADDING, DILATION and STEP, have the same order.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl

# ---- which voxels, which taps


@triton.jit
def voxels(
    row,  # [BM]
    out,  # (d, h, w): size of what is summed
    POOL: tl.constexpr,
):
    """The voxels (d, h, w) that the rows are, and whether they exist, `[BM]` each.

    POOL: eight rows in turn are the voxels of one cell.
    """
    OD, OH, OW = out
    if POOL:
        cell, sub = row // 8, row % 8
        nh, nw = OH // 2, OW // 2
        inside = cell < OD // 2 * nh * nw
        d, h = cell // (nh * nw) * 2 + sub // 4, cell // nw % nh * 2 + sub // 2 % 2
        w = cell % nw * 2 + sub % 2
    else:
        inside = row < OD * OH * OW
        d, h, w = row // (OH * OW), row // OW % OH, row % OW
    return (d, h, w), inside


@triton.jit
def voxels_of_phase(
    row,  # [BM]
    phase,  # (d, h, w)
    out,  # (d, h, w): size of the volume
    STRIDE: tl.constexpr,
):
    """`voxels`, of those only that leave the remainder `phase` when divided by the stride."""
    fd, fh, fw = phase
    OD, OH, OW = out
    nh = (OH - fh + STRIDE[1] - 1) // STRIDE[1]
    nw = (OW - fw + STRIDE[2] - 1) // STRIDE[2]
    nd = (OD - fd + STRIDE[0] - 1) // STRIDE[0]
    inside = row < nd * nh * nw
    d = row // (nh * nw) * STRIDE[0] + fd
    h = row // nw % nh * STRIDE[1] + fh
    w = row % nw * STRIDE[2] + fw
    return (d, h, w), inside


@triton.jit
def _first_tap(
    phase, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr, STEP: tl.constexpr
):
    """Along one axis, the first tap that reaches a voxel of this phase, or STEP where none does."""
    first = STEP
    for t in tl.static_range(STEP - 1, -1, -1):
        meets = (phase + PADDING + STRIDE * DILATION * STEP - t * DILATION) % STRIDE == 0
        first = tl.where(meets, t, first)
    return first


@triton.jit
def _taps_met(first, KERNEL: tl.constexpr, STEP: tl.constexpr):
    """Along one axis, how many taps are met: every STEP-th from the first on."""
    return tl.maximum(KERNEL - first + STEP - 1, 0) // STEP * (first < STEP).to(tl.int32)


@triton.jit
def taps_of_phase(
    phase,  # (d, h, w)
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    STEP: tl.constexpr,  # STRIDE / gcd(STRIDE, DILATION)
):  # fmt: skip
    """The taps that reach a voxel of `phase`: the first (d, h, w), and how many (d, h, w)."""
    td = _first_tap(phase[0], STRIDE[0], PADDING[0], DILATION[0], STEP[0])
    th = _first_tap(phase[1], STRIDE[1], PADDING[1], DILATION[1], STEP[1])
    tw = _first_tap(phase[2], STRIDE[2], PADDING[2], DILATION[2], STEP[2])
    d = _taps_met(td, KERNEL[0], STEP[0])
    h = _taps_met(th, KERNEL[1], STEP[1])
    w = _taps_met(tw, KERNEL[2], STEP[2])
    return (td, th, tw), (d, h, w)


@triton.jit
def tap_of(
    i,  # a scalar or a tensor
    first,  # (d, h, w) of the first tap that is met
    met,  # (d, h, w): how many are met along each axis, not 0: they divide
    STEP: tl.constexpr,
):
    """The i-th tap that is met: its place (d, h, w) in the kernel, each in the shape of `i`."""
    td = first[0] + i // (met[1] * met[2]) * STEP[0]
    th = first[1] + i // met[2] % met[1] * STEP[1]
    tw = first[2] + i % met[2] * STEP[2]
    return td, th, tw


@triton.jit
def tap_number(j, first, met, KERNEL: tl.constexpr, STEP: tl.constexpr):
    """The number in the kernel, `(d · KH + h) · KW + w`, of what `tap_of` gives for these."""
    number = (first[0] + j // (met[1] * met[2]) * STEP[0]) * (KERNEL[1] * KERNEL[2])
    row = (first[1] + j // met[2] % met[1] * STEP[1]) * KERNEL[2]
    return number + (row + first[2] + j % met[2] * STEP[2])


@triton.jit
def reduced(start, kk, CIN: tl.constexpr, BK: tl.constexpr):
    """The tap and the input channels `[BK]` of `kk [BK]`, the step of the sum from `start` on.

    Which of the taps comes twice, beside voxels `[1, BK]` and beside output channels `[BK, 1]`;
    a scalar where the whole step lies in one tap.
    """
    if CIN % BK == 0:
        i = start // CIN
        j = start // CIN
        c = tl.multiple_of(start % CIN, BK) + tl.arange(0, BK)
    else:
        i = (kk // CIN)[None, :]
        j = (kk // CIN)[:, None]
        c = kk % CIN
    return i, j, c


@triton.jit
def read_by(
    voxel,  # (d, h, w) of y, [BM, 1]
    tap,  # (d, h, w), [1, BK] or scalars
    size,  # (d, h, w) of x
    STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
):  # fmt: skip
    """The voxel (d, h, w) of x that `voxel` reads through `tap`, and whether it exists."""
    D, H, W = size
    iz = voxel[0] * STRIDE[0] - PADDING[0] + tap[0] * DILATION[0]
    iy = voxel[1] * STRIDE[1] - PADDING[1] + tap[1] * DILATION[1]
    ix = voxel[2] * STRIDE[2] - PADDING[2] + tap[2] * DILATION[2]
    within = (iz >= 0) & (iz < D) & (iy >= 0) & (iy < H) & (ix >= 0) & (ix < W)
    return (iz, iy, ix), within


@triton.jit
def reader_of(
    voxel,  # (d, h, w) of the input, [BM, 1]; all in one phase
    tap,  # (d, h, w), [1, BK] or scalars; one that the phase meets
    size,  # (d, h, w) of the output
    STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
):  # fmt: skip
    """The voxel of the output that reads `voxel` through `tap`: `read_by` the other way round."""
    D, H, W = size
    iz = voxel[0] + PADDING[0] - tap[0] * DILATION[0]
    iy = voxel[1] + PADDING[1] - tap[1] * DILATION[1]
    ix = voxel[2] + PADDING[2] - tap[2] * DILATION[2]
    within = (iz >= 0) & (iy >= 0) & (ix >= 0)
    iz, iy, ix = iz // STRIDE[0], iy // STRIDE[1], ix // STRIDE[2]
    within = within & (iz < D) & (iy < H) & (ix < W)
    return (iz, iy, ix), within


# ---- numbers


@triton.jit
def volume(
    x,  # pointer to [D, H, W, XGROUPS * CIN], at the first channel of the group
    voxel,  # (d, h, w) of the rows, [BM, 1]
    inside,  # [BM]: which of them exist
    tap,  # (d, h, w), [1, BK] or scalars
    c,  # [BK] input channels
    kk,  # [BK] of the `total` products that are summed
    total,
    size,  # (d, h, w) of x
    CIN: tl.constexpr, XGROUPS: tl.constexpr,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    TRANSPOSED: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """What the voxels read of x through their taps, `[BM, BK]` in the dtype of x; 0 outside."""
    if TRANSPOSED:
        source, within = reader_of(voxel, tap, size, STRIDE, PADDING, DILATION)
    else:
        source, within = read_by(voxel, tap, size, STRIDE, PADDING, DILATION)
    within = within & inside[:, None]
    if CIN % BK != 0:
        within = within & (kk < total)[None, :]
    at = ((source[0] * size[1] + source[1]) * size[2] + source[2]) * (XGROUPS * CIN) + c[None, :]
    return tl.load(x + at, mask=within, other=0.0)


@triton.jit
def volume_of_share(
    x,  # pointer to [D, H, W, CHANNELS], at the first channel of the group
    m,  # [BM] numbers of voxels of y
    end,  # of the share: from here on they are not read
    tap,  # (d, h, w), [1, BK]
    c,  # [BK] input channels
    known,  # [BK]: which pairs of tap and channel exist
    size,  # (d, h, w) of x
    out,  # (d, h, w) of y
    CHANNELS: tl.constexpr,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
):  # fmt: skip
    """What voxels m of y read of x through their taps, `[BM, BK]` in the dtype of x; 0 outside."""
    _, OH, OW = out
    voxel = (m // (OH * OW))[:, None], (m // OW % OH)[:, None], (m % OW)[:, None]
    source, within = read_by(voxel, tap, size, STRIDE, PADDING, DILATION)
    within = within & (m < end)[:, None] & known[None, :]
    at = ((source[0] * size[1] + source[1]) * size[2] + source[2]) * CHANNELS + c[None, :]
    return tl.load(x + at, mask=within, other=0.0)


@triton.jit
def weights(
    w,  # pointer to [taps, CIN, COUT] of one group; TRANSPOSED: [taps, COUT, CIN]
    tap,  # numbers of the taps, [BK, 1] or a scalar
    c,  # [BK] input channels
    n,  # [BN] output channels
    kk,  # [BK] of the `total` products that are summed
    total,
    e,  # [K1] float32
    w_k,  # stride between generators
    CIN: tl.constexpr, COUT: tl.constexpr, K1: tl.constexpr,
    TRANSPOSED: tl.constexpr, GENERATE: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One tile of weights `[BK, BN]`, read in their dtype, or made in float32.

    GENERATE: `W[b] = Σ_k ẽ[b, k] G̃[k]`, w points into the first of K1 generators.
    """
    w_in: tl.constexpr = 1 if TRANSPOSED else COUT
    w_out: tl.constexpr = CIN if TRANSPOSED else 1
    at = w + tap * (CIN * COUT) + c[:, None] * w_in + n[None, :] * w_out
    has_w = (kk < total)[:, None] & (n < COUT)[None, :]
    if GENERATE:
        made = tl.zeros((BK, BN), tl.float32)
        for k in range(K1):
            part = tl.load(at, mask=has_w, other=0.0).to(tl.float32)
            made += tl.load(e + k) * part
            at += w_k
    else:
        made = tl.load(at, mask=has_w, other=0.0)
    return made


@triton.jit
def scaled(
    acc,  # [BM, BN] float32
    e,  # [K1] float32
    h,  # [K1, CHANNELS] float32
    scale,  # [CHANNELS] float32
    shift,  # [CHANNELS] float32
    channel,  # [BN]
    known,  # [BN]: which channels exist
    K1: tl.constexpr, CHANNELS: tl.constexpr, BIAS: tl.constexpr, AFFINE: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    """`scale · (acc + beta[b]) + shift`, `[BM, BN]` float32, with `beta[b] = Σ_k ẽ[b, k] h[k]`.

    BIAS: with beta. AFFINE: with scale and shift.
    """
    if BIAS:
        beta = tl.zeros((BN,), tl.float32)
        for k in range(K1):
            beta += tl.load(e + k) * tl.load(h + k * CHANNELS + channel, mask=known, other=0.0)
        acc += beta[None, :]
    if AFFINE:
        acc *= tl.load(scale + channel, mask=known, other=0.0)[None, :]
        acc += tl.load(shift + channel, mask=known, other=0.0)[None, :]
    return acc


@triton.jit
def largest_of_cells(acc, BM: tl.constexpr, BN: tl.constexpr):
    """The largest of every eight rows: `[BM, BN]` → `[BM / 8, BN]`. NaN where one of them is."""
    cells = tl.reshape(acc, (BM // 8, 8, BN))
    nans = tl.max((cells != cells).to(tl.int32), 1)
    return tl.where(nans > 0, float("nan"), tl.max(cells, 1))

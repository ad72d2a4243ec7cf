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
    """The voxels (d, h, w) that the rows are, `[BM, 1]` each, and whether they exist, `[BM]`.

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
    return (d[:, None], h[:, None], w[:, None]), inside


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
    nd = (OD - fd + STRIDE[0] - 1) // STRIDE[0]
    nh = (OH - fh + STRIDE[1] - 1) // STRIDE[1]
    nw = (OW - fw + STRIDE[2] - 1) // STRIDE[2]
    inside = row < nd * nh * nw
    d = row // (nh * nw) * STRIDE[0] + fd
    h = row // nw % nh * STRIDE[1] + fh
    w = row % nw * STRIDE[2] + fw
    return (d[:, None], h[:, None], w[:, None]), inside


@triton.jit
def _taps_along(
    phase, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    DILATION: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Along one axis, the first tap that reaches a voxel of this phase, and how many do.

    They lie STEP apart. Where none does, the first is STEP.
    """
    first = STEP
    for t in tl.static_range(STEP - 1, -1, -1):
        meets = (phase + PADDING + STRIDE * DILATION * STEP - t * DILATION) % STRIDE == 0
        first = tl.where(meets, t, first)
    met = tl.maximum(KERNEL - first + STEP - 1, 0) // STEP * (first < STEP).to(tl.int32)
    return first, met


@triton.jit
def taps_of_phase(
    phase,  # (d, h, w)
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    STEP: tl.constexpr,  # STRIDE / gcd(STRIDE, DILATION)
):  # fmt: skip
    """The taps that reach a voxel of `phase`: the first (d, h, w), the counts (d, h, w), the total.

    Counts are divided by, so they are at least 1; the total is 0 where an axis has none.
    """
    td, d = _taps_along(phase[0], KERNEL[0], STRIDE[0], PADDING[0], DILATION[0], STEP[0])
    th, h = _taps_along(phase[1], KERNEL[1], STRIDE[1], PADDING[1], DILATION[1], STEP[1])
    tw, w = _taps_along(phase[2], KERNEL[2], STRIDE[2], PADDING[2], DILATION[2], STEP[2])
    return (td, th, tw), (tl.maximum(d, 1), tl.maximum(h, 1), tl.maximum(w, 1)), d * h * w


@triton.jit
def tap_of(
    i,  # a scalar or a tensor
    first,  # (d, h, w) of the first tap that is met
    met,  # (d, h, w): how many are met along each axis
    STEP: tl.constexpr,
):
    """The i-th tap that is met: its place (d, h, w) in the kernel, each in the shape of `i`."""
    td = first[0] + i // (met[1] * met[2]) * STEP[0]
    th = first[1] + i // met[2] % met[1] * STEP[1]
    tw = first[2] + i % met[2] * STEP[2]
    return td, th, tw


@triton.jit
def reduced(start, CIN: tl.constexpr, BK: tl.constexpr):
    """What a step of the reduction runs over: the number of the tap, and the input channels `[BK]`.

    The number comes twice, beside the voxels `[1, BK]` and beside the output channels `[BK, 1]`; a
    scalar where the whole step lies in one tap.
    """
    if CIN % BK == 0:
        i = start // CIN
        j = start // CIN
        c = tl.multiple_of(start % CIN, BK) + tl.arange(0, BK)
    else:
        kk = start + tl.arange(0, BK)
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
    """The voxel of x that `voxel` reads through `tap`: its number in x, and whether it exists."""
    D, H, W = size
    iz = voxel[0] * STRIDE[0] - PADDING[0] + tap[0] * DILATION[0]
    iy = voxel[1] * STRIDE[1] - PADDING[1] + tap[1] * DILATION[1]
    ix = voxel[2] * STRIDE[2] - PADDING[2] + tap[2] * DILATION[2]
    within = (iz >= 0) & (iz < D) & (iy >= 0) & (iy < H) & (ix >= 0) & (ix < W)
    return (iz * H + iy) * W + ix, within


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
    return (iz * H + iy) * W + ix, within


# ---- numbers


@triton.jit
def volume(
    x,  # pointer to [D, H, W, XGROUPS * CIN], at the first channel of the group
    voxel,  # (d, h, w) of the rows, [BM, 1]
    inside,  # [BM]: which of them exist
    tap,  # (d, h, w), [1, BK] or scalars
    c,  # [BK] input channels
    known,  # [BK]: which steps of the reduction exist
    size,  # (d, h, w) of x
    CIN: tl.constexpr, XGROUPS: tl.constexpr,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    TRANSPOSED: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """What the voxels read of x through their taps, `[BM, BK]` in the dtype of x; 0 outside."""
    if TRANSPOSED:
        at, within = reader_of(voxel, tap, size, STRIDE, PADDING, DILATION)
    else:
        at, within = read_by(voxel, tap, size, STRIDE, PADDING, DILATION)
    within = within & inside[:, None]
    if CIN % BK != 0:
        within = within & known[None, :]
    return tl.load(x + (at * (XGROUPS * CIN) + c[None, :]), mask=within, other=0.0)


@triton.jit
def weights(
    w,  # pointer to [taps, CIN, COUT] of one group; TRANSPOSED: [taps, COUT, CIN]
    tap,  # (d, h, w), [BK, 1] or scalars
    c,  # [BK] input channels
    n,  # [BN] output channels
    known,  # [BK]: which steps of the reduction exist
    e,  # [K1] float32
    w_k,  # stride between generators
    CIN: tl.constexpr, COUT: tl.constexpr, K1: tl.constexpr, KERNEL: tl.constexpr,
    TRANSPOSED: tl.constexpr, GENERATE: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """One tile of weights `[BK, BN]`, read in their dtype, or made in float32.

    GENERATE: `W[b] = Σ_k ẽ[b, k] G̃[k]`, w points into the first of K1 generators.
    """
    w_in: tl.constexpr = 1 if TRANSPOSED else COUT
    w_out: tl.constexpr = CIN if TRANSPOSED else 1
    t = tap[0] * (KERNEL[1] * KERNEL[2]) + (tap[1] * KERNEL[2] + tap[2])
    at = w + t * (CIN * COUT) + c[:, None] * w_in + n[None, :] * w_out
    has_w = known[:, None] & (n < COUT)[None, :]
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
def epilogue(
    acc,  # [BM, BN] float32
    e,  # [K1] float32
    h,  # [K1, CHANNELS] float32
    scale,  # [CHANNELS] float32
    shift,  # [CHANNELS] float32
    residual,  # [BM, BN] pointers
    slope,
    channel,  # [BN]
    known,  # [BN]: which channels exist
    stored,  # [BM, BN]: which numbers exist
    K1: tl.constexpr, CHANNELS: tl.constexpr,
    BIAS: tl.constexpr, AFFINE: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    """`act(scale · (acc + beta) + shift + r)`, `[BM, BN]` float32, `beta = Σ_k e[k] h[k]`.

    What a flag turns off is left out and not read.
    """
    if BIAS:
        beta = tl.zeros((BN,), tl.float32)
        for k in range(K1):
            beta += tl.load(e + k) * tl.load(h + k * CHANNELS + channel, mask=known, other=0.0)
        acc += beta[None, :]
    if AFFINE:
        acc *= tl.load(scale + channel, mask=known, other=0.0)[None, :]
        acc += tl.load(shift + channel, mask=known, other=0.0)[None, :]
    if RESIDUAL:
        acc += tl.load(residual, mask=stored, other=0.0).to(tl.float32)
    if ACTIVATION:
        acc = tl.where(acc < 0, slope * acc, acc)  # NaN stays NaN
    return acc


@triton.jit
def largest_of_cells(acc, BM: tl.constexpr, BN: tl.constexpr):
    """The largest of every eight rows: `[BM, BN]` → `[BM / 8, BN]`. NaN where one of them is."""
    cells = tl.reshape(acc, (BM // 8, 8, BN))
    nans = tl.max((cells != cells).to(tl.int32), 1)
    return tl.where(nans > 0, float("nan"), tl.max(cells, 1))


@triton.jit
def weight_gradient(
    x,  # pointer to [D, H, W, GROUPS * CIN], at the first channel of the group
    dy,  # pointer to [OD, OH, OW, GROUPS * COUT], at the first channel of the group
    tap,  # (d, h, w), [1, BK]
    c,  # [BK] input channels
    known,  # [BK]: which weights exist
    n,  # [BN] output channels
    begin, end,  # voxels of dy
    size,  # (d, h, w) of x
    out,  # (d, h, w) of dy
    CIN: tl.constexpr, COUT: tl.constexpr, GROUPS: tl.constexpr,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """`Σ_m x[i(m, tap), c] dy[m, n]` over the voxels begin <= m < end, `[BK, BN]` float32."""
    acc = tl.zeros((BK, BN), tl.float32)
    for start in range(begin, end, BM):
        m = start + tl.arange(0, BM)
        voxel, _ = voxels(m, out, False)
        at, within = read_by(voxel, tap, size, STRIDE, PADDING, DILATION)
        within = within & (m < end)[:, None] & known[None, :]
        a = tl.load(x + (at * (GROUPS * CIN) + c[None, :]), mask=within, other=0.0)
        d = tl.load(
            dy + m[:, None] * (GROUPS * COUT) + n[None, :],
            mask=(m < end)[:, None] & (n < COUT)[None, :],
            other=0.0,
        )
        acc = tl.dot(tl.trans(a), d, acc, input_precision=PRECISION)
    return acc

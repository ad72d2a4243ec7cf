"""3D convolution as an implicit matrix product, every sample with its own weights.

    y[b, o] = act(scale · (Σ_{t, c} x[b, i(o, t), c] · W[b, t, c] + beta[b]) + shift + r[b, o])

Volumes lie channels-last: `[B, D, H, W, groups · C]`. Rows of the product are voxels of one sample,
columns are output channels of one group, the reduction runs over taps and input channels. Weights
are read (`GENERATE` off), of one sample or the same for all, or made in registers on the way
(`W[b] = Σ_k ẽ[b, k] G̃[k]`). The same kernel is the gradient of the input (`TRANSPOSED`): then a row
is a voxel of x, and only the taps that meet its phase of the stride are visited. Sums are float32.
Offsets inside a sample are int32.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _first_tap(
    phase, PAD: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr, STEP: tl.constexpr
):
    """The first tap that reaches a voxel of this phase, or STEP where none does."""
    first = STEP
    for t in tl.static_range(STEP - 1, -1, -1):
        meets = (phase + PAD + STRIDE * DILATION * STEP - t * DILATION) % STRIDE == 0
        first = tl.where(meets, t, first)
    return first


@triton.jit
def conv3d(
    x,  # [B, D, H, W, XGROUPS * CIN]
    w,  # [B or K1, GROUPS, taps, CIN, COUT], outermost stride w_sample or w_k
    #     TRANSPOSED: [..., taps, COUT, CIN]
    e,  # [B, K1] float32; [1, K1] with e_sample = 0
    h,  # [K1, GROUPS * COUT] float32
    scale,  # [GROUPS * COUT] float32
    shift,  # [GROUPS * COUT] float32
    residual,  # [B, OD, OH, OW, GROUPS * COUT]
    y,  # as residual; POOL: [B, OD // 2, OH // 2, OW // 2, GROUPS * COUT]
    D,
    H,
    W,  # size of x
    OD,
    OH,
    OW,  # size of what is summed
    w_sample,
    w_k,
    e_sample,
    slope,
    CIN: tl.constexpr,
    COUT: tl.constexpr,
    GROUPS: tl.constexpr,
    XGROUPS: tl.constexpr,  # GROUPS; 1: all groups read the same channels
    K1: tl.constexpr,
    KD: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SD: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PD: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    LD: tl.constexpr,
    LH: tl.constexpr,
    LW: tl.constexpr,  # dilation
    STEP_D: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,  # S / gcd(S, L); 1 if not TRANSPOSED
    TRANSPOSED: tl.constexpr,
    GENERATE: tl.constexpr,
    BIAS: tl.constexpr,
    AFFINE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    POOL: tl.constexpr,  # the largest of each 2x2x2 voxels is stored
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """One tile of BM voxels and BN channels. Grid: (tiles, B · GROUPS, phases)."""
    columns: tl.constexpr = (COUT + BN - 1) // BN
    w_in: tl.constexpr = 1 if TRANSPOSED else COUT
    w_out: tl.constexpr = CIN if TRANSPOSED else 1
    tile = tl.program_id(0) // columns
    n = (tl.program_id(0) % columns) * BN + tl.arange(0, BN)
    b = tl.program_id(1) // GROUPS
    g = tl.program_id(1) % GROUPS
    kind = x.dtype.element_ty
    row = tile * BM + tl.arange(0, BM)

    # Which voxel of y a row is, and which taps it meets.
    if TRANSPOSED:
        phase = tl.program_id(2)
        fd, fh, fw = phase // (SH * SW), phase // SW % SH, phase % SW
        nh, nw = (OH - fh + SH - 1) // SH, (OW - fw + SW - 1) // SW
        nd = (OD - fd + SD - 1) // SD
        inside = row < nd * nh * nw
        od, oh, ow = row // (nh * nw) * SD + fd, row // nw % nh * SH + fh, row % nw * SW + fw
        td0 = _first_tap(fd, PD, SD, LD, STEP_D)
        th0 = _first_tap(fh, PH, SH, LH, STEP_H)
        tw0 = _first_tap(fw, PW, SW, LW, STEP_W)
        taps_d = tl.maximum(KD - td0 + STEP_D - 1, 0) // STEP_D * (td0 < STEP_D).to(tl.int32)
        taps_h = tl.maximum(KH - th0 + STEP_H - 1, 0) // STEP_H * (th0 < STEP_H).to(tl.int32)
        taps_w = tl.maximum(KW - tw0 + STEP_W - 1, 0) // STEP_W * (tw0 < STEP_W).to(tl.int32)
        taps_h1, taps_w1 = tl.maximum(taps_h, 1), tl.maximum(taps_w, 1)
    else:
        if POOL:
            # Eight rows in turn are the voxels of one cell.
            cell, sub = row // 8, row % 8
            nh, nw = OH // 2, OW // 2
            inside = cell < OD // 2 * nh * nw
            od, oh = cell // (nh * nw) * 2 + sub // 4, cell // nw % nh * 2 + sub // 2 % 2
            ow = cell % nw * 2 + sub % 2
        else:
            inside = row < OD * OH * OW
            od, oh, ow = row // (OH * OW), row // OW % OH, row % OW
        td0, th0, tw0 = 0, 0, 0
        taps_d, taps_h, taps_w = KD, KH, KW
        taps_h1, taps_w1 = KH, KW
    od, oh, ow = od[:, None], oh[:, None], ow[:, None]

    x += b.to(tl.int64) * D * H * W * (XGROUPS * CIN) + g % XGROUPS * CIN
    w += b.to(tl.int64) * w_sample + g.to(tl.int64) * (KD * KH * KW * CIN * COUT)
    e += b * e_sample
    live = taps_d * taps_h * taps_w
    total = live * CIN
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(0, total, BK):
        kk = start + tl.arange(0, BK)
        if CIN % BK == 0:
            # The whole step lies in one tap.
            i = start // CIN
            j = start // CIN
            c = tl.multiple_of(start % CIN, BK) + tl.arange(0, BK)
        else:
            i = (kk // CIN)[None, :]
            j = (kk // CIN)[:, None]
            c = kk % CIN
        td = td0 + i // (taps_h1 * taps_w1) * STEP_D
        th = th0 + i // taps_w1 % taps_h1 * STEP_H
        tw = tw0 + i % taps_w1 * STEP_W
        if TRANSPOSED:
            iz, iy, ix = od + PD - td * LD, oh + PH - th * LH, ow + PW - tw * LW
            within = (iz >= 0) & (iy >= 0) & (ix >= 0)
            iz, iy, ix = iz // SD, iy // SH, ix // SW
            within = within & (iz < D) & (iy < H) & (ix < W) & inside[:, None]
        else:
            iz, iy, ix = od * SD - PD + td * LD, oh * SH - PH + th * LH, ow * SW - PW + tw * LW
            within = (iz >= 0) & (iz < D) & (iy >= 0) & (iy < H) & (ix >= 0) & (ix < W)
            within = within & inside[:, None]
        if CIN % BK != 0:
            within = within & (kk < total)[None, :]
        at = ((iz * H + iy) * W + ix) * (XGROUPS * CIN) + c[None, :]
        a = tl.load(x + at, mask=within, other=0.0)
        tap = (td0 + j // (taps_h1 * taps_w1) * STEP_D) * (KH * KW)
        tap += (th0 + j // taps_w1 % taps_h1 * STEP_H) * KW + tw0 + j % taps_w1 * STEP_W
        from_w = w + tap * (CIN * COUT) + c[:, None] * w_in + n[None, :] * w_out
        has_w = (kk < total)[:, None] & (n < COUT)[None, :]
        if GENERATE:
            made_w = tl.zeros((BK, BN), tl.float32)
            for k in range(K1):
                part = tl.load(from_w, mask=has_w, other=0.0).to(tl.float32)
                made_w += tl.load(e + k) * part
                from_w += w_k
            weight = made_w.to(kind)
        else:
            weight = tl.load(from_w, mask=has_w, other=0.0)
        acc = tl.dot(a, weight, acc, input_precision=PRECISION)

    channel = g * COUT + n
    known_n = n < COUT
    if BIAS:
        beta = tl.zeros((BN,), tl.float32)
        for k in range(K1):
            beta += tl.load(e + k) * tl.load(
                h + k * (GROUPS * COUT) + channel, mask=known_n, other=0.0
            )
        acc += beta[None, :]
    if AFFINE:
        acc *= tl.load(scale + channel, mask=known_n, other=0.0)[None, :]
        acc += tl.load(shift + channel, mask=known_n, other=0.0)[None, :]
    sample = b.to(tl.int64) * OD * OH * OW * (GROUPS * COUT)
    to = ((od * OH + oh) * OW + ow) * (GROUPS * COUT) + channel[None, :]
    stored = inside[:, None] & known_n[None, :]
    if RESIDUAL:
        acc += tl.load(residual + sample + to, mask=stored, other=0.0).to(tl.float32)
    if ACTIVATION:
        acc = tl.where(acc < 0, slope * acc, acc)  # NaN stays NaN
    if POOL:
        cells_of = tl.reshape(acc, (BM // 8, 8, BN))
        nans = tl.max((cells_of != cells_of).to(tl.int32), 1)
        acc = tl.where(nans > 0, float("nan"), tl.max(cells_of, 1))
        cell = tile * (BM // 8) + tl.arange(0, BM // 8)
        cells = (OD // 2) * (OH // 2) * (OW // 2)
        sample = b.to(tl.int64) * cells * (GROUPS * COUT)
        to = cell[:, None] * (GROUPS * COUT) + channel[None, :]
        stored = (cell < cells)[:, None] & known_n[None, :]
    tl.store(y + sample + to, acc.to(y.dtype.element_ty), mask=stored)


@triton.jit
def generate(
    e,  # [B, K1] float32
    G,  # [K1, N]
    out,  # [B, N]
    B,
    N,
    K1: tl.constexpr,
    SAMPLES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`out[b] = Σ_k e[b, k] G[k]`, summed in float32; G is read once for SAMPLES samples.

    Grid: (blocks of N, blocks of B).
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b = tl.program_id(1) * SAMPLES + tl.arange(0, SAMPLES)
    made = tl.zeros((SAMPLES, BLOCK), tl.float32)
    for k in range(K1):
        part = tl.load(G + i, mask=i < N, other=0.0).to(tl.float32)
        made += tl.load(e + b * K1 + k, mask=b < B, other=0.0)[:, None] * part[None, :]
        G += N
    to = out + b.to(tl.int64)[:, None] * N + i[None, :]
    tl.store(to, made.to(out.dtype.element_ty), mask=(b < B)[:, None] & (i < N)[None, :])


@triton.jit
def conv3d_weight_gradient(
    x,  # [B, D, H, W, GROUPS * CIN]
    dy,  # [B, OD, OH, OW, GROUPS * COUT]
    e,  # [B, K] float32
    G,  # [K, GROUPS, TAPS * CIN, COUT]
    dw,  # WRITE: [SPLITS, B, GROUPS, TAPS * CIN, COUT] float32
    dG,  # else: [K, GROUPS, TAPS * CIN, COUT] float32
    dg0,  # else: [GROUPS, TAPS * CIN, COUT] float32
    de,  # else: [B, GROUPS * tiles, K] float32
    B,
    D,
    H,
    W,
    OD,
    OH,
    OW,
    SPLITS,
    CIN: tl.constexpr,
    COUT: tl.constexpr,
    GROUPS: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    KD: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SD: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PD: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    LD: tl.constexpr,
    LH: tl.constexpr,
    LW: tl.constexpr,
    WRITE: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """One tile of BK weights (tap, input channel) by BN output channels of the gradient of W[b].

    WRITE: of one sample, over one of SPLITS shares of its voxels, to memory. Else: of every
    sample in turn, never written: its products with G give `de`, its sum over the batch `dG`,
    in registers.
    Grid: (tiles, GROUPS, B · SPLITS or 1).
    """
    columns: tl.constexpr = (COUT + BN - 1) // BN
    rows: tl.constexpr = KD * KH * KW * CIN
    n = (tl.program_id(0) % columns) * BN + tl.arange(0, BN)
    kk = (tl.program_id(0) // columns) * BK + tl.arange(0, BK)
    g = tl.program_id(1)
    tap, c = kk // CIN, kk % CIN
    td, th, tw = (tap // (KH * KW))[None, :], (tap // KW % KH)[None, :], (tap % KW)[None, :]
    voxels = OD * OH * OW
    known = (kk < rows)[:, None] & (n < COUT)[None, :]
    at_w = g.to(tl.int64) * (rows * COUT) + kk[:, None] * COUT + n[None, :]
    if WRITE:
        first, last = tl.program_id(2) // SPLITS, tl.program_id(2) // SPLITS + 1
        share = (voxels + SPLITS - 1) // SPLITS
        begin = tl.program_id(2) % SPLITS * share
        end = tl.minimum(begin + share, voxels)
    else:
        first, last = 0, B
        begin, end = 0, voxels
        ks = tl.arange(0, KP)
        total = tl.zeros((BK, BN), tl.float32)
        sums = tl.zeros((KP, BK, BN), tl.float32)
        at_k = ks[:, None, None].to(tl.int64) * (GROUPS * rows * COUT) + at_w[None]
        made = tl.load(G + at_k, mask=(ks < K)[:, None, None] & known[None], other=0.0).to(
            tl.float32
        )
    sample = (tl.program_id(2) // SPLITS).to(tl.int64)
    x += sample * D * H * W * (GROUPS * CIN) + g * CIN
    dy += sample * voxels * (GROUPS * COUT) + g * COUT
    for b in range(first, last):
        acc = tl.zeros((BK, BN), tl.float32)
        for start in range(begin, end, BM):
            m = start + tl.arange(0, BM)
            od, oh, ow = (m // (OH * OW))[:, None], (m // OW % OH)[:, None], (m % OW)[:, None]
            iz, iy, ix = od * SD - PD + td * LD, oh * SH - PH + th * LH, ow * SW - PW + tw * LW
            within = (iz >= 0) & (iz < D) & (iy >= 0) & (iy < H) & (ix >= 0) & (ix < W)
            within = within & (m < end)[:, None] & (kk < rows)[None, :]
            at = ((iz * H + iy) * W + ix) * (GROUPS * CIN) + c[None, :]
            a = tl.load(x + at, mask=within, other=0.0)
            d = tl.load(
                dy + m[:, None] * (GROUPS * COUT) + n[None, :],
                mask=(m < end)[:, None] & (n < COUT)[None, :],
                other=0.0,
            )
            acc = tl.dot(tl.trans(a), d, acc, input_precision=PRECISION)
        if WRITE:
            z = (tl.program_id(2) % SPLITS).to(tl.int64) * B + b
            tl.store(dw + z * (GROUPS * rows * COUT) + at_w, acc, mask=known)
        else:
            found = tl.sum(tl.sum(made * acc[None], 2), 1)
            tile = g * tl.num_programs(0) + tl.program_id(0)
            to = de + (b * GROUPS * tl.num_programs(0) + tile) * K
            tl.store(to + ks, found, mask=ks < K)
            each = tl.load(e + b * K + ks, mask=ks < K, other=0.0)
            total += acc
            sums += each[:, None, None] * acc[None]
        x += D * H * W * (GROUPS * CIN)
        dy += voxels * (GROUPS * COUT)
    if not WRITE:
        tl.store(dg0 + at_w, total, mask=known)
        tl.store(dG + at_k, sums, mask=(ks < K)[:, None, None] & known[None])

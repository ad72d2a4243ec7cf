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

from hyperfusion_rt.kernels.gpu import conv3d_tiles as tiles


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
    D, H, W,  # size of x
    OD, OH, OW,  # size of what is summed
    w_sample, w_k, e_sample,
    slope,
    CIN: tl.constexpr, COUT: tl.constexpr, GROUPS: tl.constexpr,
    XGROUPS: tl.constexpr,  # GROUPS; 1: all groups read the same channels
    K1: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    STEP: tl.constexpr,  # STRIDE / gcd(STRIDE, DILATION); 1 if not TRANSPOSED
    TRANSPOSED: tl.constexpr, GENERATE: tl.constexpr,
    BIAS: tl.constexpr, AFFINE: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
    POOL: tl.constexpr,  # the largest of each 2x2x2 voxels is stored
    PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One tile of BM voxels and BN channels. Grid: (tiles, B · GROUPS, phases)."""
    columns: tl.constexpr = (COUT + BN - 1) // BN
    channels: tl.constexpr = GROUPS * COUT
    tile = tl.program_id(0) // columns
    n = (tl.program_id(0) % columns) * BN + tl.arange(0, BN)
    b = tl.program_id(1) // GROUPS
    g = tl.program_id(1) % GROUPS
    row = tile * BM + tl.arange(0, BM)

    # Which voxel of y a row is, and which taps it meets.
    if TRANSPOSED:
        p = tl.program_id(2)
        phase = p // (STRIDE[1] * STRIDE[2]), p // STRIDE[2] % STRIDE[1], p % STRIDE[2]
        voxel, inside = tiles.voxels_of_phase(row, phase, (OD, OH, OW), STRIDE)
        first, counts = tiles.taps_of_phase(phase, KERNEL, STRIDE, PADDING, DILATION, STEP)
        met = counts[0], tl.maximum(counts[1], 1), tl.maximum(counts[2], 1)  # they divide
    else:
        voxel, inside = tiles.voxels(row, (OD, OH, OW), POOL)
        first, counts = (0, 0, 0), (KERNEL[0], KERNEL[1], KERNEL[2])
        met = counts
    voxel = (voxel[0][:, None], voxel[1][:, None], voxel[2][:, None])

    x += b.to(tl.int64) * D * H * W * (XGROUPS * CIN) + g % XGROUPS * CIN
    w += b.to(tl.int64) * w_sample
    w += g.to(tl.int64) * (KERNEL[0] * KERNEL[1] * KERNEL[2] * CIN * COUT)
    e += b * e_sample
    total = counts[0] * counts[1] * counts[2] * CIN
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(0, total, BK):
        kk = start + tl.arange(0, BK)
        i, j, c = tiles.reduced(start, kk, CIN, BK)
        tap = tiles.tap_of(i, first, met, STEP)
        a = tiles.volume(
            x, voxel, inside, tap, c, kk, total, (D, H, W),
            CIN, XGROUPS, STRIDE, PADDING, DILATION, TRANSPOSED, BK,
        )  # fmt: skip
        tap_w = tiles.tap_number(j, first, met, KERNEL, STEP)
        weight = tiles.weights(
            w, tap_w, c, n, kk, total, e, w_k, CIN, COUT, K1, TRANSPOSED, GENERATE, BK, BN
        )
        acc = tl.dot(a, weight.to(a.dtype), acc, input_precision=PRECISION)

    channel, known = g * COUT + n, n < COUT
    acc = tiles.scaled(acc, e, h, scale, shift, channel, known, K1, channels, BIAS, AFFINE, BN)
    sample = b.to(tl.int64) * OD * OH * OW * channels
    to = ((voxel[0] * OH + voxel[1]) * OW + voxel[2]) * channels + channel[None, :]
    stored = inside[:, None] & known[None, :]
    if RESIDUAL:
        acc += tl.load(residual + sample + to, mask=stored, other=0.0).to(tl.float32)
    if ACTIVATION:
        acc = tl.where(acc < 0, slope * acc, acc)  # NaN stays NaN
    if POOL:
        acc = tiles.largest_of_cells(acc, BM, BN)
        cell = tile * (BM // 8) + tl.arange(0, BM // 8)
        cells = (OD // 2) * (OH // 2) * (OW // 2)
        sample = b.to(tl.int64) * cells * channels
        to = cell[:, None] * channels + channel[None, :]
        stored = (cell < cells)[:, None] & known[None, :]
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
    D, H, W,  # size of x
    OD, OH, OW,  # size of dy
    SPLITS,
    CIN: tl.constexpr, COUT: tl.constexpr, GROUPS: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,  # the next power of two
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr,
    WRITE: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One tile of BK weights (tap, input channel) by BN output channels of the gradient of W[b].

    WRITE: of one sample, over one of SPLITS shares of its voxels, to memory. Else: of every
    sample in turn, never written: its products with G give `de`, its sum over the batch `dG`,
    in registers.
    Grid: (tiles, GROUPS, B · SPLITS or 1).
    """
    columns: tl.constexpr = (COUT + BN - 1) // BN
    rows: tl.constexpr = KERNEL[0] * KERNEL[1] * KERNEL[2] * CIN
    n = (tl.program_id(0) % columns) * BN + tl.arange(0, BN)
    kk = (tl.program_id(0) // columns) * BK + tl.arange(0, BK)
    g = tl.program_id(1)
    tap, c = kk // CIN, kk % CIN
    td = (tap // (KERNEL[1] * KERNEL[2]))[None, :]
    th, tw = (tap // KERNEL[2] % KERNEL[1])[None, :], (tap % KERNEL[2])[None, :]
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
        known_k = (ks < K)[:, None, None] & known[None]
        made = tl.load(G + at_k, mask=known_k, other=0.0).to(tl.float32)
    sample = (tl.program_id(2) // SPLITS).to(tl.int64)
    x += sample * D * H * W * (GROUPS * CIN) + g * CIN
    dy += sample * voxels * (GROUPS * COUT) + g * COUT
    for b in range(first, last):
        acc = tl.zeros((BK, BN), tl.float32)
        for start in range(begin, end, BM):
            m = start + tl.arange(0, BM)
            a = tiles.volume_of_share(
                x, m, end, (td, th, tw), c, kk < rows, (D, H, W), (OD, OH, OW),
                GROUPS * CIN, STRIDE, PADDING, DILATION,
            )  # fmt: skip
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
        tl.store(dG + at_k, sums, mask=known_k)

"""A product of a batch of vectors with matrices made of generators, without making them.

    y[b, o] = Σ_k ẽ[b, k] Σ_i x[b, i] G̃[k, o, i] + beta[b, o]

Each number of G̃ is read once for a tile of samples; the sum over i may be split among programs.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _product(
    x,
    w,
    begin,
    end,
    w_in,
    x_known,
    known,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """`Σ_i x[b, i] w[o, i]` over begin <= i < end, in float32."""
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(begin, end, BK):
        i = start + tl.arange(0, BK)
        a = tl.load(x + i[None, :], mask=x_known & (i < end)[None, :], other=0.0)
        m = tl.load(w + i[:, None] * w_in, mask=(i < end)[:, None] & known, other=0.0)
        acc = tl.dot(a, m.to(a.dtype), acc, input_precision=PRECISION)
    return acc


@triton.jit
def hyper_linear(
    x,  # [B, CIN]
    e,  # [B, K] float32
    G,  # [K, COUT, CIN], strides w_k, w_out, w_in
    g0,  # [COUT, CIN], strides w_out, w_in
    h,  # [K, COUT] float32
    h0,  # [COUT] float32
    y,  # [SPLITS, B, COUT]
    B,
    CIN,
    COUT,
    K,
    SHARE,  # of CIN, for one of SPLITS programs
    w_k,
    w_out,
    w_in,
    CONSTANT: tl.constexpr,
    BIAS: tl.constexpr,
    BIAS_CONSTANT: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """One tile of BM samples and BN outputs. Grid: (tiles of COUT, tiles of B, SPLITS)."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    b = tl.program_id(1) * BM + tl.arange(0, BM)
    split = tl.program_id(2)
    known, some = n < COUT, b < B
    begin = split * SHARE
    end = tl.minimum(begin + SHARE, CIN)
    x += b.to(tl.int64)[:, None] * CIN
    at = n[None, :].to(tl.int64) * w_out
    acc = tl.zeros((BM, BN), tl.float32)
    if CONSTANT:
        acc += _product(x, g0 + at, begin, end, w_in, some[:, None], known[None, :],
                        PRECISION, BM, BN, BK)  # fmt: skip
    for k in range(K):
        each = tl.load(e + b * K + k, mask=some, other=0.0)
        acc += each[:, None] * _product(x, G + at, begin, end, w_in, some[:, None], known[None, :],
                                        PRECISION, BM, BN, BK)  # fmt: skip
        if BIAS:
            # One of the splits adds it.
            row = tl.load(h + k * COUT + n, mask=known & (split == 0), other=0.0)
            acc += each[:, None] * row[None, :]
        G += w_k
    if BIAS_CONSTANT:
        acc += tl.load(h0 + n, mask=known & (split == 0), other=0.0)[None, :]
    to = y + (split.to(tl.int64) * B + b[:, None]) * COUT + n[None, :]
    tl.store(to, acc.to(y.dtype.element_ty), mask=some[:, None] & known[None, :])

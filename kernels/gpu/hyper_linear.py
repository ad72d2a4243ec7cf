"""`hyper_linear` with Triton. Its gradient of x is the same product with G transposed."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperfusion_rt.kernels.gpu import configs
from hyperfusion_rt.kernels.gpu import linear as kernels
from hyperfusion_rt.kernels.gpu.configs import tiles
from hyperfusion_rt.kernels.gpu.launch import LIMIT, precision_of


def forward(
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    h: Tensor | None,
    g0: Tensor | None,
    h0: Tensor | None,
) -> Tensor:
    """`hyper_linear`; arguments as there, G and g0 with any strides, h may be missing."""
    x, e = x.contiguous(), condition.float().contiguous()
    batch, cin = x.shape
    count, cout = G.shape[:2]
    if batch * cout == 0:
        return x.new_empty((batch, cout))
    if g0 is not None and g0.stride() != G.stride()[1:]:
        G, g0 = G.contiguous(), g0.contiguous()
    precision = precision_of(x.dtype, convolution=False)
    config = configs.LINEAR[configs.linear_config(batch, precision)]
    if cin * cout >= LIMIT:
        raise ValueError(f"a matrix of {cout} x {cin} is too large: it must have less than {LIMIT}")
    programs = tiles(cout, config.columns), tiles(batch, config.rows)
    steps = tiles(cin, config.step)
    # Enough programs to fill a chip; each share keeps a few steps of work.
    splits = max(1, min(tiles(2 * 132, programs[0] * programs[1]), steps // 4))
    share = tiles(steps, splits) * config.step
    splits = max(1, tiles(cin, share))
    dtype = x.dtype if splits == 1 else torch.float32
    y = torch.empty((splits, batch, cout), dtype=dtype, device=x.device)
    unread = y  # a pointer for arguments that the kernel does not read
    h, h0 = (None if t is None else t.float().contiguous() for t in (h, h0))
    grid = (*programs, splits)
    kernels.hyper_linear[grid](
        x, e, G, unread if g0 is None else g0,
        unread if h is None else h, unread if h0 is None else h0, y,
        batch, cin, cout, count, share, *G.stride(),
        CONSTANT=g0 is not None, BIAS=h is not None, BIAS_CONSTANT=h0 is not None,
        **config.constants(precision),
    )  # fmt: skip
    return y[0] if splits == 1 else y.sum(0).to(x.dtype)

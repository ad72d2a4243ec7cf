"""What each op means, in plain PyTorch, sample by sample. Never made fast."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv3d, conv_transpose3d, linear, max_pool3d

Triple = tuple[int, int, int]


def generate(condition: Tensor, generator: Tensor, constant: Tensor | None) -> Tensor:
    """`constant + Σ_k condition[k] · generator[k]` for one sample: `condition [K]`."""
    total = torch.zeros_like(generator[0]) if constant is None else constant
    for k in range(len(condition)):
        total = total + condition[k] * generator[k]
    return total


def _by_sample(
    layer: Callable[..., Tensor],
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    h: Tensor,
    g0: Tensor | None,
    h0: Tensor | None,
    *geometry: Triple | int,
) -> Tensor:
    """`layer(x[b], W[b], beta[b], *geometry)` of every sample b, with W and beta generated."""
    samples = []
    for b in range(len(x)):
        weight = generate(condition[b], G, g0)
        bias = generate(condition[b], h, h0)
        samples.append(layer(x[b : b + 1], weight, bias, *geometry))
    return torch.cat(samples)


def hyper_conv3d(
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    h: Tensor,
    g0: Tensor | None = None,
    h0: Tensor | None = None,
    stride: Triple = (1, 1, 1),
    padding: Triple = (0, 0, 0),
    dilation: Triple = (1, 1, 1),
    groups: int = 1,
) -> Tensor:
    """Convolve every sample with its own weights.

        W[b] = g0 + Σ_k e[b, k] · G[k],   beta[b] = h0 + Σ_k e[b, k] · h[k]
        y[b] = conv3d(x[b], W[b], stride, padding, dilation, groups) + beta[b]

    `x [B, Cin, D, H, W]`, `condition e [B, K]`, `G [K, Cout, Cin/groups, kD, kH, kW]`,
    `h [K, Cout]`, `g0 [Cout, Cin/groups, kD, kH, kW]`, `h0 [Cout]` → `[B, Cout, D', H', W']`.
    """
    geometry = stride, padding, dilation, groups
    return _by_sample(conv3d, x, condition, G, h, g0, h0, *geometry)


def hyper_conv_transpose3d(
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    h: Tensor,
    g0: Tensor | None = None,
    h0: Tensor | None = None,
    stride: Triple = (1, 1, 1),
    padding: Triple = (0, 0, 0),
    output_padding: Triple = (0, 0, 0),
    dilation: Triple = (1, 1, 1),
    groups: int = 1,
) -> Tensor:
    """Convolve every sample, transposed, with its own weights.

        W[b] = g0 + Σ_k e[b, k] · G[k],   beta[b] = h0 + Σ_k e[b, k] · h[k]
        y[b] = conv_transpose3d(x[b], W[b], stride, padding, output_padding, dilation, groups)
               + beta[b]

    `x [B, Cin, D, H, W]`, `condition e [B, K]`, `G [K, Cin, Cout/groups, kD, kH, kW]`,
    `h [K, Cout]`, `g0 [Cin, Cout/groups, kD, kH, kW]`, `h0 [Cout]` → `[B, Cout, D', H', W']`.
    """
    geometry = stride, padding, output_padding, groups, dilation
    return _by_sample(conv_transpose3d, x, condition, G, h, g0, h0, *geometry)


def hyper_linear(
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    h: Tensor,
    g0: Tensor | None = None,
    h0: Tensor | None = None,
) -> Tensor:
    """`y[b] = W[b] · x[b] + beta[b]`, with W and beta as in `hyper_conv3d`.

    `x [B, Cin]`, `condition [B, K]`, `G [K, Cout, Cin]`, `h [K, Cout]`, `g0 [Cout, Cin]`,
    `h0 [Cout]` → `[B, Cout]`.
    """
    return _by_sample(linear, x, condition, G, h, g0, h0)


def norm_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-5,
    factor: Tensor | None = None,
    relu: bool = True,
    pool: bool = False,
) -> Tensor:
    """Batch norm with the batch's statistics, and what follows it.

        y = factor[b, c] · pool(relu(weight[c] · (x - mean[c]) / √(variance[c] + eps) + bias[c]))

    `x [B, C, D, H, W]`; `weight`, `bias [C]`; `factor [B, C]`. The variance is over all numbers of
    a channel, divided by their count. `pool`: the maximum of 2x2x2 voxels.
    """
    channels = []
    for c in range(x.shape[1]):
        one = x[:, c]
        mean = one.mean()
        variance = (one - mean).square().mean()
        y = weight[c] * (one - mean) / (variance + eps).sqrt() + bias[c]
        y = y.clamp(min=0) if relu else y
        y = max_pool3d(y, 2) if pool else y
        channels.append(y if factor is None else y * factor[:, c, None, None, None])
    return torch.stack(channels, 1)

"""`hyper_linear`: a matrix of its own for every sample."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from hyperfusion_rt.kernels import backend
from hyperfusion_rt.kernels.generator import check, generate


def hyper_linear(
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    h: Tensor,
    g0: Tensor | None = None,
    h0: Tensor | None = None,
) -> Tensor:
    """`y[b] = W[b] · x[b] + beta[b]`, with W and beta as in `hyper_conv3d`; no loop over samples.

    `x [B, Cin]`, `condition [B, K]`, `G [K, Cout, Cin]`, `h [K, Cout]`, `g0 [Cout, Cin]`,
    `h0 [Cout]`, one floating dtype → `[B, Cout]`. Differentiable in all six tensors.

    Raises:
        ValueError: shapes that do not fit together.
    """
    check("hyper_linear", x, condition, G, h, g0, h0)
    if x.shape[1] != G.shape[2]:
        raise ValueError(f"hyper_linear: x has {x.shape[1]} features, but G reads {G.shape[2]}")
    if backend.whole:
        y: Tensor = _op_linear(x, condition, G, h, g0, h0)
        return y
    return _linear(x, condition, G, h, g0, h0)


def _linear(
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    h: Tensor,
    g0: Tensor | None,
    h0: Tensor | None,
) -> Tensor:
    count, cout = G.shape[:2]
    y = torch.einsum("bko,bk->bo", linear(x, G.flatten(0, 1)).view(-1, count, cout), condition)
    y = y + generate(condition, h, h0)
    return y if g0 is None else y + linear(x, g0)


@torch.library.custom_op("hfrt::hyper_linear", mutates_args=())
def _op_linear(
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    h: Tensor,
    g0: Tensor | None,
    h0: Tensor | None,
) -> Tensor:
    return _linear(x, condition, G, h, g0, h0).clone()


@_op_linear.register_fake
def _(
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    h: Tensor,
    g0: Tensor | None,
    h0: Tensor | None,
) -> Tensor:
    return x.new_empty((x.shape[0], G.shape[1]))

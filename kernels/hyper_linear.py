"""`hyper_linear`. With ẽ = [1, e] and G̃ = [g0, G], `y[b] = Σ_k ẽ[b, k] G̃_k x[b] + beta[b]`.

W[b] is never made: the products with all G̃_k cost as much as making it and one product with it.
On CUDA it is one node and one Triton kernel; elsewhere, and for float64, a composition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from hyperfusion_rt.kernels import backend
from hyperfusion_rt.kernels.weights import check, generate, join_samples


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
    `h0 [Cout]`, one floating dtype → `[B, Cout]`. Differentiable in all six tensors. On CUDA x
    may be float16 or bfloat16 and the rest float32: sums are float32, y has the dtype of x, and
    under autocast x is cast.

    Raises:
        ValueError: shapes that do not fit together.
    """
    check("hyper_linear", x, condition, G, h, g0, h0)
    if x.shape[1] != G.shape[2]:
        raise ValueError(f"hyper_linear: x has {x.shape[1]} features, but G reads {G.shape[2]}")
    if not (backend.whole or backend.on_triton(x)):
        return _linear(x, condition, G, h, g0, h0)
    if not backend.whole:
        x = backend.autocast(x)
    y: Tensor = _op(x, condition, G, h, g0, h0)
    return y


def _linear(
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    h: Tensor | None,
    g0: Tensor | None,
    h0: Tensor | None,
) -> Tensor:
    count, cout = G.shape[:2]
    y = torch.einsum("bko,bk->bo", linear(x, G.flatten(0, 1)).view(-1, count, cout), condition)
    if h is not None:
        y = y + generate(condition, h, h0)
    return y if g0 is None else y + linear(x, g0)


@torch.library.custom_op("hfrt::hyper_linear", mutates_args=())
def _op(
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    h: Tensor | None,
    g0: Tensor | None,
    h0: Tensor | None,
) -> Tensor:
    if backend.on_triton(x):
        from hyperfusion_rt.kernels.gpu import hyper_linear as gpu

        with torch.cuda.device_of(x):
            return gpu.forward(x, condition, G, h, g0, h0)
    return _linear(x, condition, G, h, g0, h0).clone()


@_op.register_fake
def _(x: Tensor, condition: Tensor, G: Tensor, *others: Any) -> Tensor:
    return x.new_empty((x.shape[0], G.shape[1]))


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """Products of matrices without a batch axis: a library does them best."""
    x, condition, G, h, g0, h0 = ctx.saved_tensors
    need_x, need_e, need_G, need_h, need_g0, need_h0 = ctx.needs_input_grad
    dx = de = dG = dh = dg0 = dh0 = None
    if need_x:
        back = None if g0 is None else g0.T
        dx = _op(dy.to(x.dtype), condition, G.transpose(1, 2), None, back, None)
    # Weights and sums are as wide as the generators.
    wide, e = dy.to(G.dtype), condition.to(G.dtype)
    if need_G:
        each = (e[:, :, None] * wide[:, None]).flatten(1)
        dG = (each.T @ x.to(G.dtype)).view(G.shape)
    if need_g0:
        dg0 = wide.T @ x.to(G.dtype)
    if need_e:
        products = linear(x.to(G.dtype), G.flatten(0, 1)).unflatten(1, G.shape[:2])
        if h is not None:
            products = products + h.to(G.dtype)
        de = torch.einsum("bko,bo->bk", products, wide).to(condition.dtype)
    if need_h:
        dh = (e.T @ wide).to(h.dtype)
    if need_h0:
        dh0 = wide.sum(0).to(h0.dtype)
    return dx, de, dG, dh, dg0, dh0


_op.register_autograd(_gradients, setup_context=_keep_for_backward)


@_op.register_vmap
def _(info: Any, dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
    return join_samples(_op, info, dims, arguments, of_samples=(0, 1))

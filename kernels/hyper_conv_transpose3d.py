"""`hyper_conv_transpose3d`, in the two forms of `hyper_conv3d`: per sample and shared.

Per sample is one grouped transposed convolution (groups = B); an exported graph gets the shared
form, whose batch stays symbolic. Under `whole_ops` it is one node. Torch convolves on every device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv_transpose3d

from hyperfusion_rt.kernels import backend
from hyperfusion_rt.kernels.geometry import Geometry, Triple, three, triple
from hyperfusion_rt.kernels.weights import (
    check,
    generate,
    generator_gradients,
    join_samples,
    mix,
    stack,
)


def hyper_conv_transpose3d(
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    h: Tensor,
    g0: Tensor | None = None,
    h0: Tensor | None = None,
    stride: int | Triple = 1,
    padding: int | Triple = 0,
    output_padding: int | Triple = 0,
    dilation: int | Triple = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve every sample, transposed, with its own, generated weights; no loop over samples.

        W[b] = g0 + Σ_k e[b, k] · G[k],   beta[b] = h0 + Σ_k e[b, k] · h[k]
        y[b] = conv_transpose3d(x[b], W[b], stride, padding, output_padding, dilation, groups)
               + beta[b]

    `x [B, Cin, D, H, W]`, `condition e [B, K]`, `G [K, Cin, Cout/groups, kD, kH, kW]`,
    `h [K, Cout]`, `g0 [Cin, Cout/groups, kD, kH, kW]` and `h0 [Cout]`, one floating dtype
    → `[B, Cout, D', H', W']`, D' = (D - 1) · stride - 2 · padding + dilation · (kD - 1)
    + output_padding + 1. Differentiable in all six tensors.

    Raises:
        ValueError: shapes that do not fit together.
    """
    name = "hyper_conv_transpose3d"
    check(name, x, condition, G, h, g0, h0, groups)
    stride, padding = three(stride, "stride", 1), three(padding, "padding", 0)
    output_padding = three(output_padding, "output_padding", 0)
    dilation = three(dilation, "dilation", 1)
    if x.shape[1] != G.shape[1]:
        raise ValueError(f"{name}: x has {x.shape[1]} channels, but G reads {G.shape[1]}")
    if G.shape[1] % groups:
        raise ValueError(
            f"{name}: G reads {G.shape[1]} channels, which {groups} groups cannot share"
        )
    for more, s, step in zip(output_padding, stride, dilation, strict=True):
        if more >= max(s, step):
            raise ValueError(
                f"{name}: output_padding {output_padding} must be smaller than stride {stride} or "
                f"dilation {dilation}"
            )
    geometry = Geometry.of(G.shape[3:], stride, padding, dilation, groups)
    if min(geometry.transposed_out(triple(x.shape[2:]), output_padding)) < 1:
        raise ValueError(
            f"{name}: nothing is left of x of {tuple(x.shape[2:])} voxels, kernel "
            f"{tuple(G.shape[3:])}, padding {padding}"
        )
    convolve = _op if backend.whole else _conv
    y: Tensor = convolve(
        x, condition, G, h, g0, h0,
        list(stride), list(padding), list(output_padding), list(dilation), groups,
    )  # fmt: skip
    return y


def _conv(
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    h: Tensor,
    g0: Tensor | None,
    h0: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    beta = generate(condition, h, h0)
    # A grouped convolution has at least one group.
    if torch.compiler.is_exporting() or x.shape[0] == 0:
        weights, stacked = stack(condition, G, g0)
        kernel = stacked.transpose(0, 1).flatten(1, 2)
        y = conv_transpose3d(x, kernel, None, stride, padding, output_padding, groups, dilation)
        return mix(y, weights, groups) + beta[:, :, None, None, None]
    batch = x.shape[0]
    weight = generate(condition, G, g0).flatten(0, 1)
    one = x.reshape(1, -1, *x.shape[2:])
    y = conv_transpose3d(
        one, weight, beta.flatten(), stride, padding, output_padding, groups * batch, dilation
    )
    return y.view(batch, -1, *y.shape[2:])


@torch.library.custom_op("hfrt::hyper_conv_transpose3d", mutates_args=())
def _op(
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    h: Tensor,
    g0: Tensor | None,
    h0: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    y = _conv(x, condition, G, h, g0, h0, stride, padding, output_padding, dilation, groups)
    return y.clone(memory_format=torch.contiguous_format)


@_op.register_fake
def _(x: Tensor, condition: Tensor, G: Tensor, h: Tensor, *others: Any) -> Tensor:
    _g0, _h0, stride, padding, output_padding, dilation, groups = others
    geometry = Geometry.of(G.shape[3:], stride, padding, dilation, groups)
    size = geometry.transposed_out(triple(x.shape[2:]), triple(output_padding))
    return x.new_empty((x.shape[0], h.shape[1], *size))


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, stride, padding, output_padding, dilation, groups = inputs
    ctx.save_for_backward(*tensors)
    ctx.geometry = stride, padding, output_padding, dilation, groups


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, condition, G, h, g0, _h0 = ctx.saved_tensors
    stride, padding, output_padding, dilation, groups = ctx.geometry
    batch = x.shape[0]
    weight = generate(condition, G, g0).flatten(0, 1)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy.reshape(1, -1, *dy.shape[2:]), x.reshape(1, -1, *x.shape[2:]), weight, None,
        stride, padding, dilation, True, output_padding, groups * batch, [True, True, False],
    )  # fmt: skip
    found = [
        dx.view_as(x),
        *generator_gradients(dw.view(batch, -1), dy.sum((2, 3, 4)), condition, G, h),
    ]
    needs = ctx.needs_input_grad
    return (
        *(g if need else None for g, need in zip(found, needs, strict=False)),
        *[None] * len(ctx.geometry),
    )


_op.register_autograd(_gradients, setup_context=_keep_for_backward)


@_op.register_vmap
def _(info: Any, dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
    return join_samples(_op, info, dims, arguments, of_samples=(0, 1))

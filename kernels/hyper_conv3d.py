"""`hyper_conv3d`. The generator is linear, so with ẽ = [1, e] and G̃ = [g0, G] two forms are equal:

    per sample:  W[b] = Σ_k ẽ[b, k] G̃_k,  y[b] = W[b] ∗ x[b]    one convolution per sample
    shared:      y[b] = Σ_k ẽ[b, k] (G̃_k ∗ x[b])                K + 1 convolutions, shared weights

A 1x1x1 convolution is a batched matrix product with W[b]. Other convolutions use W[b] in one
grouped convolution (groups = B), eager or compiled: it does 1 / (K + 1) of the shared form's
multiplications. An exported graph keeps B symbolic, and ONNX's Conv takes no symbolic number of
groups: there the shared form stands. Our own export reads each op as one node (`whole_ops`).

On CUDA the convolution is one node too, and runs Triton kernels (`kernels/gpu`), forward and
backward. Without Triton, and for float64, it is the composition above. In float32 without
gradients, the native engine convolves on the CPU (`kernels/native.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv3d

from hyperfusion_rt.kernels import backend
from hyperfusion_rt.kernels.epilogue import Epilogue, apply, check_epilogue
from hyperfusion_rt.kernels.geometry import Geometry, Triple, three, triple
from hyperfusion_rt.kernels.weights import (
    check,
    check_devices,
    generate,
    generator_gradients,
    join_samples,
    mix,
    stack,
)


def hyper_conv3d(
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    h: Tensor,
    g0: Tensor | None = None,
    h0: Tensor | None = None,
    stride: int | Triple = 1,
    padding: int | Triple = 0,
    dilation: int | Triple = 1,
    groups: int = 1,
    epilogue: Epilogue | None = None,
) -> Tensor:
    """Convolve every sample with its own, generated weights; no loop over samples.

        W[b] = g0 + Σ_k e[b, k] · G[k],   beta[b] = h0 + Σ_k e[b, k] · h[k]
        y[b] = conv3d(x[b], W[b], stride, padding, dilation, groups) + beta[b]

    `x [B, Cin, D, H, W]`, `condition e [B, K]`, `G [K, Cout, Cin/groups, kD, kH, kW]`,
    `h [K, Cout]`, `g0 [Cout, Cin/groups, kD, kH, kW]` and `h0 [Cout]`, one floating dtype
    → `[B, Cout, D', H', W']`. Differentiable in all six tensors, and in those of the `epilogue`
    that follows. On CUDA x may be float16 or bfloat16 and the rest float32: sums are float32, y has
    the dtype of x, and under autocast x is cast.

    Raises:
        ValueError: shapes that do not fit together.
    """
    check("hyper_conv3d", x, condition, G, h, g0, h0)
    stride, padding = three(stride, "stride", 1), three(padding, "padding", 0)
    dilation = three(dilation, "dilation", 1)
    if x.shape[1] != G.shape[2] * groups:
        raise ValueError(
            f"hyper_conv3d: x has {x.shape[1]} channels, but G reads {G.shape[2]} in each of "
            f"{groups} groups"
        )
    if G.shape[1] % groups:
        raise ValueError(
            f"hyper_conv3d: G makes {G.shape[1]} channels, which {groups} groups cannot share"
        )
    after = epilogue or Epilogue()
    check_devices("hyper_conv3d", x, **after.tensors)
    geometry = Geometry.of(G.shape[3:], stride, padding, dilation, groups)
    size = geometry.out(triple(x.shape[2:]))
    if min(size) < 1:
        raise ValueError(
            f"hyper_conv3d: x of {tuple(x.shape[2:])} voxels is too small for a kernel of "
            f"{tuple(G.shape[3:])}, dilation {dilation}, padding {padding}"
        )
    check_epilogue("hyper_conv3d", after, (x.shape[0], G.shape[1], *size))
    tensors = [x, condition, G, h, g0, h0, *after.tensors.values()]
    if not (backend.whole or backend.on_triton(x) or _on_native(tensors, geometry)):
        y = _conv3d(x, condition, G, h, g0, h0, stride, padding, dilation, groups)
        return apply(y, after)
    if not backend.whole:
        x = backend.autocast(x)
    positions = list(stride), list(padding), list(dilation), groups
    # The gradient of a scale needs the convolution's result, which a fused epilogue does not keep.
    if backend.whole or (after.scale is not None and after.scale.requires_grad):
        return apply(_op_conv3d(x, condition, G, h, g0, h0, *positions), after)
    residual = None if after.residual is None else after.residual.to(x.dtype)
    fields = after._replace(residual=residual)
    made: Tensor = _op_conv3d(x, condition, G, h, g0, h0, *positions, *fields)
    return made


def _on_native(tensors: list[Tensor | None], geometry: Geometry) -> bool:
    """Whether the native engine convolves."""
    if not backend.inferring(tensors):
        return False
    from hyperfusion_rt.kernels.cpu import native

    return native.covers_generated(tensors, geometry)


def _conv3d(
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    h: Tensor,
    g0: Tensor | None,
    h0: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    beta = generate(condition, h, h0)
    if tuple(G.shape[3:]) == (1, 1, 1) and not any(padding) and groups == 1:
        picked = x[:, :, :: stride[0], :: stride[1], :: stride[2]]
        weight = generate(condition, G, g0).flatten(2)
        y: Tensor = torch.baddbmm(beta.unsqueeze(2), weight, picked.flatten(2))
        return y.view(-1, *weight.shape[1:2], *picked.shape[2:])
    # A grouped convolution has at least one group.
    if torch.compiler.is_exporting() or x.shape[0] == 0:
        return (
            _shared(x, condition, G, g0, stride, padding, dilation, groups)
            + beta[:, :, None, None, None]
        )
    batch, cout = x.shape[0], G.shape[1]
    weight = generate(condition, G, g0).flatten(0, 1)
    one = x.reshape(1, -1, *x.shape[2:])
    y = conv3d(one, weight, beta.flatten(), stride, padding, dilation, groups * batch)
    return y.view(batch, cout, *y.shape[2:])


def _shared(
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    g0: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """`Σ_k ẽ[b, k] (G̃_k ∗ x[b])`: one convolution with (K + 1) · Cout channels, then a sum."""
    weights, stacked = stack(condition, G, g0)
    # Channels ordered group, k, channel: a grouped convolution keeps its outputs together.
    kernel = stacked.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 2)
    return mix(conv3d(x, kernel, None, stride, padding, dilation, groups), weights, groups)


# One node, with fake, autograd and vmap rules. On CUDA it is always one.


@torch.library.custom_op("hfrt::hyper_conv3d", mutates_args=())
def _op_conv3d(
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    h: Tensor,
    g0: Tensor | None,
    h0: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    slope: float = 1.0,
) -> Tensor:
    epilogue = Epilogue(scale, shift, residual, slope)
    geometry = Geometry.of(G.shape[3:], stride, padding, dilation, groups)
    if backend.on_triton(x):
        from hyperfusion_rt.kernels.gpu import hyper_conv3d as gpu

        with torch.cuda.device_of(x):
            return gpu.forward(x, condition, G, h, g0, h0, geometry, epilogue)
    if x.device.type == "cpu":
        from hyperfusion_rt.kernels.cpu import native

        tensors = [x, condition, G, h, g0, h0, scale, shift, residual]
        if native.covers_generated(tensors, geometry):
            return native.hyper_conv3d(x, condition, G, h, g0, h0, geometry, epilogue)
    y = _conv3d(x, condition, G, h, g0, h0, stride, padding, dilation, groups)
    return apply(y, epilogue).clone(memory_format=torch.contiguous_format)


@_op_conv3d.register_fake
def _(x: Tensor, condition: Tensor, G: Tensor, h: Tensor, *others: Any) -> Tensor:
    size = Geometry.of(G.shape[3:], *others[2:6]).out(triple(x.shape[2:]))
    shape = (x.shape[0], G.shape[1], *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=backend.layout(x))


@torch.library.custom_op("hfrt::hyper_conv3d_backward", mutates_args=())
def _op_conv3d_backward(
    dy: Tensor,
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    h: Tensor,
    g0: Tensor | None,
    h0: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    needs: Sequence[bool],
) -> list[Tensor]:
    if backend.on_triton(x):
        from hyperfusion_rt.kernels.gpu import hyper_conv3d as gpu

        geometry = Geometry.of(G.shape[3:], stride, padding, dilation, groups)
        with torch.cuda.device_of(x):
            return gpu.backward(dy, x, condition, G, h, g0, h0, geometry, list(needs))
    batch = x.shape[0]
    weight = generate(condition, G, g0).flatten(0, 1)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy.reshape(1, -1, *dy.shape[2:]), x.reshape(1, -1, *x.shape[2:]), weight, None,
        stride, padding, dilation, False, [0, 0, 0], groups * batch, [True, True, False],
    )  # fmt: skip
    found = [
        dx.view_as(x),
        *generator_gradients(dw.view(batch, -1), dy.sum((2, 3, 4)), condition, G, h),
    ]
    return [
        g.contiguous() if need else x.new_empty(0) for g, need in zip(found, needs, strict=True)
    ]


@_op_conv3d_backward.register_fake
def _(dy: Tensor, x: Tensor, *others: Any) -> list[Tensor]:
    *tensors, _stride, _padding, _dilation, _groups, needs = (x, *others)
    made = []
    for tensor, need in zip(tensors, needs, strict=True):
        if need:
            layout = backend.layout(x) if tensor is x else torch.contiguous_format
            made.append(torch.empty_like(tensor, memory_format=layout))
        else:
            made.append(x.new_empty(0))
    return made


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, condition, G, h, g0, h0, *geometry, scale, shift, _residual, slope = inputs
    ctx.save_for_backward(x, condition, G, h, g0, h0, scale, output if slope != 1.0 else None)
    ctx.geometry, ctx.slope = geometry, slope
    ctx.shift_type = None if shift is None else shift.dtype


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, scale, y = ctx.saved_tensors
    # Trailing arguments at their defaults are left out of the call.
    wanted = (*ctx.needs_input_grad, False, False, False, False)
    need_shift, need_residual = wanted[11:13]
    if y is not None:
        dy = torch.where(y > 0, dy, ctx.slope * dy)
    dshift = dy.sum((0, 2, 3, 4), dtype=torch.float32).to(ctx.shift_type) if need_shift else None
    dresidual = dy if need_residual else None
    if scale is not None:
        dy = dy * scale.to(dy.dtype)[:, None, None, None]
    needs = list(wanted[: len(tensors)])
    found = _op_conv3d_backward(dy, *tensors, *ctx.geometry, needs)
    gradients = [g if need else None for g, need in zip(found, needs, strict=True)]
    return (*gradients, None, None, None, None, None, dshift, dresidual, None)


_op_conv3d.register_autograd(_gradients, setup_context=_keep_for_backward)


@_op_conv3d.register_vmap
def _(info: Any, dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
    # x, condition and residual are per sample.
    return join_samples(_op_conv3d, info, dims, arguments, of_samples=(0, 1, 12))

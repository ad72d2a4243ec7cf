"""The public ops. The form of the computation, and so the backend, is chosen here and only here.

The generator is linear, so with ẽ = [1, e] and G̃ = [g0, G] two forms give the same result:

    per sample:  W[b] = Σ_k ẽ[b, k] G̃_k,  y[b] = W[b] ∗ x[b]    one convolution per sample
    shared:      y[b] = Σ_k ẽ[b, k] (G̃_k ∗ x[b])                K + 1 convolutions, shared weights

A matrix product (`hyper_linear`) costs the same either way, and the shared form never writes W[b].
A 1x1x1 convolution is a batched matrix product with W[b]. Other convolutions use W[b] in one
grouped convolution (groups = B), eager or compiled: it does 1 / (K + 1) of the shared form's
multiplications. An exported graph keeps B symbolic, and ONNX's Conv takes no symbolic number of
groups: there the shared form stands. Our own export reads each op as one node (`whole_ops`).

On CUDA the convolution is one node too, and runs Triton kernels (`kernels/gpu`), forward and
backward. Without Triton, and for float64, it is the composition above. Triton is not imported until
then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv3d, linear

from hyperfusion_rt.kernels.epilogue import Epilogue, apply
from hyperfusion_rt.kernels.geometry import Geometry, Triple, triple

_whole = False
# Devices whose tensors Triton kernels take; tests with Triton's interpreter add the CPU.
TRITON_DEVICES = {"cuda"}
_TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

HAS_TRITON = find_spec("triton") is not None


def _on_triton(x: Tensor) -> bool:
    return x.device.type in TRITON_DEVICES and x.dtype in _TRITON_DTYPES and HAS_TRITON


@contextmanager
def whole_ops() -> Iterator[None]:
    """While it is on, each op is traced as one node: `hfrt::hyper_conv3d`, `hfrt::hyper_linear`.

    For graphs that will be folded, without gradients. It holds for the whole process: the compiler
    cannot trace a context variable.
    """
    global _whole
    _whole = True
    try:
        yield
    finally:
        _whole = False


def _triple(value: int | Triple, name: str, minimum: int) -> Triple:
    found = (value, value, value) if isinstance(value, int) else tuple(value)
    if len(found) != 3:
        raise ValueError(f"{name} takes one number or three, not {value!r}")
    if min(found) < minimum:
        raise ValueError(f"{name} must be {minimum} or more along each axis, not {value!r}")
    return found


def _check(
    op: str,
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    h: Tensor,
    g0: Tensor | None,
    h0: Tensor | None,
) -> None:
    dims = {"hyper_conv3d": (5, 6), "hyper_linear": (2, 3)}[op]
    for name, tensor, expected in (
        ("x", x, dims[0]),
        ("condition", condition, 2),
        ("G", G, dims[1]),
        ("h", h, 2),
    ):
        if tensor.dim() != expected:
            raise ValueError(
                f"{op}: {name} has shape {tuple(tensor.shape)}, but needs {expected} dimensions"
            )
    if G.shape[0] != condition.shape[1] or h.shape[0] != condition.shape[1]:
        raise ValueError(
            f"{op}: condition has K = {condition.shape[1]}, but G has {G.shape[0]} and h has "
            f"{h.shape[0]} generators"
        )
    if h.shape[1] != G.shape[1]:
        raise ValueError(f"{op}: G makes {G.shape[1]} channels, but h makes {h.shape[1]}")
    if g0 is not None and g0.shape != G.shape[1:]:
        raise ValueError(f"{op}: g0 has shape {tuple(g0.shape)}, but G needs {tuple(G.shape[1:])}")
    if h0 is not None and h0.shape != h.shape[1:]:
        raise ValueError(f"{op}: h0 has shape {tuple(h0.shape)}, but h needs {tuple(h.shape[1:])}")
    if x.shape[0] != condition.shape[0]:
        raise ValueError(f"{op}: {x.shape[0]} samples in x, but {condition.shape[0]} in condition")


def _check_epilogue(epilogue: Epilogue, y: tuple[int, ...]) -> None:
    """Raise a ValueError where a tensor of the epilogue does not fit an output shaped `y`."""
    for name, expected in (("scale", y[1:2]), ("shift", y[1:2]), ("residual", y)):
        tensor = getattr(epilogue, name)
        if tensor is not None and tuple(tensor.shape) != tuple(expected):
            raise ValueError(
                f"hyper_conv3d: the epilogue's {name} has shape {tuple(tensor.shape)}, but needs "
                f"{tuple(expected)}"
            )


def _affine(condition: Tensor, generator: Tensor, constant: Tensor | None) -> Tensor:
    """`constant + Σ_k condition[b, k] generator[k]`, for all b: `[B, ...]`."""
    flat = generator.flatten(1)
    if constant is None:
        made = condition @ flat
    else:
        made = torch.addmm(constant.flatten(), condition, flat)
    return made.view(-1, *generator.shape[1:])


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
    _check("hyper_conv3d", x, condition, G, h, g0, h0)
    stride, padding = _triple(stride, "stride", 1), _triple(padding, "padding", 0)
    dilation = _triple(dilation, "dilation", 1)
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
    size = Geometry.of(G.shape[3:], stride, padding, dilation, groups).out(triple(x.shape[2:]))
    _check_epilogue(after, (x.shape[0], G.shape[1], *size))
    if not (_whole or _on_triton(x)):
        y = _conv3d(x, condition, G, h, g0, h0, stride, padding, dilation, groups)
        return apply(y, after)
    if not _whole and torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    geometry = list(stride), list(padding), list(dilation), groups
    # The gradient of a scale needs the convolution's result, which a fused epilogue does not keep.
    if _whole or (after.scale is not None and after.scale.requires_grad):
        return apply(_op_conv3d(x, condition, G, h, g0, h0, *geometry), after)
    residual = None if after.residual is None else after.residual.to(x.dtype)
    fields = after._replace(residual=residual)
    made: Tensor = _op_conv3d(x, condition, G, h, g0, h0, *geometry, *fields)
    return made


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
    beta = _affine(condition, h, h0)
    if tuple(G.shape[3:]) == (1, 1, 1) and not any(padding) and groups == 1:
        picked = x[:, :, :: stride[0], :: stride[1], :: stride[2]]
        weight = _affine(condition, G, g0).flatten(2)
        y: Tensor = torch.baddbmm(beta.unsqueeze(2), weight, picked.flatten(2))
        return y.view(-1, *weight.shape[1:2], *picked.shape[2:])
    if torch.compiler.is_exporting():
        return (
            _shared(x, condition, G, g0, stride, padding, dilation, groups)
            + beta[:, :, None, None, None]
        )
    batch, cout = x.shape[0], G.shape[1]
    weight = _affine(condition, G, g0).flatten(0, 1)
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
    stacked, weights = G, condition
    if g0 is not None:
        stacked = torch.cat([g0[None], G])
        weights = torch.cat([torch.ones_like(condition[:, :1]), condition], 1)
    count, cout = stacked.shape[:2]
    # Channels ordered group, k, channel: a grouped convolution keeps its outputs together.
    kernel = stacked.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 2)
    y = conv3d(x, kernel, None, stride, padding, dilation, groups)
    parts = y.unflatten(1, (groups, count, cout // groups))
    return torch.einsum("bgkcdhw,bk->bgcdhw", parts, weights).flatten(1, 2)


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
    _check("hyper_linear", x, condition, G, h, g0, h0)
    if x.shape[1] != G.shape[2]:
        raise ValueError(f"hyper_linear: x has {x.shape[1]} features, but G reads {G.shape[2]}")
    if _whole:
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
    y = y + _affine(condition, h, h0)
    return y if g0 is None else y + linear(x, g0)


# Each op as one node: fake, autograd and vmap rules. On CUDA the convolution is always one.


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
    if _on_triton(x):
        from hyperfusion_rt.kernels.gpu import hyper_conv3d as gpu

        geometry = Geometry.of(G.shape[3:], stride, padding, dilation, groups)
        return gpu.forward(x, condition, G, h, g0, h0, geometry, epilogue)
    y = _conv3d(x, condition, G, h, g0, h0, stride, padding, dilation, groups)
    return apply(y, epilogue).clone(memory_format=torch.contiguous_format)


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last_3d if _on_triton(x) else torch.contiguous_format


@_op_conv3d.register_fake
def _(x: Tensor, condition: Tensor, G: Tensor, h: Tensor, *others: Any) -> Tensor:
    size = Geometry.of(G.shape[3:], *others[2:6]).out(triple(x.shape[2:]))
    shape = (x.shape[0], G.shape[1], *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_layout(x))


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
    if _on_triton(x):
        from hyperfusion_rt.kernels.gpu import hyper_conv3d as gpu

        geometry = Geometry.of(G.shape[3:], stride, padding, dilation, groups)
        return gpu.backward(dy, x, condition, G, h, g0, h0, geometry, list(needs))
    batch = x.shape[0]
    weight = _affine(condition, G, g0).flatten(0, 1)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy.reshape(1, -1, *dy.shape[2:]), x.reshape(1, -1, *x.shape[2:]), weight, None,
        stride, padding, dilation, False, [0, 0, 0], groups * batch, [True, True, False],
    )  # fmt: skip
    own, dbeta = dw.view(batch, -1), dy.sum((2, 3, 4))
    found = [
        dx.view_as(x),
        own @ G.flatten(1).T + dbeta @ h.T,
        (condition.T @ own).view_as(G),
        condition.T @ dbeta,
        own.sum(0).view(G.shape[1:]),
        dbeta.sum(0),
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
            layout = _layout(x) if tensor is x else torch.contiguous_format
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
    """Samples under vmap join the batch; weights under vmap are one call each."""
    count = info.batch_size
    of_samples = (0, 1, 12)  # x, condition, residual
    mapped = [i for i, a in enumerate(arguments) if isinstance(a, Tensor) and dims[i] is not None]
    if all(i in of_samples for i in mapped):
        joined = list(arguments)
        for i in of_samples:
            t = joined[i] if i < len(joined) else None
            if t is not None:
                t = t.movedim(dims[i], 0) if i in mapped else t.expand(count, *t.shape)
                joined[i] = t.flatten(0, 1)
        return _op_conv3d(*joined).unflatten(0, (count, -1)), 0
    each = [
        _op_conv3d(*(a.select(dims[i], v) if i in mapped else a for i, a in enumerate(arguments)))
        for v in range(count)
    ]
    return torch.stack(each), 0


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

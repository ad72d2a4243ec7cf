"""`hyper_conv3d` with Triton: forward, and the gradients of all of its tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperfusion_rt.kernels.epilogue import Epilogue
from hyperfusion_rt.kernels.geometry import Geometry
from hyperfusion_rt.kernels.gpu import cost, launch
from hyperfusion_rt.kernels.gpu.launch import Weights


def _shape(x: Tensor, G: Tensor, geometry: Geometry) -> cost.Shape:
    return cost.Shape(
        len(x), len(G), x.shape[1], G.shape[1], geometry.kernel, launch.size_of(x),
        geometry.stride, geometry.padding, geometry.dilation, geometry.groups,
    )  # fmt: skip


def _packed(G: Tensor, g0: Tensor | None, geometry: Geometry) -> Tensor:
    """G̃: the constant first, where there is one."""
    return launch.pack([G] if g0 is None else [g0[None], G], geometry.groups)


def _weights(x: Tensor, condition: Tensor, packed: Tensor, strategy: str) -> Weights:
    """The weights as the convolution reads them, without bias."""
    e = condition.float()
    if len(packed) > e.shape[1]:
        e = torch.cat([torch.ones_like(e[:, :1]), e], 1)
    e = e.contiguous()
    if strategy == "generate":
        return Weights(packed, e, None, 0, packed[0].numel())
    made = launch.write_weights(e, packed, x.dtype)
    return Weights(made, e, None, made[0].numel(), 0)


def forward(
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    h: Tensor,
    g0: Tensor | None,
    h0: Tensor | None,
    geometry: Geometry,
    epilogue: Epilogue,
    strategy: str | None = None,
) -> Tensor:
    """`hyper_conv3d` and its epilogue; arguments as there. x is float32, float16 or bfloat16.

    `strategy`: `generate` or `write`; None: the cheaper one by `cost.choose_strategy`.
    """
    if strategy is None:
        shape = _shape(x, G, geometry)
        strategy = cost.choose_strategy(shape, G.element_size(), x.element_size())
    weights = _weights(x, condition, _packed(G, g0, geometry), strategy)
    bias = h.float()
    if g0 is not None:
        first = torch.zeros_like(bias[:1]) if h0 is None else h0.float()[None]
        bias = torch.cat([first, bias])
    elif h0 is not None:
        # The kernel has one ẽ for weights and bias: a constant bias alone goes into the shift.
        epilogue = epilogue._replace(shift=_added(epilogue, h0))
    return launch.conv3d(
        x, weights._replace(h=bias.contiguous()), geometry, channels=G.shape[1], epilogue=epilogue
    )


def _added(epilogue: Epilogue, h0: Tensor) -> Tensor:
    scaled = h0.float() if epilogue.scale is None else h0.float() * epilogue.scale.float()
    return scaled if epilogue.shift is None else scaled + epilogue.shift.float()


def backward(
    dy: Tensor,
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    h: Tensor,
    g0: Tensor | None,
    h0: Tensor | None,
    geometry: Geometry,
    needs: list[bool],
    strategy: str | None = None,
    keep: bool | None = None,
) -> list[Tensor]:
    """Gradients of `(x, condition, G, h, g0, h0)` for `dy` before the epilogue.

    Those that `needs` does not ask for come as empty tensors. Sums over voxels and samples are
    float32 and have one order. `keep`: dW[b] stays in registers; None: by
    `cost.choose_weight_gradient`.
    """
    shape = _shape(x, G, geometry)
    if strategy is None:
        strategy = cost.choose_strategy(shape, G.element_size(), x.element_size())
    none = x.new_empty(0)
    dx = de = dG = dh = dg0 = dh0 = none
    need_x, need_e, need_G, need_h, need_g0, need_h0 = needs
    dy = dy.to(x.dtype)
    need_W = need_e or need_G or need_g0
    if need_x or need_W:
        packed = _packed(G, g0, geometry)
    if need_x:
        weights = _weights(x, condition, packed, strategy)
        dx = launch.conv3d(
            dy, weights, geometry, channels=x.shape[1], transposed_size=launch.size_of(x)
        )
    e = condition.float().contiguous()
    if need_e or need_h or need_h0:
        dbeta = dy.sum((2, 3, 4), dtype=torch.float32)
        dh, dh0 = (e.T @ dbeta).to(h.dtype), dbeta.sum(0)
        de = dbeta @ h.float().T
        if h0 is not None:
            dh0 = dh0.to(h0.dtype)
    if need_W:
        if keep is None:
            keep = cost.choose_weight_gradient(shape) == "keep"
        own, packed_dG, packed_dg0 = launch.weight_gradient(
            x, dy, e, packed[-len(G) :], geometry, keep=keep
        )
        de = de + own if need_e else none
        dG = launch.unpack(packed_dG, geometry.kernel).to(G.dtype)
        if g0 is not None:
            dg0 = launch.unpack(packed_dg0[None], geometry.kernel)[0].to(g0.dtype)
    found = [dx, de.to(condition.dtype), dG, dh, dg0, dh0]
    return [g if need else none for g, need in zip(found, needs, strict=True)]

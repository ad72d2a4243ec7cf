"""Convolutions by the native engine (`kernels/cpu`), for inference on the CPU in float32.

The engine transforms weights once. So engines are kept, with a copy of the weights that they were
made from: every call compares its weights with that copy, number by number, and a call with others
makes a new engine.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hyperfusion_rt import _native
from hyperfusion_rt.kernels.epilogue import Epilogue
from hyperfusion_rt.kernels.geometry import Geometry, Triple, triple
from hyperfusion_rt.kernels.tiles import choose_tile

KEPT = 64  # engines; each holds about twice its weights, and the volumes of one sample


class _Entry(NamedTuple):
    weights: list[Tensor | None]
    engine: _native.Engine


_engines: OrderedDict[tuple[object, ...], _Entry] = OrderedDict()
_lock = threading.Lock()
AVAILABLE = bool(_native.available_isas())


def covers(tensors: list[Tensor | None], geometry: Geometry, size: Triple) -> bool:
    """Whether the engine takes these tensors and this geometry; `size` is that of the output."""
    plain = all(
        t is None or (t.dtype == torch.float32 and t.device.type == "cpu" and t.numel())
        for t in tensors
    )
    return AVAILABLE and plain and geometry.groups == 1 and min(size) > 0


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)


def _engine(
    key: tuple[object, ...], weights: list[Tensor | None], make: Callable[[], _native.Engine]
) -> _native.Engine:
    """The engine of these weights, made unless it was kept."""
    with _lock:
        entry = _engines.get(key)
        if entry is None or not all(map(_same, entry.weights, weights)):
            copies = [None if t is None else t.detach().clone() for t in weights]
            entry = _engines[key] = _Entry(copies, make())
        _engines.move_to_end(key)
        while len(_engines) > KEPT:
            _engines.popitem(last=False)
        return entry.engine


def _packed(weight: Tensor) -> Tensor:
    """`[..., Cout, Cin, k, k, k]` → `[..., taps, Cin, Cout]`."""
    return weight.flatten(-3).movedim((-3, -2), (-1, -2)).contiguous()


def _convolve(
    engine: _native.Engine,
    x: int,
    weight: Tensor,
    bias: Tensor,
    geometry: Geometry,
    size: Triple,
    slope: float,
    condition: int | None,
    residual: int | None,
) -> int:
    """Add one convolution to `engine`; returns its value."""
    cout, cin = weight.shape[-5:-3]
    strides = set(geometry.stride)
    winograd = geometry.kernel == (3, 3, 3) and cin > 1 and set(geometry.dilation) == {1}
    tile = None
    if winograd and strides in ({1}, {2}):
        tile, _ = choose_tile(cin, cout, size, "fp32", strides.pop())
    return engine.conv(
        x, cout, list(geometry.kernel), list(geometry.stride), list(geometry.padding),
        list(geometry.dilation), _packed(weight).numpy(), bias.contiguous().numpy(),
        condition=condition, residual=residual, tile=None if tile is None else list(tile),
        act=None if slope == 1.0 else ("leaky_relu", slope, None),
    )  # fmt: skip


def hyper_conv3d(
    x: Tensor,
    condition: Tensor,
    G: Tensor,
    h: Tensor,
    g0: Tensor | None,
    h0: Tensor | None,
    geometry: Geometry,
    epilogue: Epilogue,
) -> Tensor:
    """`hyper_conv3d` and its epilogue; arguments as there, and `covers` them."""
    batch, cin, *extent = x.shape
    cout = G.shape[1]
    size = geometry.out(triple(extent))
    scale, shift, residual, slope = epilogue
    # The engine has one ẽ for weights and biases.
    constant = any(t is not None for t in (g0, h0, shift))
    weights = [G, h, g0, h0, scale, shift]

    def make() -> _native.Engine:
        made, bias = G.detach(), h.detach()
        if constant:
            firsts = torch.zeros_like(made[0]), torch.zeros_like(bias[0])
            pairs = zip((g0, h0), firsts, (made, bias), strict=True)
            made, bias = (
                torch.cat([(zero if own is None else own.detach())[None], rest])
                for own, zero, rest in pairs
            )
        if scale is not None:
            made, bias = made * scale.detach()[:, None, None, None, None], bias * scale.detach()
        if shift is not None:
            bias = torch.cat([bias[:1] + shift.detach(), bias[1:]])
        engine = _native.Engine(torch.get_num_threads())
        given, e = engine.input(cin, *extent), engine.input(len(made))
        beside = None if residual is None else engine.input(cout, *size)
        engine.output(_convolve(engine, given, made, bias, geometry, size, slope, e, beside))
        engine.finish()
        return engine

    key = ("hyper_conv3d", G.data_ptr(), tuple(x.shape[1:]), tuple(G.shape), geometry, slope,
           *(t is None for t in (*weights, residual)), torch.get_num_threads())  # fmt: skip
    engine = _engine(key, weights, make)
    e = condition.detach()
    if constant:
        e = torch.cat([torch.ones_like(e[:, :1]), e], 1)
    y = torch.empty((batch, cout, *size))
    inputs = [x.detach(), e] + ([] if residual is None else [residual.detach()])
    engine.run([t.contiguous().numpy() for t in inputs], [y.numpy()])
    return y


def conv3d_block(
    x: Tensor, weight: Tensor, geometry: Geometry, epilogue: Epilogue, pool: bool
) -> Tensor:
    """`conv3d_block` of one group; arguments as there, and `covers` them."""
    batch, cin, *extent = x.shape
    cout = len(weight)
    size = geometry.out(triple(extent))
    scale, shift, residual, slope = epilogue
    weights = [weight, scale, shift]

    def make() -> _native.Engine:
        own = weight.detach()
        if scale is not None:
            own = own * scale.detach()[:, None, None, None, None]
        bias = own.new_zeros(cout) if shift is None else shift.detach()
        engine = _native.Engine(torch.get_num_threads())
        given = engine.input(cin, *extent)
        beside = None if residual is None else engine.input(cout, *size)
        y = _convolve(engine, given, own, bias, geometry, size, slope, None, beside)
        if pool:
            y = engine.pool(y, [2] * 3, [2] * 3, [0] * 3, [1] * 3, False)
        engine.output(y)
        engine.finish()
        return engine

    missing = (t is None for t in (*weights, residual))
    key = ("conv3d_block", weight.data_ptr(), tuple(x.shape[1:]), tuple(weight.shape), geometry,
           slope, pool, *missing, torch.get_num_threads())  # fmt: skip
    engine = _engine(key, weights, make)
    y = torch.empty((batch, cout, *(n // 2 if pool else n for n in size)))
    inputs = [x] if residual is None else [x, residual]
    engine.run([t.detach().contiguous().numpy() for t in inputs], [y.numpy()])
    return y

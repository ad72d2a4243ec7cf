"""Convolutions by the native engine (`kernels/cpu`), for inference on the CPU in float32.

The engine transforms weights once. So engines are kept, with a copy of the weights that they were
made from: every call compares its weights with that copy, number by number, and a call with others
makes a new engine.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from hyperfusion_rt import _native
from hyperfusion_rt.kernels.cpu.tiles import choose_tile
from hyperfusion_rt.kernels.epilogue import Epilogue
from hyperfusion_rt.kernels.geometry import Geometry, Triple, triple

KEPT = 64  # engines; each holds about twice its weights, and the volumes of one sample


class _Entry(NamedTuple):
    weights: list[Tensor | None]
    engine: _native.Engine


_engines: OrderedDict[tuple[object, ...], _Entry] = OrderedDict()
_lock = threading.Lock()
AVAILABLE = bool(_native.available_isas())


def covers(tensors: list[Tensor | None], geometry: Geometry) -> bool:
    """Whether the engine takes these tensors, x first, and this geometry."""
    plain = all(
        t is None or (t.dtype == torch.float32 and t.device.type == "cpu" and t.numel())
        for t in tensors
    )
    if not (AVAILABLE and plain and geometry.groups == 1 and tensors[0] is not None):
        return False
    return min(geometry.out(triple(tensors[0].shape[2:]))) > 0


def covers_generated(tensors: list[Tensor | None], geometry: Geometry) -> bool:
    """`covers`, for generated weights.

    A 1x1x1 product costs no more than comparing its weights with those of the engine.
    """
    return prod(geometry.kernel) > 1 and covers(tensors, geometry)


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


def _tile(weight: Tensor, geometry: Geometry, size: Triple) -> list[int] | None:
    """The tile of Winograd's filtering, or None where the engine gathers."""
    cout, cin = weight.shape[-5:-3]
    strides = set(geometry.stride)
    winograd = geometry.kernel == (3, 3, 3) and cin > 1 and set(geometry.dilation) == {1}
    if not winograd or strides not in ({1}, {2}):
        return None
    tile, _ = choose_tile(cin, cout, size, "fp32", strides.pop())
    return None if tile is None else list(tile)


def _convolved(
    x: Tensor,
    condition: Tensor | None,
    weights: list[Tensor | None],
    fold: Callable[[], tuple[Tensor, Tensor]],
    geometry: Geometry,
    channels: int,
    epilogue: Epilogue,
    pool: bool = False,
) -> Tensor:
    """One convolution of `x`. `fold()` makes weight and bias, scale and shift inside, of `weights`.

    With a condition `[B, K]` the weight is `[K, Cout, Cin, kD, kH, kW]`, the bias `[K, Cout]`.
    """
    cin, *extent = x.shape[1:]
    size = geometry.out(triple(extent))
    residual, slope, threads = epilogue.residual, epilogue.slope, torch.get_num_threads()

    def make() -> _native.Engine:
        weight, bias = fold()
        engine = _native.Engine(threads)
        given = engine.input(cin, *extent)
        e = None if condition is None else engine.input(condition.shape[1])
        beside = None if residual is None else engine.input(channels, *size)
        y = engine.conv(
            given, channels, list(geometry.kernel), list(geometry.stride), list(geometry.padding),
            list(geometry.dilation), _packed(weight).numpy(), bias.contiguous().numpy(),
            condition=e, residual=beside, tile=_tile(weight, geometry, size),
            act=None if slope == 1.0 else ("leaky_relu", slope, 0.0, None),
        )  # fmt: skip
        if pool:
            y = engine.pool(y, [2] * 3, [2] * 3, [0] * 3, [1] * 3, False)
        engine.output(y)
        engine.finish()
        return engine

    first = weights[0]
    assert first is not None
    missing = (t is None for t in (*weights, residual))
    key = (first.data_ptr(), first.shape, x.shape[1:], geometry, slope, pool, *missing, threads)
    engine = _engine(key, weights, make)
    y = torch.empty((len(x), channels, *(n // 2 if pool else n for n in size)))
    inputs = [t.detach() for t in (x, condition, residual) if t is not None]
    engine.run([t.contiguous().numpy() for t in inputs], [y.numpy()])
    return y


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
    """`hyper_conv3d` and its epilogue; arguments as there, and `covers_generated` them."""
    scale, shift = epilogue.scale, epilogue.shift
    # The engine has one ẽ for weights and biases.
    constant = any(t is not None for t in (g0, h0, shift))

    def fold() -> tuple[Tensor, Tensor]:
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
        return made, bias

    e = condition.detach()
    if constant:
        e = torch.cat([torch.ones_like(e[:, :1]), e], 1)
    weights = [G, h, g0, h0, scale, shift]
    return _convolved(x, e, weights, fold, geometry, G.shape[1], epilogue)


def conv3d_block(
    x: Tensor, weight: Tensor, geometry: Geometry, epilogue: Epilogue, pool: bool
) -> Tensor:
    """`conv3d_block` of one group; arguments as there, and `covers` them."""
    scale, shift = epilogue.scale, epilogue.shift

    def fold() -> tuple[Tensor, Tensor]:
        own = weight.detach()
        if scale is not None:
            own = own * scale.detach()[:, None, None, None, None]
        return own, own.new_zeros(len(own)) if shift is None else shift.detach()

    weights = [weight, scale, shift]
    return _convolved(x, None, weights, fold, geometry, len(weight), epilogue, pool)

"""The compiled kernels against torch in float64: odd shapes, every instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperfusion_rt import _native

# avx512_bf16 has kernels of its own only for bf16.
ISAS = [isa for isa in _native.available_isas() if not isa.endswith("_bf16")]
KINDS = [(i, "fp32") for i in ISAS] + [(i, "bf16") for i in _native.available_isas()]
EPS = float(np.finfo(np.float32).eps)
# Rounding of the sum of products, in units of eps · Σ|products|; F(4, 3) adds its transforms'.
DIRECT, WINOGRAD = 12, 60
# bfloat16 rounds by up to 2⁻⁸: weights, a prologue's result and the output, or the transforms' too.
BF16, BF16_PAIRS = 3 * 2.0**-8, 12 * 2.0**-8


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def bf16(array):
    """Rounded to bfloat16."""
    return torch.from_numpy(array).bfloat16().float().numpy()


def wide(array):
    return torch.from_numpy(array).double()


def call(engine, inputs, shape):
    """Run into the middle of a larger array of NaN: nothing unwritten, nothing beyond."""
    batch = len(inputs[0])
    whole = np.full((batch + 2, *shape), np.nan, np.float32)
    engine.run(inputs, [whole[1:-1]])
    assert np.isnan(whole[0]).all()
    assert np.isnan(whole[-1]).all()
    return whole[1:-1]


def channels(array):
    return wide(array)[:, None, None, None]


@st.composite
def convolutions(draw):
    """A convolution that the engine can do, with everything that may be fused into it."""
    kind = draw(st.sampled_from(["gather", "winograd", "planar", "depthwise", "generated"]))
    isa, precision = draw(st.sampled_from(KINDS))
    c = {"kind": kind, "isa": isa, "precision": precision, "threads": draw(st.integers(1, 3))}
    c["shape"] = tuple(draw(st.lists(st.integers(1, 9), min_size=3, max_size=3)))
    c["cin"] = draw(st.integers(1, 35))
    c["cout"] = draw(st.integers(1, 50))
    sizes = st.tuples(*[st.integers(1, 3)] * 3)
    c["kernel"], c["stride"], c["dilation"] = draw(sizes), draw(sizes), draw(sizes)
    c["padding"] = draw(st.tuples(*[st.integers(0, 3)] * 3))
    c["tile"] = None
    if kind == "winograd" or (kind == "generated" and draw(st.booleans())):
        c["kernel"], c["stride"], c["dilation"] = (3, 3, 3), (1, 1, 1), (1, 1, 1)
        c["tile"] = draw(st.tuples(*[st.sampled_from([2, 4])] * 3))
        if draw(st.integers(0, 3)) == 0:
            c["tile"], c["stride"] = (2, 2, 2), (2, 2, 2)
    c["pairs"] = c["tile"] == (2, 2, 2) and precision == "bf16"
    if kind == "planar":
        c["cin"] = draw(st.sampled_from([1, 1, 2, 3, 5, 15]))
        c["shape"] = (*c["shape"][:2], draw(st.integers(1, 70)))
        c["kernel"] = draw(st.tuples(*[st.integers(1, 5)] * 3))
        c["stride"] = (*c["stride"][:2], draw(st.integers(1, 2)))
    if kind == "depthwise":
        c["cout"] = c["cin"]
    reach = [d * (k - 1) + 1 for d, k in zip(c["dilation"], c["kernel"], strict=True)]
    c["padding"] = tuple(
        max(p, -(-(r - n) // 2)) for p, r, n in zip(c["padding"], reach, c["shape"], strict=True)
    )
    out = [
        (n + 2 * p - r) // s + 1
        for n, p, r, s in zip(c["shape"], c["padding"], reach, c["stride"], strict=True)
    ]
    c["pool"] = kind in ("winograd", "planar") and min(out) >= 2 and draw(st.booleans())
    c["pool"] = c["pool"] and not (kind == "planar" and c["stride"][2] == 2)
    c["relu"] = draw(st.booleans())
    c["residual"] = not c["pool"] and draw(st.booleans())
    c["second"] = draw(st.booleans())
    c["prologue"] = kind in ("gather", "winograd", "generated") and draw(st.booleans())
    c["shortcut"] = kind == "winograd" and not (c["pool"] or c["residual"]) and draw(st.booleans())
    c["shortcut_stride"] = draw(sizes)
    c["sparse"] = kind == "winograd" and not c["pool"] and draw(st.booleans())
    c["seed"] = draw(st.integers(0, 99))
    return c


def check(c):
    rng = np.random.default_rng(c["seed"])
    cin, cout, kernel = c["cin"], c["cout"], c["kernel"]
    geometry = c["stride"], c["padding"], c["dilation"]
    groups = cin if c["kind"] == "depthwise" else 1
    taps = int(np.prod(kernel))
    engine = _native.Engine(c["threads"], c["isa"], c["precision"])
    rounded = bf16 if c["precision"] == "bf16" else np.asarray
    x = rounded(normal(rng, 2, cin, *c["shape"]))
    value = engine.input(cin, *c["shape"])
    inputs, options = [x], {}
    exact = wide(x)
    if c["prologue"]:
        scale, shift = normal(rng, cin), normal(rng, cin)
        options["prologue"] = (scale, shift, ("relu", 0.0, 0.0, None))
        exact = (exact * channels(scale) + channels(shift)).relu()
    count = 3 if c["kind"] == "generated" else 1
    weight = normal(rng, count, cout, cin // groups, *kernel) / np.float32(taps * cin) ** 0.5
    bias = normal(rng, count, cout)
    condition = np.ones((2, 1), np.float32)
    if c["kind"] == "generated":
        condition = normal(rng, 2, count)
        inputs.append(condition)
        options["condition"] = engine.input(count)
    flat = weight.reshape(count, cout, cin // groups, taps)
    made = flat.transpose(0, 3, 2, 1) if groups == 1 else flat[:, :, 0].transpose(0, 2, 1)
    made, given_bias = np.ascontiguousarray(made), bias
    if c["kind"] != "generated":
        made, given_bias = made[0], bias[0]

    def reference(of, e, w, b):
        return torch.cat(
            [
                F.conv3d(
                    of[i : i + 1],
                    torch.tensordot(e[i], w, 1),
                    torch.tensordot(e[i], b, 1),
                    *geometry,
                    groups=groups,
                )
                for i in range(len(of))
            ]
        )

    y = reference(exact, wide(condition), wide(weight), wide(bias))
    size = reference(*(t.abs() for t in (exact, wide(condition), wide(weight), wide(bias))))
    if c["residual"]:
        residual = rounded(normal(rng, *y.shape))
        options["residual"] = engine.input(*y.shape[1:])
        inputs.append(residual)
        y, size = y + wide(residual), size + wide(residual).abs()
    if c["shortcut"]:
        stride = c["shortcut_stride"]
        source = [(n - 1) * s + 1 for n, s in zip(y.shape[2:], stride, strict=True)]
        z, short = rounded(normal(rng, 2, 20, *source)), normal(rng, 20, cout)
        options["shortcut"] = (engine.input(20, *source), stride, short)
        inputs.append(z)
        kernel1 = wide(short.T.copy())[..., None, None, None]
        y = y + F.conv3d(wide(z), kernel1, stride=stride)
        size = size + F.conv3d(wide(z).abs(), kernel1.abs(), stride=stride)
    if c["relu"]:
        y, options["act"] = y.relu(), ("relu", 0.0, 0.0, None)
    if c["pool"]:
        y = F.max_pool3d(y, 2)
    factor = 1.0
    if c["second"]:
        scale, shift = normal(rng, cout), normal(rng, cout)
        options["second"] = (scale, shift, ("leaky_relu", 0.1, 0.0, None))
        factor += float(np.abs(scale).max())
    out = engine.conv(
        value,
        cout,
        kernel,
        *geometry,
        made,
        given_bias,
        c["kind"] == "depthwise",
        pool=c["pool"],
        tile=c["tile"],
        sparse=c["sparse"],
        pairs=c["pairs"],
        **options,
    )
    kept = y[:, :, ::2, ::2, ::2] if c["sparse"] else y
    wanted = [kept]
    if c["second"]:
        wanted.append(F.leaky_relu(y * channels(scale) + channels(shift), 0.1))
    relative = (WINOGRAD if c["tile"] else DIRECT) * EPS
    if c["precision"] == "bf16":
        relative += BF16_PAIRS if c["pairs"] else BF16
    limit = relative * float(size.max()) * factor
    for offset in range(len(wanted)):
        assert engine.shape(out + offset) == list(wanted[offset].shape[1:])
        engine.output(out + offset)
    engine.finish()
    found = [np.full(tuple(w.shape), np.nan, np.float32) for w in wanted]
    engine.run(inputs, found)
    for have, want in zip(found, wanted, strict=True):
        assert np.abs(have - want.numpy()).max() <= limit
    again = [np.full(tuple(w.shape), np.nan, np.float32) for w in wanted]
    engine.run(inputs, again)
    for have, repeated in zip(found, again, strict=True):
        np.testing.assert_array_equal(have, repeated)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(convolutions())
def test_convolutions(case):
    check(case)


BASE = {
    "kind": "gather", "threads": 2, "shape": (5, 7, 9), "cin": 16, "cout": 32, "kernel": (3, 3, 3),
    "stride": (1, 1, 1), "dilation": (1, 1, 1), "padding": (1, 1, 1), "tile": None, "pool": False,
    "relu": True, "residual": False, "second": False, "prologue": False, "shortcut": False,
    "shortcut_stride": (1, 1, 1), "sparse": False, "seed": 0, "precision": "fp32", "pairs": False,
}  # fmt: skip


@pytest.mark.parametrize(("isa", "precision"), KINDS)
@pytest.mark.parametrize("cin", [15, 16, 17, 33])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 13])
@pytest.mark.parametrize("tile", [None, (2, 2, 2), (4, 4, 4), (2, 4, 4), "stride 2"])
def test_sizes_around_the_vector_and_the_tile(isa, precision, cin, size, tile):
    stride = (1, 1, 1)
    if tile == "stride 2":
        tile, stride = (2, 2, 2), (2, 2, 2)
    pairs = precision == "bf16" and tile == (2, 2, 2)
    case = {**BASE, "isa": isa, "precision": precision, "tile": tile, "pairs": pairs}
    case["stride"] = stride
    check({**case, "cin": cin, "cout": cin + 15, "shape": (size, 3, size)})


@pytest.mark.parametrize(("isa", "precision"), KINDS)
@pytest.mark.parametrize(("padding", "images"), [(0, 1), (1, 1), (1, 2)])
def test_a_first_pair_of_layers_in_a_ring_of_planes(isa, precision, padding, images):
    """Large enough that the first layer's result never stands in memory as a whole."""
    rng = np.random.default_rng(0)
    shape = (64 if precision == "fp32" else 128, 72, 66)
    w1, w2 = normal(rng, 16, images, 3, 3, 3) / 5, normal(rng, 20, 16, 3, 3, 3) / 20
    b1, b2 = normal(rng, 16), normal(rng, 20)
    engine = _native.Engine(2, isa, precision)
    value = engine.input(images, *shape)
    relu = ("relu", 0.0, 0.0, None)
    for w, b, tile in ((w1, b1, None), (w2, b2, (4, 4, 4))):
        cout, cin = w.shape[:2]
        flat = np.ascontiguousarray(w.reshape(cout, cin, 27).transpose(2, 1, 0))
        ones = (1, 1, 1)
        value = engine.conv(
            value, cout, (3, 3, 3), ones, [padding] * 3, ones, flat, b, act=relu, tile=tile,
            pool=tile is not None,
        )  # fmt: skip
    engine.output(value)
    engine.finish()
    assert engine.steps == [_native.StepKind.planar_ring, _native.StepKind.winograd]
    x = normal(rng, 1, images, *shape)
    y = F.conv3d(wide(x), wide(w1), wide(b1), padding=padding).relu()
    y = F.max_pool3d(F.conv3d(y, wide(w2), wide(b2), padding=padding).relu(), 2)
    found = call(engine, [x], tuple(y.shape[1:]))
    limit = 2e-5 if precision == "fp32" else 2e-2
    assert np.abs(found - y.numpy()).max() <= limit * float(y.max())


@st.composite
def narrow_chains(draw):
    """A planar convolution, then two of few channels, as they may stay in `Phases`."""
    isa, precision = draw(st.sampled_from(KINDS))
    c = {"isa": isa, "precision": precision, "threads": draw(st.integers(1, 3))}
    c["pool"] = draw(st.booleans())
    c["shape"] = [draw(st.integers(2 if c["pool"] else 1, m)) for m in (12, 25, 45)]
    c["images"] = draw(st.integers(1, 3))
    c["channels"] = draw(st.integers(1, 8)), draw(st.integers(1, 8)), draw(st.integers(1, 16))
    c["second"], c["last second"], c["shortcut"], c["sparse"], c["watched"] = (
        draw(st.booleans()) for _ in range(5)
    )
    c["act"] = draw(st.sampled_from(["relu", "leaky_relu", "silu"]))
    return c


@settings(max_examples=120, deadline=None, derandomize=True)
@given(narrow_chains())
def test_few_channels(c):
    rng = np.random.default_rng(0)
    engine = _native.Engine(c["threads"], c["isa"], c["precision"])
    bf = c["precision"] == "bf16"
    one, two, three = c["channels"]
    tile, ones = (4, 4, 4), (1, 1, 1)
    act, function = (c["act"], ALPHA.get(c["act"], 0.0), 0.0, None), ACTIVATIONS[c["act"]]
    x = normal(rng, 2, c["images"], *c["shape"])

    def layer(value, y, cin, cout, act, function, **options):
        weight = normal(rng, cout, cin, 3, 3, 3) / np.float32(27 * cin) ** 0.5
        bias = normal(rng, cout)
        flat = np.ascontiguousarray(weight.reshape(cout, cin, 27).transpose(2, 1, 0))
        short = options.pop("added", None)
        made = engine.conv(value, cout, (3, 3, 3), ones, ones, ones, flat, bias, act=act, **options)
        z = F.conv3d(y, wide(weight), wide(bias), padding=1)
        if short is not None:
            z = z + short
        z = function(z)
        return made, F.max_pool3d(z, 2) if options.get("pool") else z

    scale, shift = normal(rng, one), normal(rng, one)
    second = (scale, shift, ("relu", 0.0, 0.0, None)) if c["second"] else None
    first, y = layer(
        engine.input(c["images"], *c["shape"]), wide(x), c["images"], one, ("relu", 0.0, 0.0, None),
        F.relu, pool=c["pool"], second=second,
    )  # fmt: skip
    value, z = first, y
    if c["second"]:
        value, z = first + 1, (y * channels(scale) + channels(shift)).relu()
    value, z = layer(value, z, one, two, act, function, tile=tile)
    options = {"tile": tile, "sparse": c["sparse"]}
    if c["shortcut"]:
        short = normal(rng, one, three)
        options["shortcut"] = (first, ones, short)
        options["added"] = F.conv3d(y, wide(short.T.copy())[..., None, None, None])
    if c["last second"]:
        scale, shift = normal(rng, three), normal(rng, three)
        options["second"] = (scale, shift, ("relu", 0.0, 0.0, None))
    value, z = layer(value, z, two, three, act, function, **options)
    wanted = [z[:, :, ::2, ::2, ::2] if c["sparse"] else z]
    if c["last second"]:
        wanted.append((z * channels(scale) + channels(shift)).relu())
    for offset in range(len(wanted)):
        engine.output(value + offset)
    if c["watched"]:  # read by more than convolutions: stays blocked
        engine.output(engine.global_pool(first, ones, True))
        wanted.append(y.mean((2, 3, 4)))
    engine.finish()
    if not c["watched"] and max(c["shape"]) > 1:  # an image of one voxel would be a vector
        kinds = _native.StepKind
        assert engine.steps == [kinds.planar, *[kinds.narrow_winograd] * 2]
    for _ in range(2):
        found = [np.full(tuple(w.shape), np.nan, np.float32) for w in wanted]
        engine.run([x], found)
        for have, want in zip(found, wanted, strict=True):
            limit = (3e-2 if bf else 2e-5) * max(1.0, float(want.abs().max()))
            assert np.abs(have - want.numpy()).max() <= limit


ACTIVATIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "elu": lambda x: F.elu(x, 0.7),
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "softplus": F.softplus,
    "mish": F.mish,
    "prelu": lambda x: F.prelu(x, torch.full((1,), 0.3, dtype=x.dtype)),
    "clip": lambda x: x.clamp(-0.4, 1.5),
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "erf": torch.erf,
    "power": lambda x: x**3,
}
ALPHA = {"leaky_relu": 0.2, "elu": 0.7, "clip": -0.4, "power": 3.0}
BETA = {"clip": 1.5}


def activated(name, x, isa):
    engine = _native.Engine(1, isa)
    slope = np.full(len(x), 0.3, np.float32) if name == "prelu" else None
    act = name, ALPHA.get(name, 0.0), BETA.get(name, 0.0), slope
    value = engine.affine(engine.input(len(x)), act=act)
    engine.output(value)
    engine.finish()
    return call(engine, [x[None]], (len(x),))[0]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name, isa):
    rng = np.random.default_rng(0)
    x = np.concatenate([normal(rng, 500) * s for s in (1e-3, 0.1, 1, 5, 40)])
    with np.errstate(all="ignore"):
        expected = ACTIVATIONS[name](wide(x)).numpy()
    found = activated(name, x, isa)
    # A few units in the last place of the result or, where terms cancel, of the input.
    limit = 8 * EPS * np.maximum(np.abs(expected), np.minimum(np.abs(x), 1.0)) + 1e-38
    there = np.isfinite(expected) & (np.abs(expected) < 3e38)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    assert (np.abs(found - expected) <= limit)[there].all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_at_the_ends_of_the_range(name, isa):
    x = np.array(
        [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1e-40, -1e-40, 3e38, -3e38, 88.8, -104],
        np.float32,
    )
    expected = ACTIVATIONS[name](wide(x)).float().numpy()
    found = activated(name, x, isa)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))
    ok = np.isfinite(expected)
    np.testing.assert_allclose(found[ok], expected[ok], rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize(("isa", "precision"), KINDS)
def test_non_finite_inputs_reach_every_output_that_reads_them(isa, precision):
    """Winograd may spread them over the rest of their tile; the exact kernels may not."""
    rng = np.random.default_rng(0)
    w, b = normal(rng, 27, 16, 16), normal(rng, 16)
    for bad in (np.nan, np.inf):
        x = normal(rng, 1, 16, 8, 8, 8)
        x[0, 3, 4, 4, 4] = bad
        for tile in (None, (4, 4, 4)):
            engine = _native.Engine(1, isa, precision)
            ones = (1, 1, 1)
            value = engine.input(16, 8, 8, 8)
            value = engine.conv(value, 16, (3, 3, 3), ones, ones, ones, w, b, tile=tile)
            engine.output(value)
            engine.finish()
            wrong = ~np.isfinite(call(engine, [x], (16, 8, 8, 8)))[0]
            assert wrong[:, 3:6, 3:6, 3:6].all()
            assert not wrong[:, :, :, 0].any()
            if tile is None:
                assert wrong.sum() == 16 * 27


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_pooling(data):
    isa = data.draw(st.sampled_from(ISAS))
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=3, max_size=3)))
    count = data.draw(st.integers(1, 20))
    kernel = tuple(data.draw(st.integers(1, min(3, n))) for n in shape)
    stride = tuple(data.draw(st.integers(1, 3)) for _ in shape)
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    ceil, average, include = (data.draw(st.booleans()) for _ in range(3))
    x = normal(np.random.default_rng(0), 1, count, *shape)
    if average:
        y = F.avg_pool3d(wide(x), kernel, stride, padding, ceil, include)
    else:
        y = F.max_pool3d(wide(x), kernel, stride, padding, 1, ceil)
    engine = _native.Engine(2, isa)
    ones = (1, 1, 1)
    value = engine.pool(
        engine.input(count, *shape), kernel, stride, padding, ones, average, include, ceil
    )
    engine.output(value)
    engine.finish()
    found = call(engine, [x], tuple(y.shape[1:]))
    np.testing.assert_allclose(found, y.numpy(), rtol=0, atol=8 * EPS * np.abs(x).max())


@pytest.mark.parametrize("isa", ISAS)
def test_max_pooling_keeps_nan(isa):
    x = np.zeros((1, 3, 2, 2, 2), np.float32)
    x[0, 1, 0, 1, 0] = np.nan
    engine = _native.Engine(1, isa)
    two = (2, 2, 2)
    engine.output(engine.pool(engine.input(3, *two), two, two, (0,) * 3, (1,) * 3, False))
    engine.finish()
    assert np.isnan(call(engine, [x], (3, 1, 1, 1))).ravel().tolist() == [False, True, False]


def _between(size):
    """Twice as many voxels: the neighbours of each, and the part of the second."""
    at = np.clip((np.arange(2 * size) + 0.5) / 2 - 0.5, 0, size - 1)
    low = np.floor(at).astype(int)
    return low.tolist(), np.minimum(low + 1, size - 1).tolist(), (at - low).tolist()


TAPS = {size: _between(size) for size in (3, 4, 5)}


@pytest.mark.parametrize(("isa", "precision"), KINDS)
@pytest.mark.parametrize("count", [1, 15, 16, 17, 40])
def test_the_other_operations(isa, precision, count):
    rng = np.random.default_rng(count)
    shape = (3, 4, 5)
    rounded = bf16 if precision == "bf16" else np.asarray
    x, y = (rounded(normal(rng, 2, count, *shape)) for _ in range(2))
    per_channel, vector = normal(rng, 2, count, 1, 1, 1), normal(rng, 2, count)
    scale, shift = normal(rng, count), normal(rng, count)
    weight, bias = normal(rng, count, 21), normal(rng, 21)
    weights, biases = normal(rng, 3, count, 21), normal(rng, 3, 21)
    e = normal(rng, 2, 3)
    products = normal(rng, 2, 3 * count)
    X, Y, P, V = wide(x), wide(y), wide(per_channel), wide(vector)
    gate, one = rounded(normal(rng, 2, 1, *shape)), normal(rng, 2, 1)
    above = np.abs(y) + rounded(np.ones(1, np.float32))
    above = rounded(above)
    G, N, Q = wide(gate), wide(one).view(2, 1, 1, 1, 1), wide(above)
    groups = 5 if count % 5 == 0 else 1
    mixed = torch.einsum("bk,kio->bio", wide(e), wide(weights))
    cases = {
        "add": (lambda g, v: g.binary(v[0], v[1], "add"), X + Y),
        "multiply": (lambda g, v: g.binary(v[0], v[2], "mul"), X * P),
        "subtract from a vector": (lambda g, v: g.binary(v[2], v[0], "sub"), P - X),
        "divide": (lambda g, v: g.binary(v[0], v[7], "div"), X / Q),
        "maximum": (lambda g, v: g.binary(v[0], v[1], "maximum"), torch.maximum(X, Y)),
        "minimum": (lambda g, v: g.binary(v[0], v[1], "minimum"), torch.minimum(X, Y)),
        "voxels": (lambda g, v: g.binary(v[6], v[0], "mul"), G * X),
        "one number": (lambda g, v: g.binary(v[0], v[8], "sub"), X - N),
        "concat": (lambda g, v: g.concat([v[0], v[1], v[0]]), torch.cat([X, Y, X], 1)),
        "slice": (lambda g, v: g.slice(v[0], count // 3, count), X[:, count // 3 :]),
        "flatten": (lambda g, v: g.flatten(v[0]), X.flatten(1)),
        "pad": (
            lambda g, v: g.remap(v[0], [-1, 0, 1, 2], [0, 1, 2, 3, -1], [-1, *range(5), -1], 2.5),
            F.pad(X, (1, 1, 0, 1, 1, 0), value=2.5),
        ),
        "crop": (
            lambda g, v: g.remap(v[0], [2, 0], [1], [0, 2, 4]),
            X[:, :, ::2].flip(2)[:, :, :, 1:2, ::2],
        ),
        "blend": (
            lambda g, v: g.blend(v[0], [TAPS[n] for n in shape]),
            F.interpolate(X, scale_factor=2, mode="trilinear"),
        ),
        "unflatten": (lambda g, v: g.unflatten(g.flatten(v[0]), count, *shape), X),
        "transpose": (
            lambda g, v: g.transpose(g.flatten(v[0]), [count, 3, 20], [2, 0, 1]),
            X.reshape(2, count, 3, 20).permute(0, 3, 1, 2).flatten(1),
        ),
        "affine": (
            lambda g, v: g.affine(v[0], scale, shift),
            X * channels(scale) + channels(shift),
        ),
        "global average": (
            lambda g, v: g.global_pool(v[0], (2, 1, 3), True),
            X[:, :, ::2, :, ::3].mean((2, 3, 4)),
        ),
        "global maximum": (lambda g, v: g.global_pool(v[0], (1, 1, 1), False), X.amax((2, 3, 4))),
        "adaptive": (
            lambda g, v: g.adaptive_pool(v[0], (3, 2, 1), True),
            F.adaptive_avg_pool3d(X, (3, 2, 1)),
        ),
        "global norm": (
            lambda g, v: g.global_norm(v[0]),
            torch.linalg.vector_norm(X, dim=(2, 3, 4)),
        ),
        "instance norm": (
            lambda g, v: g.group_norm(v[0], count, scale, shift, 1e-5),
            F.instance_norm(X, weight=wide(scale), bias=wide(shift), eps=1e-5),
        ),
        "group norm": (
            lambda g, v: g.group_norm(v[0], groups, scale, shift, 1e-5),
            F.group_norm(X, groups, wide(scale), wide(shift)),
        ),
        "norm of a vector": (
            lambda g, v: g.group_norm(v[3], 1, scale, shift, 1e-5),
            F.layer_norm(V, (count,), wide(scale), wide(shift)),
        ),
        "channel norm": (
            lambda g, v: g.channel_norm(v[0], scale, shift, 1e-5),
            F.layer_norm(X.movedim(1, -1), (count,), wide(scale), wide(shift)).movedim(-1, 1),
        ),
        "softmax": (lambda g, v: g.softmax(v[3]), V.softmax(1)),
        "softmax of a volume": (lambda g, v: g.softmax(v[0]), X.softmax(1)),
        "log softmax": (lambda g, v: g.softmax(v[0], True), X.log_softmax(1)),
        **{
            kind: (lambda g, v, kind=kind: g.reduce(v[0], kind), made)
            for kind, made in {
                "mean": X.mean(1, keepdim=True),
                "sum": X.sum(1, keepdim=True),
                "maximum": X.amax(1, keepdim=True),
                "l2": X.norm(dim=1, keepdim=True),
            }.items()
        },
        "one and": (lambda g, v: g.one_and(v[3]), torch.cat([torch.ones(2, 1).double(), V], 1)),
        "linear": (lambda g, v: g.linear(v[3], 21, weight, bias), V @ wide(weight) + wide(bias)),
        "hyper linear": (
            lambda g, v: g.hyper_linear(v[3], v[4], 21, weights, biases),
            torch.einsum("bio,bi->bo", mixed, V) + wide(e) @ wide(biases),
        ),
        "combine": (
            lambda g, v: g.combine(v[5], v[4]),
            torch.einsum("bk,bkc->bc", wide(e), wide(products).view(2, 3, count)),
        ),
    }
    for name, (build, expected) in cases.items():
        engine = _native.Engine(2, isa, precision)
        values = [engine.input(count, *shape), engine.input(count, *shape), engine.input(count)]
        values += [engine.input(count), engine.input(3), engine.input(3 * count)]
        values += [engine.input(1, *shape), engine.input(count, *shape), engine.input(1)]
        engine.output(build(engine, values))
        engine.finish()
        inputs = [x, y, per_channel, vector, e, products, gate, above, one]
        found = call(engine, inputs, tuple(expected.shape[1:]))
        # A volume is rounded; a vector is not.
        relative = 40 * EPS + (2.0**-8 if precision == "bf16" and expected.ndim > 2 else 0.0)
        limit = relative * max(1.0, float(expected.abs().max()))
        assert np.abs(found - expected.numpy()).max() <= limit, name


@pytest.mark.parametrize(("isa", "precision"), KINDS)
def test_volumes_that_end_within_a_cache_line_do_not_overlap(isa, precision):
    """Five and three voxels in bfloat16: an arena that rounds too late writes one over another."""
    engine, ones = _native.Engine(1, isa, precision), (1, 1, 1)
    kept = engine.affine(engine.input(16, 1, 1, 5), act=("relu", 0.0, 0.0, None))
    window = ((1, 1, 3), ones, (0, 0, 0), ones)
    for value in (kept, engine.pool(kept, *window, False), engine.pool(kept, *window, True)):
        engine.output(value)
    engine.finish()
    x = np.arange(80, dtype=np.float32).reshape(1, 16, 1, 1, 5) % 32
    found = [np.full((1, 16, 1, 1, n), np.nan, np.float32) for n in (5, 3, 3)]
    engine.run([x], found)
    np.testing.assert_array_equal(found[0], x)


def network(threads, isa="", precision="fp32"):
    """Two Winograd convolutions, one gathered, a shortcut and a concatenation."""
    rng = np.random.default_rng(5)
    engine = _native.Engine(threads, isa, precision)
    ones = (1, 1, 1)
    first = engine.input(3, 11, 12, 13)
    x = engine.conv(
        first,
        24,
        (3,) * 3,
        ones,
        ones,
        ones,
        normal(rng, 27, 3, 24),
        normal(rng, 24),
        tile=(4,) * 3,
    )
    y = engine.conv(
        x, 20, (3,) * 3, ones, ones, ones, normal(rng, 27, 24, 20), normal(rng, 20),
        tile=(2, 4, 4), shortcut=(first, ones, normal(rng, 3, 20)),
    )  # fmt: skip
    z = engine.concat([x, y])
    z = engine.conv(
        z, 17, (3,) * 3, (2, 2, 2), ones, ones, normal(rng, 27, 44, 17), normal(rng, 17)
    )
    engine.output(engine.global_pool(z, ones, True))
    engine.finish()
    return engine


@pytest.mark.parametrize(("isa", "precision"), KINDS)
def test_the_bits_do_not_depend_on_threads_batch_or_company(isa, precision):
    x = normal(np.random.default_rng(6), 5, 3, 11, 12, 13)
    expected = call(network(1, isa, precision), [x], (17,))
    for threads in (2, 3, 7):
        found = call(network(threads, isa, precision), [x], (17,))
        np.testing.assert_array_equal(found, expected)
    engine = network(2, isa, precision)
    for i in (4, 0, 2):
        np.testing.assert_array_equal(call(engine, [x[i : i + 1]], (17,))[0], expected[i])


@pytest.mark.parametrize(("isa", "precision"), KINDS)
def test_vectors_and_volumes_of_one_voxel_meet(isa, precision):
    """Squeeze and excitation with convolutions on [C, 1, 1, 1], as EfficientNet writes it."""
    rng = np.random.default_rng(8)
    engine = _native.Engine(2, isa, precision)
    x, ones = bf16(normal(rng, 2, 20, 3, 4, 5)), (1, 1, 1)
    w, b = normal(rng, 1, 20, 20), normal(rng, 20)
    first = engine.input(20, 3, 4, 5)
    mean = engine.global_pool(first, ones, True)
    gate = engine.conv(mean, 20, ones, ones, (0, 0, 0), ones, w, b, act=("sigmoid", 0.0, 0.0, None))
    joined = engine.concat([engine.binary(gate, mean, "add"), mean])
    engine.output(engine.binary(first, gate, "mul"))
    engine.output(joined)
    engine.finish()
    found = [np.full((2, 20, 3, 4, 5), np.nan, np.float32), np.full((2, 40), np.nan, np.float32)]
    engine.run([x], found)
    m = wide(x).mean((2, 3, 4))
    g = torch.sigmoid(m @ wide(w[0]) + wide(b))
    limit = 40 * EPS if precision == "fp32" else 2e-2
    expected = [wide(x) * g[:, :, None, None, None], torch.cat([g + m, m], 1)]
    for have, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(have, want.numpy(), rtol=0, atol=limit * float(want.abs().max()))


@pytest.mark.parametrize("isa", _native.available_isas())
def test_volumes_are_rounded_to_the_nearest_even_bfloat16(isa):
    """Halfway cases, the largest and smallest numbers, infinities, NaN."""
    bits = np.random.default_rng(0).integers(0, 2**32, 4000, dtype=np.uint32)
    ties = np.array([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x00808000, 0x80000000], np.uint32)
    x = np.concatenate([bits, ties, (ties | 0x80000000)]).view(np.float32)
    x = np.concatenate([x, np.array([np.inf, -np.inf, np.nan], np.float32)])
    # The instruction flushes subnormal numbers to zero.
    x = x[~(np.abs(x) < np.finfo(np.float32).tiny) | (x == 0)]
    x = np.resize(x, (1, 16, 1, 1, len(x) // 16 + 1))
    engine = _native.Engine(1, isa, "bf16")
    engine.output(engine.affine(engine.input(*x.shape[1:]), act=("leaky_relu", 1.0, 0.0, None)))
    engine.finish()
    y = np.empty_like(x)
    engine.run([x], [y])
    np.testing.assert_array_equal(y, bf16(x))


def test_several_python_threads_may_share_an_engine():
    engine = network(2)
    x = normal(np.random.default_rng(7), 4, 3, 11, 12, 13)
    expected = call(engine, [x], (17,))
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(call, engine, [x[i % 4 : i % 4 + 1]], (17,)) for i in range(40)]
        for i, future in enumerate(futures):
            np.testing.assert_array_equal(future.result()[0], expected[i % 4])


def test_an_empty_batch():
    engine = network(2)
    assert call(engine, [np.empty((0, 3, 11, 12, 13), np.float32)], (17,)).shape == (0, 17)


def conv(engine, x, weight, bias, kernel=(3, 3, 3), cout=4, **options):
    ones = (1, 1, 1)
    geometry = [options.pop(k, ones) for k in ("stride", "padding", "dilation")]
    return engine.conv(x, cout, kernel, *geometry, weight, bias, **options)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda e, x, w, b: conv(e, 9, w, b), "no value 9"),
        (lambda e, x, w, b: conv(e, -3, w, b), "no value -3"),
        (lambda e, x, w, b: conv(e, x, w[:-1], b), "weight has"),
        (lambda e, x, w, b: conv(e, x, w, b[:-1]), "bias has"),
        (lambda e, x, w, b: conv(e, x, w, b, cout=0), "output channel"),
        (lambda e, x, w, b: conv(e, x, w, b, stride=(0, 1, 1)), "1 or more"),
        (lambda e, x, w, b: conv(e, x, w, b, padding=(-1, 1, 1)), "0 or more"),
        (lambda e, x, w, b: conv(e, x, w, b, dilation=(9, 1, 1)), "a window of 19 voxels"),
        (lambda e, x, w, b: conv(e, x, w, b, stride=(1, 1)), "three numbers"),
        (lambda e, x, w, b: conv(e, x, w, b, tile=(3, 2, 2)), "tiles are 2 or 4"),
        (lambda e, x, w, b: conv(e, x, w, b, tile=(2, 4, 2), pairs=True), "only 2x2x2 tiles"),
        (lambda e, x, w, b: conv(e, x, w, b, tile=(2, 2, 2), stride=(2, 1, 1)), "tiles are 2 or 4"),
        (lambda e, x, w, b: conv(e, x, w, b, tile=(4, 2, 2), stride=(2, 2, 2)), "tiles are 2 or 4"),
        (lambda e, x, w, b: conv(e, x, w, b, stride=(1, 1, 2), pool=True), "pools its"),
        (lambda e, x, w, b: conv(e, x, w, b, residual=x), "does not fit"),
        (lambda e, x, w, b: conv(e, x, w, b, condition=x), "condition is a vector"),
        (lambda e, x, w, b: conv(e, x, w, b, depthwise=True), "keeps the number of channels"),
        (lambda e, x, w, b: conv(e, x, w, b, sparse=True), "every second voxel"),
        (lambda e, x, w, b: conv(e, x, w, b, act=("swoosh", 0, 0, None)), "no activation 'swoosh'"),
        (lambda e, x, w, b: conv(e, x, w, b, act=("prelu", 0.0, 0.0, None)), "prelu's slope has 0"),
        (lambda e, x, w, b: conv(e, x, w, b, kernel=(2**40, 2, 2)), "1 or more"),
        (lambda e, x, w, b: e.input(2**31, 2**31, 2**31, 4), "more than 2\\^33"),
        (lambda e, x, w, b: e.input(0), "empty tensor"),
        (lambda e, x, w, b: e.linear(x, 3, w, b), "needs a vector"),
        (lambda e, x, w, b: e.slice(x, 1, 3), "channels 1 to 3 of"),
        (lambda e, x, w, b: e.concat([]), "nothing to concatenate"),
        (lambda e, x, w, b: e.adaptive_pool(x, (2, 2, 2), True), "do not divide"),
        (lambda e, x, w, b: e.remap(x, [9], [0], [0]), "voxel 9 of an axis"),
        (lambda e, x, w, b: e.run([], []), "not finished|one array per input"),
        (lambda e, x, w, b: e.finish(), "needs an output"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(build, message):
    engine = _native.Engine(1)
    x = engine.input(2, 5, 5, 5)
    weight, bias = np.zeros((27, 2, 4), np.float32), np.zeros(4, np.float32)
    with pytest.raises(ValueError, match=message):
        build(engine, x, weight, bias)


def test_arrays_of_the_wrong_size_or_type_are_refused():
    engine = network(1)
    out = np.empty((1, 17), np.float32)
    with pytest.raises(ValueError, match="input 0 has 10 numbers"):
        engine.run([np.zeros((1, 10), np.float32)], [out])
    with pytest.raises(ValueError, match="output 0"):
        engine.run([np.zeros((2, 3, 11, 12, 13), np.float32)], [out])
    image = np.zeros((1, 3, 11, 12, 13), np.float32)
    for inputs, outputs in (([image.astype(float)], [out]), ([image], [out.astype(float)])):
        with pytest.raises(TypeError):
            engine.run(inputs, outputs)
    with pytest.raises(ValueError, match="threads must be"):
        _native.Engine(0)
    with pytest.raises(ValueError, match=r"this machine has .*"):
        _native.Engine(1, "mmx")
    with pytest.raises(ValueError, match="fp32 or bf16, not fp16"):
        _native.Engine(1, "", "fp16")


def test_every_kind_of_step_has_a_name_of_its_own():
    names = [str(kind) for kind in _native.StepKind]
    assert len(set(names)) == len(names)
    assert str(_native.StepKind.narrow_winograd) == "narrow winograd"
    assert str(_native.StepKind.planar_ring) == "planar (in the next step)"


@pytest.mark.parametrize("isa", [*_native.available_isas(), "mmx"])
def test_the_environment_forces_an_instruction_set(isa):
    code = "from hyperfusion_rt import _native as n; n.Engine(1)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HFRT_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == (isa != "mmx")
    if isa == "mmx":
        assert "instruction set 'mmx'" in done.stderr


PARTS = [
    # transposed, groups, cin, cout, kernel, stride, padding, dilation, extra
    (False, 2, 6, 10, (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), None),
    (False, 4, 64, 64, (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), None),
    (False, 8, 32, 32, (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), None),
    (False, 5, 15, 20, (1, 3, 2), (2, 1, 1), (0, 1, 1), (1, 2, 1), None),
    (False, 20, 20, 40, (3, 1, 1), (1, 1, 1), (1, 0, 0), (1, 1, 1), None),
    (False, 20, 20, 20, (3, 3, 3), (1, 2, 1), (1, 1, 0), (1, 1, 2), None),
    (True, 1, 5, 7, (2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1), (0, 0, 0)),
    *((True, 1, 9, n, (2, 2, 2), (2, 2, 2), (0, 0, 0), (1, 1, 1), (0, 0, 0)) for n in (1, 2, 8)),
    (True, 1, 20, 33, (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    # Of few channels phases that read other voxels are one convolution.
    *(
        (True, 1, 9, n, (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1))
        for n in (1, 2, 4, 8, 9)
    ),
    (True, 1, 6, 3, (4, 5, 3), (2, 3, 2), (1, 1, 0), (1, 1, 1), (0, 2, 1)),
    (True, 1, 6, 2, (2, 1, 5), (3, 2, 2), (0, 0, 2), (1, 1, 1), (2, 1, 0)),
    (True, 1, 3, 17, (4, 3, 2), (2, 1, 3), (1, 1, 0), (1, 2, 1), (0, 0, 2)),
    (True, 1, 4, 4, (3, 3, 3), (2, 2, 2), (2, 0, 1), (2, 3, 1), (1, 2, 0)),
    (True, 1, 4, 4, (1, 1, 1), (2, 3, 1), (0, 0, 0), (1, 1, 1), (1, 0, 0)),
    (True, 3, 12, 6, (3, 2, 3), (2, 2, 1), (1, 0, 1), (1, 1, 1), (0, 0, 0)),
    (True, 20, 20, 20, (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 0, 1)),
]


@pytest.mark.parametrize(("isa", "precision"), KINDS)
@pytest.mark.parametrize("case", PARTS, ids=str)
@pytest.mark.parametrize("k", [0, 3])
def test_convolutions_of_parts(isa, precision, case, k):
    """In groups, and transposed, with weights of their own and with generated ones."""
    transposed, groups, cin, cout, kernel, stride, padding, dilation, extra = case
    depthwise = groups == cin == cout and not k
    rng = np.random.default_rng(3)
    rounded = bf16 if precision == "bf16" else np.asarray
    x, e = rounded(normal(rng, 2, cin, 4, 5, 6)), normal(rng, 2, max(k, 1))
    taps, n = np.prod(kernel), max(k, 1)
    sides = (cin, cout // groups) if transposed else (cin // groups, cout)
    weight = rounded(normal(rng, n, taps, *sides) / np.sqrt(taps * sides[0]))
    bias, slope = normal(rng, n, cout), np.abs(normal(rng, cout))
    full = wide(weight).movedim((2, 3), (1, 2) if transposed else (2, 1)).unflatten(-1, kernel)
    y = []
    for image, row in zip(wide(x), wide(e) if k else torch.ones(2, 1).double(), strict=True):
        w, b = torch.tensordot(row, full, 1), row @ wide(bias)
        if transposed:
            y.append(F.conv_transpose3d(
                image[None], w, b, stride, padding, extra, groups, dilation
            ))  # fmt: skip
        else:
            y.append(F.conv3d(image[None], w, b, stride, padding, dilation, groups))
    slope = np.full(cout, 0.3, np.float32) if cout in (1, 2, 8) else slope
    expected = F.prelu(torch.cat(y), wide(slope))
    act = ("leaky_relu", 0.3, 0.0, None) if cout in (1, 2, 8) else ("prelu", 0.0, 0.0, slope)
    tile = None
    if kernel == (3, 3, 3) and not transposed and not depthwise and dilation == (1, 1, 1):
        tile = (4, 4, 2) if stride == (1, 1, 1) else (2, 2, 2)
    engine = _native.Engine(2, isa, precision)
    value, condition = engine.input(cin, 4, 5, 6), engine.input(n)
    flat = weight if k else weight[0]
    engine.output(
        engine.conv(
            value,
            cout,
            kernel,
            stride,
            padding,
            dilation,
            (flat[..., 0] if transposed else flat[:, 0]) if depthwise else flat,
            bias if k else bias[0],
            depthwise,
            condition if k else None,
            act=act,
            tile=tile,
            groups=groups,
            transposed=extra,
        )
    )
    engine.finish()
    found = call(engine, [x, e], tuple(expected.shape[1:]))
    limit = (3e-2 if precision == "bf16" else 1e-5) * max(1.0, float(expected.abs().max()))
    assert np.abs(found - expected.numpy()).max() <= limit


@pytest.mark.parametrize(("isa", "precision"), KINDS)
@pytest.mark.parametrize("channels", [1, 2, 3, 8])
@pytest.mark.parametrize("width", [5, 17, 40])
def test_volumes_of_few_channels(isa, precision, channels, width):
    """Between a transposed convolution and the output they lie as the caller's do."""
    rng = np.random.default_rng(channels * width)
    n, ones, three = channels, (1, 1, 1), (3, 3, 3)
    x = normal(rng, 2, 20, 3, 2, width)
    up, last = normal(rng, 8, 20, n) / 5, normal(rng, 27, n, n) / np.sqrt(27 * n)
    bias, scale, shift, slope = (normal(rng, n) for _ in range(4))
    slope = np.abs(slope)
    engine = _native.Engine(2, isa, precision)
    value = engine.input(20, 3, 2, width)
    first = engine.conv(
        value, n, (2, 2, 2), (2, 2, 2), (0, 0, 0), ones, up, bias, transposed=(0, 0, 0)
    )
    y = engine.group_norm(first, 1, scale, shift, 1e-5, ("prelu", 0, 0, slope))
    y = engine.conv(
        y, n, three, ones, ones, ones, last, bias, residual=first, act=("relu", 0, 0, None)
    )
    y = engine.binary(engine.affine(y, scale, shift), y, "add")
    y = engine.blend(y, [_between(size) for size in (6, 4, 2 * width)])
    engine.output(engine.softmax(y))
    engine.finish()
    w = wide(up).permute(1, 2, 0).reshape(20, n, 2, 2, 2)
    a = F.conv_transpose3d(wide(x), w, wide(bias), 2)
    b = F.prelu(F.group_norm(a, 1, wide(scale), wide(shift)), wide(slope))
    kernel = wide(last).permute(2, 1, 0).reshape(n, n, 3, 3, 3)
    b = F.relu(F.conv3d(b, kernel, wide(bias), padding=1) + a)
    b = b * wide(scale).view(1, -1, 1, 1, 1) + wide(shift).view(1, -1, 1, 1, 1) + b
    b = F.interpolate(b, scale_factor=2, mode="trilinear").softmax(1)
    found = call(engine, [x], tuple(b.shape[1:]))
    limit = 2e-2 if precision == "bf16" else 5e-6
    assert np.abs(found - b.numpy()).max() <= limit


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("log", [False, True])
def test_softmax_of_two_planes(isa, log):
    """Of all sizes, equal, infinite and NaN; read as the caller's volume lies."""
    some = [0.0, 1e-3, 1.0, -1.0, 20.0, 88.0, -104.0, 1e38, -1e38, np.inf, -np.inf, np.nan]
    pairs = np.array([(a, b) for a in some for b in some], np.float32)
    x = np.ascontiguousarray(pairs.T).reshape(1, 2, 1, 1, -1)
    engine = _native.Engine(1, isa, "fp32")
    value = engine.input(2, 1, 1, len(pairs))
    # A resize to the same voxels makes a volume that may lie so.
    plain = engine.blend(value, [_between_same(n) for n in (1, 1, len(pairs))])
    engine.output(engine.softmax(plain, log))
    engine.finish()
    found = call(engine, [x], x.shape[1:])
    expected = (wide(x).log_softmax(1) if log else wide(x).softmax(1)).numpy()
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_allclose(found, expected, rtol=5e-7, atol=2e-7)


def _between_same(size):
    """Each voxel itself."""
    return list(range(size)), list(range(size)), [0.0] * size

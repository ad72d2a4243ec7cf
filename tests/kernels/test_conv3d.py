"""`conv3d`: the native gradient of weights against float64."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from hyperfusion_rt import _native
from hyperfusion_rt.kernels import conv3d
from hyperfusion_rt.kernels.conv3d import _native_takes

EPS = torch.finfo(torch.float32).eps
LAYOUT = torch.channels_last_3d
SHAPES = [
    # batch, Cin, Cout, D, H, W, stride
    (2, 1, 8, 9, 11, 10, 1),
    (3, 2, 3, 5, 4, 7, 1),
    (2, 5, 17, 4, 3, 6, 2),
    (1, 16, 16, 3, 70, 40, 1),  # a slice of more voxels than a task's 2048, rows in several blocks
    (2, 16, 32, 6, 7, 5, 2),
    (4, 32, 64, 2, 1, 3, 1),
    (1, 7, 1, 1, 1, 1, 1),
    (1, 3, 4, 1, 1, 1, 2),
]


def made(batch, cin, cout, d, h, w, stride, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    x = draw(batch, cin, d, h, w).to(memory_format=LAYOUT).requires_grad_()
    weight = draw(cout, cin, 3, 3, 3).to(memory_format=LAYOUT).requires_grad_()
    bias = draw(cout).requires_grad_()
    size = [(n - 1) // stride + 1 for n in (d, h, w)]
    return x, weight, bias, draw(batch, cout, *size).to(memory_format=LAYOUT)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_float64(shape):
    x, weight, bias, dy = made(*shape)
    assert _native_takes(x, weight, bias)
    y = conv3d(x, weight, bias, shape[-1])
    assert type(y.grad_fn).__name__ == "_Conv3dBackward"
    found = torch.autograd.grad(y, (x, weight, bias), dy)
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    expected = torch.autograd.grad(functional.conv3d(*exact, shape[-1], 1), exact, dy.double())
    # The magnitudes that are added up: of each product half an ulp, as rounding walks.
    magnitude = [e.detach().abs().requires_grad_() for e in exact]
    bounds = torch.autograd.grad(
        functional.conv3d(*magnitude, shape[-1], 1), magnitude, dy.double().abs()
    )
    for name, a, b, bound in zip("xwb", found, expected, bounds, strict=True):
        length = 2800 if name != "x" else 27 * shape[2]
        assert ((a - b).abs() <= EPS * length**0.5 * 4 * bound + 1e-30).all(), name


@pytest.mark.parametrize("isa", _native.available_isas())
def test_the_same_bits_for_every_count_of_threads(isa):
    x, _weight, _bias, dy = made(3, 6, 10, 9, 8, 7, 1)
    found = []
    for threads in (1, 2, 5):
        made_ = np.full((10, 3, 3, 3, 6), np.nan, np.float32), np.full(10, np.nan, np.float32)
        arrays = (t.detach().movedim(1, -1).numpy() for t in (x, dy))
        _native.filter_gradient(*arrays, 1, *made_, threads, isa)
        found.append(made_)
    for weight_, bias in found:
        assert np.isfinite(weight_).all()
        assert np.array_equal(weight_, found[0][0])
        assert np.array_equal(bias, found[0][1])


def test_nan_reaches_every_weight_that_reads_it():
    x, weight, bias, dy = made(2, 2, 3, 5, 5, 5, 1)
    with torch.no_grad():
        x[0, 1, 2, 2, 2] = float("nan")
    found = torch.autograd.grad(conv3d(x, weight, bias), weight, dy)[0]
    expected = torch.autograd.grad(functional.conv3d(x, weight, bias, 1, 1), weight, dy)[0]
    assert torch.equal(found.isnan(), expected.isnan())


def test_others_take_pytorch():
    x, weight, bias, _ = made(2, 4, 4, 5, 5, 5, 1)
    assert not _native_takes(x, weight.detach(), bias)
    assert not _native_takes(x.contiguous(), weight, bias)
    assert not _native_takes(x.double(), weight.double(), bias.double())
    assert not _native_takes(x, weight[:, :, :1, :1, :1], bias)
    wide = torch.empty(64, 64, 3, 3, 3, requires_grad=True)
    assert not _native_takes(torch.randn(1, 64, 2, 2, 2).to(memory_format=LAYOUT), wide, None)
    y = conv3d(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(y.float(), conv3d(x, weight, bias), rtol=1e-4, atol=1e-4)


def test_shapes_that_do_not_fit_are_refused():
    x, dy = np.zeros((1, 4, 4, 4, 2), np.float32), np.zeros((1, 4, 4, 3, 5), np.float32)
    weight, bias = np.zeros((5, 3, 3, 3, 2), np.float32), np.zeros(5, np.float32)
    with pytest.raises(ValueError, match="dy has another shape"):
        _native.filter_gradient(x, dy, 1, weight, bias, 1)
    right = np.zeros((1, 4, 4, 4, 5), np.float32)
    with pytest.raises(ValueError, match="weight has another shape"):
        _native.filter_gradient(x, right, 1, weight[:4], bias, 1)
    with pytest.raises(ValueError, match="stride"):
        _native.filter_gradient(x, right, 0, weight, bias, 1)

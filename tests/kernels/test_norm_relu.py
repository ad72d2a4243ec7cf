"""`norm_relu`: native kernels and plain PyTorch against the reference, alone and over processes."""

import sys
import threading

import pytest
import torch
from torch.nn.functional import batch_norm

from hyperfusion_rt import _native
from hyperfusion_rt.kernels import norm_relu, reference
from hyperfusion_rt.models.norm import norm_relu as of_module

EPS = torch.finfo(torch.float32).eps
# float32 numbers that the kernels add up to one another before float64 takes over, at most.
LENGTH = 256

SHAPES = [
    (2, 3, 5, 7, 9),  # a period of three vectors
    (1, 1, 4, 4, 4),
    (3, 5, 2, 3, 35),
    (2, 8, 6, 9, 16),
    (2, 16, 3, 4, 6),
    (1, 24, 5, 2, 3),  # a vector and a half
    (1, 512, 3, 2, 2),
    (1, 8, 2, 41, 64),  # several tasks a sample
]


def make(shape, dtype=torch.float32, seed=0, far=3.0):
    noise = torch.Generator().manual_seed(seed)
    draw = lambda *s: torch.randn(*s, generator=noise)  # noqa: E731
    b, c = shape[:2]
    x = 2 * draw(*shape) + far * draw(c)[:, None, None, None]
    factor = (torch.rand(b, c, generator=noise) > 0.3) / 0.7
    tensors = x.to(memory_format=torch.channels_last_3d), draw(c), draw(c), factor
    return tuple(t.to(dtype) for t in tensors)


def leaves(*tensors):
    return tuple(t.detach().clone().requires_grad_() for t in tensors)


def running(c, dtype=torch.float32):
    return torch.zeros(c, dtype=dtype), torch.ones(c, dtype=dtype)


@pytest.fixture
def native(monkeypatch):
    """Counts the calls of the native kernels; memory that nobody wrote is NaN."""
    calls = []
    own = _native.norm_gradient
    monkeypatch.setattr(_native, "norm_gradient", lambda *a: (calls.append(1), own(*a)))
    torch.use_deterministic_algorithms(True)
    yield calls
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("isa", _native.available_isas())
@pytest.mark.parametrize("pool", [False, True], ids=["flat", "pool"])
@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(shape, relu, pool, isa, native, monkeypatch):
    monkeypatch.setenv("HFRT_ISA", isa)
    x, weight, bias, factor = make(shape)
    factor = factor if shape[1] % 2 else None
    ours = leaves(x, weight, bias)
    mean, variance = running(shape[1])
    options = {"factor": factor, "relu": relu, "pool": pool}
    y = norm_relu(*ours, mean, variance, momentum=0.1, **options)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(dy)
    assert native
    theirs = leaves(*(t.double() for t in (x, weight, bias)))
    wide = None if factor is None else factor.double()
    expected = reference.norm_relu(*theirs, factor=wide, relu=relu, pool=pool)
    expected.backward(dy.double())

    tolerance = EPS * LENGTH
    X, W, B = (t.detach() for t in theirs)
    over = (0, 2, 3, 4)
    hat = (X - X.mean(over, keepdim=True)) / X.std(over, correction=0, keepdim=True)
    most = 1 if factor is None else factor.max()
    top, g = float(hat.abs().max()), float(dy.abs().max() * most)
    assert (y - expected).abs().max() < tolerance * most * (W.abs() * top + B.abs()).max()
    assert (ours[2].grad - theirs[2].grad).abs().max() < tolerance * dy.abs().sum() * most
    assert (ours[1].grad - theirs[1].grad).abs().max() < tolerance * dy.abs().sum() * most * top
    scale = float((W / X.std(over, correction=0)).abs().max())
    assert (ours[0].grad - theirs[0].grad).abs().max() < tolerance * scale * g * (2 + top**2)
    found = running(shape[1], torch.float64)
    batch_norm(X, *found, training=True, momentum=0.1)
    assert (mean - found[0]).abs().max() < tolerance * X.abs().max()
    assert (variance - found[1]).abs().max() < tolerance * X.var(over).max()


def test_a_large_mean_costs_the_variance_nothing(native):
    x, weight, bias, _ = make((2, 8, 8, 16, 16), far=0)
    x = x + 1e4  # float32 keeps 1e-3 of the spread
    found = running(8)
    norm_relu(*leaves(x, weight, bias), *found, momentum=1.0)
    exact = x.double().var((0, 2, 3, 4))
    assert ((found[1] - exact) / exact).abs().max() < EPS * LENGTH


@pytest.mark.parametrize("pool", [False, True])
def test_any_count_of_threads_gives_the_same_bits(pool, native):
    x, weight, bias, factor = make((2, 8, 8, 40, 32))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            tensors = leaves(x, weight, bias)
            stats = running(8)
            y = norm_relu(*tensors, *stats, momentum=0.1, factor=factor, pool=pool)
            y.backward(torch.ones_like(y) + y.detach())
            found.append([y, *stats, *(t.grad for t in tensors)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize("pool", [False, True])
def test_not_a_number_stays_one(pool, native):
    x, weight, bias, _ = make((2, 8, 4, 4, 4))
    x[1, 3, 0, 1, 2] = torch.nan
    tensors = leaves(x, weight, bias)
    y = norm_relu(*tensors, *running(8), momentum=0.1, pool=pool)
    y.backward(torch.ones_like(y))
    for found in (y, tensors[0].grad):
        bad = found.isnan()
        assert bad[:, 3].all()
        assert not bad[:, :3].any()
        assert not bad[:, 4:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["native", "torch"])
def test_processes_that_share_statistics_are_one_batch(dtype):
    """Two threads stand for processes with samples, a third for one without."""
    x, weight, bias, factor = make((5, 8, 4, 5, 6), dtype)
    parts = [slice(0, 2), slice(2, 5), slice(0, 1)]
    barrier, given = threading.Barrier(3, timeout=60), [None] * 3
    dy = torch.randn(5, 8, 2, 2, 3, generator=torch.Generator().manual_seed(1)).to(dtype)

    def merge(rank, sums):
        given[rank] = sums.clone()
        barrier.wait()
        total = given[0] + given[1] + given[2]
        barrier.wait()
        return total

    results = [None] * 3

    def process(rank):
        own = parts[rank]
        tensors, stats = leaves(x[own], weight, bias), running(8, dtype)
        y = norm_relu(
            *tensors, *stats, momentum=0.1, factor=factor[own], pool=True,
            merge=lambda sums: merge(rank, sums), counts=rank < 2,
        )  # fmt: skip
        y.backward(dy[own])
        results[rank] = (y.detach(), *stats, *(t.grad for t in tensors))

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tensors, stats = leaves(x, weight, bias), running(8, dtype)
    y = norm_relu(*tensors, *stats, momentum=0.1, factor=factor, pool=True)
    y.backward(dy)
    first, second, third = results
    dx, dweight, dbias = (t.grad for t in tensors)
    close = {"rtol": 20 * torch.finfo(dtype).eps, "atol": 20 * torch.finfo(dtype).eps}
    torch.testing.assert_close(torch.cat([first[0], second[0]]), y.detach(), **close)
    torch.testing.assert_close(torch.cat([first[3], second[3]]), dx, **close)
    torch.testing.assert_close(first[4] + second[4], dweight, **close)
    torch.testing.assert_close(first[5] + second[5], dbias, **close)
    for result in results:
        torch.testing.assert_close(result[1:3], stats, **close)
    assert not any(gradient.any() for gradient in third[3:])


def test_a_module_in_training_is_what_it_was():
    """Output, random numbers, running statistics and gradients of the modules one by one."""
    x = make((3, 8, 4, 6, 6))[0]
    norm, drop, pool = torch.nn.BatchNorm3d(8), torch.nn.Dropout3d(0.4), torch.nn.MaxPool3d(2)
    found = []
    for fused in (True, False):
        norm.reset_running_stats()
        torch.manual_seed(3)
        (own,) = leaves(x)
        alone = lambda x: drop(pool(norm(x).relu()))  # noqa: E731
        y = of_module(norm, own, pool=pool, drop=drop) if fused else alone(own)
        y.square().sum().backward()
        found.append((y.detach(), own.grad, *(t.clone() for t in norm.buffers()), torch.rand(1)))
    torch.testing.assert_close(*found, rtol=LENGTH * EPS, atol=LENGTH * EPS)


def test_a_norm_that_is_shared_says_so():
    x = make((2, 8, 4, 4, 4))[0].requires_grad_()
    norm, seen = torch.nn.BatchNorm3d(8), []

    class Share:
        counts = True

        def sums(self, own):
            seen.append(own.shape)
            return own

    norm.share = Share()
    of_module(norm, x).sum().backward()
    assert seen == [(3, 8), (2, 8)]


def test_others_than_plain_tensors_get_the_composition():
    takes = sys.modules[norm_relu.__module__]._native_takes
    options = sys.modules[norm_relu.__module__]._Options(0.1, 1e-5, True, False, None, True)
    x, weight, bias, _ = make((2, 8, 4, 4, 4))
    assert takes((x, weight, bias), options)
    assert not takes((x.double(), weight, bias), options)
    assert not takes((x.contiguous(), weight, bias), options)
    with torch.autocast("cpu", torch.bfloat16):
        assert not takes((x, weight, bias), options)


def test_shapes_that_do_not_fit_are_refused():
    x, weight, bias, factor = make((2, 8, 4, 4, 4))
    with pytest.raises(ValueError, match="x needs 5 dimensions"):
        norm_relu(x[0], weight, bias, *running(8), momentum=0.1)
    with pytest.raises(ValueError, match="weight has shape"):
        norm_relu(x, weight[1:], bias, *running(8), momentum=0.1)
    with pytest.raises(ValueError, match="factor has shape"):
        norm_relu(x, weight, bias, *running(8), momentum=0.1, factor=factor[1:])
    with pytest.raises(ValueError, match="more than 1 value"):
        norm_relu(x[:1, :, :1, :1, :1], weight, bias, *running(8), momentum=0.1)

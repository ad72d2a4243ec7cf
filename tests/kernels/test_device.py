"""The ops on a real GPU: `make gpu-test`. Only hardware shows bfloat16, TF32, races.

Elsewhere, and in `make test` (whose kernels run in Triton's interpreter), all of it is skipped.
"""

import os

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip(
        "no GPU: bfloat16, TF32, races and launches are NOT checked", allow_module_level=True
    )
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton's interpreter is on: use `make gpu-test`", allow_module_level=True)
pytest.importorskip("triton", reason="Triton is not installed: its kernels are NOT checked")

from hyperfusion_rt.kernels import Epilogue, conv3d_block, hyper_conv3d, hyper_linear, reference

from .oracle import (
    BLOCK_CASES,
    CASES,
    LINEAR_CASES,
    MORE,
    check_block,
    check_conv,
    check_linear,
    make,
)

pytestmark = pytest.mark.gpu

# dtype of the volumes, whether products may be TF32, the unit of rounding
TYPES = {
    "fp32": (torch.float32, False, None),
    "tf32": (torch.float32, True, 2.0**-10),
    "fp16": (torch.float16, False, None),
    "bf16": (torch.bfloat16, False, None),
}


@pytest.fixture(params=TYPES)
def numbers(request):
    """(dtype, unit of rounding), with TF32 on or off."""
    dtype, tf32, eps = TYPES[request.param]
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    kept = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = tf32
    yield dtype, eps
    for switch, value in zip(switches, kept, strict=True):
        switch.allow_tf32 = value


@pytest.mark.parametrize("strategy", ["generate", "write"])
@pytest.mark.parametrize("case", CASES + MORE)
def test_hyper_conv3d(case, numbers, strategy):
    dtype, eps = numbers
    check_conv(case, dtype, strategy=strategy, keep=strategy == "generate", device="cuda", eps=eps)


@pytest.mark.parametrize("case", LINEAR_CASES)
def test_hyper_linear(case, numbers):
    check_linear(case, numbers[0], device="cuda", eps=numbers[1])


@pytest.mark.parametrize("case", BLOCK_CASES)
def test_conv3d_block(case, numbers):
    check_block(case, numbers[0], device="cuda", eps=numbers[1])


def layer(batch=8, dtype=torch.float16, size=(16, 24, 16)):
    """Tensors of a 3x3x3 layer with many tiles, x in `dtype`."""
    arguments = make((3, 3, 3), 1, batch, 8, 32, 64, torch.float32, size=size)
    arguments = [a.detach().cuda() for a in arguments]
    return [a.requires_grad_() for a in [arguments[0].to(dtype), *arguments[1:]]]


def run(arguments):
    y = hyper_conv3d(*arguments, padding=1, epilogue=Epilogue(slope=0.0))
    return [y.detach(), *torch.autograd.grad(y.float().square().mean(), arguments)]


@pytest.mark.parametrize("size", [(16, 24, 16), (3, 4, 5)], ids=["written", "kept"])
def test_every_run_gives_the_same_bits(size):
    """A race would show."""
    torch.use_deterministic_algorithms(True)
    try:
        arguments = layer(size=size)
        first = run(arguments)
        for _ in range(50):
            for a, b in zip(first, run(arguments), strict=True):
                assert torch.equal(a, b)
    finally:
        torch.use_deterministic_algorithms(False)


def test_large_volumes_against_float64():
    arguments = layer(2, torch.float32, size=(24, 24, 28))
    exact = [a.detach().double().requires_grad_() for a in arguments]
    expected = reference.hyper_conv3d(*exact, padding=(1, 1, 1))
    found = hyper_conv3d(*arguments, padding=1)
    torch.testing.assert_close(
        found.detach().double(),
        expected.detach(),
        rtol=1e-2,
        atol=1e-2 * float(expected.detach().std()),
    )
    upstream = torch.randn_like(found)
    wanted = torch.autograd.grad(expected, exact, upstream.double())
    for a, b in zip(torch.autograd.grad(found, arguments, upstream), wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-2, atol=1e-2 * float(b.std()))


def test_autocast_and_the_compiler():
    arguments = layer(dtype=torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        expected = hyper_conv3d(*arguments, padding=1)
        compiled = torch.compile(lambda *a: hyper_conv3d(*a, padding=1), fullgraph=True)
        found = compiled(*arguments)
    assert expected.dtype == torch.bfloat16
    assert torch.equal(found, expected)


def test_a_graph_of_launches_replays():
    arguments = [a.detach() for a in layer()]
    expected = hyper_conv3d(*arguments, padding=1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = hyper_conv3d(*arguments, padding=1)
    arguments[0].mul_(2)
    graph.replay()
    assert torch.equal(y, hyper_conv3d(*arguments, padding=1))
    assert not torch.equal(y, expected)


def test_tensors_on_two_devices_are_refused():
    x, *rest = (a.detach() for a in layer())
    with pytest.raises(ValueError, match="x is on cuda:0, but condition is on cpu"):
        hyper_conv3d(x, *(a.cpu() for a in rest))


def test_linear_and_block_run_twice_alike():
    x, e = torch.randn(16, 39424, device="cuda"), torch.randn(16, 1, device="cuda")
    G, h = torch.randn(1, 16, 39424, device="cuda"), torch.randn(1, 16, device="cuda")
    assert torch.equal(hyper_linear(x, e, G, h), hyper_linear(x, e, G, h))
    volume = torch.randn(2, 1, 64, 96, 64, device="cuda", dtype=torch.float16)
    weight = torch.randn(16, 1, 3, 3, 3, device="cuda", dtype=torch.float16)
    first = conv3d_block(volume, weight, padding=1, pool=True)
    assert torch.equal(first, conv3d_block(volume, weight, padding=1, pool=True))

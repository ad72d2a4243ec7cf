"""`hyper_linear` in Triton's interpreter, against the float64 reference."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: its kernels are NOT checked")

from hyperfusion_rt.kernels import hyper_linear, reference
from hyperfusion_rt.kernels.gpu import hyper_linear as gpu
from hyperfusion_rt.kernels.gpu import linear as kernels

from .oracle import LINEAR_CASES as CASES
from .oracle import check_linear as check
from .oracle import make_linear as make

pytestmark = pytest.mark.usefixtures("interpreted")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients(case, dtype):
    check(case, dtype)


def test_narrow_numbers_with_wide_weights():
    arguments = make(CASES[1], torch.float16, torch.float32)
    y = hyper_linear(*arguments)
    assert y.dtype == torch.float16
    gradients = torch.autograd.grad(y.sum(), arguments)
    assert [g.dtype for g in gradients] == [a.dtype for a in arguments]
    wide = [a.detach().float().requires_grad_() for a in arguments]
    expected = torch.autograd.grad(reference.hyper_linear(*wide).sum(), wide)
    for found, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found.float(), other, rtol=2e-2, atol=2e-2)


def test_autocast_casts_the_vectors_only():
    arguments = make(CASES[1], torch.float32)
    with torch.autocast("cpu", torch.float16):
        found = hyper_linear(*arguments)
    assert torch.equal(found, hyper_linear(arguments[0].half(), *arguments[1:]))
    gradients = torch.autograd.grad(found.sum(), arguments)
    assert all(g.dtype == torch.float32 for g in gradients)


def test_a_batch_pairs_sample_with_sample():
    x, e, *rest = [a.detach() for a in make((4, 3, 50, 7, True, True), torch.float32)]
    whole = hyper_linear(x, e, *rest)
    alone = [hyper_linear(x[b : b + 1], e[b : b + 1], *rest) for b in range(4)]
    torch.testing.assert_close(whole, torch.cat(alone))
    assert (whole - hyper_linear(x, e.roll(1, 0), *rest)).abs().amax(1).min() > 0.1
    assert hyper_linear(x[:0], e[:0], *rest).shape == (0, 7)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["triton", "torch"])
def test_the_op_is_well_behaved(dtype):
    arguments = make((2, 2, 5, 3, True, True), dtype)
    torch.library.opcheck(torch.ops.hfrt.hyper_linear.default, tuple(arguments))
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(torch.ops.hfrt.hyper_linear, tuple(arguments))
    compiled = torch.compile(hyper_linear, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (2, 3):
        arguments = make((batch, 2, 5, 3, True, True), dtype)
        found, expected = compiled(*arguments), hyper_linear(*arguments)
        torch.testing.assert_close(found, expected)
        pairs = [torch.autograd.grad(y.sum(), arguments) for y in (found, expected)]
        torch.testing.assert_close(*pairs)


@pytest.mark.parametrize("weights", [False, True], ids=["samples", "samples-and-weights"])
def test_vmap(weights):
    x, e, *rest = [a.detach() for a in make((2, 2, 5, 3, True, True), torch.float32)]
    xs, es = torch.stack([x, 2 * x, -x]), torch.stack([e, e + 1, e])
    if weights:
        all_ = [torch.stack([t, t + 0.5, -t]) for t in rest]
        found = torch.vmap(hyper_linear)(xs, es, *all_)
        each = [hyper_linear(xs[v], es[v], *(t[v] for t in all_)) for v in range(3)]
    else:
        found = torch.vmap(lambda x, e: hyper_linear(x, e, *rest))(xs, es)
        each = [hyper_linear(xs[v], es[v], *rest) for v in range(3)]
    torch.testing.assert_close(found, torch.stack(each))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("end = tl.minimum(begin + SHARE, CIN)", "end = begin + SHARE"),
        ("(i < end)[:, None] & known", "known"),
        ("h + k * COUT + n", "h + (k + 1) % K * COUT + n"),
    ],
    ids=["a missing end", "a missing mask", "a wrong row of the bias"],
)
def test_the_checks_catch(old, new, mutated, monkeypatch):
    case = (3, 3, 700, 16, True, True)
    check(case, torch.float32)
    monkeypatch.setattr(gpu, "kernels", mutated(kernels, old, new))
    with pytest.raises(AssertionError, match="beyond the rounding"):
        check(case, torch.float32)

"""`hyper_conv_transpose3d` against the reference: both forms, and the op as one node."""

import pytest
import torch

from hyperfusion_rt.kernels import hyper_conv_transpose3d, reference
from hyperfusion_rt.kernels.ops import whole_ops

from .oracle import NAMES, assert_within_rounding, magnitudes

CASES = [
    # kernel, stride, padding, output_padding, dilation, groups, B, K, Cin, Cout
    ((2, 2, 2), (2, 2, 2), (0, 0, 0), (0, 0, 0), (1, 1, 1), 1, 3, 4, 3, 5),
    ((3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1), 1, 2, 2, 4, 2),
    ((3, 2, 1), (1, 3, 2), (2, 0, 0), (0, 2, 1), (1, 1, 1), 1, 4, 1, 1, 1),
    ((3, 1, 2), (1, 2, 1), (0, 0, 1), (1, 0, 0), (2, 1, 3), 2, 2, 3, 4, 6),
    ((2, 2, 2), (2, 2, 2), (0, 0, 0), (0, 0, 0), (1, 1, 1), 4, 1, 2, 4, 4),
]


def make(case, dtype, *, constants=True, size=(3, 4, 2)):
    kernel, *_, groups, batch, k, cin, cout = case
    g = torch.Generator().manual_seed(7)
    shapes = [(batch, cin, *size), (batch, k), (k, cin, cout // groups, *kernel), (k, cout)]
    shapes += [(cin, cout // groups, *kernel), (cout,)] if constants else []
    drawn = [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]
    return [a.to(dtype).requires_grad_() for a in drawn]


@pytest.fixture(params=["eager", "exported", "node"])
def form(request, monkeypatch):
    """Both forms, and the custom op."""
    if request.param == "exported":
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    if request.param == "node":
        with whole_ops():
            yield
    else:
        yield


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("constants", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients(case, constants, dtype):
    kernel, *geometry, _batch, k, cin, _ = case
    args = make(case, dtype, constants=constants)
    exact = [a.detach().double().requires_grad_() for a in args]
    gap = (None,) * (6 - len(args))
    found = hyper_conv_transpose3d(*args, *gap, *geometry)
    expected = reference.hyper_conv_transpose3d(*exact, *gap, *geometry)
    assert found.shape == expected.shape
    g = torch.Generator().manual_seed(8)
    upstream = torch.randn(found.shape, generator=g, dtype=torch.float64).to(dtype)
    size, sizes = magnitudes(reference.hyper_conv_transpose3d, args, upstream, *geometry)
    terms = (k + 1) * cin * kernel[0] * kernel[1] * kernel[2]
    assert_within_rounding(found, expected, size, terms)
    gradients = torch.autograd.grad(found, args, upstream)
    exact_gradients = torch.autograd.grad(expected, exact, upstream.double())
    # A term of the sum over voxels for each voxel of y or x and each tap.
    terms = max(upstream.numel(), args[0].numel() * kernel[0] * kernel[1] * kernel[2]) * (k + 1)
    for name, a, b, size in zip(NAMES, gradients, exact_gradients, sizes, strict=False):
        assert_within_rounding(a, b, size, terms, name)


@pytest.mark.usefixtures("form")
def test_a_batch_pairs_sample_with_sample():
    _, *geometry, _, _, _, _ = CASES[3]
    x, e, *rest = make(CASES[3], torch.float64)
    whole = hyper_conv_transpose3d(x, e, *rest, *geometry)
    for b in range(2):
        alone = hyper_conv_transpose3d(x[b : b + 1], e[b : b + 1], *rest, *geometry)
        torch.testing.assert_close(whole[b : b + 1], alone, rtol=1e-12, atol=1e-12)
    shifted = hyper_conv_transpose3d(x, e.roll(1, 0), *rest, *geometry)
    assert (whole - shifted).abs().amax((1, 2, 3, 4)).min() > 0.1


def test_a_batch_of_none():
    args = make(CASES[0], torch.float32)
    y = hyper_conv_transpose3d(args[0][:0], args[1][:0], *args[2:], stride=2)
    assert y.shape == (0, 5, 6, 8, 4)


class Layer(torch.nn.Module):
    def __init__(self, args, geometry):
        super().__init__()
        self.args = torch.nn.ParameterList([a.detach() for a in args[2:]])
        self.geometry = geometry

    def forward(self, x, e):
        return hyper_conv_transpose3d(x, e, *self.args, *self.geometry)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("case", [CASES[1], CASES[3]])
def test_exports_with_a_dynamic_batch(case, whole):
    _, *geometry, _, _, _, _ = case
    args = make((*case[:6], 7, *case[7:]), torch.float64)
    inputs = args[0].detach(), args[1].detach()
    batch = torch.export.Dim("batch", min=1, max=64)
    layer, few = Layer(args, geometry), tuple(a[:2] for a in inputs)
    if whole:
        with whole_ops(), torch.no_grad():
            program = torch.export.export(layer, few, dynamic_shapes=({0: batch}, {0: batch}))
    else:
        program = torch.export.export(layer, few, dynamic_shapes=({0: batch}, {0: batch}))
    nodes = [n for n in program.graph.nodes if "hfrt" in str(n.target)]
    assert [str(n.target) for n in nodes] == ["hfrt.hyper_conv_transpose3d.default"] * whole
    for size in (1, 2, 7):
        some = tuple(a[:size] for a in inputs)
        expected = reference.hyper_conv_transpose3d(*some, *args[2:], *geometry)
        torch.testing.assert_close(program.module()(*some), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_the_compiler_takes_it_with_a_dynamic_batch():
    compiled = torch.compile(
        hyper_conv_transpose3d, backend="aot_eager", fullgraph=True, dynamic=True
    )
    for batch in (2, 3):
        args = make((*CASES[1][:6], batch, *CASES[1][7:]), torch.float64)
        geometry = CASES[1][1:6]
        found, expected = compiled(*args, *geometry), hyper_conv_transpose3d(*args, *geometry)
        torch.testing.assert_close(found, expected)
        pairs = [torch.autograd.grad(y.sum(), args) for y in (found, expected)]
        torch.testing.assert_close(*pairs)


def test_the_op_is_well_behaved():
    case = ((2, 1, 2), (2, 1, 1), (0, 0, 1), (1, 0, 0), (1, 1, 2), 2, 2, 2, 2, 2)
    args = make(case, torch.float64, size=(2, 2, 2))
    geometry = [list(g) for g in case[1:5]] + [2]
    op = torch.ops.hfrt.hyper_conv_transpose3d
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(op.default, (*args, *geometry), test_utils=checks)
    assert torch.autograd.gradcheck(lambda *a: op(*a, *geometry), args)


@pytest.mark.parametrize("weights", [False, True], ids=["samples", "samples-and-weights"])
def test_vmap(weights):
    x, e, *rest = [a.detach() for a in make(CASES[1], torch.float64)]
    _, *geometry, _, _, _, _ = CASES[1]
    xs, es = torch.stack([x, -x]), torch.stack([e, e + 1])

    def op(*tensors):
        return hyper_conv_transpose3d(*tensors, *geometry)

    with whole_ops():
        if weights:
            all_ = [torch.stack([t, t + 0.5]) for t in rest]
            found = torch.vmap(op)(xs, es, *all_)
            each = [op(xs[v], es[v], *(t[v] for t in all_)) for v in range(2)]
        else:
            found = torch.vmap(lambda x, e: op(x, e, *rest))(xs, es)
            each = [op(xs[v], es[v], *rest) for v in range(2)]
    torch.testing.assert_close(found, torch.stack(each))


def test_autocast_is_left_to_torch():
    args = [a.detach() for a in make(CASES[1], torch.float32)]
    _, *geometry, _, _, _, _ = CASES[1]
    expected = hyper_conv_transpose3d(*args, *geometry)
    with torch.autocast("cpu", torch.bfloat16):
        found = hyper_conv_transpose3d(*args, *geometry)
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() <= 3e-2 * expected.abs().max()


def test_bad_shapes_are_named():
    x, e, G, h = make(CASES[3], torch.float32, constants=False)
    good = {"x": x, "condition": e, "G": G, "h": h, "groups": 2}
    with pytest.raises(ValueError, match="hyper_conv_transpose3d: x has shape"):
        hyper_conv_transpose3d(**{**good, "x": torch.zeros(2, 4, 5)})
    with pytest.raises(ValueError, match="x has 6 channels, but G reads 4"):
        hyper_conv_transpose3d(**{**good, "x": torch.zeros(2, 6, 3, 4, 2)})
    with pytest.raises(ValueError, match="G makes 3 channels, but h makes 6"):
        hyper_conv_transpose3d(**{**good, "groups": 1})
    with pytest.raises(ValueError, match="which 3 groups cannot share"):
        hyper_conv_transpose3d(**{**good, "groups": 3, "h": torch.zeros(3, 9)})
    with pytest.raises(ValueError, match=r"output_padding .* must be smaller"):
        hyper_conv_transpose3d(**good, output_padding=1)
    with pytest.raises(ValueError, match="nothing is left"):
        hyper_conv_transpose3d(**good, padding=4)
    with pytest.raises(ValueError, match="stride must be 1 or more"):
        hyper_conv_transpose3d(**good, stride=0)
    with pytest.raises(ValueError, match="g0 has shape"):
        hyper_conv_transpose3d(**good, g0=torch.zeros(4, 6, 3, 1, 2))

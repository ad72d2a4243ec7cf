"""The public ops against the reference, in float64 and float32, forward and every gradient."""

import io
import itertools
import re
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from hyperfusion_rt.kernels import Epilogue, hyper_conv3d, hyper_linear, reference
from hyperfusion_rt.kernels.cpu import native
from hyperfusion_rt.kernels.epilogue import apply

from .oracle import CASES, assert_within_rounding, magnitudes, make


@pytest.fixture(params=["eager", "exported"])
def form(request, monkeypatch):
    """Both forms of the general convolution; export takes the one with shared weights."""
    if request.param == "exported":
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    return request.param


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("constants", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_conv_forward_and_gradients(case, constants, dtype):
    kernel, stride, padding, dilation, groups, batch, k, cin, cout = case
    geometry = (stride, padding, dilation, groups)
    args = make(kernel, groups, batch, k, cin, cout, dtype, constants=constants)
    exact = [a.detach().double().requires_grad_() for a in args]
    gap = (None,) * (6 - len(args))
    found = hyper_conv3d(*args, *gap, *geometry)
    expected = reference.hyper_conv3d(*exact, *gap, *geometry)
    assert found.shape == expected.shape
    g = torch.Generator().manual_seed(8)
    upstream = torch.randn(found.shape, generator=g, dtype=torch.float64).to(dtype)
    size, sizes = magnitudes(reference.hyper_conv3d, args, upstream, *geometry)
    terms = (k + 1) * cin * kernel[0] * kernel[1] * kernel[2]
    assert_within_rounding(found, expected, size, terms)
    names = ["x", "e", "G", "h", "g0", "h0"][: len(args)]
    gradients = torch.autograd.grad(found, args, upstream)
    exact_gradients = torch.autograd.grad(expected, exact, upstream.double())
    for name, a, b, size in zip(names, gradients, exact_gradients, sizes, strict=True):
        assert_within_rounding(a, b, size, upstream.numel() * (k + 1), name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("batch", "k", "cin", "cout", "constants"),
    [(1, 1, 1, 1, True), (5, 8, 17, 3, True), (4, 2, 100, 16, False), (3, 1, 9, 33, True)],
)
def test_linear_forward_and_gradients(batch, k, cin, cout, constants, dtype):
    g = torch.Generator().manual_seed(1)
    shapes = [(batch, cin), (batch, k), (k, cout, cin), (k, cout)]
    shapes += [(cout, cin), (cout,)] if constants else []
    args = [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]
    args = [a.requires_grad_() for a in args]
    exact = [a.detach().double().requires_grad_() for a in args]
    found, expected = hyper_linear(*args), reference.hyper_linear(*exact)
    upstream = torch.randn(found.shape, generator=g, dtype=torch.float64).to(dtype)
    size, sizes = magnitudes(reference.hyper_linear, args, upstream)
    assert_within_rounding(found, expected, size, (k + 1) * cin)
    gradients = torch.autograd.grad(found, args, upstream)
    exact_gradients = torch.autograd.grad(expected, exact, upstream.double())
    for a, b, size in zip(gradients, exact_gradients, sizes, strict=True):
        assert_within_rounding(a, b, size, batch * (k + 1) * cout * cin)


@pytest.mark.usefixtures("form")
def test_gradcheck():
    args = make((1, 2, 2), 1, 2, 2, 1, 2, torch.float64, size=(2, 3, 3))
    assert torch.autograd.gradcheck(hyper_conv3d, args)
    flat = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in
            [(2, 3), (2, 2), (2, 4, 3), (2, 4), (4, 3), (4,)]]  # fmt: skip
    assert torch.autograd.gradcheck(hyper_linear, flat)


@pytest.mark.usefixtures("form")
def test_a_batch_equals_its_samples_and_pairs_sample_with_sample():
    args = make((3, 3, 3), 1, 4, 3, 2, 3, torch.float64)
    x, e, *rest = args
    whole = hyper_conv3d(x, e, *rest, padding=1)
    for b in range(4):
        alone = hyper_conv3d(x[b : b + 1], e[b : b + 1], *rest, padding=1)
        torch.testing.assert_close(whole[b : b + 1], alone, rtol=1e-12, atol=1e-12)
    # Weights of sample i on the image of sample i - 1 would give something else entirely.
    shifted = hyper_conv3d(x, e.roll(1, 0), *rest, padding=1)
    assert (whole - shifted).abs().amax((1, 2, 3, 4)).min() > 0.1


def test_a_linear_batch_equals_its_samples():
    g = torch.Generator().manual_seed(2)
    shapes = [(4, 9), (4, 3), (3, 5, 9), (3, 5), (5, 9), (5,)]
    x, e, *rest = [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]
    whole = hyper_linear(x, e, *rest)
    alone = torch.cat([hyper_linear(x[b : b + 1], e[b : b + 1], *rest) for b in range(4)])
    torch.testing.assert_close(whole, alone, rtol=1e-12, atol=1e-12)
    shifted = hyper_linear(x, e.roll(1, 0), *rest)
    assert (whole - shifted).abs().amax(1).min() > 0.1


class Conv(torch.nn.Module):
    def __init__(self, args, geometry):
        super().__init__()
        self.args = torch.nn.ParameterList([a.detach() for a in args[2:]])
        self.geometry = geometry

    def forward(self, x, e):
        return hyper_conv3d(x, e, *self.args, *self.geometry)


@pytest.mark.parametrize("case", [CASES[1], CASES[3], CASES[7]])
def test_exports_with_a_dynamic_batch(case):
    kernel, stride, padding, dilation, groups, _, k, cin, cout = case
    geometry = (stride, padding, dilation, groups)
    args = make(kernel, groups, 7, k, cin, cout, torch.float64)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        Conv(args, geometry),
        (args[0][:2].detach(), args[1][:2].detach()),
        dynamic_shapes=({0: batch}, {0: batch}),
    )
    for size in (1, 2, 7):
        inputs = args[0][:size].detach(), args[1][:size].detach()
        expected = reference.hyper_conv3d(*inputs, *args[2:], *geometry)
        torch.testing.assert_close(program.module()(*inputs), expected, rtol=1e-10, atol=1e-10)


class Chain(torch.nn.Module):
    """A 3x3x3 and a strided 1x1x1 convolution and a linear layer, all generated, K = 2."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(3)
        shapes = [(4, 2, 3, 3, 3), (4,), (6, 4, 1, 1, 1), (6,), (3, 6), (3,)]
        # For each shape the generator, then the constant.
        drawn = [torch.randn(n, *s, generator=g).squeeze(0) for s in shapes for n in (2, 1)]
        self.args = torch.nn.ParameterList(drawn)

    def forward(self, x, e):
        G3, g3, h3, c3, G1, g1, h1, c1, G, g0, h, h0 = self.args
        x = hyper_conv3d(x, e, G3, h3, g3, c3, padding=1).relu()
        x = hyper_conv3d(x, e, G1, h1, g1, c1, stride=2).mean((2, 3, 4))
        return hyper_linear(x, e, G, h, g0, h0)


def chain_inputs(batch):
    g = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 2, 5, 6, 4, generator=g), torch.randn(batch, 2, generator=g)


@pytest.mark.slow
def test_the_onnx_exporter_takes_every_op_with_a_dynamic_batch():
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX export of the ops NOT checked")
    batch = torch.export.Dim("batch", min=1, max=64)
    chain = Chain().eval()
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")  # The exporter's own deprecations.
        program = torch.onnx.export(
            chain,
            chain_inputs(2),
            dynamo=True,
            opset_version=20,
            input_names=["x", "e"],
            dynamic_shapes=({0: batch}, {0: batch}),
            verbose=False,
        )
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for size in (1, 2, 7):
        x, e = chain_inputs(size)
        (found,) = session.run(None, {"x": x.numpy(), "e": e.numpy()})
        expected = chain(x, e).detach()
        scale = expected.abs().max().item()
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.slow
def test_the_compiler_takes_every_op_with_a_dynamic_batch():
    chain = Chain()
    compiled = torch.compile(chain, dynamic=True, backend="aot_eager", fullgraph=True)
    for size in (2, 3, 7):
        inputs = chain_inputs(size)
        found, expected = compiled(*inputs), chain(*inputs)
        torch.testing.assert_close(found, expected)
        upstream = torch.randn_like(found)
        pairs = [torch.autograd.grad(y, list(chain.args), upstream) for y in (found, expected)]
        torch.testing.assert_close(*pairs, rtol=1e-4, atol=1e-4)


def test_importing_the_kernels_does_not_import_torch():
    code = (
        "import sys, hyperfusion_rt.kernels as k; assert 'torch' not in sys.modules; "
        "k.hyper_linear; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bad_shapes_are_named():
    good = dict(zip(["x", "condition", "G", "h"], make((1, 1, 1), 1, 2, 3, 2, 4, torch.float32,
                                                       constants=False), strict=True))  # fmt: skip
    bad = {
        "x": torch.zeros(2, 2, 5),
        "condition": torch.zeros(2, 5),
        "G": torch.zeros(3, 4, 9, 1, 1, 1),
        "h": torch.zeros(3, 7),
    }
    for name, tensor in bad.items():
        with pytest.raises(ValueError, match="hyper_conv3d"):
            hyper_conv3d(**{**good, name: tensor})
    with pytest.raises(ValueError, match="samples"):
        hyper_conv3d(**{**good, "condition": torch.zeros(3, 3)})
    with pytest.raises(ValueError, match="one number or three"):
        hyper_conv3d(**good, stride=(1, 2))
    with pytest.raises(ValueError, match="stride must be 1 or more"):
        hyper_conv3d(**good, stride=0)
    with pytest.raises(ValueError, match="padding must be 0 or more"):
        hyper_conv3d(**good, padding=-1)
    with pytest.raises(ValueError, match="4 channels, which 3 groups cannot share"):
        hyper_conv3d(**{**good, "x": torch.zeros(2, 6, 5, 6, 7)}, groups=3)
    with pytest.raises(ValueError, match="g0"):
        hyper_conv3d(**good, g0=torch.zeros(1))
    with pytest.raises(ValueError, match="h0"):
        hyper_conv3d(**good, h0=torch.zeros(1))
    with pytest.raises(ValueError, match="too small for a kernel"):
        hyper_conv3d(**{**good, "G": torch.zeros(3, 4, 2, 1, 1, 8)})
    with pytest.raises(ValueError, match="x is on cpu, but G is on meta"):
        hyper_conv3d(**{**good, "G": good["G"].detach().to("meta")})
    with pytest.raises(ValueError, match="features"):
        hyper_linear(torch.zeros(2, 3), torch.zeros(2, 1), torch.zeros(1, 4, 5), torch.zeros(1, 4))


def test_an_epilogue_that_does_not_fit_is_named():
    arguments = make((3, 3, 3), 1, 2, 3, 2, 4, torch.float32)
    for name, shape in {"scale": (3,), "shift": (4, 1), "residual": (2, 4, 3, 4, 4)}.items():
        with pytest.raises(ValueError, match=f"{name} has shape"):
            hyper_conv3d(*arguments, epilogue=Epilogue(**{name: torch.zeros(shape)}))


def test_every_pair_of_kernel_and_padding_matches():
    for kernel, padding in itertools.product([(1, 2, 3), (2, 2, 2)], [0, 1]):
        args = make(kernel, 1, 2, 2, 2, 2, torch.float64)
        expected = reference.hyper_conv3d(*args, padding=(padding,) * 3)
        torch.testing.assert_close(hyper_conv3d(*args, padding=padding), expected)


@pytest.fixture
def made(monkeypatch):
    """The engines that the native backend made in this test, newest last."""
    native._engines.clear()
    found = []
    plain = native._packed  # the weights of each
    monkeypatch.setattr(native, "_packed", lambda weight: found.append(weight) or plain(weight))
    return found


@pytest.mark.parametrize("constants", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_inference_on_the_cpu_runs_the_native_engine(case, constants, made):
    kernel, stride, padding, dilation, groups, batch, k, cin, cout = case
    args = make(kernel, groups, batch, k, cin, cout, torch.float32, constants=constants)
    geometry = stride, padding, dilation, groups
    gap = (None,) * (6 - len(args))
    expected = reference.hyper_conv3d(*(a.detach().double() for a in args), *gap, *geometry)
    with torch.no_grad():
        found = hyper_conv3d(*args, *gap, *geometry)
        again = hyper_conv3d(*args, *gap, *geometry)
    assert len(made) == (groups == 1 and kernel != (1, 1, 1))
    assert torch.equal(found, again)
    # Winograd's filtering loses a digit.
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("constants", [True, False])
def test_the_native_epilogue(constants, made):
    args = make((3, 3, 3), 1, 3, 3, 4, 5, torch.float32, constants=constants)
    g = torch.Generator().manual_seed(4)
    shapes = (5,), (5,), (3, 5, 5, 6, 7)
    scale, shift, residual = (torch.randn(s, generator=g) for s in shapes)
    for after in (
        Epilogue(scale, shift, residual, 0.1),
        Epilogue(shift=shift, slope=0.0),
        Epilogue(scale=scale),
        Epilogue(residual=residual, slope=0.0),
    ):
        with torch.no_grad():
            found = hyper_conv3d(*args, padding=1, epilogue=after)
            gap = (None,) * (6 - len(args))
            expected = apply(reference.hyper_conv3d(*args, *gap, padding=(1, 1, 1)), after)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert len(made) == 4


@pytest.mark.parametrize("which", range(2, 6))
def test_changed_weights_make_a_new_engine(which, made):
    args = [a.detach() for a in make((3, 3, 3), 1, 2, 3, 4, 5, torch.float32)]
    first = hyper_conv3d(*args, padding=1)
    args[which].data.flatten()[3] += 1  # which torch counts as no change
    found = hyper_conv3d(*args, padding=1)
    expected = reference.hyper_conv3d(*args, padding=(1, 1, 1))
    assert len(made) == 2
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (found - first).abs().max() > 1e-2
    assert len(native._engines) == 1


def test_training_and_tracing_do_not_run_the_native_engine(made):
    args = make((3, 3, 3), 1, 2, 3, 4, 5, torch.float32)
    assert hyper_conv3d(*args, padding=1).requires_grad
    with torch.no_grad():
        torch.export.export(Conv(args, ()), (args[0].detach(), args[1].detach()))
    assert made == []
    with torch.no_grad():
        mapped = torch.vmap(lambda x, e: hyper_conv3d(x, e, *args[2:]), 0)(
            torch.stack([args[0], -args[0]]), torch.stack([args[1]] * 2)
        )
        assert (mapped[0] - hyper_conv3d(*args)).abs().max() <= 1e-4
    assert len(made) == 1


def test_autocast_on_the_cpu_is_left_to_torch(made):
    args = [a.detach() for a in make((3, 3, 3), 1, 2, 3, 4, 5, torch.float32)]
    expected = hyper_conv3d(*args)
    with torch.autocast("cpu", torch.bfloat16):
        found = hyper_conv3d(*args)
    assert found.dtype == torch.bfloat16
    assert len(made) == 1
    assert (found - expected).abs().max() <= 3e-2 * expected.abs().max()


def test_engines_are_kept_for_the_latest_weights_only(made, monkeypatch):
    monkeypatch.setattr(native, "KEPT", 2)
    for seed in range(4):
        torch.manual_seed(seed)
        args = [a.detach().clone() for a in make((1, 1, 2), 1, 1, 2, 3, 4 + seed, torch.float32)]
        hyper_conv3d(*args)
    assert len(native._engines) == 2


def test_the_layer_in_the_library_page():
    page = (Path(__file__).parents[2] / "kernels" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    block, x, row = names["block"], names["x"], names["row"]
    y = block(x, row)
    assert y.shape == (2, 32, 24, 24, 24)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())
    assert (y - block(x, row + 1)).abs().max() > 1e-2


def test_a_batch_of_none():
    args = make((3, 3, 3), 1, 2, 3, 4, 5, torch.float32)
    y = hyper_conv3d(args[0][:0], args[1][:0], *args[2:])
    assert y.shape == (0, 5, 3, 4, 5)
    gradients = torch.autograd.grad(y.sum(), args[2:])
    assert all(not g.any() for g in gradients)
    with torch.no_grad():
        assert hyper_conv3d(args[0][:0], args[1][:0], *args[2:]).shape == y.shape

"""The Triton kernels in Triton's interpreter, on CPU tensors, against the float64 reference.

Blocks are made huge: the interpreter's time goes with the number of programs and steps. What only a
GPU can show is not checked here: bfloat16, TF32, races, speed.
"""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: its kernels are NOT checked")

from hyperfusion_rt.kernels import Epilogue, conv3d_block, hyper_conv3d, reference
from hyperfusion_rt.kernels.epilogue import apply
from hyperfusion_rt.kernels.gpu import configs, launch
from hyperfusion_rt.kernels.gpu import conv3d as kernels
from hyperfusion_rt.kernels.gpu import conv3d_tiles as tiles

from .oracle import CASES, MORE, make
from .oracle import check_conv as check

pytestmark = pytest.mark.usefixtures("interpreted")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["generate", "write"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("case", CASES + MORE)
def test_forward_and_gradients(case, dtype, strategy):
    check(case, dtype, strategy=strategy, keep=strategy == "generate")


@pytest.mark.parametrize("case", [CASES[3], MORE[0]])
def test_without_constants_and_with_one_of_the_two(case):
    check(case, torch.float32, constants=False, keep=True)
    kernel, stride, padding, dilation, groups, batch, k, cin, cout = case
    x, e, G, h, g0, h0 = make(kernel, groups, batch, k, cin, cout, torch.float32)
    geometry = stride, padding, dilation, groups
    for constants in ((g0, None), (None, h0)):
        expected = reference.hyper_conv3d(x, e, G, h, *constants, *geometry)
        found = hyper_conv3d(x, e, G, h, *constants, *geometry)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("scale", "shift", "residual", "slope"),
    [(True, True, True, 0.0), (False, True, False, 0.1), (True, False, True, 1.0)],
)
def test_the_epilogue_and_its_gradients(scale, shift, residual, slope):
    arguments = make((3, 3, 3), 1, 2, 3, 4, 5, torch.float32)
    generator = torch.Generator().manual_seed(4)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).requires_grad_()

    shape = (2, 5, 5, 6, 7)
    after = Epilogue(
        draw(5) if scale else None,
        draw(5) if shift else None,
        draw(*shape) if residual else None,
        slope,
    )
    for trains_scale in {False, scale}:
        if scale:
            after.scale.requires_grad_(trains_scale)
        leaves = arguments + [t for t in after[:3] if t is not None and t.requires_grad]
        padded = (1, 1, 1)
        expected = apply(reference.hyper_conv3d(*arguments, padding=padded), after)
        found = hyper_conv3d(*arguments, padding=1, epilogue=after)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        upstream = torch.randn(shape, generator=generator)
        pairs = [torch.autograd.grad(y, leaves, upstream) for y in (found, expected)]
        torch.testing.assert_close(*pairs, rtol=1e-3, atol=1e-3)


def test_any_input_layout_gives_the_same():
    arguments = make((3, 3, 3), 1, 2, 3, 4, 5, torch.float32)
    x = arguments[0].detach()
    expected = hyper_conv3d(x, *arguments[1:])
    wide = torch.randn(2, 4, 5, 6, 14)
    wide[..., ::2] = x
    for other in (
        x.contiguous(memory_format=torch.channels_last_3d),
        wide[..., ::2],
        x.permute(0, 1, 4, 3, 2).contiguous().permute(0, 1, 4, 3, 2),
    ):
        assert torch.equal(hyper_conv3d(other, *arguments[1:]), expected)
    assert torch.isnan(hyper_conv3d(x * torch.nan, *arguments[1:])).all()


def test_a_batch_pairs_sample_with_sample():
    x, e, *rest = [a.detach() for a in make((3, 3, 3), 1, 4, 3, 2, 3, torch.float32)]
    whole = hyper_conv3d(x, e, *rest, padding=1)
    alone = [hyper_conv3d(x[b : b + 1], e[b : b + 1], *rest, padding=1) for b in range(4)]
    assert torch.equal(whole, torch.cat(alone))
    shifted = hyper_conv3d(x, e.roll(1, 0), *rest, padding=1)
    assert (whole - shifted).abs().amax((1, 2, 3, 4)).min() > 0.1


def test_empty_outputs_and_samples_too_large():
    x, e, *rest = [a.detach() for a in make((1, 1, 1), 1, 2, 3, 2, 3, torch.float32)]
    assert hyper_conv3d(x[:0], e[:0], *rest).shape == (0, 3, 5, 6, 7)
    many = x[:1].expand(40000, -1, -1, -1, -1)[..., :1, :1, :1]
    with pytest.raises(ValueError, match="split the batch"):
        conv3d_block(many, torch.zeros(2, 1, 1, 1, 1), groups=2)
    with pytest.raises(ValueError, match="too large"):
        launch.channels_last(torch.empty(1, device="meta").expand(1, 2, 2**10, 2**10, 2**10))


class Layer(torch.nn.Module):
    def __init__(self, arguments):
        super().__init__()
        self.arguments = torch.nn.ParameterList([a.detach() for a in arguments])

    def forward(self, x, e):
        return hyper_conv3d(x, e, *self.arguments, padding=1).relu()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["triton", "reference"])
def test_opcheck(dtype):
    arguments = make((3, 3, 3), 1, 2, 2, 2, 3, dtype)
    geometry = [1, 2, 1], [1, 1, 1], [1, 1, 1], 1
    checks = ("test_schema", "test_autograd_registration", "test_faketensor",
              "test_aot_dispatch_dynamic")  # fmt: skip
    torch.library.opcheck(
        torch.ops.hfrt.hyper_conv3d.default, (*arguments, *geometry), test_utils=checks
    )
    after = torch.randn(3, dtype=dtype), torch.randn(3, dtype=dtype, requires_grad=True), None, 0.0
    torch.library.opcheck(
        torch.ops.hfrt.hyper_conv3d.default, (*arguments, *geometry, *after), test_utils=checks
    )


def test_gradcheck_of_the_op_on_the_reference():
    arguments = make((1, 2, 2), 1, 2, 2, 1, 2, torch.float64, size=(2, 3, 3))
    shift = torch.randn(2, dtype=torch.float64, requires_grad=True)
    residual = torch.randn(2, 2, 2, 2, 2, dtype=torch.float64, requires_grad=True)

    def op(*tensors):
        geometry = [1, 1, 1], [0, 0, 0], [1, 1, 1], 1
        scale = torch.tensor([0.5, -2.0], dtype=torch.float64)
        *most, shift, residual = tensors
        return torch.ops.hfrt.hyper_conv3d(*most, *geometry, scale, shift, residual, 0.1)

    assert torch.autograd.gradcheck(op, (*arguments, shift, residual))


@pytest.mark.slow
def test_the_compiler_takes_it_whole():
    arguments = make((3, 3, 3), 1, 2, 2, 2, 3, torch.float32)
    layer = Layer(arguments[2:])
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (2, 3):
        x, e = make((3, 3, 3), 1, batch, 2, 2, 3, torch.float32)[:2]
        found, expected = compiled(x, e), layer(x, e)
        assert torch.equal(found, expected)
        upstream = torch.randn_like(found)
        pairs = [torch.autograd.grad(y, [x, e, *layer.parameters()], upstream)
                 for y in (found, expected)]  # fmt: skip
        torch.testing.assert_close(*pairs)


def test_export_keeps_one_node_with_a_dynamic_batch():
    arguments = make((3, 3, 3), 1, 2, 2, 2, 3, torch.float32)
    layer = Layer(arguments[2:])
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        layer, tuple(a.detach() for a in arguments[:2]), dynamic_shapes=({0: batch}, {0: batch})
    )
    assert "hfrt.hyper_conv3d" in str(program.graph)
    x, e = make((3, 3, 3), 1, 5, 2, 2, 3, torch.float32)[:2]
    assert torch.equal(program.module()(x, e), layer(x, e))


def test_autocast_casts_the_volume_only():
    x, e, *rest = make((3, 3, 3), 1, 2, 2, 2, 3, torch.float32)
    with torch.autocast("cpu", torch.float16):
        found = hyper_conv3d(x, e, *rest)
    assert found.dtype == torch.float16
    half = hyper_conv3d(x.half(), e, *rest)
    assert torch.equal(found, half)
    gradients = torch.autograd.grad(found, [x, e, *rest], torch.randn_like(found))
    assert all(g.dtype == torch.float32 for g in gradients)


@pytest.mark.parametrize("weights", [False, True], ids=["samples", "samples-and-weights"])
def test_vmap(weights):
    many = make((3, 3, 3), 1, 2, 2, 2, 3, torch.float32, size=(4, 4, 5))
    x, e, *rest = [a.detach() for a in many]
    xs, es = torch.stack([x, 2 * x, -x]), torch.stack([e, e + 1, e])
    if weights:
        all_ = [torch.stack([t, t + 0.5, -t]) for t in rest]
        found = torch.vmap(hyper_conv3d)(xs, es, *all_)
        each = [hyper_conv3d(xs[v], es[v], *(t[v] for t in all_)) for v in range(3)]
    else:
        found = torch.vmap(lambda x, e: hyper_conv3d(x, e, *rest))(xs, es)
        each = [hyper_conv3d(xs[v], es[v], *rest) for v in range(3)]
    assert torch.equal(found, torch.stack(each))


BUGS = {
    "a missing mask": (tiles, "(iz >= 0) & (iz < D) & (iy >= 0)", "(iz >= 0) & (iy >= 0)"),
    "a flipped tap": (
        kernels,
        "tap = tiles.tap_of(i, first, met, STEP)",
        "td, th, tw = tiles.tap_of(i, first, met, STEP); tap = td, th, KERNEL[2] - 1 - tw",
    ),
    "a wrong row of the bias": (tiles, "h + k * CHANNELS", "h + (k + 1) % K1 * CHANNELS"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_the_checks_catch(bug, mutated, monkeypatch):
    check(CASES[3], torch.float32)
    module, old, new = BUGS[bug]
    user, name = (launch, "kernels") if module is kernels else (kernels, "tiles")
    monkeypatch.setattr(user, name, mutated(module, old, new))
    with pytest.raises(AssertionError, match="beyond the rounding"):
        check(CASES[3], torch.float32)


@pytest.mark.slow
def test_a_launch_of_more_tiles_gives_the_same(monkeypatch):
    """Small blocks, a few steps: tiles in every direction and a split sum over voxels."""
    small = configs.Config(32, 16, 16, 4, 1, 255)
    monkeypatch.setattr(configs, "CONV3D", dict.fromkeys(configs.CONV3D, small))
    monkeypatch.setattr(configs, "WEIGHT_GRADIENT", dict.fromkeys(configs.WEIGHT_GRADIENT, small))
    case = ((2, 1, 1), (2, 1, 1), (1, 0, 0), (1, 1, 1), 1, 2, 2, 3, 18)
    for keep in (False, True):
        check(case, torch.float32, keep=keep)


def test_tf32_follows_torchs_own_switches():
    """Those before 2.9 and the later ones, of convolutions and of products."""
    conv, product = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    kept = conv.fp32_precision, product.fp32_precision
    try:
        for tf32 in (False, True):
            torch.backends.cudnn.allow_tf32 = tf32
            product.allow_tf32 = not tf32
            assert launch.precision_of(torch.float32) == ("tf32" if tf32 else "fp32")
            found = launch.precision_of(torch.float32, convolution=False)
            assert found == ("fp32" if tf32 else "tf32")
        for name in ("ieee", "tf32"):
            conv.fp32_precision = product.fp32_precision = name
            expected = "tf32" if name == "tf32" else "fp32"
            assert launch.precision_of(torch.float32) == expected
            assert launch.precision_of(torch.float32, convolution=False) == expected
        assert launch.precision_of(torch.float16) == "fp16"
    finally:
        conv.fp32_precision, product.fp32_precision = kept

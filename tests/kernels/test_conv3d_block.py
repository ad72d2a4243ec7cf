"""`conv3d_block`: the Triton kernel in the interpreter, and the op around it."""

import pytest
import torch

from hyperfusion_rt.kernels import Epilogue, conv3d_block

from .oracle import BLOCK_CASES as CASES
from .oracle import check_block, mapped
from .oracle import make_block as make


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_against_float64(case, dtype, backend, request):
    if backend == "triton":
        request.getfixturevalue("interpreted")
    check_block(case, dtype)


def test_members_in_one_launch_are_the_members_alone(interpreted):
    x, weight, after, options = make(CASES[1], torch.float32)
    together = conv3d_block(x, weight, epilogue=after, **options)
    options["groups"] = 1
    for member in range(3):
        part = slice(4 * member, 4 * member + 4)
        own = mapped(lambda t, part=part: t[part], after)
        alone = conv3d_block(x, weight[part], epilogue=own, **options)
        assert torch.equal(together[:, part], alone)


@pytest.mark.parametrize("triton", [False, True])
def test_not_a_number_stays_one(triton, request):
    if triton:
        request.getfixturevalue("interpreted")
    x = torch.ones(1, 1, 4, 4, 4)
    x[0, 0, 0, 0, 0] = torch.nan
    y = conv3d_block(x, torch.ones(1, 1, 1, 1, 1), epilogue=Epilogue(slope=0.0), pool=True)
    assert y.isnan().sum() == 1
    assert y.isnan()[0, 0, 0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["triton", "torch"])
def test_the_op_is_well_behaved(interpreted, dtype):
    x, weight, after, options = make(CASES[1], dtype)
    arguments = (x, weight, [1] * 3, [1] * 3, [1] * 3, 3, *after, True)
    torch.library.opcheck(torch.ops.hfrt.conv3d_block.default, arguments)
    compiled = torch.compile(conv3d_block, backend="aot_eager", fullgraph=True)
    expected = conv3d_block(x, weight, epilogue=after, **options)
    assert torch.equal(compiled(x, weight, epilogue=after, **options), expected)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("weight reads 2 channels in each of 3 groups, but x has 4", {"x": (1, 4, 4, 4, 4)}),
        ("3 groups cannot share 8 channels", {"weight": (8, 2, 3, 3, 3)}),
        ("need 5 dimensions", {"weight": (6, 2, 3, 3)}),
        ("too small", {"x": (1, 6, 3, 3, 3)}),
        ("shift has shape", {"shift": (5,)}),
        ("stride must be 1 or more", {"stride": 0}),
        ("x is on cpu, but shift is on meta", {"device": "meta"}),
    ],
)
def test_what_does_not_fit_is_refused(message, change):
    sizes = {"x": (1, 6, 5, 5, 5), "weight": (6, 2, 3, 3, 3), "shift": (6,), "stride": 1,
             "device": "cpu"} | change  # fmt: skip
    x, weight, shift = (torch.zeros(sizes[n]) for n in ("x", "weight", "shift"))
    with pytest.raises(ValueError, match=message):
        conv3d_block(
            x,
            weight,
            sizes["stride"],
            groups=3,
            epilogue=Epilogue(shift=shift.to(sizes["device"])),
            pool=True,
        )


@pytest.mark.parametrize("weights", [False, True], ids=["samples", "samples-and-weights"])
def test_vmap(weights):
    x, weight, after, options = make(CASES[2], torch.float32)
    xs, residuals = torch.stack([x, 2 * x, -x]), torch.stack([after.residual] * 3)
    ws = torch.stack([weight, -weight, weight + 1])

    def block(x, residual, w):
        return conv3d_block(x, w, epilogue=after._replace(residual=residual), **options)

    found = torch.vmap(block, (0, 0, 0 if weights else None))(
        xs, residuals, ws if weights else weight
    )
    each = [block(xs[v], residuals[v], ws[v] if weights else weight) for v in range(3)]
    torch.testing.assert_close(found, torch.stack(each))


def test_autocast_casts_the_volume(interpreted):
    x, weight, after, options = make(CASES[2], torch.float32)
    with torch.autocast("cpu", torch.float16):
        found = conv3d_block(x, weight, epilogue=after, **options)
    assert found.dtype == torch.float16
    half = after._replace(residual=after.residual.half())
    assert torch.equal(found, conv3d_block(x.half(), weight, epilogue=half, **options))


def test_there_are_no_gradients():
    x, weight, after, options = make(CASES[0], torch.float32)
    y = conv3d_block(x.requires_grad_(), weight, epilogue=after, **options)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        y.sum().backward()

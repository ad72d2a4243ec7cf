"""`conv3d_block`: the Triton kernel in the interpreter, and the op around it."""

import pytest
import torch

from hyperfusion_rt.kernels import Epilogue, conv3d_block

from .oracle import assert_within_rounding, guarded

CASES = [
    # kernel, stride, padding, groups, members share x, Cin, Cout, pool, scale, shift, residual
    (3, 1, 1, 1, False, 1, 4, True, False, True, False),
    (3, 1, 1, 3, True, 1, 4, True, True, True, False),
    (3, 1, 0, 2, False, 4, 8, True, True, False, True),
    (3, 2, 1, 2, False, 8, 16, False, True, True, True),
    (1, 2, 0, 1, False, 16, 32, False, False, False, False),
    (3, (1, 2, 1), (0, 1, 2), 1, False, 32, 64, False, False, True, True),
    (1, 1, 0, 2, True, 64, 64, True, True, True, True),
]


def make(case, dtype, size=(5, 6, 7)):
    kernel, stride, padding, groups, shared, cin, cout, pool, *parts = case
    generator = torch.Generator().manual_seed(3)

    def draw(*shape, dtype=dtype):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    x = draw(2, cin if shared else cin * groups, *size)
    weight = draw(cout * groups, cin, *[kernel] * 3)
    y = torch.nn.functional.conv3d(
        x.double(), weight.double(), None, stride, padding, 1, 1 if shared else groups
    ).shape
    shapes = [(y[1],), (y[1],), y]
    of = [draw(*s) if part else None for part, s in zip(parts, shapes, strict=True)]
    options = {"stride": stride, "padding": padding, "groups": groups, "pool": pool}
    return x, weight, Epilogue(*of, 0.1), options


def mapped(change, epilogue):
    return epilogue._replace(**{n: change(t) for n, t in epilogue._asdict().items()
                                if isinstance(t, torch.Tensor)})  # fmt: skip


def reference(x, weight, epilogue, options):
    """In float64, without the op."""
    o = options
    x, weight, after = x.double(), weight.double(), mapped(torch.Tensor.double, epilogue)
    if x.shape[1] == weight.shape[1] and o["groups"] > 1:
        x = x.repeat(1, o["groups"], 1, 1, 1)
    y = torch.nn.functional.conv3d(x, weight, None, o["stride"], o["padding"], 1, o["groups"])
    across = (1, -1, 1, 1, 1)
    y = y if after.scale is None else y * after.scale.view(across)
    y = y if after.shift is None else y + after.shift.view(across)
    y = y if after.residual is None else y + after.residual
    y = torch.nn.functional.leaky_relu(y, epilogue.slope)
    return torch.nn.functional.max_pool3d(y, 2) if o["pool"] else y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_against_float64(case, dtype, backend, request):
    if backend == "triton":
        pytest.importorskip("triton", reason="Triton is not installed: its kernels are NOT checked")
        request.getfixturevalue("interpreted")
    x, weight, after, options = make(case, dtype)
    expected = reference(x, weight, after, options)
    terms = weight[0].numel() + 2
    # A difference before pooling is one after it: the limit is the largest of the cell's.
    size = reference(x.abs(), weight.abs(), mapped(torch.Tensor.abs, after), options)
    with torch.no_grad():
        y = conv3d_block(guarded(x), guarded(weight), epilogue=mapped(guarded, after), **options)
    assert y.dtype == dtype
    assert_within_rounding(y, expected, size, terms)


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
        pytest.importorskip("triton")
        request.getfixturevalue("interpreted")
    x = torch.ones(1, 1, 4, 4, 4)
    x[0, 0, 0, 0, 0] = torch.nan
    y = conv3d_block(x, torch.ones(1, 1, 1, 1, 1), epilogue=Epilogue(slope=0.0), pool=True)
    assert y.isnan().sum() == 1
    assert y.isnan()[0, 0, 0, 0, 0]


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
    ],
)
def test_what_does_not_fit_is_refused(message, change):
    sizes = {"x": (1, 6, 5, 5, 5), "weight": (6, 2, 3, 3, 3), "shift": (6,), "stride": 1} | change
    x, weight, shift = (torch.zeros(sizes[n]) for n in ("x", "weight", "shift"))
    with pytest.raises(ValueError, match=message):
        conv3d_block(
            x, weight, sizes["stride"], groups=3, epilogue=Epilogue(shift=shift), pool=True
        )

"""The public ops against the reference, in float64 and float32, forward and every gradient."""

import itertools

import pytest
import torch

from hyperfusion_rt.kernels import hyper_conv3d, hyper_linear, reference

CASES = [
    # kernel, stride, padding, dilation, groups, B, K, Cin, Cout
    ((1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1), 1, 3, 4, 3, 5),
    ((1, 1, 1), (2, 2, 2), (0, 0, 0), (1, 1, 1), 1, 2, 8, 4, 6),
    ((1, 1, 1), (2, 1, 3), (1, 0, 0), (1, 1, 1), 1, 2, 1, 1, 1),
    ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), 1, 4, 3, 2, 3),
    ((3, 3, 3), (2, 2, 2), (0, 0, 0), (1, 1, 1), 1, 1, 2, 3, 2),
    ((2, 3, 1), (1, 2, 1), (1, 0, 2), (1, 1, 1), 1, 3, 2, 2, 2),
    ((3, 3, 3), (1, 1, 1), (2, 2, 2), (2, 2, 2), 1, 2, 2, 2, 2),
    ((3, 1, 3), (1, 1, 1), (1, 0, 1), (1, 1, 1), 2, 3, 2, 4, 6),
]


def make(kernel, groups, batch, k, cin, cout, dtype, *, constants=True, size=(5, 6, 7)):
    g = torch.Generator().manual_seed(7)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()

    args = [
        draw(batch, cin, *size),
        draw(batch, k),
        draw(k, cout, cin // groups, *kernel),
        draw(k, cout),
    ]
    if constants:
        args += [draw(cout, cin // groups, *kernel), draw(cout)]
    return args


def bound(dtype, terms, magnitude):
    """Rounding of a sum of `terms` products in any order: eps · √terms · magnitude, times 8."""
    return 8 * torch.finfo(dtype).eps * terms**0.5 * magnitude


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
    terms = (k + 1) * cin * kernel[0] * kernel[1] * kernel[2]
    scale = expected.abs().max().item()
    assert (found - expected).abs().max().item() <= bound(dtype, terms, scale)

    upstream = torch.randn(found.shape, dtype=torch.float64)
    gradients = torch.autograd.grad(found, args, upstream.to(dtype))
    exact_gradients = torch.autograd.grad(expected, exact, upstream.to(dtype).double())
    for name, a, b in zip(
        ["x", "e", "G", "h", "g0", "h0"], gradients, exact_gradients, strict=False
    ):
        limit = bound(dtype, upstream.numel() * (k + 1), b.abs().max().item() + 1e-30)
        assert (a - b).abs().max().item() <= limit, name


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
    assert (found - expected).abs().max() <= bound(dtype, (k + 1) * cin, expected.abs().max())
    upstream = torch.randn(found.shape, dtype=dtype)
    pairs = zip(
        torch.autograd.grad(found, args, upstream),
        torch.autograd.grad(expected, exact, upstream.double()),
        strict=True,
    )
    for a, b in pairs:
        assert (a - b).abs().max() <= bound(dtype, batch * (k + 1) * cout, b.abs().max() + 1e-30)


def test_gradcheck():
    args = make((1, 2, 2), 1, 2, 2, 1, 2, torch.float64, size=(2, 3, 3))
    assert torch.autograd.gradcheck(hyper_conv3d, args)
    flat = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in
            [(2, 3), (2, 2), (2, 4, 3), (2, 4), (4, 3), (4,)]]  # fmt: skip
    assert torch.autograd.gradcheck(hyper_linear, flat)


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
    with pytest.raises(ValueError, match="g0"):
        hyper_conv3d(**good, g0=torch.zeros(1))
    with pytest.raises(ValueError, match="h0"):
        hyper_conv3d(**good, h0=torch.zeros(1))
    with pytest.raises(ValueError, match="features"):
        hyper_linear(torch.zeros(2, 3), torch.zeros(2, 1), torch.zeros(1, 4, 5), torch.zeros(1, 4))


def test_every_pair_of_kernel_and_padding_matches():
    for kernel, padding in itertools.product([(1, 2, 3), (2, 2, 2)], [0, 1]):
        args = make(kernel, 1, 2, 2, 2, 2, torch.float64)
        expected = reference.hyper_conv3d(*args, padding=(padding,) * 3)
        torch.testing.assert_close(hyper_conv3d(*args, padding=padding), expected)

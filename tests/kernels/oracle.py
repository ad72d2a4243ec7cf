"""Cases, their inputs, and the limit of rounding, for every form and backend of the ops."""

import torch

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


def assert_within_rounding(found, expected, magnitude, terms, name="y"):
    """A sum of `terms` products, in any order: |error| <= 8 · eps · √terms · Σ|products|."""
    limit = 8 * torch.finfo(found.dtype).eps * terms**0.5 * magnitude
    excess = ((found.double() - expected).abs() - limit).max().item()
    assert excess <= 0, f"{name}: {excess:.2e} beyond the rounding that {terms} terms allow"


def magnitudes(op, args, upstream, *geometry):
    """Σ|products| of the output and of each gradient: the reference on absolute values."""
    positive = [a.detach().double().abs().requires_grad_() for a in args]
    gap = (None,) * (6 - len(args))
    y = op(*positive, *gap, *geometry)
    return y.detach(), torch.autograd.grad(y, positive, upstream.double().abs())


def guarded(tensor):
    """The same values, channels-last where there are channels, between bands of NaN."""
    if tensor is None:
        return None
    plain = tensor.detach().movedim(1, -1) if tensor.dim() == 5 else tensor.detach()
    band = torch.full((plain.numel() + 512,), torch.nan, dtype=tensor.dtype)
    inner = band[256:-256].view(plain.shape)
    inner.copy_(plain)
    return (inner.movedim(-1, 1) if tensor.dim() == 5 else inner).requires_grad_()

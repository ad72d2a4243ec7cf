"""Cases, their inputs, and the limit of rounding, for every form and backend of the ops."""

import torch

from hyperfusion_rt.kernels import Epilogue, conv3d_block, hyper_linear, reference
from hyperfusion_rt.kernels.geometry import Geometry

NAMES = ["x", "e", "G", "h", "g0", "h0"]
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

MORE = [
    # More channels than a step and less than a tile; strides with dilations that share a factor.
    ((1, 1, 1), (2, 2, 2), (0, 0, 0), (1, 1, 1), 1, 2, 8, 64, 70),
    ((3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), 1, 2, 2, 32, 6),
    ((3, 2, 2), (4, 3, 2), (2, 1, 0), (2, 3, 1), 2, 2, 2, 4, 6),
]

# For the interpreter, whose time goes with the number of programs and steps: (rows, columns, step,
# warps, stages, registers) of every configuration in each table of `configs`.
HUGE = {
    "CONV3D": (2048, 64, 32, 4, 1, 255),
    "WEIGHT_GRADIENT": (2048, 64, 64, 4, 1, 255),
    "LINEAR": (32, 64, 64, 4, 1, 255),
}


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


def assert_within_rounding(found, expected, magnitude, terms, name="y", eps=None):
    """A sum of `terms` products, in any order: |error| <= 8 · eps · √terms · Σ|products|.

    `eps`: of the narrowest numbers on the way, if not that of `found`. Returns the largest error
    over the largest value.
    """
    limit = 8 * (eps or torch.finfo(found.dtype).eps) * terms**0.5 * magnitude
    error = (found.double().cpu() - expected).abs()
    excess = (error - limit).max().item()
    assert excess <= 0, f"{name}: {excess:.2e} beyond the rounding that {terms} terms allow"
    return (error.max() / expected.abs().max().clamp(min=1e-30)).item()


def magnitudes(op, args, upstream, *geometry):
    """Σ|products| of the output and of each gradient: the reference on absolute values."""
    positive = [a.detach().double().abs().requires_grad_() for a in args]
    gap = (None,) * (6 - len(args))
    y = op(*positive, *gap, *geometry)
    return y.detach(), torch.autograd.grad(y, positive, upstream.double().abs())


def guarded(tensor, device="cpu"):
    """The same values, channels-last where there are channels, between bands of NaN."""
    if tensor is None:
        return None
    plain = tensor.detach().movedim(1, -1) if tensor.dim() == 5 else tensor.detach()
    band = torch.full((plain.numel() + 512,), torch.nan, dtype=tensor.dtype, device=device)
    inner = band[256:-256].view(plain.shape)
    inner.copy_(plain)
    return (inner.movedim(-1, 1) if tensor.dim() == 5 else inner).requires_grad_()


def check_conv(case, dtype, *, constants=True, strategy=None, keep=None, device="cpu", eps=None):
    """Forward and every gradient of one case; returns the errors over the largest values."""
    from hyperfusion_rt.kernels.gpu import hyper_conv3d as gpu

    kernel, stride, padding, dilation, groups, batch, k, cin, cout = case
    arguments = make(kernel, groups, batch, k, cin, cout, dtype, constants=constants)
    gap = [None] * (6 - len(arguments))
    exact = [a.detach().double().requires_grad_() for a in arguments] + gap
    expected = reference.hyper_conv3d(*exact, stride, padding, dilation, groups)
    generator = torch.Generator().manual_seed(8)
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64).to(dtype)
    size, sizes = magnitudes(
        reference.hyper_conv3d, arguments, upstream, stride, padding, dilation, groups
    )
    given = [guarded(a, device) for a in arguments] + gap
    geometry = Geometry(kernel, stride, padding, dilation, groups)
    with torch.no_grad():
        y = gpu.forward(*given, geometry, Epilogue(), strategy)
        needs = [a is not None for a in given]
        found = gpu.backward(guarded(upstream, device), *given, geometry, needs, strategy, keep)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    terms = (k + 1) * cin * kernel[0] * kernel[1] * kernel[2]
    errors = {"y": assert_within_rounding(y, expected, size, terms, eps=eps)}
    wanted = torch.autograd.grad(expected, exact[: len(arguments)], upstream.double())
    for name, a, b, limit in zip(NAMES, found, wanted, sizes, strict=False):
        terms = upstream.numel() * (k + 1)
        errors[f"d{name}"] = assert_within_rounding(a, b, limit, terms, name, eps)
    return errors


LINEAR_CASES = [
    # B, K, Cin, Cout, g0, h0
    (3, 1, 700, 16, True, True),  # a long sum, split; as the first layer of the brain-age network
    (2, 8, 40, 6, True, True),
    (33, 3, 5, 70, True, False),  # more samples and more outputs than a tile has
    (1, 1, 1, 1, False, True),
    (4, 2, 65, 33, False, False),
]


def make_linear(case, dtype, others=None):
    batch, k, cin, cout, has_g0, has_h0 = case
    generator = torch.Generator().manual_seed(5)

    def draw(*shape, dtype=others or dtype):
        made = torch.randn(shape, generator=generator, dtype=torch.float64)
        return made.to(dtype).requires_grad_()

    return [
        draw(batch, cin, dtype=dtype), draw(batch, k), draw(k, cout, cin), draw(k, cout),
        draw(cout, cin) if has_g0 else None, draw(cout) if has_h0 else None,
    ]  # fmt: skip


def check_linear(case, dtype, others=None, *, device="cpu", eps=None):
    """Forward and every gradient of one case; returns the errors over the largest values."""
    arguments = make_linear(case, dtype, others)
    exact = [None if a is None else a.detach().double().requires_grad_() for a in arguments]
    expected = reference.hyper_linear(*exact)
    generator = torch.Generator().manual_seed(8)
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64).to(dtype)
    leaves = [i for i, a in enumerate(arguments) if a is not None]

    def op(*some):
        whole = [None] * 6
        for i, a in zip(leaves, some[: len(leaves)], strict=True):
            whole[i] = a
        return reference.hyper_linear(*whole)

    size, sizes = magnitudes(op, [arguments[i] for i in leaves], upstream)
    given = [guarded(a, device) for a in arguments]
    y = hyper_linear(*given)
    assert y.dtype == dtype
    batch, k, cin, cout = case[:4]
    errors = {"y": assert_within_rounding(y, expected, size, (k + 1) * cin, eps=eps)}
    found = torch.autograd.grad(y, [given[i] for i in leaves], upstream.to(device))
    wanted = torch.autograd.grad(expected, [exact[i] for i in leaves], upstream.double())
    for i, a, b, limit in zip(leaves, found, wanted, sizes, strict=True):
        assert a.dtype == arguments[i].dtype
        terms = (k + 1) * batch * cin * cout
        errors[f"d{NAMES[i]}"] = assert_within_rounding(a, b, limit, terms, NAMES[i], eps)
    return errors


BLOCK_CASES = [
    # kernel, stride, padding, groups, members share x, Cin, Cout, pool, scale, shift, residual
    (3, 1, 1, 1, False, 1, 4, True, False, True, False),
    (3, 1, 1, 3, True, 1, 4, True, True, True, False),
    (3, 1, 0, 2, False, 4, 8, True, True, False, True),
    (3, 2, 1, 2, False, 8, 16, False, True, True, True),
    (1, 2, 0, 1, False, 16, 32, False, False, False, False),
    (3, (1, 2, 1), (0, 1, 2), 1, False, 32, 64, False, False, True, True),
    (1, 1, 0, 2, True, 64, 64, True, True, True, True),
    (3, 1, 1, 2, True, 3, 4, True, True, True, False),
]


def make_block(case, dtype, size=(5, 6, 7)):
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


def block_reference(x, weight, epilogue, options):
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


def check_block(case, dtype, *, device="cpu", eps=None):
    """One case against float64; returns the error over the largest value."""
    x, weight, after, options = make_block(case, dtype)
    expected = block_reference(x, weight, after, options)
    terms = weight[0].numel() + 2
    # A difference before pooling is one after it: the limit is the largest of the cell's.
    size = block_reference(x.abs(), weight.abs(), mapped(torch.Tensor.abs, after), options)
    with torch.no_grad():
        x, weight = guarded(x, device), guarded(weight, device)
        y = conv3d_block(x, weight, epilogue=mapped(lambda t: guarded(t, device), after), **options)
    assert y.dtype == dtype
    return {"y": assert_within_rounding(y, expected, size, terms, eps=eps)}

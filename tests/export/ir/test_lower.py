"""Lowering: every operation against the module that it came from."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.export.ir.graph import run
from hyperfusion_rt.export.ir.lower import lower

from ..networks import (
    FUSIONS,
    SHAPES,
    MidTrunk,
    difference,
    exact,
    inputs,
    outcome,
    published,
    shaken,
)


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.InstanceNorm3d(4, affine=True)
        self.norm.weight.data.uniform_(0.5, 2)
        self.plain = nn.InstanceNorm3d(4)

    def forward(self, x):
        return self.norm(x) + self.plain(x)


def _write_source(x):
    copied = x.clone()
    return x.relu_() + copied


def _write_base(x):
    raised = x**1
    return x.relu_() + raised


def _write_after_part(x):
    part = x[:, 1:3] * 2
    return torch.cat([x.relu_(), part], 1)


V = (4, 6, 7, 8)
MODULES = {
    "conv": nn.Conv3d(4, 6, (3, 1, 2), (1, 2, 1), (1, 0, 2), (2, 1, 1), groups=2),
    "conv without bias, same": nn.Conv3d(4, 4, 3, padding="same", bias=False),
    "batch norm": nn.BatchNorm3d(4),
    "batch norm without weights": nn.BatchNorm3d(4, affine=False),
    "instance norm": Norm(),
    **{
        type(m).__name__: m
        for m in (
            nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(0.2), nn.PReLU(4),
            nn.ELU(0.7), nn.SiLU(), nn.GELU(), nn.Sigmoid(), nn.Tanh(), nn.Hardswish(),
            nn.Hardsigmoid(), nn.Softplus(), nn.Mish(), nn.Dropout(), nn.Dropout3d(), nn.Identity(),
            nn.Flatten(),
        )
    },
    "gelu tanh": nn.GELU("tanh"),
    "max pool": nn.MaxPool3d(3, 2, 1, ceil_mode=True),
    "average pool": nn.AvgPool3d((2, 3, 2), 2, (1, 1, 0), count_include_pad=False),
    "adaptive to one": nn.AdaptiveAvgPool3d(1),
    "adaptive": nn.AdaptiveAvgPool3d((3, 7, None)),
    "adaptive to odd sizes": nn.AdaptiveAvgPool3d(2),
    "adaptive maximum to odd sizes": nn.AdaptiveMaxPool3d((2, 2, 4)),
    "adaptive maximum": nn.AdaptiveMaxPool3d(1),
    "mean": Apply(lambda x: x.mean((2, 3, 4))),
    "mean, keepdim": Apply(lambda x: x * x.mean((-1, -2, -3), keepdim=True)),
    "constants": Apply(lambda x: 1 - (2 * x + 3) / 4),
    "per channel": Apply(lambda x: x * torch.arange(4.0, dtype=x.dtype).view(1, 4, 1, 1, 1)),
    "concat": Apply(lambda x: torch.cat([x, x.relu(), x], 1)),
    "chunk": Apply(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)),
    "split": Apply(lambda x: x.split([1, 3], 1)[1]),
    "slice": Apply(lambda x: x[:, 1:3]),
    "subtract": Apply(lambda x: x.sigmoid() - x),
    "pad": Apply(lambda x: F.pad(x, (1, 0, 2, 1, 0, 3))),
    "view": Apply(lambda x: x.view(x.size(0), -1)),
    "clamp": Apply(lambda x: x.clamp(min=0)),
    "squeeze and excite": nn.Sequential(
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 4),
        Apply(lambda x: x[:, :, None, None, None].sigmoid()),
    ),
    "in place": Apply(lambda x: F.relu(x * 2, inplace=True).mul_(3).add_(x)),
    "in place on a copy's source": Apply(lambda x: _write_source(x * 2)),
    "in place on a power's base": Apply(lambda x: _write_base(x * 2)),
    "in place, a part read before": Apply(lambda x: _write_after_part(x * 2)),
    "softmax": nn.Sequential(nn.Flatten(), nn.Softmax(1)),
    "transposed conv": nn.ConvTranspose3d(4, 6, (3, 2, 4), (2, 2, 1), (1, 0, 2), (1, 0, 0), 2),
    "transposed conv, dilated": nn.ConvTranspose3d(4, 3, 3, 2, 2, dilation=(1, 2, 3)),
    "same, of an even kernel": nn.Conv3d(4, 4, (2, 3, 4), padding="same"),
    "group norm": nn.Sequential(nn.GroupNorm(2, 4), nn.GroupNorm(4, 4), nn.GroupNorm(1, 4)),
    "layer norm of vectors": nn.Sequential(nn.Flatten(), nn.LayerNorm(4 * 336)),
    "layer norm of channels": Apply(
        lambda x: F.layer_norm(
            x.permute(0, 2, 3, 4, 1), (4,), torch.arange(4.0, dtype=x.dtype), eps=0.5
        ).permute(0, 4, 1, 2, 3)
    ),
    "layer norm of everything": nn.LayerNorm(V, elementwise_affine=False),
    "channels last": nn.Sequential(
        Apply(lambda x: x.movedim(1, -1)), nn.Linear(4, 9), nn.GELU(), nn.Linear(9, 3),
        Apply(lambda x: x.movedim(-1, 1) * 2),
    ),
    "flatten channels last": nn.Sequential(
        Apply(lambda x: x.movedim(1, -1).flatten(1)), nn.Linear(4 * 336, 3)
    ),
    "output with its axes turned": Apply(lambda x: x.transpose(2, 4)),
    "channels in another order": Apply(
        lambda x: x.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2) * 2
    ),
    "channels to voxels": Apply(
        lambda x: x[:, :, :3].unflatten(1, (2, 2)).permute(0, 1, 3, 2, 4, 5).flatten(2, 3) + 1
    ),
    "upsample nearest": nn.Upsample(scale_factor=(2, 1, 3)),
    "upsample nearest exact": nn.Upsample((5, 9, 8), mode="nearest-exact"),
    "upsample linear": nn.Upsample(scale_factor=2, mode="trilinear"),
    "upsample linear, odd": nn.Upsample((5, 9, 8), mode="trilinear"),
    "upsample by a factor": nn.Upsample(scale_factor=1.7, mode="trilinear"),
    "upsample aligned": nn.Upsample((7, 1, 15), mode="trilinear", align_corners=True),
    "pad by a value": Apply(lambda x: F.pad(x, (1, 0, 2, 1, 0, 3), value=2.5)),
    "pad by the border": Apply(lambda x: F.pad(x, (1, 0, 2, 1, 0, 3), mode="replicate")),
    "pad by reflection": Apply(lambda x: F.pad(x, (1, 0, 2, 1, 0, 3), mode="reflect")),
    "cut off": Apply(lambda x: F.pad(x, (-1, 0, -2, 1, 0, 3))),
    "voxels": Apply(lambda x: x[:, :, 1:5:2, 2:, :-1]),
    "a plane": Apply(lambda x: x[:, :, 2]),
    "unbind": Apply(lambda x: x.unbind(1)[2]),
    "log softmax": nn.LogSoftmax(1),
    "softmax of a volume": nn.Softmax(1),
    "mean of channels": Apply(lambda x: x * x.mean(1, keepdim=True)),
    "maximum of channels": Apply(lambda x: x - x.amax(1, keepdim=True)),
    "sum along an axis": Apply(lambda x: x.sum(3)),
    "mean of everything": Apply(lambda x: x / x.mean((1, 2, 3, 4), keepdim=True)),
    "norms": Apply(
        lambda x: x.norm(p=2, dim=(2, 3, 4), keepdim=True) / (x.norm(dim=1, keepdim=True) + 1)
    ),
    "norm along axes": Apply(
        lambda x: x.norm(dim=(2, 4), keepdim=True) / (x.norm(dim=2)[:, :, None] + 1)
    ),
    "norm of one channel": Apply(
        lambda x: x / (torch.linalg.vector_norm(x[:, 1:2], dim=1, keepdim=True) + 1)
    ),
    "softmax of one number": Apply(lambda x: x * x[:, :1].softmax(1) - x[:, :, :1].softmax(2)),
    "two values": Apply(
        lambda x: torch.maximum(x, x.mean((2, 3, 4), keepdim=True)) - torch.minimum(x, 2 * x)
    ),
    "a gate of voxels": Apply(lambda x: x * x[:, :1].sigmoid()),
    "repeated": Apply(lambda x: x.mean((2, 3, 4), keepdim=True).expand(-1, -1, 6, 7, 8) + x),
    "powers": Apply(lambda x: (x**2 + 1) ** 0.5 + (x.abs() + 1) ** -1.5 + 1 / (x.exp() + 1) + x**3),
    "more activations": nn.Sequential(
        nn.SELU(), nn.CELU(0.7), nn.Hardtanh(-0.5, 0.7), nn.LogSigmoid(), Apply(torch.erf),
        Apply(lambda x: x.clamp(max=0.1)),
    ),
    "linear by hand": nn.Sequential(
        nn.Flatten(), Apply(lambda x: F.linear(x, torch.ones(2, 4 * 336, dtype=x.dtype)))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_operations(name):
    module = shaken(MODULES[name])
    graph = lower(module, {"image": V})
    feeds = inputs(graph)
    expected = exact(module, {"image": feeds["image"].clone()})
    (found,) = run(graph, feeds)
    (output,) = graph.outputs
    assert tuple(expected.shape[1:]) == graph.outer.get(output, graph.shapes[output])
    assert difference(found.reshape(expected.shape), expected) <= 1e-13


REDUCTIONS = {
    "sum": torch.sum,
    "mean": torch.mean,
    "amax": torch.amax,
    "norm": lambda x, dim, **k: torch.norm(x, dim=dim, **k),
    "vector_norm": lambda x, dim, **k: torch.linalg.vector_norm(x, dim=dim, **k),
    "softmax": lambda x, dim, keepdim: torch.softmax(x, dim),
    "log_softmax": lambda x, dim, keepdim: torch.log_softmax(x, dim) + 1,
}


@pytest.mark.parametrize(
    "shape", [(1, 6, 7, 8), (4, 1, 7, 8), (4, 1, 1, 1), (1, 6, 7), (1, 6), (1,)]
)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_over_an_axis_of_one_number(reduction, shape):
    for axis in (i for i, size in enumerate(shape, 1) if size == 1):
        for kept in (True, False):
            module = Apply(lambda x, a=axis, k=kept: REDUCTIONS[reduction](x, dim=a, keepdim=k) * 2)
            graph = lower(module, {"image": shape})
            feeds = inputs(graph)
            expected = exact(module, {"image": feeds["image"].reshape(3, *shape)})
            assert difference(outcome(graph, feeds).reshape(expected.shape), expected) <= 1e-13


@pytest.mark.parametrize("task", SHAPES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_published_networks(task, fusion):
    network = published(task, fusion)
    width = 5 if task == "ad" else 2
    graph = lower(network, {"image": (1, *SHAPES[task]), "tabular": (width,)})
    feeds = inputs(graph)
    assert graph.outputs == ["output"]
    assert difference(outcome(graph, feeds), exact(network, feeds)) <= 1e-12


class InPlace(nn.Module):
    """What is written in place is seen under every name that it has."""

    def __init__(self):
        super().__init__()
        self.conv, self.drop = nn.Conv3d(4, 4, 1), nn.Dropout()

    def forward(self, x):
        y = self.conv(x)
        kept = self.drop(y)
        z = y.relu_()
        z.add_(1)
        return kept * 2 + y + z


def test_operations_in_place():
    module = shaken(InPlace())
    graph = lower(module, {"image": V})
    feeds = inputs(graph)
    assert difference(outcome(graph, feeds), exact(module, feeds)) <= 1e-13


def test_a_generated_layer_is_one_node():
    graph = lower(shaken(MidTrunk()), {"image": (1, 9, 10, 11), "tabular": (5,)})
    assert [n.op for n in graph.nodes].count("hyper_conv") == 1


def _write_whole(x):
    part = x.split([1, 3], 1)[1]
    x.mul_(3.0)
    return part


def _write_dropped_part(x):
    F.dropout(x[:, 1:3], training=False).mul_(3.0)
    return x


class Branch(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.stem = nn.Conv3d(4, 4, 1)
        self.odd = Apply(function)

    def forward(self, x):
        return self.odd(self.stem(x))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: torch.fft.fftn(x).real, "fft_fftn.* in odd"),
        (lambda x: x.mean((1, 3)), r"mean over the axes \[1, 3\]"),
        (lambda x: x.mean(0, keepdim=True) + x, "mean over the batch"),
        (lambda x: x.view(-1, 2, *x.shape[2:]), "mixes the samples"),
        (lambda x: x.softmax(2), "along axis 2"),
        (lambda x: torch.cat([x, x], 2), "along axis 2"),
        (lambda x: x.flatten(2) @ x.flatten(2).transpose(1, 2), "of two computed values"),
        (lambda x: F.layer_norm(x, x.shape[3:]), "over the last 2 axes"),
        (lambda x: x.cumsum(2), "cumsum"),
        (lambda x: x + torch.arange(8.0, dtype=x.dtype), "not one number per channel"),
        (lambda x: F.pad(x, (1,) * 6, mode="circular"), "circular"),
        (lambda x: F.adaptive_avg_pool3d(x, 4), "windows of several sizes"),
        (lambda x: F.conv3d(x, x.mean((2, 3, 4), keepdim=True)), "computed weight"),
        (lambda x: x / x.sin(), "sin in odd"),
        (lambda x: x[:, :2].relu_() + x[:, 2:], "in place on a part"),
        (_write_whole, "mul_ in place on a tensor with a part that is read later in odd"),
        (_write_dropped_part, "in place on a part"),
        (lambda x: (3 * x).to(torch.int32).to(x.dtype), "makes torch.int32"),
        (lambda x: torch.div(x, 2, rounding_mode="floor"), "div with these arguments.*in odd"),
        (lambda x: F.softplus(x, 20), "softplus with beta 20"),
        (lambda x: F.softplus(x, 1, 1), "threshold 1"),
        (lambda x: x.relu() if x.sum() > 0 else x, "cannot be exported"),
    ],
)
def test_what_engines_cannot_do_is_named(function, message):
    with pytest.raises(HyperFusionError, match=message) as error:
        lower(shaken(Branch(function)), {"image": V})
    traced = message != "cannot be exported"
    kind = "unsupported-operation" if traced else "network-untraceable"
    assert error.value.code == f"export-{kind}"

"""Lowering: what is written in place is seen in what shares memory with it, and nowhere else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hyperfusion_rt.errors import HyperFusionError
from hyperfusion_rt.export.ir.graph import run
from hyperfusion_rt.export.ir.lower import lower

from ..networks import difference, inputs, shaken

V = (4, 6, 7, 8)


class Pair(nn.Module):
    """`base`, what `taken` makes of it, and `written` in place on one of them."""

    def __init__(self, taken, written, *, on_base):
        super().__init__()
        self.taken, self.written, self.on_base = taken, written, on_base

    def forward(self, x):
        base = x * 2 - 0.5
        found = self.taken(base)
        self.written(base if self.on_base else found)
        return base, found


COPIED = {
    "clone": lambda x: x.clone(),
    "pad by nothing": lambda x: F.pad(x, (0,) * 6),
    "pad by nothing, of another mode": lambda x: F.pad(x, (0,) * 6, mode="replicate"),
    "cut off by padding": lambda x: F.pad(x, (-1, 0, 0, -2, 0, 0)),
    "interpolate to the same size": lambda x: F.interpolate(x, x.shape[2:]),
    "interpolate linearly to the same size": lambda x: F.interpolate(
        x, x.shape[2:], mode="trilinear"
    ),
    "pool by windows of one voxel": lambda x: F.avg_pool3d(x, 1),
    "adaptive pool to the same size": lambda x: F.adaptive_avg_pool3d(x, x.shape[2:]),
    "concat of one": lambda x: torch.cat([x], 1),
    "power of 1": lambda x: x**1,
    "mean of one channel": lambda x: x[:, :1].mean(1, keepdim=True),
    "sum of one channel": lambda x: x[:, 1:2].sum(1),
    "maximum of one channel": lambda x: x[:, 1:2].amax(1),
    "plus 0": lambda x: x + 0,
    "times 1": lambda x: x * 1,
    "divided by 1": lambda x: x / 1,
}
ITSELF = {
    "identity": nn.Identity(),
    "dropout": nn.Dropout().eval(),
    "dropout of channels": nn.Dropout3d().eval(),
    "alpha dropout": nn.AlphaDropout().eval(),
    "feature alpha dropout": nn.FeatureAlphaDropout().eval(),
    "dropouts": nn.Sequential(nn.Dropout(), nn.Dropout3d()).eval(),
    "dropout in place": lambda x: F.dropout(x, training=False, inplace=True),
    "contiguous already": lambda x: x.contiguous(),
    "to its own type": lambda x: x.to(x.dtype),
    "detach": lambda x: x.detach(),
    "to its own shape": lambda x: x.view(x.shape),
    "reshaped to its own shape": lambda x: x.reshape(x.shape),
    "expand to its own shape": lambda x: x.expand(x.shape),
    "permute as it is": lambda x: x.permute(0, 1, 2, 3, 4),
    "turned twice": lambda x: x.transpose(1, 3).transpose(3, 1),
    "squeeze of nothing": lambda x: x.squeeze(1),
    "flatten of one axis": lambda x: x.flatten(1, 1),
    "all of it": lambda x: x[:],
    "split into one": lambda x: x.split(4, 1)[0],
    "chunk of one": lambda x: x.chunk(1, 1)[0],
}
VIEWS = {
    "permute": lambda x: x.permute(0, 2, 3, 4, 1),
    "transpose": lambda x: x.transpose(2, 4),
    "movedim": lambda x: x.movedim(1, -1),
    "view": lambda x: x.view(x.shape[0], 2, 2, *V[1:]),
    "reshape": lambda x: x.reshape(x.shape[0], -1),
    "flatten": lambda x: x.flatten(1),
    "unflatten": lambda x: x.unflatten(1, (2, 2)),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "slice": lambda x: x[:, 1:3],
    "slice of voxels": lambda x: x[:, :, 1:5:2],
    "select": lambda x: x[:, :, 2],
    "unbind": lambda x: x.unbind(1)[2],
    "split": lambda x: x.split([1, 3], 1)[1],
    "chunk": lambda x: x.chunk(2, 1)[0],
    "part of a dropout": nn.Sequential(nn.Dropout(), nn.Flatten()).eval(),
    "dropout of a part": lambda x: F.dropout(x[:, 1:3], training=False),
    "part of a part": lambda x: x[:, 1:][:, :2],
}
# torch copies, or does not, as the memory lies; the trace has a copy.
UNSURE = {
    # In order already with one sample, but not with two.
    "contiguous channels": lambda x: x[:, 1:3].contiguous(),
    "contiguous in another order": lambda x: x.permute(0, 2, 3, 4, 1).contiguous(),
    "reshape of another order": lambda x: x.permute(0, 2, 3, 4, 1).reshape(x.shape[0], -1),
    # In float64, as it is traced; a network of float32 has the tensor itself.
    "to float32": lambda x: x.to(torch.float32),
    "part of it": lambda x: x.to(torch.float32)[:, 1:3],
}
WRITES = {
    "relu_": lambda x: x.relu_(),
    "mul_": lambda x: x.mul_(3),
    "add_": lambda x: x.add_(x * x),
    "sigmoid_": lambda x: F.silu(x, inplace=True).sigmoid_(),
    "out": lambda x: torch.sigmoid(x * 3, out=x),
}


def _checked(module):
    """The graph against torch, with one sample and with more."""
    graph = lower(shaken(module), {"image": V})
    for batch in (1, 3):
        feeds = inputs(graph, batch)
        with torch.no_grad():
            expected = module.double()(feeds["image"].clone())
        for found, wanted in zip(run(graph, feeds), expected, strict=True):
            assert difference(found.reshape(wanted.shape), wanted) <= 1e-13


def _shared(taken):
    base = torch.ones(1, *V)
    return taken(base).untyped_storage().data_ptr() == base.untyped_storage().data_ptr()


@pytest.mark.parametrize("on_base", [True, False], ids=["base", "taken"])
@pytest.mark.parametrize("name", [*COPIED, *ITSELF])
def test_copies_are_left_and_the_tensor_itself_is_written(name, on_base):
    taken = {**COPIED, **ITSELF}[name]
    assert _shared(taken) == (name in ITSELF)
    _checked(Pair(taken, WRITES["mul_"], on_base=on_base))


@pytest.mark.parametrize("on_base", [True, False], ids=["base", "taken"])
@pytest.mark.parametrize("name", [*VIEWS, *UNSURE])
def test_views_that_are_read_later_are_refused(name, on_base):
    taken = {**VIEWS, **UNSURE}[name]
    assert _shared(taken) or name in UNSURE
    kind = "tensor that may share memory" if name in UNSURE else ""
    with pytest.raises(HyperFusionError, match=f"mul_ in place on a {kind}") as error:
        lower(Pair(taken, WRITES["mul_"], on_base=on_base), {"image": V})
    assert error.value.code == "export-unsupported-operation"


@pytest.mark.parametrize("on_base", [True, False], ids=["base", "taken"])
@pytest.mark.parametrize("write", WRITES)
def test_every_way_to_write_in_place(write, on_base):
    _checked(Pair(COPIED["pad by nothing"], WRITES[write], on_base=on_base))
    _checked(Pair(ITSELF["dropouts"], WRITES[write], on_base=on_base))
    with pytest.raises(HyperFusionError, match="in place on a tensor with a part"):
        lower(Pair(VIEWS["permute"], WRITES[write], on_base=on_base), {"image": V})


class Of(nn.Module):
    """What `function` makes of a tensor that has memory of its own."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x * 2 - 0.5)


def _part_alone(x):
    part = x[:, 1:3]
    part.relu_()
    return part, part * 2


def _half_alone(x):
    a, b = x.chunk(2, 1)
    other = b * 2
    return a.relu_(), other


def _parts_before_and_after(x):
    before = x[:, 1:] * 2
    x.mul_(3)
    return before, x[:, 1:]


def _names_in_turn(x):
    y = F.dropout(x, training=False)
    y.relu_()
    z = F.dropout(y, training=False)
    z.mul_(2)
    x.add_(1)
    return x * 2, y * 3, z * 4


def _into_another(x):
    y = x + 1
    torch.sigmoid(x, out=y)
    return x, y


def _input_of_others(x):
    y = x.relu_()
    z = F.pad(y, (0,) * 6).mul_(2)
    return y + x, z


@pytest.mark.parametrize(
    "function",
    [_part_alone, _half_alone, _parts_before_and_after, _names_in_turn, _into_another,
     _input_of_others],
)  # fmt: skip
def test_what_is_not_read_later_is_no_hindrance(function):
    _checked(Of(function))


def _beside(x):
    a, b = x.chunk(2, 1)
    return a.relu_(), b


def _list_before(x):
    parts = x.split([1, 3], 1)
    x.mul_(3)
    return parts


@pytest.mark.parametrize("function", [_beside, _list_before])
def test_parts_that_are_read_later_are_refused(function):
    with pytest.raises(HyperFusionError, match="in place on"):
        lower(Of(function), {"image": V})


def _weights(x):
    weight = torch.arange(16.0, dtype=x.dtype).view(4, 4, 1, 1, 1)
    y = F.conv3d(x, weight)
    weight.mul_(2).view(-1)[3:].fill_(1)
    return y, F.conv3d(x, weight)


def _slopes(x):
    slope = torch.ones(4, dtype=x.dtype) / 4
    y = F.prelu(x, slope)
    slope[1:] += 1
    return y, F.prelu(x, slope), x * slope.view(4, 1, 1, 1)


@pytest.mark.parametrize("function", [_weights, _slopes])
def test_layers_keep_the_weights_that_they_have_read(function):
    _checked(Of(function))

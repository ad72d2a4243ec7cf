"""A batch in parts, one for each of several threads that stand for processes, in float64."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from hyperfusion_rt.config import preset
from hyperfusion_rt.data.encoder_columns import InputColumn
from hyperfusion_rt.models import network_of
from hyperfusion_rt.training.group import Group, Place
from hyperfusion_rt.training.loss import Loss
from hyperfusion_rt.training.whole_batch import Share, share_layers


class Threads(Group):
    """A group whose processes are threads."""

    def __init__(self, rank, size, table, barrier):
        super().__init__(Place(rank, size))
        self.table, self.barrier = table, barrier

    def stack(self, own):
        self.table[self.rank] = own.detach().clone()
        self.barrier.wait(30)
        found = torch.stack([self.table[rank] for rank in range(self.size)])
        self.barrier.wait(30)
        return found


def groups(size):
    table, barrier = {}, threading.Barrier(size)
    return [Threads(rank, size, table, barrier) for rank in range(size)]


class Small(nn.Module):
    """Everything that looks at more than one sample."""

    def __init__(self, dropout=0.4):
        super().__init__()
        self.conv = nn.Conv3d(1, 4, 3)
        self.norm = nn.BatchNorm3d(4, momentum=0.3)
        self.plain = nn.BatchNorm3d(4, affine=False, momentum=None)
        self.drop = nn.Dropout3d(dropout)
        self.row = nn.Sequential(
            nn.Linear(3, 6), nn.BatchNorm1d(6), nn.PReLU(), nn.Dropout(dropout / 2)
        )
        self.last = nn.Linear(10, 3)

    def forward(self, image, tabular):
        x = self.drop(self.norm(self.conv(image)).relu())
        x = self.plain(x * x).mean((2, 3, 4))
        return self.last(torch.cat([x, self.row(tabular)], 1))


def data(count, shape=(5, 6, 4), width=3):
    rng = np.random.default_rng(count)
    image = torch.from_numpy(rng.standard_normal((count, 1, *shape)))
    row = torch.from_numpy(rng.standard_normal((count, width)))
    return image, row, torch.from_numpy(rng.integers(0, 3, count)).double()


def weighted():
    """The loss with weights of classes, in float64."""
    change = {"training": {"class_weights": (1.1, 0.6, 1.4), "label_smoothing": 0.1}}
    loss = Loss(preset("ad-small", change), torch.device("cpu"))
    loss.weight = loss.weight.double()
    return loss


def together(network, size, image, row, targets, *, shared=True):
    """Loss, gradients and each process's buffers, of a batch that `size` processes share."""
    loss, copies = weighted(), [copy.deepcopy(network) for _ in range(size)]
    found = [None] * size

    def work(group):
        own, share = copies[group.rank], Share(group)
        if shared:
            share_layers(own, share, norms=True)
        part = share.of(len(targets))
        output = own(image[part], row[part])
        weight = (
            loss.weight_of(targets[part].numpy()) / loss.weight_of(targets.numpy())
            if share.counts
            else 0.0
        )
        value = loss(output, targets[part]) * weight if weight else output.sum() * 0
        value.backward()
        found[group.rank] = value.detach()

    with ThreadPoolExecutor(size) as pool:
        list(pool.map(work, groups(size)))
    gradients = [
        sum(parameter.grad for parameter in same)
        for same in zip(*(c.parameters() for c in copies), strict=True)
    ]
    return sum(found), gradients, [list(c.buffers()) for c in copies]


def assert_same(shared, alone):
    torch.testing.assert_close(shared[0], alone[0], rtol=1e-12, atol=0)
    for a, b in zip(shared[1], alone[1], strict=True):
        # Sums of some hundred products, in another order.
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)
    for buffers in shared[2]:
        for a, b in zip(buffers, alone[2][0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.fixture
def same_draws(monkeypatch):
    """Threads share one generator: the same numbers for the same shape, in whatever thread."""
    draws, lock, real = {}, threading.Lock(), torch.Tensor.bernoulli_

    def drawn(tensor, p):
        with lock:
            key = (tuple(tensor.shape), p)
            if key not in draws:
                draws[key] = real(torch.empty(tensor.shape, dtype=torch.float64), p)
            return tensor.copy_(draws[key])

    monkeypatch.setattr(torch.Tensor, "bernoulli_", drawn)


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("count", [7, 4])
def test_parts_make_the_step_of_the_whole_batch(size, count, same_draws):
    # Of five processes and four samples, one has none, and runs one that must not count.
    torch.manual_seed(3)
    network, values = Small().double(), data(count)
    assert_same(together(network, size, *values), together(network, 1, *values))


def test_one_process_is_as_torch_has_it():
    torch.manual_seed(3)
    network, values = Small(dropout=0).double(), data(6)
    assert_same(together(network, 1, *values), together(network, 1, *values, shared=False))


@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout1d, nn.Dropout3d])
def test_a_process_drops_what_one_alone_would_drop(kind):
    x = torch.randn(6, 4, *{nn.Dropout: (), nn.Dropout1d: (5,), nn.Dropout3d: (2, 3, 2)}[kind])
    torch.manual_seed(5)
    whole = kind(0.3)(x)
    parts = []
    for group in groups(4):
        layer, share = kind(0.3), Share(group)
        share_layers(layer, share, norms=True)
        torch.manual_seed(5)
        parts.append(layer(x[share.of(6)]))
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["ad-small", "brain-age-small"])
def test_the_networks_of_the_presets(name, same_draws):
    """With generated layers: their embeddings have a batch norm, too."""
    change = {"network": {"features": 2, "hyper_layers": ["*"]}, "training": {"members": 1}}
    change["preprocessing"] = {"shape": (16, 16, 16) if name == "ad-small" else (48, 48, 48)}
    config = preset(name, change)
    columns = [InputColumn((i,), None) for i in range(3)]
    torch.manual_seed(0)
    network = network_of(config, 3, columns).double()
    outputs = {}
    for size in (1, 3):
        copies = [copy.deepcopy(network) for _ in range(size)]
        image, row, _ = data(5, config.preprocessing.shape)

        def work(group, copies=copies, image=image, row=row):
            share = Share(group)
            share_layers(copies[group.rank], share, norms=True)
            part = share.of(5)
            with torch.no_grad():
                return copies[group.rank](image[part], row[part])

        with ThreadPoolExecutor(size) as pool:
            outputs[size] = torch.cat(list(pool.map(work, groups(size))))
    torch.testing.assert_close(outputs[3], outputs[1], rtol=1e-9, atol=1e-11)


def test_half_precision_keeps_its_type():
    norm, share = nn.BatchNorm3d(3), Share(groups(1)[0])
    share_layers(norm, share, norms=True)
    share.of(4)
    x = torch.randn(4, 3, 5, 5, 5, dtype=torch.bfloat16, requires_grad=True)
    y = norm(x)
    assert y.dtype == torch.bfloat16
    y.backward(torch.randn_like(y))
    assert x.grad.dtype == torch.bfloat16
    expected = nn.functional.batch_norm(x.detach().float(), None, None, training=True)
    torch.testing.assert_close(y.float(), expected, rtol=2**-8, atol=2**-8)


def test_a_copy_knows_its_group():
    network = Small()
    share = Share(Group())
    share_layers(network, share, norms=True)
    other = copy.deepcopy(network)
    assert other.norm.share is share
    assert isinstance(other.norm, nn.BatchNorm3d)
    assert other.state_dict().keys() == Small().state_dict().keys()
    assert type(other.norm).__module__ == nn.BatchNorm3d.__module__


def test_a_channel_of_one_value_is_refused_as_torch_does():
    norm, share = nn.BatchNorm1d(3), Share(Group())
    share_layers(norm, share, norms=True)
    share.of(1)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm(torch.zeros(1, 3))

"""An ordinary layer, kept as it is, and what a condition adds to its weights and its bias."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from hyperfusion_rt.kernels import hyper_conv_transpose3d
from hyperfusion_rt.kernels.geometry import triple
from hyperfusion_rt.models.layers import (
    HyperConv3d,
    HyperLinear,
    HyperNetwork,
    LowRank,
    convolve,
    is_low,
    multiply,
)

Ordinary = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose3d | nn.Linear
KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose3d, nn.Linear)


def fan_in(layer: nn.Module) -> float:
    """Products in a number of the layer's output; of a transposed convolution, in the mean."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.ConvTranspose3d):
        # Each voxel of x is multiplied by all weights of its channel.
        read = layer.in_channels // layer.groups * math.prod(layer.kernel_size)
        return read / math.prod(layer.stride)
    return math.prod(weight.shape[1:])


class FullRank(nn.Module):
    """An ordinary layer to whose weights and bias a condition adds.

        W(e) = W0 + Σ_k e[k] G[k],   beta(e) = beta0 + Σ_k e[k] h[k]

    `layer(x, condition [B, T])`, x `[B, Cin, ...]` as the ordinary layer takes it.

    Args:
        static: the layer of W0 and beta0 (0 if it has no bias); its weights are read, its forward
            is not called.
        hyper_net: makes e, G and h, without constant parts; `weight_shape`: that of `weights_of`.
    """

    def __init__(self, static: Ordinary, hyper_net: HyperNetwork) -> None:
        super().__init__()
        self.static, self.hyper_net = static, hyper_net

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """The output of `static` with the weights of each sample."""
        static = self.static
        e, G, h, _, _ = self.hyper_net(condition)
        generated = e, G, h, static.weight.view(self.hyper_net.weight_shape), static.bias
        if isinstance(static, nn.Linear):
            return multiply(x, generated)
        if isinstance(static, nn.ConvTranspose3d):
            assert not isinstance(static.padding, str)
            return hyper_conv_transpose3d(
                x,
                *generated,
                triple(static.stride),
                triple(static.padding),
                triple(static.output_padding),
                triple(static.dilation),
                static.groups,
            )
        x, padding = _padded(static, x)
        lacking = 5 - x.dim()
        return convolve(
            x,
            generated,
            stride=(1,) * lacking + static.stride,
            padding=(0,) * lacking + padding,
            dilation=(1,) * lacking + static.dilation,
            groups=static.groups,
        )


class Joined(nn.Module):
    """A linear layer whose input is joined with an embedding of a condition.

        y = [W V] [x; e] + b = static(x) + V e,   e = embedding(condition)

    `layer(x [B, ..., Cin], condition [B, T]) -> [B, ..., Cout]`; all vectors of a sample meet the
    same e.

    Args:
        static: the layer of W and b.
        embedding: `[B, T] -> [B, size]`.
    """

    def __init__(self, static: nn.Linear, embedding: nn.Module, size: int) -> None:
        super().__init__()
        self.static, self.embedding_model = static, embedding
        self.row = nn.Linear(size, static.out_features, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """The output of `static` for x and e."""
        added: Tensor = self.row(self.embedding_model(condition))
        for _ in range(x.dim() - 2):
            added = added.unsqueeze(1)
        y: Tensor = self.static(x) + added
        return y


def _padded(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """x with those numbers around it that an op does not add, and the zeros that it adds."""
    if layer.padding == "valid":
        before = after = (0,) * len(layer.kernel_size)
    elif layer.padding == "same":
        steps = zip(layer.kernel_size, layer.dilation, strict=True)
        total = [d * (k - 1) for k, d in steps]
        before = tuple(n // 2 for n in total)
        after = tuple(n - n // 2 for n in total)
    else:
        assert not isinstance(layer.padding, str)
        before = after = layer.padding
    if layer.padding_mode == "zeros" and before == after:
        return x, before
    widths = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return pad(x, widths, mode), (0,) * len(before)


def weights_of(layer: Ordinary) -> tuple[int, ...]:
    """The shape of the layer's weights as an op takes it: axes that lack have the size 1."""
    shape = tuple(layer.weight.shape)
    if isinstance(layer, nn.Linear):
        return shape
    return (*shape[:2], *[1] * (5 - len(shape)), *shape[2:])


def with_addition(layer: Ordinary, width: int, size: int, rank: int | None) -> FullRank | LowRank:
    """`layer` and generators for a condition `[B, width]`, on the layer's device, in its dtype.

    Args:
        size: K, the length of the embedding, a Linear(width → K).
        rank: of what is added (of each group); a layer whose matrix has no higher rank gets a full
            addition.
    """
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    embedding = nn.Linear(width, size)
    made: FullRank | LowRank
    if rank is not None and is_low(rank, *matrix_of(layer)):
        mix: HyperConv3d | HyperLinear
        if isinstance(layer, nn.Linear):
            mix = HyperLinear(
                rank,
                outputs,
                condition_features=width,
                embedding_features=size,
                embedding=embedding,
                constant=False,
                constant_bias=False,
            )
        else:
            mix = HyperConv3d(
                rank * groups,
                outputs,
                1,
                groups=groups,
                condition_features=width,
                embedding_features=size,
                embedding=embedding,
                constant=False,
                constant_bias=False,
            )
        made = LowRank(layer, _filters(layer, rank * groups), mix, keep=True)
    else:
        net = HyperNetwork(
            embedding,
            size,
            weights_of(layer),
            constant=False,
            constant_bias=False,
            outputs=outputs,
        )
        net.fan_in = fan_in(layer)
        made = FullRank(layer, net)
    weight = layer.weight
    with torch.no_grad():
        for name, part in made.named_children():
            if name != "static":
                part.to(weight.device, weight.dtype)
    return made


def matrix_of(layer: Ordinary) -> tuple[int, int]:
    """Rows and columns of the weights as a matrix, of one group."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    taps = math.prod(layer.kernel_size)
    return layer.out_channels // layer.groups, layer.in_channels // layer.groups * taps


def _filters(layer: Ordinary, count: int) -> nn.Module:
    """A layer without bias that reads what `layer` reads and makes `count` channels."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, count, bias=False)
    geometry = {
        name: getattr(layer, name)
        for name in ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    }
    if isinstance(layer, nn.ConvTranspose3d):
        geometry["output_padding"] = layer.output_padding
    (kind,) = (kind for kind in KINDS if isinstance(layer, kind))
    return kind(layer.in_channels, count, bias=False, **geometry)

"""Layers whose weights are generated per sample from a condition."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from hyperfusion_rt.kernels import conv3d, hyper_conv3d, hyper_linear
from hyperfusion_rt.kernels.geometry import Triple

# (e [B, K], G [K, ...], h [K, Cout], g0 [...] or None, h0 [Cout] or None)
Generated = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


def tabular_embedding(width: int, size: int, slope: float) -> nn.Sequential:
    """Linear(T → K) · BatchNorm · PReLU: the AD network's embedding of a row `[B, T]`.

    `slope`: of the PReLU for negative numbers, at first.
    """
    return nn.Sequential(nn.Linear(width, size), nn.BatchNorm1d(size), nn.PReLU(init=slope))


class HyperNetwork(nn.Module):
    """Condition `[B, T]` → embedding `e [B, K]` → weights, by two linear generators.

    `weights_gen` is Linear(K → number of weights), `bias_gen` Linear(K → Cout).

    Args:
        dropout: of e, in training.
        constant: whether weights have a part g0 that does not depend on the condition.
        constant_bias: whether the bias has such a part h0.
        outputs: Cout; None: the first axis of the weights.

    Attributes:
        fan_in: products in a number of the layer's output.
        gain: at first the output's variance over the mean square of the inputs; 2 where a ReLU
            follows.
        generated_part: share of the output's initial variance that is generated.
    """

    def __init__(
        self,
        embedding: nn.Module,
        size: int,
        weight_shape: tuple[int, ...],
        *,
        dropout: float = 0.0,
        constant: bool = True,
        constant_bias: bool = True,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.weight_shape = weight_shape
        self.fan_in: float = math.prod(weight_shape[1:])
        self.gain = 1.0
        self.generated_part = 1.0
        self.embedding_model = embedding
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.weights_gen = nn.Linear(size, math.prod(weight_shape), bias=constant)
        self.bias_gen = nn.Linear(size, outputs or weight_shape[0], bias=constant_bias)

    def forward(self, condition: Tensor) -> Generated:
        """The op's arguments `(e [B, K], G [K, ...], h [K, Cout], g0 [...], h0 [Cout])`."""
        shape, constant = self.weight_shape, self.weights_gen.bias
        return (
            self.drop(self.embedding_model(condition)),
            self.weights_gen.weight.t().reshape(-1, *shape),
            self.bias_gen.weight.t(),
            None if constant is None else constant.view(shape),
            self.bias_gen.bias,
        )


def convolve(x: Tensor, generated: Generated, **geometry: Any) -> Tensor:
    """`hyper_conv3d` of x `[B, Cin, ...]` with one to three axes; those that lack have the size 1.

    `geometry`: stride, padding, dilation and groups, of three axes.
    """
    lacking = 5 - x.dim()
    for _ in range(lacking):
        x = x.unsqueeze(2)
    y = hyper_conv3d(x, *generated, **geometry)
    for _ in range(lacking):
        y = y.squeeze(2)
    return y


def multiply(x: Tensor, generated: Generated) -> Tensor:
    """`hyper_linear` of x `[B, ..., Cin]`: a sample's vectors all meet the same weights."""
    if x.dim() == 2:
        return hyper_linear(x, *generated)
    # Vectors are the voxels of a pointwise convolution.
    e, G, h, g0, h0 = generated
    points = e, G[..., None, None, None], h, None if g0 is None else g0[..., None, None, None], h0
    vectors = convolve(x.flatten(1, -2).transpose(1, 2), points).transpose(1, 2).contiguous()
    y: Tensor = vectors.unflatten(1, x.shape[1:-1])
    return y


class HyperConv3d(nn.Module):
    """A 3D convolution whose weights and bias are generated per sample.

    `layer(x [B, Cin, D, H, W], condition [B, T]) -> [B, Cout, D', H', W']`. Axes that x lacks,
    D first, have the size 1.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as in Conv3d.
        condition_features: T.
        embedding_features: K. Without `embedding` a Linear(T → K) is made.
        embedding: a module `[B, T] -> [B, K]` to use instead.
        embedding_dropout: of the embedding's numbers, in training.
        constant: whether weights have a part that does not depend on the condition.
        constant_bias: whether the bias has one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Triple,
        *,
        condition_features: int,
        embedding_features: int = 8,
        stride: int | Triple = 1,
        padding: int | Triple = 0,
        dilation: int | Triple = 1,
        groups: int = 1,
        embedding: nn.Module | None = None,
        embedding_dropout: float = 0.0,
        constant: bool = True,
        constant_bias: bool = True,
    ) -> None:
        super().__init__()
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{in_channels} and {out_channels} channels cannot be split into {groups} groups"
            )
        kernel = (kernel_size,) * 3 if isinstance(kernel_size, int) else tuple(kernel_size)
        self.stride, self.padding = stride, padding
        self.dilation, self.groups = dilation, groups
        self.hyper_net = HyperNetwork(
            embedding or nn.Linear(condition_features, embedding_features),
            embedding_features,
            (out_channels, in_channels // groups, *kernel),
            dropout=embedding_dropout,
            constant=constant,
            constant_bias=constant_bias,
        )

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`x [B, Cin, D, H, W]`, `condition [B, T]` → `[B, Cout, D', H', W']`."""
        return convolve(
            x,
            self.hyper_net(condition),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )


class HyperLinear(nn.Module):
    """A linear layer whose weights and bias are generated per sample.

    `layer(x [B, ..., Cin], condition [B, T]) -> [B, ..., Cout]`; arguments as in `HyperConv3d`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        condition_features: int,
        embedding_features: int = 8,
        embedding: nn.Module | None = None,
        embedding_dropout: float = 0.0,
        constant: bool = True,
        constant_bias: bool = True,
    ) -> None:
        super().__init__()
        self.hyper_net = HyperNetwork(
            embedding or nn.Linear(condition_features, embedding_features),
            embedding_features,
            (out_features, in_features),
            dropout=embedding_dropout,
            constant=constant,
            constant_bias=constant_bias,
        )

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`x [B, ..., Cin]`, `condition [B, T]` → `[B, ..., Cout]`."""
        return multiply(x, self.hyper_net(condition))


def is_low(rank: int | None, rows: int, columns: int) -> bool:
    """Whether `rank` is a rank, and less than that of any matrix of this size."""
    return rank is not None and rank < min(rows, columns)


class LowRank(nn.Module):
    """A convolution or linear layer whose generated part has a low rank.

        W(e) x + beta(e) = W0 x + U(e) V x + beta(e),   W as a matrix [Cout, Cin·k³]

    `static`: the layer of W0, ordinary weights. `filters`: V, r filters that all samples share.
    `mix`: the generated layer U(e) [Cout, r], beta(e), which has no constant part of its weights.
    It is linear in e, so it folds, and costs r filters and a pointwise layer instead of a generated
    convolution. `keep`: W0 is given, and stays as it is where layers are initialised.
    """

    def __init__(
        self,
        static: nn.Module,
        filters: nn.Module,
        mix: HyperConv3d | HyperLinear,
        *,
        keep: bool = False,
    ) -> None:
        super().__init__()
        self.static, self.filters, self.mix, self.keep = static, filters, mix, keep

    @property
    def hyper_net(self) -> HyperNetwork:
        """The generators of U and beta."""
        return self.mix.hyper_net

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """As that of `HyperConv3d` or `HyperLinear`."""
        y: Tensor = self.static(x) + self.mix(self.filters(x), condition)
        return y


def conditioned(layer: nn.Module, x: Tensor, condition: Tensor) -> Tensor:
    """The output of `layer`, which takes the condition if it is generated."""
    if isinstance(layer, (HyperConv3d, HyperLinear, LowRank, Conditioned)):
        y: Tensor = layer(x, condition)
    elif isinstance(layer, nn.Conv3d) and layer.training and _bordered(layer):
        y = conv3d(x, layer.weight, layer.bias, layer.stride[0])
    else:
        y = layer(x)
    return y


def _bordered(layer: nn.Conv3d) -> bool:
    """Whether it is 3x3x3 with a border of one voxel, the same along all axes, and no more."""
    return (
        layer.kernel_size == (3, 3, 3)
        and layer.padding == (1, 1, 1)
        and layer.dilation == (1, 1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and len(set(layer.stride)) == 1
    )


class Conditioned(nn.Module):
    """Holds `layer` and hands the condition on if the layer takes one.

    The published checkpoints have this level in their names (`fc1.layer.weight`).
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """The layer's output."""
        return conditioned(self.layer, x, condition)

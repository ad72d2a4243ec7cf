"""Makes a network's convolutions and linear layers, those that its configuration names generated.

Each generated layer has an embedding of its own. They start alike, so one for all would do at
first; but each then learns what its layer needs, and the published brain-age network has it so.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from hyperfusion_rt.config import NetworkConfig
from hyperfusion_rt.models.layers import HyperConv3d, HyperLinear


class LayerFactory:
    """Makes layers by their names in `config.LAYERS`.

    Args:
        width: T, the length of a row of the table.
        size: K, the length of an embedding.
        embedding: makes an embedding `[B, T] -> [B, K]`.
    """

    def __init__(
        self, config: NetworkConfig, width: int, size: int, embedding: Callable[[], nn.Module]
    ) -> None:
        self.generated = frozenset(config.generated)
        self.width, self.size, self.embedding = width, size, embedding

    def conv(
        self,
        name: str,
        cin: int,
        cout: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        *,
        relu: bool = False,
    ) -> nn.Module:
        """A convolution `cin` → `cout` channels; `relu`: one follows."""
        # Made in either case: the random numbers of the layers behind it are then as they were.
        plain = nn.Conv3d(cin, cout, kernel, stride, padding)
        if name not in self.generated:
            return plain
        layer = HyperConv3d(
            cin,
            cout,
            kernel,
            stride=stride,
            padding=padding,
            condition_features=self.width,
            embedding_features=self.size,
            embedding=self.embedding(),
        )
        layer.hyper_net.before_relu = relu
        return layer

    def linear(self, name: str, size: int, out: int, *, relu: bool = False) -> nn.Module:
        """A linear layer of `size` → `out` numbers; `relu`: one follows."""
        if name not in self.generated:
            return nn.Linear(size, out)
        layer = HyperLinear(
            size,
            out,
            condition_features=self.width,
            embedding_features=self.size,
            embedding=self.embedding(),
        )
        layer.hyper_net.before_relu = relu
        return layer

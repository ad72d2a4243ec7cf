"""Makes a network's convolutions and linear layers, those that its configuration names generated.

Each generated layer has an embedding of its own. They start alike, so one for all would do at
first; but each then learns what its layer needs, and the published brain-age network has it so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from hyperfusion_rt.config import NetworkConfig
from hyperfusion_rt.models.layers import HyperConv3d, HyperLinear, LowRank, is_low


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
        self.config, self.generated = config, frozenset(config.generated)
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
        rank = self._rank(cout, cin * kernel**3)
        if not rank:
            hyper = HyperConv3d(cin, cout, kernel, stride=stride, padding=padding, **self._hyper())
            return self._starting(hyper, relu)
        return self._starting(
            LowRank(
                nn.Conv3d(cin, cout, kernel, stride, padding, bias=False),
                nn.Conv3d(cin, rank, kernel, stride, padding, bias=False),
                HyperConv3d(rank, cout, 1, constant=False, **self._hyper()),
            ),
            relu,
        )

    def linear(self, name: str, size: int, out: int, *, relu: bool = False) -> nn.Module:
        """A linear layer of `size` → `out` numbers; `relu`: one follows."""
        if name not in self.generated:
            return nn.Linear(size, out)
        rank = self._rank(out, size)
        if not rank:
            return self._starting(HyperLinear(size, out, **self._hyper()), relu)
        return self._starting(
            LowRank(
                nn.Linear(size, out, bias=False),
                nn.Linear(size, rank, bias=False),
                HyperLinear(rank, out, constant=False, **self._hyper()),
            ),
            relu,
        )

    def _rank(self, rows: int, columns: int) -> int | None:
        """The rank of what is generated of a matrix; None if it is that of any such matrix."""
        rank = self.config.generator_rank
        return rank if is_low(rank, rows, columns) else None

    def _hyper(self) -> dict[str, Any]:
        return {
            "condition_features": self.width,
            "embedding_features": self.size,
            "embedding": self.embedding(),
            "embedding_dropout": self.config.embedding_dropout,
        }

    def _starting(
        self, layer: HyperConv3d | HyperLinear | LowRank, relu: bool
    ) -> HyperConv3d | HyperLinear | LowRank:
        """The layer, which knows what its initial weights depend on."""
        layer.hyper_net.gain = 2.0 if relu else 1.0
        layer.hyper_net.generated_part = self.config.generated_part
        return layer

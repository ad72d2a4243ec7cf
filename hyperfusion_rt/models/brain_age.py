"""The brain-age network: years from the whole brain, conditioned on sex (arXiv 2403.13319).

No padding anywhere; the published network generates its four linear layers. The attribute
names are those of the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from hyperfusion_rt.config import NetworkConfig, Shape
from hyperfusion_rt.data.encoder_columns import InputColumn, width_of
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.models.factory import LayerFactory
from hyperfusion_rt.models.layers import Conditioned, conditioned
from hyperfusion_rt.models.meeting import meeting
from hyperfusion_rt.models.norm import norm_relu


def flat_features(features: int, shape: Shape) -> int:
    """The length of the flattened features for a volume of `shape`.

    Raises:
        ConfigError: the volume is too small for three stages of two 3x3x3 convolutions.
    """
    sizes = list(shape)
    for _ in range(3):
        sizes = [(size - 4) // 2 for size in sizes]
    if min(sizes) < 1:
        raise ConfigError(
            f"the brain-age network needs at least 36 voxels along each axis, not {shape}",
            code="model-volume-too-small",
        )
    return 4 * features * math.prod(sizes)


class BrainAgeNetwork(nn.Module):
    """`forward(image [B, C, D, H, W], tabular [B, T]) -> [B, outputs]`.

    `columns`: of the table, T inputs in all. `channels`: C, the images of a case. `fusion`: `hyper`
    generates the layers `config.generated`; `film`, `daft`, `tabmixer` and `attention` change the
    input of `config.place`, `concat` joins the row to it; `image` ignores the table.
    """

    def __init__(
        self,
        config: NetworkConfig,
        *,
        shape: Shape,
        columns: Sequence[InputColumn],
        outputs: int,
        channels: int = 1,
    ) -> None:
        super().__init__()
        tabular_width = width_of(columns)
        f, momentum = config.features, config.bn_momentum
        stages = ((channels, f), (f, 2 * f), (2 * f, 4 * f))
        make = LayerFactory(config, tabular_width, 1, lambda: nn.Linear(tabular_width, 1))
        self.conv1_a, self.conv2_a, self.conv3_a = (
            make.conv(f"conv{n}_a", i, o, 3, relu=True) for n, (i, o) in enumerate(stages, 1)
        )
        self.conv1_b, self.conv2_b, self.conv3_b = (
            make.conv(f"conv{n}_b", o, o, 3, relu=True) for n, (_, o) in enumerate(stages, 1)
        )
        self.batchnorm1, self.batchnorm2, self.batchnorm3 = (
            nn.BatchNorm3d(o, momentum=momentum) for _, o in stages
        )
        self.pool = nn.MaxPool3d(2)
        self.drop = nn.Dropout3d(0.2 * config.dropout)
        sizes = {"stage2": f, "stage3": 2 * f, "features": flat_features(f, shape), "linear2": 16}
        self.place = config.place
        if self.place:
            self.affine, sizes[self.place] = meeting(
                config, sizes[self.place], columns, volume=self.place.startswith("stage")
            )

        self.linear1 = Conditioned(make.linear("linear1", sizes["features"], 16, relu=True))
        self.linear2 = Conditioned(make.linear("linear2", sizes["linear2"], 32, relu=True))
        self.linear3 = Conditioned(make.linear("linear3", 32, 64, relu=True))
        self.final_layer = Conditioned(make.linear("final_layer", 64, outputs))

    def forward(self, image: Tensor, tabular: Tensor) -> Tensor:
        """`image [B, C, D, H, W]`, `tabular [B, T]` → `[B, outputs]`."""
        x = self._stage(1, image, tabular)
        x = self._stage(2, self._met("stage2", x, tabular), tabular)
        x = self._stage(3, self._met("stage3", x, tabular), tabular)
        x = self._met("features", self.drop(x).flatten(1), tabular)
        x = self.linear1(x, tabular).relu()
        x = self.linear2(self._met("linear2", x, tabular), tabular).relu()
        x = self.linear3(x, tabular).relu()
        result: Tensor = self.final_layer(x, tabular)
        return result

    def _stage(self, n: int, x: Tensor, tabular: Tensor) -> Tensor:
        for part in "ab":
            x = conditioned(getattr(self, f"conv{n}_{part}"), x, tabular).relu()
        return norm_relu(getattr(self, f"batchnorm{n}"), self.pool(x), relu=False)

    def _met(self, place: str, x: Tensor, tabular: Tensor) -> Tensor:
        """The features `x` at a place, with the table where they meet it."""
        return self.affine(x, tabular) if place == self.place else x

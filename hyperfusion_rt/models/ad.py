"""The AD network: CN / MCI / AD from a hippocampal crop and the table (arXiv 2403.13319).

Pre-activation residual blocks; the published network generates the last block's shortcut. The
attribute names are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hyperfusion_rt.config import PLACES, Fusion, NetworkConfig, Shape
from hyperfusion_rt.data.encoder_columns import InputColumn, width_of
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.models.factory import LayerFactory
from hyperfusion_rt.models.layers import Conditioned, conditioned, tabular_embedding
from hyperfusion_rt.models.meeting import meeting
from hyperfusion_rt.models.norm import norm_relu


def check_shape(shape: Shape) -> None:
    """Refuse a volume that the first pooling would leave empty; all else pads.

    Raises:
        ConfigError: fewer than 2 voxels along an axis.
    """
    if min(shape) < 2:
        raise ConfigError(
            f"the AD network needs at least 2 voxels along each axis, not {shape}",
            code="model-volume-too-small",
        )


class Block(nn.Module):
    """`conv2(drop(relu(bn2(conv1(drop(relu(bn1(x)))))))) + shortcut(x)`, convolutions 3x3x3.

    The shortcut is BN, then a 1x1x1 convolution. `name`: the block's, for the layers in it.
    """

    def __init__(
        self,
        make: LayerFactory,
        name: str,
        cin: int,
        cout: int,
        stride: int,
        dropout: float,
        momentum: float,
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm3d(cin, momentum=momentum)
        self.conv1 = make.conv(f"{name}.conv1", cin, cout, 3, stride, 1, relu=True)
        self.bn2 = nn.BatchNorm3d(cout, momentum=momentum)
        self.conv2 = make.conv(f"{name}.conv2", cout, cout, 3, 1, 1)
        self.drop = nn.Dropout3d(dropout)
        self.downsample = nn.Sequential(
            nn.BatchNorm3d(cin, momentum=momentum),
            make.conv(f"{name}.downsample.1", cin, cout, 1, stride),
        )

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`x [B, Cin, D, H, W]`, `condition [B, T]` → `[B, Cout, D/stride, H/stride, W/stride]`."""
        y = conditioned(self.conv1, norm_relu(self.bn1, x, drop=self.drop), condition)
        y = conditioned(self.conv2, norm_relu(self.bn2, y, drop=self.drop), condition)
        norm, conv = self.downsample
        return y + conditioned(conv, norm_relu(norm, x, relu=False), condition)


class LastBlock(nn.Module):
    """As `Block` with stride 2, but the shortcut is a convolution and then BN."""

    def __init__(
        self, make: LayerFactory, cin: int, cout: int, dropout: float, momentum: float
    ) -> None:
        super().__init__()
        shortcut = make.conv("block4.downsample.0", cin, cout, 1, 2)
        self.bn1 = nn.BatchNorm3d(cin, momentum=momentum)
        self.conv1 = Conditioned(make.conv("block4.conv1", cin, cout, 3, 2, 1, relu=True))
        self.bn2 = nn.BatchNorm3d(cout, momentum=momentum)
        self.conv2 = Conditioned(make.conv("block4.conv2", cout, cout, 3, 1, 1))
        self.drop = nn.Dropout3d(dropout)
        self.downsample = nn.ModuleList(
            [Conditioned(shortcut), nn.BatchNorm3d(cout, momentum=momentum)]
        )

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """`x [B, Cin, D, H, W]`, `condition [B, T]` → `[B, Cout, D/2, H/2, W/2]`."""
        y = self.conv1(norm_relu(self.bn1, x, drop=self.drop), condition)
        y = self.conv2(norm_relu(self.bn2, y, drop=self.drop), condition)
        conv, norm = self.downsample
        result: Tensor = y + norm_relu(norm, conv(x, condition), relu=False)
        return result


class ADNetwork(nn.Module):
    """`forward(image [B, C, D, H, W], tabular [B, T]) -> [B, outputs]`: logits, or numbers.

    `columns`: of the table, T inputs in all. `channels`: C, the images of a case; a volume may have
    any size. `fusion`: where the table comes in: `hyper` generates the layers `config.generated`;
    `film`, `daft`, `tabmixer` and `attention` change the input of `config.place`, `concat` joins
    the row to it; `image` ignores the table.
    """

    def __init__(
        self,
        config: NetworkConfig,
        *,
        columns: Sequence[InputColumn],
        outputs: int,
        channels: int = 1,
    ) -> None:
        super().__init__()
        tabular_width = width_of(columns)
        f, momentum, rate = config.features, config.bn_momentum, config.dropout
        self.fusion: Fusion = config.fusion
        make = LayerFactory(
            config,
            tabular_width,
            config.embedding,
            lambda: tabular_embedding(tabular_width, config.embedding, config.embedding_slope),
        )
        self.conv_bn_relu = nn.Sequential(
            make.conv("conv_bn_relu.0", channels, f, 3, padding=1, relu=True),
            nn.BatchNorm3d(f, momentum=momentum),
            nn.ReLU(),
        )
        self.max_pool3d_1 = nn.MaxPool3d(2)
        self.block1 = Block(make, "block1", f, 2 * f, 1, 0.1 * rate, momentum)
        self.block2 = Block(make, "block2", 2 * f, 4 * f, 2, 0.2 * rate, momentum)
        self.block3 = Block(make, "block3", 4 * f, 8 * f, 2, 0.2 * rate, momentum)
        self.place, features = config.place, 16 * f
        if self.place == "features":
            self.affine, features = meeting(config, features, columns, volume=False)
        elif self.place:
            channels = f * 2 ** PLACES["ad"].index(self.place)
            self.affine, _ = meeting(config, channels, columns, volume=True)
        self.block4 = LastBlock(make, 8 * f, 16 * f, 0.3 * rate, momentum)
        self.drop1, self.drop2 = nn.Dropout(0.6 * rate), nn.Dropout(0.5 * rate)
        self.fc1 = Conditioned(make.linear("fc1", features, 4 * f, relu=True))
        self.fc2 = Conditioned(make.linear("fc2", 4 * f, outputs))

    def forward(self, image: Tensor, tabular: Tensor) -> Tensor:
        """`image [B, C, D, H, W]`, `tabular [B, T]` → `[B, outputs]`."""
        conv, norm, _ = self.conv_bn_relu
        x = norm_relu(norm, conditioned(conv, image, tabular), pool=self.max_pool3d_1)
        for place in PLACES["ad"][:-1]:
            x = getattr(self, place)(self._met(place, x, tabular), tabular)
        x = self._met("features", x.mean((2, 3, 4)), tabular)
        x = self.fc1(self.drop1(x), tabular).relu()
        logits: Tensor = self.fc2(self.drop2(x), tabular)
        return logits

    def _met(self, place: str, x: Tensor, tabular: Tensor) -> Tensor:
        """The features `x` at a place, with the table where they meet it."""
        return self.affine(x, tabular) if place == self.place else x

"""One registry of networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from hyperfusion_rt.config import Config, NetworkConfig, Shape
from hyperfusion_rt.data.encoder_columns import InputColumn
from hyperfusion_rt.models.ad import ADNetwork, check_shape
from hyperfusion_rt.models.attention import columns_alone
from hyperfusion_rt.models.baselines import TabularNetwork
from hyperfusion_rt.models.brain_age import BrainAgeNetwork
from hyperfusion_rt.models.distribution import Distribution
from hyperfusion_rt.models.gaussian import Gaussian


def build_network(
    config: NetworkConfig,
    *,
    shape: Shape,
    tabular_width: int,
    outputs: int,
    channels: int = 1,
    columns: Sequence[InputColumn] = (),
    place: Path = Path(),
) -> nn.Module:
    """The network that `config` names, with PyTorch's initial weights.

    `forward(image [B, channels, *shape], tabular [B, T]) -> [B, outputs]`.

    Args:
        columns: which of the T inputs belong to one column of the table; none: each is one.
        place: the folder that a file in `network.import` is seen from.

    Raises:
        ConfigError: the volume is too small for the network, or it cannot be imported.
    """
    columns = columns or columns_alone(tabular_width)
    if config.fusion == "tabular":
        return TabularNetwork(tabular_width, outputs, config.embedding, config.embedding_slope)
    if config.imported is not None:
        from hyperfusion_rt.models.own import build_own

        return build_own(
            config, place, shape=shape, width=tabular_width, outputs=outputs, channels=channels
        )
    if config.architecture == "ad":
        check_shape(shape)
        return ADNetwork(config, columns=columns, outputs=outputs, channels=channels)
    return BrainAgeNetwork(config, shape=shape, columns=columns, outputs=outputs, channels=channels)


def network_of(
    config: Config,
    tabular_width: int,
    columns: Sequence[InputColumn] = (),
    place: Path = Path(),
) -> nn.Module:
    """The network that a whole configuration describes, for a table of this width.

    `columns`: as of `build_network`; of an encoder: its `input_columns`. `place`: as there; of a
    run: its `Run.network`.

    Raises:
        ConfigError: the volume is too small for the network, or it cannot be imported.
    """
    bins, deviates = bins_count(config), answers_sd(config)
    network = build_network(
        config.network,
        shape=config.preprocessing.shape,
        tabular_width=tabular_width,
        outputs=raw_outputs_count(config),
        channels=len(config.preprocessing.channels),
        columns=columns,
        place=place,
    )
    if deviates:
        return Gaussian(network)
    return Distribution(network, bins) if bins else network


def outputs_count(config: Config) -> int:
    """The number of outputs: classes, or one number."""
    return len(config.tabular.classes) or 1


def raw_outputs_count(config: Config) -> int:
    """The outputs of the network itself: of a number perhaps bins, or the number and its SD."""
    return bins_count(config) or (2 if answers_sd(config) else outputs_count(config))


def bins_count(config: Config) -> int:
    """The bins of a number that is the mean of a distribution; 0: it is answered as it is.

    The table's own network has none.
    """
    binned = config.training.loss == "bins" and config.network.fusion != "tabular"
    return config.training.bins if binned else 0


def answers_sd(config: Config) -> bool:
    """Whether the network answers a number's standard deviation, too; the table's own does not."""
    return config.training.loss == "gaussian" and config.network.fusion != "tabular"


def image_shape(config: Config) -> tuple[int, ...]:
    """Of one box: `[C, D, H, W]`, C images of a case."""
    return len(config.preprocessing.channels), *config.preprocessing.shape

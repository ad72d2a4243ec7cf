"""A run made from somebody else's weights, so that it exports like one that was trained here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from hyperfusion_rt.config import Channel, Config, Feature, NetworkConfig, preset
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.data.table_file import read_table
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.files import replacing, write_text
from hyperfusion_rt.models import network_of
from hyperfusion_rt.models.checkpoint import describe_state, read_state
from hyperfusion_rt.training.run_folder import Run


def run_from_state(
    state: dict[str, Tensor],
    config: Config,
    encoder: TabularEncoder,
    parent: Path,
    *,
    name: str,
    source: str,
) -> Run:
    """Write the run `parent/name` with these weights, after they have been loaded once.

    Raises:
        ConfigError: the weights do not fit the network that `config` describes.
    """
    network = network_of(config, encoder.width, encoder.input_columns)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(
            f"{source}: does not fit preset '{config.preset}': {error}", code="checkpoint-mismatch"
        ) from None
    from safetensors.torch import save_file

    run = Run.create(parent, config, name)
    member = run.member(0)
    write_text(member.folder / "encoder.json", encoder.model_dump_json(indent=2))
    with replacing(member.weights) as temporary:
        save_file({key: value.contiguous() for key, value in state.items()}, temporary)
    run.write_metrics({"imported_from": source})
    return run


def import_checkpoint(
    path: Path, parent: Path, *, name: str | None = None, table: Path | None = None
) -> Run:
    """Make a run from a checkpoint with the published networks' layer names.

    Without `table`, the run's encoder expects columns x0, x1, ... that are encoded already, as the
    checkpoint's authors did it. With `table`, the preset's encoder is fitted on that table: right
    only if the checkpoint was trained with the same columns, in the same order. The images of a
    network that takes several are expected as files `*_channel0.nii.gz`, `*_channel1.nii.gz`, ...

    Raises:
        ConfigError: not such a checkpoint, or the table gives another number of inputs.
        TableError: the table cannot be used.
    """
    state = read_state(path)
    network, width, outputs, channels, _ = describe_state(state)
    if table is not None:
        spec = preset(network.architecture).tabular
        encoder = TabularEncoder.fit(read_table(table).rows, spec)
        if encoder.width != width:
            raise ConfigError(
                f"{path}: the network reads {width} table inputs, but {table} encodes to "
                f"{encoder.width} ({', '.join(encoder.names)}); leave the table out to give "
                "encoded columns yourself",
                code="checkpoint-mismatch",
            )
        config = _config(network, outputs, channels, None)
    else:
        encoder = TabularEncoder.passthrough(width)
        config = _config(network, outputs, channels, encoder)
    return run_from_state(
        state, config, encoder, parent, name=name or f"imported-{path.stem}", source=path.name
    )


def _config(
    network: NetworkConfig, outputs: int, channels: int, encoder: TabularEncoder | None
) -> Config:
    change: dict[str, Any] = {"network": network.model_dump(), "training": {"members": 1}}
    if encoder is not None:
        features = [Feature(name=name, kind="numeric").model_dump() for name in encoder.names]
        change["tabular"] = {"features": features, "stratify": ()}
    if channels > 1:  # a checkpoint does not say what it saw in which channel
        names = [f"channel{i}" for i in range(channels)]
        images = [Channel(name=n, files=f"*_{n}.nii.gz", t1_weighted=False) for n in names]
        change["preprocessing"] = {"channels": [image.model_dump() for image in images]}
    classes = preset(network.architecture).tabular.classes
    if outputs != (len(classes) or 1):
        made = {f"class{i}": (f"class{i}",) for i in range(outputs)} if outputs > 1 else {}
        change["tabular"] = {**change.get("tabular", {}), "classes": made}
    return preset(network.architecture, change)

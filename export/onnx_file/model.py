"""A graph as ONNX with a dynamic batch axis.

A generated layer is written in the shared form, `Σ_k ẽ_k (G̃_k ∗ x)`: ONNX's Conv takes no weights
per sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.errors import HyperFusionError, MissingExtraError
from hyperfusion_rt.export.ir.ensemble import Ensemble
from hyperfusion_rt.export.ir.graph import TABLE, Graph
from hyperfusion_rt.export.ir.typed import Typed
from hyperfusion_rt.export.onnx_file.nodes import WRITERS
from hyperfusion_rt.export.onnx_file.table import add_encoders, table_inputs
from hyperfusion_rt.export.onnx_file.writer import Writer
from hyperfusion_rt.files import replacing

FP32 = Typed("fp32")


def write_onnx(
    content: Graph | Ensemble,
    path: Path,
    typed: Typed = FP32,
    part: Literal["whole", "trunk", "head"] = "whole",
    encoders: Sequence[TabularEncoder] = (),
) -> None:
    """Write `content`. Inputs and outputs are float32 and keep their names; the batch axis is
    `batch`.

    Args:
        typed: its nodes have its narrow type inside.
        part: of an ensemble. The trunk takes a case's image and makes its features.
        encoders: of the members; a head with them takes the raw table (see `table_onnx`).

    Raises:
        MissingExtraError: onnx is not installed.
        HyperFusionError: the model is beyond ONNX's limit of 2 GB.
    """
    try:
        import onnx
    except ImportError:
        raise MissingExtraError("onnx", "train", "the export to ONNX") from None
    writer = Writer(typed, WRITERS)
    if isinstance(content, Graph):
        writer.add(content)
        model = writer.model(content.inputs, content.outputs, content.shapes)
    elif part == "trunk":
        made = [name for name in content.trunk.outputs if name not in content.trunk.inputs]
        inputs = {name: content.inputs[name] for name in content.trunk.inputs}
        writer.trunk(content, made)
        model = writer.model(inputs, made, content.head.shapes)
    else:
        head = content.head
        inputs = dict(head.inputs if part == "head" else content.inputs)
        raw = table_inputs(encoders[0]) if encoders else {}
        if encoders:
            add_encoders(writer, encoders, TABLE)
            del inputs[TABLE]
        if part == "whole":
            writer.trunk(content)
        writer.add(head)
        model = writer.model(inputs, head.outputs, head.shapes, raw)
    try:
        onnx.checker.check_model(model, full_check=True)
        serialized = model.SerializeToString()
    except ValueError as error:
        raise HyperFusionError(
            f"{path.name}: cannot be written as ONNX: {error}", code="export-not-onnx"
        ) from None
    with replacing(path) as temporary:
        temporary.write_bytes(serialized)

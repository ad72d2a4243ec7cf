"""The table's encoder as ONNX operations: raw values in, the networks' numbers out.

    table.AGE     double [B, 1], NaN where missing
    table.SEX     string [B, 1], a category as the encoder spells it, "" where missing

Imputation, one-hot and standardisation as `hyperfusion_rt.data.encoder.TabularEncoder`, in double.
A graph cannot refuse: what the encoder would refuse (another category, a gap that nothing fills)
makes NaN, and so does every number that depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.data.encoder_columns import CategoricalColumn, Column
from hyperfusion_rt.data.table_file import LARGEST
from hyperfusion_rt.export.onnx_file.writer import Writer


def input_name(column: Column) -> str:
    """The name of a column's input."""
    return f"table.{column.name}"


def table_inputs(encoder: TabularEncoder) -> dict[str, int]:
    """Name → ONNX type of every raw input, each `[B, 1]`."""
    from onnx import TensorProto

    return {
        input_name(column): int(
            TensorProto.STRING if isinstance(column, CategoricalColumn) else TensorProto.DOUBLE
        )
        for column in encoder.columns
    }


def add_encoders(w: Writer, encoders: Sequence[TabularEncoder], output: str) -> None:
    """Write the members' encoders; `output` is `float32 [B, ΣT]`, their rows in turn."""
    rows = [_add(w, encoder, f"encode{i}") for i, encoder in enumerate(encoders)]
    w.op("Concat", rows, output, axis=1)


def _add(w: Writer, encoder: TabularEncoder, p: str) -> str:
    """One member's row, `float32 [B, T]`."""
    from onnx import TensorProto

    parts, gaps = [], []
    for index, column in enumerate(encoder.columns):
        x, q = input_name(column), f"{p}.{index}"
        if isinstance(column, CategoricalColumn):
            values, gap = _one_hot(w, column, x, q)
        else:
            gap = w.op("IsNaN", [x], f"{q}.gap")
            # Infinity has no use below, and becomes NaN there.
            size = w.op("Abs", [x], f"{q}.size")
            limit = w.typed_constant(f"{q}.limit", np.array([[LARGEST]]))
            beyond = w.op("Greater", [size, limit], f"{q}.beyond")
            refused = w.typed_constant(f"{q}.refused", np.array([[np.inf]]))
            values = w.op("Where", [beyond, refused, x], f"{q}.values")
        parts.append(values)
        gaps.append(w.op("Cast", [gap], f"{q}.flag", to=TensorProto.DOUBLE))
    raw = w.op("Concat", parts, f"{p}.raw", axis=1)
    # A number's fill; whatever else is NaN stays so.
    fills = np.array(
        [
            np.nan if isinstance(c, CategoricalColumn) or c.fill is None else c.fill
            for c in encoder.owners
        ]
    )
    missing = w.op("IsNaN", [raw], f"{p}.missing")
    fill = w.typed_constant(f"{p}.fill", fills[None])
    filled = w.op("Where", [missing, fill, raw], f"{p}.filled")
    if encoder.steps:
        filled = _chained(w, encoder, filled, missing, p)
    _, mean, std = encoder.affine
    centred = w.op("Sub", [filled, w.typed_constant(f"{p}.mean", mean[None])], f"{p}.centred")
    scaled = w.op("Div", [centred, w.typed_constant(f"{p}.std", std[None])], f"{p}.scaled")
    everything = w.op("Concat", [scaled, *gaps], f"{p}.all", axis=1)
    order = w.constant(f"{p}.order", encoder.order.astype(np.int64))
    chosen = w.op("Gather", [everything, order], f"{p}.chosen", axis=1)
    return w.op("Cast", [chosen], f"{p}.row", to=TensorProto.FLOAT)


def _one_hot(w: Writer, column: CategoricalColumn, x: str, q: str) -> tuple[str, str]:
    """`double [B, categories]` and `bool [B, 1]`, whether the value is missing."""
    from onnx import TensorProto

    names = np.array(column.categories, dtype=object)[None]
    equal = w.op("Equal", [x, w.typed_constant(f"{q}.names", names)], f"{q}.equal")
    numbers = w.op("Cast", [equal], f"{q}.numbers", to=TensorProto.DOUBLE)
    axis = w.constant(f"{q}.axis", np.array([1], np.int64))
    count = w.op("ReduceSum", [numbers, axis], f"{q}.count", keepdims=1)
    half = w.typed_constant(f"{q}.half", np.array([[0.5]]))
    known = w.op("Greater", [count, half], f"{q}.known")
    unknown = w.typed_constant(f"{q}.unknown", np.array([[np.nan]]))
    checked = w.op("Where", [known, numbers, unknown], f"{q}.checked")
    empty = w.typed_constant(f"{q}.empty", np.array([[""]], dtype=object))
    is_empty = w.op("Equal", [x, empty], f"{q}.is_empty")
    # A category may itself be the empty text.
    gap = w.op("And", [is_empty, w.op("Not", [known], f"{q}.not_known")], f"{q}.gap")
    mode = np.array([[float(name == column.mode) for name in column.categories]])
    values = w.op("Where", [gap, w.typed_constant(f"{q}.mode", mode), checked], f"{q}.values")
    return values, gap


def _chained(w: Writer, encoder: TabularEncoder, filled: str, missing: str, p: str) -> str:
    """The imputer's steps in turn, as one Scan: the state is the row, `double [B, C]`."""
    from onnx import TensorProto, helper

    count = len(encoder.owners)
    steps = encoder.steps
    targets = np.zeros((len(steps), 1, count), bool)
    for index, step in enumerate(steps):
        targets[index, 0, step.target] = True
    scanned: dict[str, Any] = {
        "target": targets,
        "coefficients": np.array([s.coefficients for s in steps], np.float64)[:, :, None],
        "intercept": np.array([s.intercept for s in steps], np.float64)[:, None, None],
        "low": np.array([s.low for s in steps], np.float64)[:, None, None],
        "high": np.array([s.high for s in steps], np.float64)[:, None, None],
    }
    inside = {name: f"{p}.step.{name}" for name in ("row", *scanned)}

    def node(kind: str, inputs: list[str], output: str) -> Any:
        return helper.make_node(kind, inputs, [output], name=output)

    q = f"{p}.step"
    body = helper.make_graph(
        [
            node("MatMul", [inside["row"], inside["coefficients"]], f"{q}.product"),
            node("Add", [f"{q}.product", inside["intercept"]], f"{q}.value"),
            node("Max", [f"{q}.value", inside["low"]], f"{q}.at_least"),
            node("Min", [f"{q}.at_least", inside["high"]], f"{q}.clipped"),
            node("And", [missing, inside["target"]], f"{q}.here"),
            node("Where", [f"{q}.here", f"{q}.clipped", inside["row"]], f"{q}.next"),
        ],
        f"{p}.steps",
        [
            helper.make_tensor_value_info(inside["row"], TensorProto.DOUBLE, ["batch", count]),
            *(
                helper.make_tensor_value_info(
                    inside[name],
                    TensorProto.BOOL if name == "target" else TensorProto.DOUBLE,
                    array.shape[1:],
                )
                for name, array in scanned.items()
            ),
        ],
        [helper.make_tensor_value_info(f"{q}.next", TensorProto.DOUBLE, ["batch", count])],
    )
    inputs = [w.typed_constant(f"{p}.steps.{name}", array) for name, array in scanned.items()]
    output = f"{p}.imputed"
    return w.op("Scan", [filled, *inputs], output, body=body, num_scan_inputs=len(inputs))

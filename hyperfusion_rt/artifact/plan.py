"""The plan: what an engine does, as data. Written at export, read by the native engine."""

from __future__ import annotations

import json
import mmap
import struct
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.errors import EngineError
from hyperfusion_rt.files import replacing

FORMAT = "hfrt-plan-2"
ENSEMBLE = ("members", "boxes", "classes", "rule")  # an ensemble's attributes, in this order


@dataclass
class Op:
    """One fused operation. Shapes are per sample: `[C, D, H, W]` or `[F]`."""

    op: str
    inputs: list[str]
    output: str
    shape: tuple[int, ...]
    attrs: dict[str, Any]
    tensors: dict[str, str]  # role → name in the file
    layer: str
    gflop: float
    megabytes: float


@dataclass
class Program:
    """Operations in the order in which they run."""

    inputs: dict[str, tuple[int, ...]]
    ops: list[Op]
    outputs: list[str]


@dataclass
class Plan:
    """`trunk(image) → features`, `head(features, tabular) → output`.

    Attributes:
        precision: fp32, or bf16: volumes are stored in bfloat16, and convolutions that are not
            one-channel, depthwise or Winograd (but see `pairs`) multiply bfloat16 numbers; sums,
            vectors and everything else are float32.
        boxes: N of a case; see `hyperfusion_rt.export.ir.ensemble`. The trunk runs on each of them.
    """

    trunk: Program
    head: Program
    tensors: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    precision: str = "fp32"
    boxes: int = 1


def write_plan(plan: Plan, path: Path) -> None:
    """Write a safetensors file: float32 tensors, and the plan as JSON in the metadata."""
    body: dict[str, Any] = {part: asdict(getattr(plan, part)) for part in ("trunk", "head")}
    body["precision"], body["boxes"] = plan.precision, plan.boxes
    header: dict[str, Any] = {"__metadata__": {"format": FORMAT, "plan": json.dumps(body)}}
    offset = 0
    for name, array in plan.tensors.items():
        size = array.size * 4
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)  # tensors start on a cache line
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for array in plan.tensors.values():
            file.write(np.ascontiguousarray(array, dtype="<f4").tobytes())


def read_plan(path: Path) -> Plan:
    """Read a plan; its tensors are views of the memory-mapped file.

    Raises:
        EngineError: the file is no plan, or a damaged one.
    """
    try:
        with path.open("rb") as file:
            if path.stat().st_size < 8:
                raise EngineError(f"{path}: not an engine file: it has fewer than 8 bytes")
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return _parse(content)
    except EngineError as error:
        raise EngineError(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EngineError(f"{path}: not a native engine file, or a damaged one: {error}") from None


def _parse(content: mmap.mmap) -> Plan:
    (length,) = struct.unpack_from("<Q", content, 0)
    start = 8 + length
    if start > len(content):
        raise EngineError(f"a header of {length} bytes in a file of {len(content)}: truncated")
    header = json.loads(content[8:start].decode())
    metadata = header.pop("__metadata__")
    if metadata.get("format") != FORMAT:
        raise EngineError(
            f"format {metadata.get('format')!r}, but this version reads {FORMAT!r}; export it again"
        )
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, entry in header.items():
        begin, end = (int(x) for x in entry["data_offsets"])
        shape = tuple(int(n) for n in entry["shape"])
        count = 1
        for n in shape:
            count *= n
        if entry["dtype"] != "F32" or min(shape, default=1) < 0 or begin < 0:
            raise EngineError(f"tensor {name}: dtype {entry['dtype']}, shape {shape}")
        if end - begin != 4 * count or start + end > len(content):
            raise EngineError(
                f"tensor {name}: {shape} float32 at bytes {begin} to {end} of "
                f"{len(content) - start}: truncated or damaged"
            )
        array = np.frombuffer(content, "<f4", count, start + begin).reshape(shape)
        # A header of another program's making may leave the tensors unaligned.
        tensors[name] = array if array.flags.aligned else array.copy()
    body = json.loads(metadata["plan"])
    parts = _program(body["trunk"]), _program(body["head"])
    return Plan(*parts, tensors, body["precision"], int(body["boxes"]))


def _program(body: dict[str, Any]) -> Program:
    ops = [Op(**{**op, "shape": tuple(op["shape"])}) for op in body["ops"]]
    for op in ops:
        if not isinstance(op.attrs, dict) or not isinstance(op.tensors, dict):
            raise EngineError(f"operation {op.output}: attributes and tensors must be objects")
    inputs = {str(name): tuple(int(n) for n in shape) for name, shape in body["inputs"].items()}
    return Program(inputs, ops, [str(name) for name in body["outputs"]])


def check_plan(plan: Plan) -> None:
    """Raise an EngineError where the parts of a plan do not fit together."""
    given = {"image", "tabular"}
    if plan.boxes < 1:
        raise EngineError(f"a case of {plan.boxes} boxes")
    for name, part in (("trunk", plan.trunk), ("head", plan.head)):
        missing = sorted(set(part.inputs) - given)
        if missing:
            raise EngineError(f"the {name} reads {missing}, which nothing makes")
        if part.ops:
            given |= set(part.outputs)
    if not plan.head.outputs or not given.issuperset(plan.head.outputs):
        raise EngineError(f"the plan's outputs are {plan.head.outputs}, not what it makes")


def split_boxes(x: Any, boxes: int) -> Any:
    """`[B, N·C, ...]` of cases → `[B·N, C, ...]` of their boxes."""
    return x.reshape(len(x) * boxes, x.shape[1] // boxes, *x.shape[2:])


def join_boxes(x: Any, boxes: int) -> Any:
    """`[B·N, C, ...]` of boxes → `[B, N·C, ...]` of cases."""
    return x.reshape(len(x) // boxes, boxes * x.shape[1], *x.shape[2:])


def fitting(name: str, value: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """`value` as the input `name` of a program, `[B, *shape]`; an EngineError where it is not."""
    if value is None or np.shape(value)[1:] != shape:
        found = "nothing" if value is None else f"an array of shape {np.shape(value)}"
        wanted = ", ".join(str(n) for n in shape)
        raise EngineError(f"the network's {name} is [B, {wanted}], but it was given {found}")
    return np.ascontiguousarray(value, dtype=np.float32)

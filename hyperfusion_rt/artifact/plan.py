"""The plan: what an engine does, as data. Written at export, read by the native and torch engines.

The file is a safetensors file: float32 tensors, and the plan as JSON in its metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hyperfusion_rt.artifact.operations import TENSORS, AnyOperation, Extent, Positive
from hyperfusion_rt.errors import EngineError
from hyperfusion_rt.files import replacing

FORMAT = "hfrt-plan-2"


@dataclass(frozen=True)
class Program:
    """Operations in the order in which they run."""

    inputs: dict[str, Extent]
    ops: list[AnyOperation]
    outputs: list[str]


@dataclass(frozen=True)
class Side:
    """An input or output of a network as its author has it.

    Attributes:
        shape: without the batch, of any number of axes; the numbers are those of the value `name`,
            in the same order, but for channels that come last.
        last: the channels are the last axis.
    """

    name: str
    shape: tuple[Positive, ...]
    last: bool = False


@dataclass(frozen=True)
class Sides:
    """Those of a network that is no HyperFusion network, in its author's order."""

    inputs: tuple[Side, ...]
    outputs: tuple[Side, ...]


@dataclass(frozen=True)
class _Body:
    """The JSON of a plan, checked by these annotations and those of the operations."""

    __pydantic_config__: ClassVar = ConfigDict(strict=True, extra="forbid")

    trunk: Program
    head: Program
    precision: Literal["fp32", "bf16"]
    boxes: int
    sides: Sides | None = None


@dataclass(frozen=True)
class Plan:
    """`trunk(image) → features`, `head(features, tabular) → output`; or, with `sides`, any network,
    which is the trunk.

    Attributes:
        tensors: `float32`; those of a file are read when they are asked for.
        precision: fp32, or bf16: volumes are stored in bfloat16, and convolutions that are not
            planar, depthwise or Winograd (but see `pairs`) multiply bfloat16 numbers; sums,
            vectors and everything else are float32.
        boxes: N of a case; see `hyperfusion_rt.export.ir.ensemble`. The trunk runs on each of them.

    Raises:
        EngineError: its parts do not fit together.
    """

    trunk: Program
    head: Program
    tensors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    precision: str = "fp32"
    boxes: int = 1
    sides: Sides | None = None

    def __post_init__(self) -> None:
        _check(self)


def _check(plan: Plan) -> None:
    given = {"image", "tabular"}
    if plan.sides is not None:
        given = {side.name for side in plan.sides.inputs}
        made = {**plan.trunk.inputs}
        made |= {name: shape for op in plan.trunk.ops for name, shape in op.makes.items()}
        for side in (*plan.sides.inputs, *plan.sides.outputs):
            if math.prod(side.shape) != math.prod(made.get(side.name, ())):
                raise damaged(f"{side.name!r} is not {list(side.shape)}")
    if plan.boxes < 1:
        raise damaged(f"a case of {plan.boxes} boxes")
    for name, program in (("trunk", plan.trunk), ("head", plan.head)):
        missing = sorted(set(program.inputs) - given)
        if missing:
            raise damaged(f"the {name} reads {missing}, which nothing makes")
        if program.ops:
            _check_order(program, plan.tensors)
            given |= set(program.outputs)
    if not plan.head.outputs or not given.issuperset(plan.head.outputs):
        raise damaged(f"the plan's outputs are {plan.head.outputs}, not what it makes")


def _check_order(program: Program, tensors: Mapping[str, object]) -> None:
    """Every value is made once, before it is read, of tensors that are there."""
    made = set(program.inputs)

    def read(names: Iterable[str]) -> None:
        for name in names:
            if name not in made:
                raise damaged(f"the plan reads {name!r} before anything makes it")

    for op in program.ops:
        read(op.reads)
        for name in _tensors_of(op):
            if name not in tensors:
                raise damaged(f"the plan names the tensor {name!r}, which the file does not hold")
        for name in op.makes:
            if name in made:
                raise damaged(f"the plan makes {name!r} twice")
            made.add(name)
    read(program.outputs)


def _tensors_of(part: object) -> Iterator[str]:
    """The names of the tensors of an operation or of what was fused into it."""
    for role, value in vars(part).items():
        if role in TENSORS and value is not None:
            yield value
        elif is_dataclass(value):
            yield from _tensors_of(value)


def damaged(what: str) -> EngineError:
    """The error of a plan that cannot be what export wrote."""
    return EngineError(what, code="engine-file-damaged")


# --- the file -------------------------------------------------------------------------------------


def write_plan(plan: Plan, path: Path) -> None:
    """Write a safetensors file: float32 tensors, and the plan as JSON in the metadata.

    Raises:
        HyperFusionError: it cannot be written.
    """
    body = {
        "trunk": _program_to_json(plan.trunk),
        "head": _program_to_json(plan.head),
        "precision": plan.precision,
        "boxes": plan.boxes,
    }
    if plan.sides is not None:
        body["sides"] = asdict(plan.sides)
    metadata = {"format": FORMAT, "plan": json.dumps(body)}
    with replacing(path) as temporary:
        try:
            save_file(dict(plan.tensors), temporary, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from None


def read_plan(path: Path) -> Plan:
    """Read a plan and check it.

    Raises:
        EngineError: the file is no plan, or a damaged one.
    """
    try:
        tensors = _Tensors(path)
        return Plan(**vars(_body(tensors.metadata)), tensors=tensors)
    except OSError as error:
        raise EngineError(
            f"{path}: cannot be read: {error.strerror or error}", code="engine-file-unreadable"
        ) from None
    except EngineError as error:
        raise EngineError(f"{path}: {error}", code=error.code) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(f"{path}: not a native engine file, or a damaged one: {error}") from None


class _Tensors(Mapping[str, NDArray[np.float32]]):
    """The tensors of a file; each is a copy, made when it is asked for and not kept."""

    def __init__(self, path: Path) -> None:
        self._file = _opened(path)
        self.metadata: dict[str, str] = self._file.metadata() or {}
        self._names = frozenset(self._file.keys())
        for name in self._names:
            dtype = self._file.get_slice(name).get_dtype()
            if dtype != "F32":
                raise damaged(f"tensor {name}: dtype {dtype}, but a plan's tensors are F32")

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        if name not in self._names:
            raise KeyError(name)
        found: NDArray[np.float32] = self._file.get_tensor(name)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise damaged(f"not an engine file, or a damaged one: {error}") from None


def _body(metadata: dict[str, str]) -> _Body:
    if metadata.get("format") != FORMAT:
        raise EngineError(
            f"format {metadata.get('format')!r}, but this version reads {FORMAT!r}; "
            "export it again",
            code="engine-file-version",
        )
    body = json.loads(metadata["plan"])
    for part in ("trunk", "head"):
        body[part]["ops"] = [_operation_from_json(op) for op in body[part]["ops"]]
    try:
        # As JSON once more: only there is a list a tuple to a strict check.
        return _bodies().validate_json(json.dumps(body))
    except ValidationError as error:
        raise damaged(_in_words(error)) from None


@cache
def _bodies() -> TypeAdapter[_Body]:
    return TypeAdapter(_Body)


def _in_words(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    if first["type"] == "union_tag_invalid":
        return f"the plan has the operation {first['ctx']['tag']!r}, which this version lacks"
    where = ".".join(str(place) for place in first["loc"])
    return f"not an engine file, or a damaged one: {where}: {first['msg']}"


# In the file, the names of an operation's tensors are its `tensors`, its other fields its `attrs`;
# `nodes` is called `from`.
_COMMON = ("op", "inputs", "output", "shape", "layer", "gflop", "megabytes")


def _program_to_json(program: Program) -> dict[str, Any]:
    return {**vars(program), "ops": [_operation_to_json(op) for op in program.ops]}


def _operation_to_json(op: AnyOperation) -> dict[str, Any]:
    fields = asdict(op, dict_factory=_without_none)
    common = {name: fields.pop(name) for name in _COMMON}
    tensors = {role: fields.pop(role) for role in TENSORS if role in fields}
    if "shortcut" in fields:
        tensors["shortcut"] = fields["shortcut"].pop("weight")
    attrs = {"act": None, "from": fields.pop("nodes"), **fields}
    return {**common, "attrs": attrs, "tensors": tensors}


def _without_none(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in items if value is not None or name == "act"}


def _operation_from_json(op: dict[str, Any]) -> dict[str, Any]:
    attrs, tensors = dict(op["attrs"]), dict(op["tensors"])
    if "shortcut" in tensors:
        attrs["shortcut"] = {**attrs["shortcut"], "weight": tensors.pop("shortcut")}
    if attrs.get("act") is None:  # said by all, also by those that never have one
        attrs.pop("act", None)
    attrs["nodes"] = attrs.pop("from", [])
    return {**attrs, **tensors, **{name: op[name] for name in _COMMON}}


# --- what the engines share -----------------------------------------------------------------------


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
        raise EngineError(
            f"the network's {name} is [B, {wanted}], but it was given {found}",
            code="engine-wrong-input",
        )
    return np.ascontiguousarray(value, dtype=np.float32)

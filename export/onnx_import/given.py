"""What handlers of ONNX's operations get, and how they read it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.export.ir.builder import UnsupportedError, Value

Array = NDArray[Any]


@dataclass(frozen=True)
class Given:
    """What a node says besides its inputs.

    Attributes:
        attributes: by name; tensors as arrays.
        opset: the version of ONNX's operations.
        outputs: how many of its outputs have names.
        read: which of its outputs something reads.
    """

    attributes: dict[str, Any]
    opset: int
    outputs: int
    read: frozenset[int]

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)


@dataclass(frozen=True)
class Rows:
    """A value whose axes but the last became one with the batch, until they are parted again."""

    value: Value

    @property
    def shape(self) -> tuple[int, int]:
        """As the file has it."""
        *lead, width = self.value.shape
        return math.prod(lead), width


# What means the same of rows as of the value that they were.
ROW_BY_ROW = frozenset(
    {"MatMul", "Gemm", "Add", "Sub", "Mul", "Div", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Gelu",
     "Erf", "Softplus", "HardSigmoid", "HardSwish", "Elu", "Selu", "Clip", "Exp", "Sqrt", "Pow",
     "Identity", "Dropout", "Cast"}
)  # fmt: skip


def numbers(given: Any, what: str) -> list[int]:
    """Whole numbers of a constant."""
    if isinstance(given, Value) or given is None:
        raise UnsupportedError(f"with {what} that are computed from the input")
    return [int(n) for n in np.asarray(given).reshape(-1)]


def number(given: Any, what: str) -> float:
    """One finite number of a constant."""
    if isinstance(given, Value) or given is None or np.size(given) != 1:
        raise UnsupportedError(f"with a {what} that is not one number")
    found = float(np.asarray(given).reshape(-1)[0])
    if not math.isfinite(found):
        raise UnsupportedError(f"with a {what} that is {found}")
    return found


def axis_of(axis: Any, ndim: int) -> int:
    """An axis, counted from the front."""
    if not -ndim <= int(axis) < ndim:
        raise UnsupportedError(f"along the axis {axis} of {ndim}")
    return int(axis) % ndim

"""The native CPU engine: a plan, built into compiled kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt import _native
from hyperfusion_rt.artifact.plan import (
    ENSEMBLE,
    Op,
    Plan,
    Program,
    check_plan,
    fitting,
    join_boxes,
    read_plan,
    split_boxes,
)
from hyperfusion_rt.errors import EngineError
from hyperfusion_rt.machine import usable_cores

Floats = NDArray[np.float32]


class Part:
    """The trunk or the head of a plan: `part([x, ...]) -> [y, ...]`, each `[B, ...]` float32.

    Attributes:
        engine: the compiled engine, for its profile.
    """

    def __init__(
        self,
        program: Program,
        tensors: dict[str, Floats],
        threads: int,
        isa: str = "",
        precision: str = "fp32",
    ) -> None:
        self.program = program
        self.engine = _native.Engine(threads, isa, precision)
        if not program.ops:
            return
        self._tensors = tensors
        self._values: dict[str, int] = {}
        for name, shape in program.inputs.items():
            self._values[name] = self.engine.input(*_extent(shape))
        for op in program.ops:
            self._add(op)
        for name in program.outputs:
            self.engine.output(self._value(name))
        self.engine.finish()
        shapes = {**program.inputs, **{op.output: op.shape for op in program.ops}}
        for op in program.ops:
            if op.attrs.get("second"):
                shapes[op.attrs["second"]["output"]] = tuple(op.attrs["second"]["shape"])
        self._shapes = [tuple(shapes[name]) for name in program.outputs]

    def __call__(self, inputs: list[Floats]) -> list[Floats]:
        """Run a batch."""
        batch = len(inputs[0])
        outputs = [np.empty((batch, *shape), np.float32) for shape in self._shapes]
        self.engine.run(inputs, outputs)
        return outputs

    def _value(self, name: str) -> int:
        if name not in self._values:
            raise EngineError(f"the plan reads {name!r} before anything makes it")
        return self._values[name]

    def _tensor(self, name: str) -> Floats:
        if name not in self._tensors:
            raise EngineError(f"the plan names the tensor {name!r}, which the file does not hold")
        return self._tensors[name]

    def _act(self, act: dict[str, Any] | None) -> _native.Act | None:
        if act is None:
            return None
        slope = self._tensor(act["slope"]) if "slope" in act else None
        return str(act["kind"]), float(act.get("alpha", 0.0)), slope

    def _add(self, op: Op) -> None:
        handler = _HANDLERS.get(op.op)
        if handler is None:
            raise EngineError(f"the plan has the operation {op.op!r}, which this version lacks")
        try:
            value = handler(self, op)
        except EngineError:
            raise
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise EngineError(f"{op.op} {op.output!r} ({op.layer}): {error}") from None
        made = self.engine.shape(value)
        if tuple(made[: len(op.shape)]) != op.shape or made[len(op.shape) :] != [1] * (
            4 - len(op.shape)
        ):
            raise EngineError(f"{op.op} {op.output!r}: makes {made}, but the plan says {op.shape}")
        if op.output in self._values:
            raise EngineError(f"the plan makes {op.output!r} twice")
        self._values[op.output] = value


def _extent(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    if not 1 <= len(shape) <= 4 or len(shape) in (2, 3):
        raise EngineError(f"a shape must be [F] or [C, D, H, W], not {list(shape)}")
    c, *rest = shape
    d, h, w = rest or (1, 1, 1)
    return c, d, h, w


def _conv(part: Part, op: Op) -> int:
    a, engine = op.attrs, part.engine

    def mapped(key: str) -> Any:
        m = a.get(key)
        if not m:
            return None
        return part._tensor(m["scale"]), part._tensor(m["shift"]), part._act(m["act"])

    value = engine.conv(
        part._value(op.inputs[0]),
        part._tensor(op.tensors["bias"]).shape[-1],
        a["kernel"],
        list(a["stride"]),
        list(a["padding"]),
        list(a["dilation"]),
        part._tensor(op.tensors["weight"]),
        part._tensor(op.tensors["bias"]),
        bool(a["depthwise"]),
        condition=part._value(op.inputs[1]) if op.op == "hyper_conv" else None,
        prologue=mapped("prologue"),
        residual=part._value(a["residual"]) if a.get("residual") is not None else None,
        act=part._act(a["act"]),
        pool=bool(a.get("pool", False)),
        second=mapped("second"),
        tile=a.get("tile"),
        shortcut=(
            part._value(a["shortcut"]["input"]),
            list(a["shortcut"]["stride"]),
            part._tensor(op.tensors["shortcut"]),
        )
        if a.get("shortcut")
        else None,
        sparse=bool(a.get("sparse", False)),
        pairs=bool(a.get("pairs", False)),
    )
    if a.get("second"):
        part._values[a["second"]["output"]] = value + 1
    return value


def _pool(part: Part, op: Op) -> int:
    a = op.attrs
    return part.engine.pool(
        part._value(op.inputs[0]),
        list(a["kernel"]),
        list(a["stride"]),
        list(a["padding"]),
        list(a.get("dilation", (1, 1, 1))),
        op.op == "avg_pool",
        bool(a.get("count_include_pad", True)),
        bool(a.get("ceil_mode", False)),
    )


def _linear(part: Part, op: Op) -> int:
    weight, bias = part._tensor(op.tensors["weight"]), part._tensor(op.tensors["bias"])
    act, outputs = part._act(op.attrs["act"]), weight.shape[-1]
    x, *condition = (part._value(name) for name in op.inputs)
    if not condition:
        return part.engine.linear(x, outputs, weight, bias, act)
    return part.engine.hyper_linear(x, condition[0], outputs, weight, bias, act)


def _affine(part: Part, op: Op) -> int:
    scale, shift = (part._tensor(op.tensors[r]) if r in op.tensors else None for r in _MAP)
    x = part._value(op.inputs[0])
    return part.engine.affine(x, scale, shift, part._act(op.attrs["act"]))


def _reshape(part: Part, op: Op) -> int:
    x = part._value(op.inputs[0])
    c, *rest = part.engine.shape(x)
    # [C] and [C, 1, 1, 1] lie alike.
    if rest == [1, 1, 1] and op.shape[0] == c:
        return x
    if len(op.shape) != 1:
        raise EngineError(f"reshape of {[c, *rest]} to {op.shape}")
    return part.engine.flatten(x)


def _norm(part: Part, op: Op) -> int:
    scale, shift = (part._tensor(op.tensors[r]) for r in _MAP)
    x = part._value(op.inputs[0])
    return part.engine.instance_norm(
        x, scale, shift, float(op.attrs["eps"]), part._act(op.attrs["act"])
    )


_MAP = ("scale", "shift")
_HANDLERS: dict[str, Callable[[Part, Op], int]] = {
    "conv": _conv,
    "hyper_conv": _conv,
    "max_pool": _pool,
    "avg_pool": _pool,
    "linear": _linear,
    "hyper_linear": _linear,
    "affine": _affine,
    "instance_norm": _norm,
    "reshape": _reshape,
    "add": lambda p, o: p.engine.binary(
        p._value(o.inputs[0]), p._value(o.inputs[1]), False, p._act(o.attrs["act"])
    ),
    "mul": lambda p, o: p.engine.binary(
        p._value(o.inputs[0]), p._value(o.inputs[1]), True, p._act(o.attrs["act"])
    ),
    "concat": lambda p, o: p.engine.concat([p._value(name) for name in o.inputs]),
    "slice": lambda p, o: p.engine.slice(
        p._value(o.inputs[0]), int(o.attrs["start"]), int(o.attrs["stop"])
    ),
    "pad": lambda p, o: p.engine.pad(
        p._value(o.inputs[0]), list(o.attrs["before"]), list(o.attrs["after"])
    ),
    "one_and": lambda p, o: p.engine.one_and(p._value(o.inputs[0])),
    "combine": lambda p, o: p.engine.combine(
        p._value(o.inputs[0]), p._value(o.inputs[1]), p._act(o.attrs["act"])
    ),
    "softmax": lambda p, o: p.engine.softmax(p._value(o.inputs[0])),
    "ensemble": lambda p, o: p.engine.ensemble(
        p._value(o.inputs[0]), *(o.attrs[name] for name in ENSEMBLE)
    ),
    "global_avg_pool": lambda p, o: p.engine.global_pool(
        p._value(o.inputs[0]), list(o.attrs.get("stride", (1, 1, 1))), True
    ),
    "global_max_pool": lambda p, o: p.engine.global_pool(p._value(o.inputs[0]), [1, 1, 1], False),
    "adaptive_avg_pool": lambda p, o: p.engine.adaptive_pool(
        p._value(o.inputs[0]), list(o.attrs["size"]), True
    ),
    "adaptive_max_pool": lambda p, o: p.engine.adaptive_pool(
        p._value(o.inputs[0]), list(o.attrs["size"]), False
    ),
}


class NativeEngine:
    """Runs one plan on the CPU; see `hyperfusion_rt.runtime.engines.choose.Engine`.

    `trunk` and `head` can be called by themselves: many rows of a table against one scan cost one
    trunk and many heads. The environment's `HFRT_ISA` (avx2, avx512, avx512_bf16, neon) forces one
    set of instructions.

    Args:
        source: an engine file, or a plan.
        threads: None uses every core that the process may use.
    """

    def __init__(self, source: Path | Plan, threads: int | None = None) -> None:
        plan = source if isinstance(source, Plan) else read_plan(source)
        try:
            check_plan(plan)
            self.boxes = plan.boxes
            threads = threads or usable_cores()
            self.trunk = Part(plan.trunk, plan.tensors, threads, precision=plan.precision)
            # A head on vectors takes microseconds: a second thread would cost more than it does.
            volumes = any(len(op.shape) == 4 for op in plan.head.ops)
            self.head = Part(
                plan.head, plan.tensors, threads if volumes else 1, precision=plan.precision
            )
        except (EngineError, ValueError, TypeError, KeyError, AttributeError) as error:
            where = f"{source}: " if isinstance(source, Path) else ""
            raise EngineError(f"{where}{error}") from None

    def __call__(self, image: Floats, tabular: Floats | None = None) -> Floats:
        """Run one batch: `image [B, C, D, H, W]`, `tabular [B, T]` → the first output, `[B, F]`.

        Raises:
            EngineError: an input is missing or has another shape.
        """
        return self.run(image, tabular)[self.head.program.outputs[0]]

    def run(self, image: Floats, tabular: Floats | None = None) -> dict[str, Floats]:
        """As a call, with every output by its name."""
        return self.finish(self.features(image), tabular)

    def features(self, image: Floats) -> dict[str, Floats]:
        """The first part of `run`: what the head reads of `image [B, C, D, H, W]`, by name."""
        found = self._part(self.trunk, self.boxes, {"image": image})
        return {name: found[name] for name in self.head.program.inputs if name in found}

    def finish(self, features: dict[str, Floats], tabular: Floats | None) -> dict[str, Floats]:
        """The second part of `run`; `features` is what the first gave."""
        found = self._part(self.head, 1, {**features, "tabular": tabular})
        return {name: found[name] for name in self.head.program.outputs}

    def _part(self, part: Part, boxes: int, feed: dict[str, Any]) -> dict[str, Any]:
        if not part.program.ops:
            return feed
        inputs = []
        for name, (c, *extent) in part.program.inputs.items():
            value = fitting(name, feed[name], (boxes * c, *extent))
            inputs.append(split_boxes(value, boxes))
        made = [join_boxes(y, boxes) for y in part(inputs)]
        return {**feed, **dict(zip(part.program.outputs, made, strict=True))}

"""The native CPU engine: a plan, built into compiled kernels."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt import _native
from hyperfusion_rt.artifact.operations import (
    Activation,
    AdaptivePool,
    Affine,
    AffineMap,
    AnyConv,
    AnyOperation,
    AnyTransposed,
    Binary,
    ChannelNorm,
    Combine,
    Concat,
    Conv,
    ConvTranspose,
    Crop,
    Ensemble,
    GlobalNorm,
    GlobalPool,
    GroupNorm,
    HyperConv,
    HyperConvTranspose,
    HyperLinear,
    Linear,
    OneAnd,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Resize,
    Slice,
    Softmax,
    Transpose,
)
from hyperfusion_rt.artifact.plan import (
    Plan,
    Program,
    damaged,
    fitting,
    join_boxes,
    read_plan,
    split_boxes,
)
from hyperfusion_rt.artifact.voxels import bounds, cropped, padded, taps
from hyperfusion_rt.errors import EngineError
from hyperfusion_rt.machine import usable_cores

Floats = NDArray[np.float32]

# Rows that are worth a thread of their own, and the most threads.
_ROWS_A_THREAD = 256
_MOST_HEADS = 8


class CompiledProgram:
    """The trunk or the head of a plan: `compiled([x, ...]) -> [y, ...]`, each `[B, ...]` float32.

    Attributes:
        engine: the compiled engine, for its profile.
    """

    def __init__(
        self,
        program: Program,
        tensors: Mapping[str, Floats],
        threads: int,
        isa: str = "",
        precision: str = "fp32",
    ) -> None:
        self.program = program
        try:
            self.engine = _native.Engine(threads, isa, precision)
        except ValueError as error:
            raise EngineError(str(error), code="engine-wrong-setting") from None
        if program.ops:
            _Compiler(self.engine, program, tensors)
        made = {name: shape for op in program.ops for name, shape in op.makes.items()}
        shapes = {**program.inputs, **made}
        self._shapes = [shapes[name] for name in program.outputs if program.ops]

    def __call__(self, inputs: list[Floats]) -> list[Floats]:
        """Run a batch."""
        batch = len(inputs[0])
        outputs = [np.empty((batch, *shape), np.float32) for shape in self._shapes]
        self.engine.run(inputs, outputs)
        return outputs


class _Compiler:
    """Builds the operations of a program into an engine, which keeps copies of all weights.

    `values` are the engine's numbers for the plan's names.
    """

    def __init__(
        self, engine: _native.Engine, program: Program, tensors: Mapping[str, Floats]
    ) -> None:
        self.engine, self.tensors = engine, tensors
        self.values = {name: engine.input(*shape) for name, shape in program.inputs.items()}
        for op in program.ops:
            self._add(op)
        for name in program.outputs:
            engine.output(self.values[name])
        engine.finish()

    def _add(self, op: AnyOperation) -> None:
        try:
            value = self._build(op)
        except (ValueError, TypeError, IndexError) as error:
            raise damaged(f"{op.op} {op.output!r} ({op.layer}): {error}") from None
        for number, (name, shape) in enumerate(op.makes.items(), value):
            made = tuple(self.engine.shape(number))
            if made != (*shape, 1, 1, 1)[:4]:
                raise damaged(f"{op.op} {name!r}: makes {list(made)}, but the plan says {shape}")
            self.values[name] = number

    def _act(self, act: Activation | None) -> _native.Act | None:
        if act is None:
            return None
        slope = self.tensors[act.slope] if act.slope else None
        low, high = bounds(act) if act.kind == "clip" else (act.alpha, act.beta)
        return act.kind, low, high, slope

    def _map(self, m: AffineMap | None) -> _native.Map | None:
        if m is None:
            return None
        return self.tensors[m.scale], self.tensors[m.shift], self._act(m.act)

    def _build(self, op: AnyOperation) -> int:
        """Add the operation; returns the number of its output."""
        engine, tensors = self.engine, self.tensors
        x, *others = (self.values[name] for name in op.inputs)
        second = others[0] if others else -1
        match op:
            case Conv() | HyperConv():
                return self._conv(op)
            case ConvTranspose() | HyperConvTranspose():
                return self._convolve(op, transposed=op.extra)
            case Linear():
                weight, bias = tensors[op.weight], tensors[op.bias]
                return engine.linear(x, weight.shape[-1], weight, bias, self._act(op.act))
            case HyperLinear():
                weight, bias = tensors[op.weight], tensors[op.bias]
                outputs, act = weight.shape[-1], self._act(op.act)
                return engine.hyper_linear(x, second, outputs, weight, bias, act)
            case Affine():
                scale, shift = (tensors[r] if r else None for r in (op.scale, op.shift))
                return engine.affine(x, scale, shift, self._act(op.act))
            case GroupNorm():
                scale, shift = tensors[op.scale], tensors[op.shift]
                groups = op.groups or engine.shape(x)[0]
                return engine.group_norm(x, groups, scale, shift, op.eps, self._act(op.act))
            case ChannelNorm():
                return engine.channel_norm(x, tensors[op.scale], tensors[op.shift], op.eps)
            case Binary():
                return engine.binary(x, second, op.op, self._act(op.act))
            case Combine():
                return engine.combine(x, second, self._act(op.act))
            case Pool():
                window = op.kernel, op.stride, op.padding, op.dilation
                average = op.op == "avg_pool"
                return engine.pool(x, *window, average, op.count_include_pad, op.ceil_mode)
            case GlobalPool():
                return engine.global_pool(x, op.stride, op.op == "global_avg_pool")
            case GlobalNorm():
                return engine.global_norm(x)
            case Reduce():
                return engine.reduce(x, op.kind)
            case AdaptivePool():
                return engine.adaptive_pool(x, op.size, op.op == "adaptive_avg_pool")
            case Reshape():
                return self._reshape(op)
            case Concat():
                return engine.concat([x, *others])
            case Slice():
                return engine.slice(x, op.start, op.stop)
            case Pad():
                d, h, w = (padded(op, n, a) for a, n in enumerate(engine.shape(x)[1:]))
                return engine.remap(x, d, h, w, op.value)
            case Crop():
                d, h, w = (cropped(op, axis) for axis in range(3))
                return engine.remap(x, d, h, w)
            case Resize():
                return self._resize(op, x)
            case Transpose():
                numbers = engine.flatten(x)
                return self._shaped(engine.transpose(numbers, op.sizes, op.order), op.shape)
            case OneAnd():
                return engine.one_and(x)
            case Softmax():
                return engine.softmax(x, op.log)
            case Ensemble():
                return engine.ensemble(x, op.members, op.boxes, op.classes, op.rule)

    def _conv(self, op: AnyConv) -> int:
        short = op.shortcut
        return self._convolve(
            op,
            prologue=self._map(op.prologue),
            residual=None if op.residual is None else self.values[op.residual],
            pool=op.pool,
            second=self._map(op.second),
            tile=op.tile,
            shortcut=(self.values[short.input], short.stride, self.tensors[short.weight])
            if short
            else None,
            sparse=op.sparse,
            pairs=op.pairs,
            behind=op.behind,
        )

    def _convolve(self, op: AnyConv | AnyTransposed, **more: Any) -> int:
        """A convolution, or a transposed one; `more`: what only one of them has."""
        bias = self.tensors[op.bias]
        e = self.values[op.inputs[1]] if isinstance(op, HyperConv | HyperConvTranspose) else None
        return self.engine.conv(
            self.values[op.inputs[0]],
            bias.shape[-1],
            op.kernel,
            op.stride,
            op.padding,
            op.dilation,
            self.tensors[op.weight],
            bias,
            op.depthwise,
            condition=e,
            act=self._act(op.act),
            groups=op.groups,
            **more,
        )

    def _resize(self, op: Resize, x: int) -> int:
        axes = [taps(op, n, axis) for axis, n in enumerate(self.engine.shape(x)[1:])]
        if not op.linear:
            d, h, w = (low.tolist() for low, _, _ in axes)
            return self.engine.remap(x, d, h, w)
        return self.engine.blend(x, [(a.tolist(), b.tolist(), p.tolist()) for a, b, p in axes])

    def _reshape(self, op: Reshape) -> int:
        x = self.values[op.inputs[0]]
        c, *rest = self.engine.shape(x)
        # [C] and [C, 1, 1, 1] lie alike.
        if rest == [1, 1, 1] and op.shape[0] == c:
            return x
        return self._shaped(x if rest == [1, 1, 1] else self.engine.flatten(x), op.shape)

    def _shaped(self, vector: int, shape: tuple[int, ...]) -> int:
        """A vector as a value of `shape`."""
        return vector if len(shape) == 1 else self.engine.unflatten(vector, *shape)


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
        self.boxes = plan.boxes
        threads = threads or usable_cores()
        # A head on vectors takes microseconds: a second thread would cost more than it does, but
        # for many rows, which the copies share.
        volumes = any(len(op.shape) == 4 for op in plan.head.ops)
        copies = 0 if volumes or not plan.head.ops else min(threads, _MOST_HEADS) - 1
        where = f"{source}: " if isinstance(source, Path) else ""

        def compiled(program: Program, threads: int) -> CompiledProgram:
            return CompiledProgram(program, plan.tensors, threads, precision=plan.precision)

        try:
            self.trunk = compiled(plan.trunk, threads)
            self.head = compiled(plan.head, threads if volumes else 1)
            self._heads = [self.head, *(compiled(plan.head, 1) for _ in range(copies))]
        except EngineError as error:
            raise EngineError(f"{where}{error}", code=error.code) from None
        except (ValueError, TypeError) as error:
            raise damaged(f"{where}{error}") from None

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
        found = self._call(self.trunk, self.boxes, {"image": image})
        return {name: found[name] for name in self.head.program.inputs if name in found}

    def finish(self, features: dict[str, Floats], tabular: Floats | None) -> dict[str, Floats]:
        """The second part of `run`; `features` is what the first gave."""
        feed = {**features, "tabular": tabular}
        lengths = {len(value) for value in feed.values() if value is not None}
        rows = max(lengths, default=0)
        count = min(len(self._heads), rows // _ROWS_A_THREAD)
        if count < 2 or len(lengths) > 1:  # the one that runs says what does not fit
            found = self._call(self.head, 1, feed)
            return {name: found[name] for name in self.head.program.outputs}
        ends = [rows * n // count for n in range(count + 1)]
        parts = [
            {name: None if value is None else value[a:b] for name, value in feed.items()}
            for a, b in itertools.pairwise(ends)
        ]
        others = [
            self._workers.submit(self._call, head, 1, part)
            for head, part in zip(self._heads[1:], parts[1:], strict=False)
        ]
        made = [self._call(self.head, 1, parts[0]), *(other.result() for other in others)]
        return {
            name: np.concatenate([part[name] for part in made])
            for name in self.head.program.outputs
        }

    @cached_property
    def _workers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(len(self._heads) - 1, "hfrt-head")

    def _call(self, compiled: CompiledProgram, boxes: int, feed: dict[str, Any]) -> dict[str, Any]:
        program = compiled.program
        if not program.ops:
            return feed
        inputs = []
        for name, (c, *extent) in program.inputs.items():
            value = fitting(name, feed[name], (boxes * c, *extent))
            inputs.append(split_boxes(value, boxes))
        made = [join_boxes(y, boxes) for y in compiled(inputs)]
        return {**feed, **dict(zip(program.outputs, made, strict=True))}

"""The torch engine: a plan, run by torch; on CUDA its convolutions are the fused Triton kernels."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.plan import (
    ENSEMBLE,
    Op,
    Plan,
    check_plan,
    fitting,
    join_boxes,
    read_plan,
    split_boxes,
)
from hyperfusion_rt.errors import EngineError, MissingExtraError
from hyperfusion_rt.machine import usable_cores

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor
except ImportError:
    raise MissingExtraError("torch", "train", "the torch engine") from None

from hyperfusion_rt.kernels import Epilogue, backend, conv3d_block, hyper_conv3d, hyper_linear
from hyperfusion_rt.models.combine import combine_outputs

Floats = NDArray[np.float32]
Values = dict[str, Tensor]


class TorchEngine:
    """Runs one plan; see `hyperfusion_rt.runtime.engines.choose.Engine`.

    On CUDA where torch has it, otherwise on the CPU. Convolutions of float32 numbers are float32,
    never TF32; products are TF32 only where torch's switch for them says so. A plan in bf16 keeps
    volumes in bfloat16 and sums in float32; vectors are float32.

    Args:
        source: an engine file, or a plan.
        threads: of the CPU, for the whole process; None uses every core that it may use.
        device: None chooses.
    """

    def __init__(
        self, source: Path | Plan, threads: int | None = None, device: str | None = None
    ) -> None:
        plan = source if isinstance(source, Plan) else read_plan(source)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.device.type == "cpu":
            torch.set_num_threads(threads or usable_cores())
        self.volumes = torch.bfloat16 if plan.precision == "bf16" else torch.float32
        self._turn = threading.Lock()
        self._inputs = dict(plan.head.inputs)
        if plan.trunk.ops:
            for name, (c, *extent) in plan.trunk.inputs.items():
                self._inputs[name] = (plan.boxes * c, *extent)
        self._boxes, self._features = plan.boxes, plan.trunk.outputs if plan.trunk.ops else []
        # The file may be mapped read-only: torch gets a copy.
        self._tensors = {
            name: torch.from_numpy(array.copy()).to(self.device)
            for name, array in plan.tensors.items()
        }
        try:
            check_plan(plan)
            _check_reads([*plan.trunk.ops, *plan.head.ops])
            self._outputs = plan.head.outputs
            self._trunk = [self._step(op) for op in plan.trunk.ops]
            self._head = [self._step(op) for op in plan.head.ops]
        except (
            EngineError,
            LookupError,
            TypeError,
            ValueError,
            RuntimeError,
            AttributeError,
        ) as error:
            where = f"{source}: " if isinstance(source, Path) else ""
            raise EngineError(f"{where}not an engine file that torch can run: {error}") from None

    def __call__(self, image: Floats, tabular: Floats | None = None) -> Floats:
        """Run one batch: `image [B, C, D, H, W]`, `tabular [B, T]` → the first output, `[B, F]`.

        Raises:
            EngineError: an input is missing or has another shape.
        """
        return self.run(image, tabular)[self._outputs[0]]

    @torch.inference_mode()
    def run(self, image: Floats, tabular: Floats | None = None) -> dict[str, Floats]:
        """As a call, with every output by its name."""
        given: dict[str, Any] = {"image": image, "tabular": tabular}
        values: Values = {}
        for name, shape in self._inputs.items():
            if name in given:
                tensor = torch.from_numpy(fitting(name, given[name], shape))
                values[name] = self._stored(tensor.to(self.device))
        # TF32 is a switch of the whole process.
        with self._turn, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            case = values.get("image")
            if self._trunk:
                values["image"] = self._stored(split_boxes(case, self._boxes))
            for step in self._trunk:
                step(values)
            for name in self._features:
                values[name] = self._stored(join_boxes(values[name], self._boxes))
            for step in self._head:
                step(values)
            return {name: values[name].float().cpu().numpy() for name in self._outputs}

    def _stored(self, x: Tensor) -> Tensor:
        """As the ops take it best: volumes in their type, vectors in float32."""
        if x.dim() == 2:
            return x.float()
        native = self.device.type == "cpu" and self.volumes == torch.float32
        layout = torch.contiguous_format if native else torch.channels_last_3d
        return x.to(self.volumes).contiguous(memory_format=layout)

    def _step(self, op: Op) -> Callable[[Values], None]:
        make = _CONVS.get(op.op, _plain)
        call = make(self, op)

        def step(values: Values) -> None:
            found = call(values)
            for name, tensor in found.items():
                values[name] = self._stored(tensor)

        return step

    def weights(self, name: str) -> Tensor:
        """A tensor of the plan, float32 on the device."""
        if name not in self._tensors:
            raise EngineError(f"the plan names the tensor {name!r}, which the file does not hold")
        return self._tensors[name]

    def activation(self, act: dict[str, Any] | None) -> Callable[[Tensor], Tensor]:
        """What an `act` of the plan means."""
        if act is None:
            return lambda x: x
        kind, alpha = act["kind"], float(act.get("alpha", 0.0))
        if kind == "prelu":
            slope = self.weights(act["slope"])
            return lambda x: F.prelu(x, slope.to(x.dtype))
        if kind in ("leaky_relu", "elu"):
            of: Callable[..., Tensor] = getattr(F, kind)
            return lambda x: of(x, alpha)
        if kind == "gelu_tanh":
            return lambda x: F.gelu(x, approximate="tanh")
        simple: Callable[[Tensor], Tensor] = getattr(F, kind)
        return simple

    def mapped(self, m: dict[str, Any]) -> Callable[[Tensor], Tensor]:
        """`act(scale · x + shift)` of a prologue or a second output."""
        scale, shift = self.weights(m["scale"]), self.weights(m["shift"])
        act = self.activation(m["act"])
        return lambda x: act(_along(scale, x) * x.float() + _along(shift, x))


def _check_reads(ops: list[Op]) -> None:
    """Refuse a plan that reads what nothing makes."""
    made = {"image", "tabular"}
    for op in ops:
        short, second = op.attrs.get("shortcut") or {}, op.attrs.get("second") or {}
        for name in (*op.inputs, op.attrs.get("residual"), short.get("input")):
            if name is not None and name not in made:
                raise EngineError(f"the plan reads {name!r} before anything makes it")
        made |= {op.output, second.get("output", op.output)}


def _along(vector: Tensor, x: Tensor) -> Tensor:
    """A number per channel, for `x [B, C, ...]`."""
    return vector.view(1, -1, *(1,) * (x.dim() - 2))


def _every_second(x: Tensor) -> Tensor:
    return x[:, :, ::2, ::2, ::2]


def _convolution(engine: TorchEngine, op: Op) -> Callable[[Values], Values]:
    a = op.attrs
    kernel, depthwise, hyper = a["kernel"], bool(a["depthwise"]), op.op == "hyper_conv"
    stride, padding, dilation = (tuple(a[n]) for n in ("stride", "padding", "dilation"))
    weight, bias = engine.weights(op.tensors["weight"]), engine.weights(op.tensors["bias"])
    # [taps, C], or [..., taps, Cin, Cout], which as [Cout, Cin, k, k, k] is a view.
    if depthwise:
        weight = weight.T.unflatten(1, (1, *kernel)).contiguous()
    else:
        weight = weight.unflatten(-3, kernel).movedim((-1, -2), (-5, -4))
    if not hyper:
        weight = weight.to(engine.volumes)
    groups = len(weight) if depthwise else 1
    act = a["act"] or {"kind": "leaky_relu", "alpha": 1.0}
    slopes = {"relu": 0.0, "leaky_relu": float(act.get("alpha", 0.0))}
    fused = act["kind"] in slopes
    slope = slopes.get(act["kind"], 1.0)
    later = engine.activation(None if fused else act)
    prologue = engine.mapped(a["prologue"]) if a.get("prologue") else None
    second = engine.mapped(a["second"]) if a.get("second") else None
    pool, sparse = bool(a.get("pool", False)), bool(a.get("sparse", False))
    short = a.get("shortcut")
    if short:
        beside = engine.weights(op.tensors["shortcut"]).T[..., None, None, None]
        beside = beside.to(engine.volumes)
    # Voxels that nobody reads are not made, unless a second output needs them.
    skips = sparse and second is None
    steps = tuple(2 * s for s in stride) if skips else stride

    def call(values: Values) -> Values:
        x = values[op.inputs[0]]
        if prologue is not None:
            x = prologue(x).to(engine.volumes)
        residual = values[a["residual"]] if a.get("residual") is not None else None
        if residual is not None and skips:
            residual = _every_second(residual)
        if short:
            by = tuple(s * (2 if skips else 1) for s in short["stride"])
            residual = conv3d_block(values[short["input"]], beside, by)
        if hyper:
            condition = values[op.inputs[1]]
            # Only Triton takes narrow volumes with wide generators.
            x = x if backend.on_triton(x) else x.float()
            after = Epilogue(None, None, residual, slope)
            y = hyper_conv3d(
                x, condition, weight, bias, None, None, steps, padding, dilation,
                epilogue=after,
            )  # fmt: skip
        else:
            after = Epilogue(None, bias, residual, slope)
            y = conv3d_block(x, weight, steps, padding, dilation, groups, after, pool and fused)
        y = later(y)
        if pool and not fused:
            y = F.max_pool3d(y, 2)
        made = {op.output: _every_second(y) if sparse and not skips else y}
        if second is not None:
            made[a["second"]["output"]] = second(y)
        return made

    return call


def _pooled(engine: TorchEngine, op: Op) -> Callable[[Tensor], Tensor]:
    a = op.attrs
    where = a["kernel"], a["stride"], a["padding"]
    ceil = bool(a.get("ceil_mode", False))
    if op.op == "avg_pool":
        padded = bool(a.get("count_include_pad", True))
        return lambda x: F.avg_pool3d(x.float(), *where, ceil, padded)
    return lambda x: F.max_pool3d(x, *where, a.get("dilation", (1, 1, 1)), ceil)


def _plain(engine: TorchEngine, op: Op) -> Callable[[Values], Values]:
    """An operation that is torch's own, in float32, with its activation."""
    if op.op not in _PLAIN:
        raise EngineError(f"the plan has the operation {op.op!r}, which this version lacks")
    of = _PLAIN[op.op](engine, op)
    act = engine.activation(op.attrs.get("act"))
    return lambda values: {op.output: act(of(*(values[name] for name in op.inputs)))}


def _linear(engine: TorchEngine, op: Op) -> Callable[..., Tensor]:
    weight, bias = engine.weights(op.tensors["weight"]), engine.weights(op.tensors["bias"])
    if op.op == "linear":
        return lambda x: torch.addmm(bias, x, weight)
    G = weight.transpose(1, 2)
    return lambda x, e: hyper_linear(x, e, G, bias)


def _affine(engine: TorchEngine, op: Op) -> Callable[..., Tensor]:
    scale, shift = (
        engine.weights(op.tensors[role]) if role in op.tensors else None
        for role in ("scale", "shift")
    )

    def call(x: Tensor) -> Tensor:
        y = x.float()
        if scale is not None:
            y = y * _along(scale, x)
        return y if shift is None else y + _along(shift, x)

    return call


def _norm(engine: TorchEngine, op: Op) -> Callable[..., Tensor]:
    scale, shift = (engine.weights(op.tensors[role]) for role in ("scale", "shift"))
    eps = float(op.attrs["eps"])
    return lambda x: F.instance_norm(x.float(), None, None, scale, shift, eps=eps)


def _combine(engine: TorchEngine, op: Op) -> Callable[..., Tensor]:
    return lambda p, e: torch.einsum("bk,bkc->bc", e, p.view(len(p), e.shape[1], -1))


def _ensemble(engine: TorchEngine, op: Op) -> Callable[..., Tensor]:
    given = [op.attrs[name] for name in ENSEMBLE]
    return lambda x: combine_outputs(x, *given)


def _pad(engine: TorchEngine, op: Op) -> Callable[..., Tensor]:
    both = zip(op.attrs["before"][::-1], op.attrs["after"][::-1], strict=True)
    widths = [int(width) for pair in both for width in pair]
    return lambda x: F.pad(x, widths)


def _global_average(engine: TorchEngine, op: Op) -> Callable[..., Tensor]:
    d, h, w = op.attrs.get("stride", (1, 1, 1))
    return lambda x: x[:, :, ::d, ::h, ::w].mean((2, 3, 4), dtype=torch.float32)


_CONVS = {"conv": _convolution, "hyper_conv": _convolution}
_PLAIN: dict[str, Callable[[TorchEngine, Op], Callable[..., Tensor]]] = {
    "max_pool": _pooled,
    "avg_pool": _pooled,
    "linear": _linear,
    "hyper_linear": _linear,
    "affine": _affine,
    "instance_norm": _norm,
    "combine": _combine,
    "ensemble": _ensemble,
    "pad": _pad,
    "global_avg_pool": _global_average,
    "reshape": lambda t, o: lambda x: x.reshape(len(x), *o.shape),
    "add": lambda t, o: lambda x, y: x.float() + y,
    "mul": lambda t, o: lambda x, y: x.float() * y,
    "concat": lambda t, o: lambda *xs: torch.cat(xs, 1),
    "slice": lambda t, o: lambda x: x[:, o.attrs["start"] : o.attrs["stop"]],
    "one_and": lambda t, o: lambda e: torch.cat([torch.ones_like(e[:, :1]), e], 1),
    "softmax": lambda t, o: lambda x: torch.softmax(x, 1),
    "global_max_pool": lambda t, o: lambda x: x.amax((2, 3, 4)),
    "adaptive_avg_pool": lambda t, o: lambda x: F.adaptive_avg_pool3d(x.float(), o.attrs["size"]),
    "adaptive_max_pool": lambda t, o: lambda x: F.adaptive_max_pool3d(x, o.attrs["size"]),
}

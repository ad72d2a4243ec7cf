"""From drafts to the operations of a plan: every layout and every name of a tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

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
    Combination,
    Combine,
    Concat,
    Conv,
    ConvTranspose,
    Crop,
    Cropping,
    Ensemble,
    GlobalNorm,
    GlobalPool,
    Grid,
    GroupNorm,
    HyperConv,
    HyperConvTranspose,
    HyperLinear,
    Linear,
    Margins,
    Normalisation,
    OneAnd,
    Pad,
    Pool,
    Pooling,
    Probabilities,
    Reduce,
    Reduction,
    Reshape,
    Resize,
    Resizing,
    SecondOutput,
    Shortcut,
    Slice,
    Softmax,
    Span,
    Subsampling,
    Transpose,
    Transposed,
    Transposition,
)
from hyperfusion_rt.export.fuse.cost import gflop, megabytes
from hyperfusion_rt.export.fuse.draft import CONVS, TRANSPOSED, Draft, planar
from hyperfusion_rt.export.ir.graph import Array, Convolution, Graph, Node, Shape


class _Common(TypedDict):
    output: str
    shape: Shape
    nodes: tuple[str, ...]
    layer: str
    gflop: float


class Operations:
    """Makes the operations of one part of a plan.

    Args:
        graph: the part's, with the shapes of what is kept.
        part: trunk or head: where its tensors' names begin.
        tensors: of the plan; the operations' are added.
        precision: fp32 or bf16.
    """

    def __init__(
        self, graph: Graph, part: str, tensors: dict[str, NDArray[np.float32]], precision: str
    ) -> None:
        self.graph, self.part, self.tensors, self.precision = graph, part, tensors, precision

    def of(self, draft: Draft) -> AnyOperation:
        """The operation that `draft` became."""
        common: _Common = {
            "output": draft.output,
            "shape": self.graph.shapes[draft.output],
            "nodes": draft.nodes,
            "layer": draft.node.layer,
            "gflop": gflop(draft),
        }
        make: Callable[[Draft, _Common], AnyOperation] = self._plain
        if draft.node.op in CONVS:
            make = self._convolution
        elif draft.node.op in TRANSPOSED:
            make = self._transposed
        op = make(draft, common)
        moved = megabytes(op, self.graph.shapes, self.tensors, self.precision)
        return replace(op, megabytes=moved)

    def _tensor(self, draft: Draft, role: str, array: Array) -> str:
        name = f"{self.part}.{draft.node.output}.{role}"
        self.tensors[name] = np.ascontiguousarray(array, dtype=np.float32)
        return name

    def _act(self, draft: Draft, role: str, node: Node | None) -> Activation | None:
        if node is None:
            return None
        act = node.given(Activation)
        if "slope" not in node.arrays:
            return act
        return replace(act, slope=self._tensor(draft, f"{role}.slope", node.arrays["slope"]))

    def _map(self, draft: Draft, role: str, maps: tuple[Node | None, Node | None]) -> AffineMap:
        affine, act = maps
        channels = self.graph.shapes[draft.output if role == "second" else draft.inputs[0]][0]
        scale = affine.arrays["scale"] if affine else np.ones(channels)
        shift = affine.arrays["shift"] if affine else np.zeros(channels)
        return AffineMap(
            scale=self._tensor(draft, f"{role}.scale", scale),
            shift=self._tensor(draft, f"{role}.shift", shift),
            act=self._act(draft, role, act),
        )

    def _plain(self, draft: Draft, common: _Common) -> AnyOperation:
        """Everything but a convolution."""
        node = draft.node
        if node.op == "concat":
            return Concat(inputs=tuple(node.inputs), **common)
        if len(node.inputs) == 2:
            return self._of_two(draft, common)
        x = (node.inputs[0],)
        match node.op:
            case "linear":
                weight = self._tensor(draft, "weight", node.arrays["weight"].T)
                bias = self._tensor(draft, "bias", node.arrays["bias"])
                act = self._late(draft)
                return Linear(inputs=x, weight=weight, bias=bias, act=act, **common)
            case "activation":
                return Affine(inputs=x, act=self._act(draft, "act", node), **common)
            case "affine":
                scale, shift, act = *self._vectors(draft), self._late(draft)
                return Affine(inputs=x, scale=scale, shift=shift, act=act, **common)
            case "group_norm" as op:
                scale, shift, act = *self._vectors(draft), self._late(draft)
                fields = {**vars(node.given(Normalisation)), **common}
                return GroupNorm(op=op, inputs=x, scale=scale, shift=shift, act=act, **fields)
            case "channel_norm":
                scale, shift = self._vectors(draft)
                fields = {**vars(node.given(Normalisation)), **common}
                return ChannelNorm(inputs=x, scale=scale, shift=shift, **fields)
            case "global_norm":
                return GlobalNorm(inputs=x, **common)
            case "reduce":
                return Reduce(inputs=x, **vars(node.given(Reduction)), **common)
            case "max_pool" | "avg_pool" as op:
                return Pool(op=op, inputs=x, **vars(node.given(Pooling)), **common)
            case "global_avg_pool" | "global_max_pool" as op:
                return GlobalPool(op=op, inputs=x, **vars(node.given(Subsampling)), **common)
            case "adaptive_avg_pool" | "adaptive_max_pool" as op:
                return AdaptivePool(op=op, inputs=x, **vars(node.given(Grid)), **common)
            case "slice":
                return Slice(inputs=x, **vars(node.given(Span)), **common)
            case "pad":
                return Pad(inputs=x, **vars(node.given(Margins)), **common)
            case "ensemble":
                return Ensemble(inputs=x, **vars(node.given(Combination)), **common)
            case "crop":
                return Crop(inputs=x, **vars(node.given(Cropping)), **common)
            case "resize":
                return Resize(inputs=x, **vars(node.given(Resizing)), **common)
            case "transpose":
                return Transpose(inputs=x, **vars(node.given(Transposition)), **common)
            case "reshape":
                return Reshape(inputs=x, **common)
            case "one_and":
                return OneAnd(inputs=x, **common)
            case "softmax":
                return Softmax(inputs=x, **vars(node.given(Probabilities)), **common)
        raise AssertionError(node.op)

    def _of_two(self, draft: Draft, common: _Common) -> AnyOperation:
        node = draft.node
        inputs, act = (node.inputs[0], node.inputs[1]), self._late(draft)
        match node.op:
            case "hyper_linear":
                weight = self._tensor(draft, "weight", node.arrays["weight"].transpose(0, 2, 1))
                bias = self._tensor(draft, "bias", node.arrays["bias"])
                return HyperLinear(inputs=inputs, weight=weight, bias=bias, act=act, **common)
            case "combine":
                return Combine(inputs=inputs, act=act, **common)
            case "add" | "sub" | "mul" | "div" | "maximum" | "minimum" as op:
                return Binary(op=op, inputs=inputs, act=act, **common)
        raise AssertionError(node.op)

    def _late(self, draft: Draft) -> Activation | None:
        return self._act(draft, "act", draft.act)

    def _vectors(self, draft: Draft) -> tuple[str, str]:
        arrays = draft.node.arrays
        scale = self._tensor(draft, "scale", arrays["scale"])
        return scale, self._tensor(draft, "shift", arrays["shift"])

    def _convolution(self, draft: Draft, common: _Common) -> AnyConv:
        node, arrays, window = draft.node, draft.node.arrays, draft.node.given(Convolution)
        cout = arrays["weight"].shape[-5]
        channels = self.graph.shapes[draft.inputs[0]][0]
        depthwise = node.op == "conv" and window.groups == channels == cout > 1
        bias = arrays["bias"]
        if draft.shortcut is not None:
            bias = bias + draft.shortcut.arrays["bias"]
        fields: dict[str, Any] = {
            **common,
            "kernel": window.kernel,
            "stride": window.stride,
            "padding": window.padding,
            "behind": window.behind,
            "dilation": window.dilation,
            "act": self._late(draft),
            "weight": self._tensor(draft, "weight", _flat(node, depthwise)),
            "bias": self._tensor(draft, "bias", bias),
            "depthwise": depthwise,
            "groups": 1 if depthwise else window.groups,
            "algorithm": self._algorithm(draft, depthwise),
            "tile": draft.tile,
            "pairs": draft.pairs,
            "prologue": self._map(draft, "prologue", draft.prologue) if draft.prologue else None,
            "residual": draft.residual,
            "shortcut": self._shortcut(draft),
            "pool": draft.pool,
            "second": self._second(draft),
            "sparse": draft.sparse,
        }
        x, *e = draft.inputs
        return HyperConv(inputs=(x, e[0]), **fields) if e else Conv(inputs=(x,), **fields)

    def _transposed(self, draft: Draft, common: _Common) -> AnyTransposed:
        node, window = draft.node, draft.node.given(Transposed)
        weight = node.arrays["weight"]  # [..., Cin, Cout / groups, k, k, k]
        cin, each = weight.shape[-5:-3]
        depthwise = node.op == "conv_transpose" and window.groups == cin > 1 and each == 1
        flat = np.moveaxis(weight.reshape(*weight.shape[:-3], -1), -1, -3)
        fields: dict[str, Any] = {
            **common,
            **vars(window),
            "act": self._late(draft),
            "weight": self._tensor(draft, "weight", flat[..., 0] if depthwise else flat),
            "bias": self._tensor(draft, "bias", node.arrays["bias"]),
            "depthwise": depthwise,
        }
        x, *e = node.inputs
        if e:
            return HyperConvTranspose(inputs=(x, e[0]), **fields)
        return ConvTranspose(inputs=(x,), **fields)

    def _algorithm(
        self, draft: Draft, depthwise: bool
    ) -> Literal["gather", "winograd", "planar", "depthwise"]:
        if draft.tile is not None:
            return "winograd"
        if draft.prologue is None and planar(draft.node, self.graph, pools=draft.pool):
            return "planar"
        return "depthwise" if depthwise else "gather"

    def _shortcut(self, draft: Draft) -> Shortcut | None:
        node = draft.shortcut
        if node is None:
            return None
        weight = node.arrays["weight"][..., 0, 0, 0].T
        return Shortcut(
            input=node.inputs[0],
            stride=node.given(Convolution).stride,
            weight=self._tensor(draft, "shortcut", weight),
        )

    def _second(self, draft: Draft) -> SecondOutput | None:
        if draft.second is None:
            return None
        *maps, result = draft.second
        made = self._map(draft, "second", (maps[0], maps[1]))
        return SecondOutput(**vars(made), output=result, shape=self.graph.shapes[result])


def _flat(node: Node, depthwise: bool) -> Array:
    """A convolution's weight as [taps, C], or as [..., taps, Cin / groups, Cout]."""
    weight = node.arrays["weight"]
    flat = weight.reshape(*weight.shape[:-3], -1)
    turned: Array = flat[:, 0].T
    if not depthwise:
        turned = np.moveaxis(flat, (-1, -2, -3), (-3, -2, -1))
    return turned

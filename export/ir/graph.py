"""A network as a list of operations on named values, with float64 weights: what folding works on.

Shapes leave the batch axis out: a volume is `[C, D, H, W]`, a vector `[F]`. Operations, with their
arrays and the class of their attributes:

    conv(x)                weight [Cout, Cin/groups, k, k, k], bias [Cout]; Convolution
    conv_transpose(x)      weight [Cin, Cout/groups, k, k, k], bias [Cout]; Transposed
    hyper_conv, hyper_conv_transpose(x, e)   the same with a leading [K]: W = Σ_k e_k weight_k
    linear(x)              weight [O, I], bias [O];   hyper_linear(x, e): with a leading [K]
    one_and(e)             [1, e];   combine(p [K·C], e [K]): y_c = Σ_k e_k p[k·C + c]
    affine(x)              scale, shift [C]
    activation(x)          slope [C] (prelu); Activation
    max_pool, avg_pool(x)  Pooling
    adaptive_avg_pool, adaptive_max_pool(x)   Grid
    global_avg_pool, global_max_pool(x)       [C]; Subsampling
    global_norm(x)         [C], the root of the sum of squares
    reduce(x)              over the channels, [1, D, H, W] or [1]; Reduction
    add, sub, mul, div, maximum, minimum(a, b)   along each axis equal sizes, or one is 1
    concat(...), slice(x)  along channels; Span
    crop(x)                Cropping;   pad(x): Margins;   resize(x): Resizing
    group_norm(x)          scale, shift [C]; Normalisation
    channel_norm(x)        over the channels of each voxel; scale, shift [C]; Normalisation
    softmax(x)             over the channels; Probabilities
    reshape(x)             the same numbers in the same order
    transpose(x)           the same numbers in another order; Transposition
    ensemble(x [M·N·C])    [C]; Combination
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hyperfusion_rt.artifact.operations import (
    Activation,
    Combination,
    Cropping,
    Grid,
    Margins,
    Normalisation,
    Pooling,
    Probabilities,
    Reduction,
    Resizing,
    Span,
    Subsampling,
    Transposed,
    Transposition,
    Window,
)
from hyperfusion_rt.artifact.voxels import bounds, taps
from hyperfusion_rt.models.combine import combine_outputs

Array = NDArray[np.float64]
Shape = tuple[int, ...]

TABLE = "tabular"  # the input that holds rows of the table
HYPER = (
    "hyper_conv",
    "hyper_conv_transpose",
    "hyper_linear",
)  # with weights that are made of their second input


@dataclass(frozen=True, kw_only=True)
class Convolution(Window):
    """Channels that see each other only within their group."""

    groups: int


Attributes = (
    Activation
    | Combination
    | Convolution
    | Cropping
    | Normalisation
    | Probabilities
    | Reduction
    | Resizing
    | Subsampling
    | Grid
    | Margins
    | Pooling
    | Span
    | Transposed
    | Transposition
    | None
)
A = TypeVar("A", bound=Attributes)


@dataclass
class Node:
    """One operation; `layer` is its place in the network, for people."""

    op: str
    inputs: list[str]
    output: str
    attrs: Attributes = None
    arrays: dict[str, Array] = field(default_factory=dict)
    layer: str = ""

    def given(self, kind: type[A]) -> A:
        """Its attributes, of the class that its operation has."""
        if not isinstance(self.attrs, kind):
            raise TypeError(f"{self.op} {self.output}: {self.attrs} is no {kind.__name__}")
        return self.attrs


@dataclass
class Graph:
    """Nodes in an order in which they can run; `shapes` of every value, without the batch.

    `outer`: inputs and outputs that a framework sees with other axes, as in 2D networks; the
    numbers are the same, in the same order. `last`: those of which it has the channels last.
    """

    inputs: dict[str, Shape]
    nodes: list[Node]
    outputs: list[str]
    shapes: dict[str, Shape]
    outer: dict[str, Shape] = field(default_factory=dict)
    last: set[str] = field(default_factory=set)

    def copy(self) -> Graph:
        """A copy whose nodes may be changed; the arrays are shared."""
        nodes = [
            Node(n.op, list(n.inputs), n.output, n.attrs, dict(n.arrays), n.layer)
            for n in self.nodes
        ]
        return Graph(
            dict(self.inputs),
            nodes,
            list(self.outputs),
            dict(self.shapes),
            dict(self.outer),
            set(self.last),
        )

    def producer(self, value: str) -> Node | None:
        """The node that makes `value`; None for an input."""
        return next((n for n in self.nodes if n.output == value), None)

    def users(self, value: str) -> list[Node]:
        """The nodes that read `value`."""
        return [n for n in self.nodes if value in n.inputs]

    def only_user(self, value: str) -> Node | None:
        """The one node that reads `value`, if there is just one and it is no output."""
        users = self.users(value)
        return users[0] if len(users) == 1 and value not in self.outputs else None

    def replace(self, old: str, new: str) -> None:
        """Let everything that reads `old` read `new`."""
        for node in self.nodes:
            node.inputs = [new if value == old else value for value in node.inputs]
        self.outputs = [new if value == old else value for value in self.outputs]

    def add(
        self,
        op: str,
        inputs: list[str],
        shape: Shape,
        *,
        before: Node,
        like: Node,
        attrs: Attributes = None,
        arrays: dict[str, Array] | None = None,
    ) -> str:
        """Insert a node in front of `before`; returns the name of its value."""
        numbered = (f"{like.output}_{op}{number}" for number in itertools.count())
        name = next(name for name in numbered if name not in self.shapes)
        node = Node(op, inputs, name, attrs, arrays or {}, like.layer)
        self.nodes.insert(next(i for i, n in enumerate(self.nodes) if n is before), node)
        self.shapes[name] = shape
        return name

    def depends_on(self, source: str) -> set[str]:
        """All values that are computed from the input `source`, and itself."""
        found = {source}
        for node in self.nodes:
            if found & set(node.inputs):
                found.add(node.output)
        return found

    def remove_dead(self) -> bool:
        """Drop the nodes that no output needs."""
        needed, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if node.output in needed:
                needed.update(node.inputs)
                kept.append(node)
        changed = len(kept) != len(self.nodes)
        self.nodes = kept[::-1]
        alive = {*self.inputs, *(n.output for n in self.nodes)}
        self.shapes = {name: shape for name, shape in self.shapes.items() if name in alive}
        return changed

    def sort(self) -> None:
        """Put the nodes into an order in which they can run; the present order where it can."""
        made, waiting, done = set(self.inputs), list(self.nodes), []
        while waiting:
            ready = next(n for n in waiting if made.issuperset(n.inputs))
            waiting.remove(ready)
            done.append(ready)
            made.add(ready.output)
        self.nodes = done


def activate(x: Tensor, node: Node) -> Tensor:
    """What an `activation` node means."""
    act = node.given(Activation)
    kind, alpha = act.kind, act.alpha
    simple: dict[str, Callable[[Tensor], Tensor]] = {
        "leaky_relu": lambda v: F.leaky_relu(v, alpha),
        "elu": lambda v: F.elu(v, alpha),
        "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
        "clip": lambda v: v.clamp(*bounds(act)),
        "power": lambda v: v**alpha,
    }
    if kind == "prelu":
        return F.prelu(x, torch.from_numpy(node.arrays["slope"]).to(x))
    if kind in simple:
        return simple[kind](x)
    of: Callable[[Tensor], Tensor] = getattr(F, kind, None) or getattr(torch, kind)
    return of(x)


def _as_it_is(node: Node, x: Tensor) -> Tensor:
    return x


def run(
    graph: Graph,
    feeds: dict[str, Tensor],
    *,
    before: Callable[[Node, Tensor], Tensor] = _as_it_is,
    after: Callable[[Node, Tensor], Tensor] = _as_it_is,
) -> list[Tensor]:
    """Execute `graph` in plain PyTorch, in the inputs' dtype: the reference of every engine.

    `feeds`: `[B, ...]` for every input. `before` maps what a node reads, inputs and weights;
    `after` what it makes. Returns the outputs, `[B, ...]`.
    """
    values = dict(feeds)
    for node in graph.nodes:
        inputs = [before(node, values[name]) for name in node.inputs]
        like = inputs[0]
        arrays = {
            k: before(node, torch.from_numpy(np.ascontiguousarray(v)).to(like))
            for k, v in node.arrays.items()
        }
        expected = (len(like), *graph.shapes[node.output])
        made = inputs[0] if node.op == "reshape" else _OPS[node.op](inputs, arrays, node)
        if node.op in ("reshape", "transpose"):
            made = made.reshape(expected)
        values[node.output] = after(node, made)
        if tuple(values[node.output].shape) != expected:
            raise AssertionError(f"{node.op} {node.output}: {values[node.output].shape}")
    return [values[name] for name in graph.outputs]


Tensors = dict[str, Tensor]


def _channels(array: Tensor, x: Tensor) -> Tensor:
    return array.view(1, -1, *(1,) * (x.dim() - 2))


def _conv(x: list[Tensor], a: Tensors, n: Node) -> Tensor:
    t = n.given(Convolution)
    image, padding = x[0], t.padding
    if t.behind is not None:
        both = zip(t.padding[::-1], t.behind[::-1], strict=True)
        image, padding = F.pad(image, [width for pair in both for width in pair]), (0, 0, 0)
    return F.conv3d(image, a["weight"], a["bias"], t.stride, padding, t.dilation, t.groups)


def _hyper_conv(x: list[Tensor], a: Tensors, n: Node) -> Tensor:
    samples = []
    for image, e in zip(x[0], x[1], strict=True):
        made = {name: torch.tensordot(e, array, 1) for name, array in a.items()}
        samples.append(_conv([image[None]], made, n))
    return torch.cat(samples)


def _hyper_linear(x: list[Tensor], a: Tensors, n: Node) -> Tensor:
    weight = torch.einsum("bk,koi->boi", x[1], a["weight"])
    return torch.einsum("boi,bi->bo", weight, x[0]) + x[1] @ a["bias"]


def _global_avg(x: list[Tensor], a: Tensors, n: Node) -> Tensor:
    s = n.given(Subsampling).stride
    return x[0][:, :, :: s[0], :: s[1], :: s[2]].mean((2, 3, 4))


def _pad(x: list[Tensor], a: Tensors, n: Node) -> Tensor:
    t = n.given(Margins)
    both = zip(t.before[::-1], t.after[::-1], strict=True)
    widths = [width for pair in both for width in pair]
    if t.mode == "constant":
        return F.pad(x[0], widths, value=t.value)
    return F.pad(x[0], widths, mode="replicate" if t.mode == "edge" else t.mode)


def _group_norm(x: list[Tensor], a: Tensors, n: Node) -> Tensor:
    t = n.given(Normalisation)
    # Not torch's own, which refuses a group of one number.
    split = x[0].reshape(len(x[0]), t.groups or x[0].shape[1], -1)
    var, mean = torch.var_mean(split, 2, correction=0, keepdim=True)
    normed = ((split - mean) / torch.sqrt(var + t.eps)).reshape(x[0].shape)
    return normed * _channels(a["scale"], x[0]) + _channels(a["shift"], x[0])


def _channel_norm(x: list[Tensor], a: Tensors, n: Node) -> Tensor:
    var, mean = torch.var_mean(x[0], 1, correction=0, keepdim=True)
    normed = (x[0] - mean) / torch.sqrt(var + n.given(Normalisation).eps)
    return normed * _channels(a["scale"], x[0]) + _channels(a["shift"], x[0])


def _transposed(x: list[Tensor], a: Tensors, n: Node) -> Tensor:
    t = n.given(Transposed)
    return F.conv_transpose3d(
        x[0], a["weight"], a["bias"], t.stride, t.padding, t.extra, t.groups, t.dilation
    )


def _hyper_transposed(x: list[Tensor], a: Tensors, n: Node) -> Tensor:
    samples = []
    for image, e in zip(x[0], x[1], strict=True):
        made = {name: torch.tensordot(e, array, 1) for name, array in a.items()}
        samples.append(_transposed([image[None]], made, n))
    return torch.cat(samples)


def _resize(x: list[Tensor], a: Tensors, n: Node) -> Tensor:
    t, y = n.given(Resizing), x[0]
    for axis in range(3):
        low, high, part = taps(t, y.shape[axis + 2], axis)
        w = torch.from_numpy(part).to(y).view(-1, *(1,) * (2 - axis))
        first, second = (y.index_select(axis + 2, torch.from_numpy(i)) for i in (low, high))
        # Not first · (1 - w) + second · w: what has no weight may be infinite.
        y = torch.where(w == 0, first, first * (1 - w) + second * w)
    return y


def _crop(x: list[Tensor], a: Tensors, n: Node) -> Tensor:
    t = n.given(Cropping)
    d, h, w = (
        slice(start, start + step * (size - 1) + 1, step)
        for start, step, size in zip(t.start, t.step, t.size, strict=True)
    )
    return x[0][:, :, d, h, w]


def _transpose(x: list[Tensor], a: Tensors, n: Node) -> Tensor:
    t = n.given(Transposition)
    split = x[0].reshape(len(x[0]), *t.sizes)
    return split.permute(0, *(axis + 1 for axis in t.order))


def _reduce(x: list[Tensor], a: Tensors, n: Node) -> Tensor:
    match n.given(Reduction).kind:
        case "mean":
            return x[0].mean(1, keepdim=True)
        case "sum":
            return x[0].sum(1, keepdim=True)
        case "maximum":
            return x[0].amax(1, keepdim=True)
        case "l2":
            norm: Tensor = torch.linalg.vector_norm(x[0], dim=1, keepdim=True)
            return norm


def _softmax(x: list[Tensor], a: Tensors, n: Node) -> Tensor:
    log = n.given(Probabilities).log
    return torch.log_softmax(x[0], 1) if log else torch.softmax(x[0], 1)


def _max_pool(x: list[Tensor], a: Tensors, n: Node) -> Tensor:
    t = n.given(Pooling)
    return F.max_pool3d(x[0], t.kernel, t.stride, t.padding, t.dilation, t.ceil_mode)


def _avg_pool(x: list[Tensor], a: Tensors, n: Node) -> Tensor:
    t = n.given(Pooling)
    return F.avg_pool3d(x[0], t.kernel, t.stride, t.padding, t.ceil_mode, t.count_include_pad)


def _slice(x: list[Tensor], a: Tensors, n: Node) -> Tensor:
    t = n.given(Span)
    return x[0][:, t.start : t.stop]


def _ensemble(x: list[Tensor], a: Tensors, n: Node) -> Tensor:
    t = n.given(Combination)
    return combine_outputs(x[0], t.members, t.boxes, t.classes, t.rule)


_OPS: dict[str, Callable[[list[Tensor], Tensors, Node], Tensor]] = {
    "conv": _conv,
    "hyper_conv": _hyper_conv,
    "conv_transpose": _transposed,
    "hyper_conv_transpose": _hyper_transposed,
    "linear": lambda x, a, n: F.linear(x[0], a["weight"], a["bias"]),
    "hyper_linear": _hyper_linear,
    "one_and": lambda x, a, n: torch.cat([torch.ones_like(x[0][:, :1]), x[0]], 1),
    "combine": lambda x, a, n: torch.einsum(
        "bk,bkc->bc", x[1], x[0].view(len(x[0]), x[1].shape[1], -1)
    ),
    "affine": lambda x, a, n: x[0] * _channels(a["scale"], x[0]) + _channels(a["shift"], x[0]),
    "activation": lambda x, a, n: activate(x[0], n),
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "adaptive_avg_pool": lambda x, a, n: F.adaptive_avg_pool3d(x[0], n.given(Grid).size),
    "adaptive_max_pool": lambda x, a, n: F.adaptive_max_pool3d(x[0], n.given(Grid).size),
    "global_avg_pool": _global_avg,
    "global_max_pool": lambda x, a, n: x[0].amax((2, 3, 4)),
    "global_norm": lambda x, a, n: torch.linalg.vector_norm(x[0], dim=(2, 3, 4)),
    "reduce": _reduce,
    "add": lambda x, a, n: x[0] + x[1],
    "sub": lambda x, a, n: x[0] - x[1],
    "mul": lambda x, a, n: x[0] * x[1],
    "div": lambda x, a, n: x[0] / x[1],
    "maximum": lambda x, a, n: torch.maximum(x[0], x[1]),
    "minimum": lambda x, a, n: torch.minimum(x[0], x[1]),
    "concat": lambda x, a, n: torch.cat(x, 1),
    "slice": _slice,
    "pad": _pad,
    "crop": _crop,
    "resize": _resize,
    "softmax": _softmax,
    "group_norm": _group_norm,
    "channel_norm": _channel_norm,
    "transpose": _transpose,
    "ensemble": _ensemble,
}

"""The folded graph as a short list of fused operations, cut into trunk and head.

    trunk(image) → features,   head(features, tabular) → output

Fused into a convolution: an affine map with its activation before it (prologue); after it a
residual, or the 1x1x1 convolution that makes the residual (shortcut), an activation, 2x2x2
max-pooling, and a second, affinely mapped and activated output. Where all that read an output skip
every second voxel, these are not kept (sparse).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.plan import Op, Plan, Program
from hyperfusion_rt.export.ir.cut import cut
from hyperfusion_rt.export.ir.ensemble import Ensemble
from hyperfusion_rt.export.ir.fold import fold
from hyperfusion_rt.export.ir.graph import Graph, Node
from hyperfusion_rt.kernels.cpu.tiles import choose_tile

_CONVS = ("conv", "hyper_conv")
_WITH_ACTIVATION = (
    *_CONVS,
    "linear",
    "hyper_linear",
    "combine",
    "add",
    "mul",
    "affine",
    "instance_norm",
)


@dataclass
class _Draft:
    """An operation that still grows: `node` and what was fused around it."""

    node: Node
    output: str
    prologue: tuple[Node | None, Node | None] | None = None  # affine, activation
    prologue_input: str | None = None
    residual: str | None = None
    act: Node | None = None
    pool: bool = False
    second: tuple[Node | None, Node | None, str] | None = None  # affine, activation, value
    shortcut: Node | None = None  # a 1x1x1 convolution, added
    tile: tuple[int, int, int] | None = None  # Winograd
    pairs: bool = False  # its products are of bfloat16 pairs
    sparse: bool = False  # only every second voxel is kept
    voxels: int = 0  # that the node computes

    def names(self) -> list[str]:
        """The graph's nodes that are part of this operation."""
        around = [*(self.prologue or ()), *(self.second or ())[:2], self.shortcut]
        nodes = [self.node, *self.late, *(n for n in around if isinstance(n, Node))]
        return [node.output for node in nodes]

    late: list[Node] = field(default_factory=list)  # fused nodes, in their order


def plan(graph: Graph, *, folded: bool = False, precision: str = "fp32") -> Plan:
    """Fold `graph` (unless `folded`), cut it and fuse both parts.

    Args:
        graph: inputs `image [C, D, H, W]` and, where the network takes a table, `tabular [T]`.
        precision: fp32 or bf16; see `Plan`.
    """
    if not folded:
        graph = fold(graph)
    return _plan(*cut(graph), 1, precision)


def plan_ensemble(ensemble: Ensemble, *, precision: str = "fp32") -> Plan:
    """The plan of a joined ensemble of folded networks."""
    return _plan(ensemble.trunk, ensemble.head, ensemble.boxes, precision)


def _plan(trunk: Graph, head: Graph, boxes: int, precision: str) -> Plan:
    tensors: dict[str, NDArray[np.float32]] = {}
    return Plan(
        trunk=_Fuser(trunk, "trunk", tensors, precision).program(),
        head=_Fuser(head, "head", tensors, precision).program(),
        tensors=tensors,
        precision=precision,
        boxes=boxes,
    )


class _Fuser:
    def __init__(
        self, graph: Graph, part: str, tensors: dict[str, NDArray[np.float32]], precision: str
    ) -> None:
        self.graph, self.part, self.tensors = graph.copy(), part, tensors
        self.precision = precision
        graph = self.graph
        self.users: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for value in node.inputs:
                self.users.setdefault(value, []).append(node)
        self.gone: set[str] = set()  # outputs of nodes that stand inside another operation

    def program(self) -> Program:
        """The operations of this part, in an order in which they can run."""
        order = {node.output: i for i, node in enumerate(self.graph.nodes)}
        drafts: list[_Draft] = []
        for node in self.graph.nodes:
            if node.op in _WITH_ACTIVATION and node.output not in self.gone:
                drafts.append(self._grow(node))
            elif node.output not in self.gone:
                drafts.append(_Draft(node, node.output))
        drafts = [d for d in drafts if d.node.output not in self.gone]
        self._second_outputs(drafts)
        self._prologues(drafts)
        for draft in drafts:
            draft.tile, draft.pairs = self._tile(draft)
            draft.voxels = math.prod(self.graph.shapes[draft.node.output][1:])
        self._shortcuts(drafts)
        drafts = [d for d in drafts if d.node.output not in self.gone]
        self._sparse_outputs(drafts)
        drafts = [d for d in drafts if d.node.output not in self.gone]
        drafts.sort(key=lambda d: max(order[n.output] for n in [d.node, *d.late]))
        ops = [op for d in drafts for op in self._lower(d)]
        return Program(
            inputs={name: tuple(shape) for name, shape in self.graph.inputs.items()},
            ops=ops,
            outputs=list(self.graph.outputs),
        )

    def _only_user(self, value: str) -> Node | None:
        users = self.users.get(value, [])
        return users[0] if len(users) == 1 and value not in self.graph.outputs else None

    def _absorb(self, draft: _Draft, node: Node) -> None:
        self.gone.add(node.output)
        draft.late.append(node)
        draft.output = node.output

    def _grow(self, node: Node) -> _Draft:
        """`node` with the residual, activation and pooling that follow it."""
        draft = _Draft(node, node.output)
        user = self._only_user(draft.output)
        if (
            node.op in _CONVS
            and user is not None
            and user.op == "add"
            and (user.output not in self.gone)
        ):
            other = next((v for v in user.inputs if v != draft.output), None)
            shape = self.graph.shapes
            if other is not None and shape[other] == shape[draft.output]:
                draft.residual = other
                self._absorb(draft, user)
                user = self._only_user(draft.output)
        if user is not None and user.op == "activation":
            draft.act = user
            self._absorb(draft, user)
            user = self._only_user(draft.output)
        if (
            node.op == "conv"
            and user is not None
            and user.op == "max_pool"
            and draft.residual is None
            and (draft.act is None or draft.act.attrs["kind"] == "relu")
            and _halves(user, self.graph.shapes[draft.output])
            and (_winograd(node) or self._one_channel(node))
        ):
            draft.pool = True
            self._absorb(draft, user)
        return draft

    def _one_channel(self, node: Node) -> bool:
        x = node.inputs[0]
        return x in self.graph.inputs and self.graph.shapes[x][0] == 1 and _dense(node)

    def _chains(self, value: str) -> Iterator[tuple[Node | None, Node | None, str]]:
        """(affine, activation, result) of each map that follows `value`."""
        for user in self.users.get(value, []):
            if user.op == "affine" and user.output not in self.gone:
                nxt = self._only_user(user.output)
                if nxt is not None and nxt.op == "activation":
                    yield user, nxt, nxt.output
                else:
                    yield user, None, user.output
            elif user.op == "activation" and user.output not in self.gone:
                yield None, user, user.output

    def _second_outputs(self, drafts: list[_Draft]) -> None:
        """A convolution writes x and act(affine(x)) at once, where both are needed."""
        made = {d.node.output: d for d in drafts}
        for draft in drafts:
            if draft.node.op not in _CONVS:
                continue
            for affine, act, result in self._chains(draft.output):
                first = affine or act
                assert first is not None
                # An affine node with its activation is a draft of its own, under the affine's name.
                if made.get(first.output) is None:
                    continue
                draft.second = (affine, act, result)
                self.gone.update(n.output for n in (affine, act) if n is not None)
                break

    def _prologues(self, drafts: list[_Draft]) -> None:
        """An affine map (and activation) that only convolutions read is made while they read."""
        for draft in drafts:
            if draft.node.op != "affine" or draft.output in self.graph.outputs:
                continue
            if draft.node.output in self.gone or len(self.graph.shapes[draft.output]) != 4:
                continue
            users = [
                d
                for d in drafts
                if draft.output in (d.node.inputs[0], d.residual) or draft.output in d.node.inputs
            ]
            if users and all(
                d.node.op in _CONVS
                and d.node.inputs[0] == draft.output
                and d.residual != draft.output
                and _pointwise(d.node)
                for d in users
            ):
                for user in users:
                    user.prologue = (draft.node, draft.act)
                    user.prologue_input = draft.node.inputs[0]
                self.gone.add(draft.node.output)

    def _tile(self, draft: _Draft) -> tuple[tuple[int, int, int] | None, bool]:
        node = draft.node
        if node.op not in _CONVS or not _winograd(node):
            return None, False
        shape = self.graph.shapes[node.output]
        channels = self.graph.shapes[node.inputs[0]][0]
        stride = node.attrs["stride"][0]
        tile, pairs = choose_tile(channels, shape[0], shape[1:], self.precision, stride)
        # Gathering does not pool.
        return ((2, 2, 2), False) if tile is None and draft.pool else (tile, pairs)

    def _shortcuts(self, drafts: list[_Draft]) -> None:
        """A Winograd convolution computes the 1x1x1 convolution that it adds, tile by tile."""
        made = {d.output: d for d in drafts}
        for draft in drafts:
            other = made.get(draft.residual or "")
            if draft.node.op != "conv" or draft.tile is None or other is None:
                continue
            alone = other.act is None and other.second is None and other.prologue is None
            plain = other.node.op == "conv" and other.residual is None and alone
            if plain and _pointwise(other.node) and self._only_user(other.output) is not None:
                draft.shortcut, draft.residual = other.node, None
                self.gone.add(other.node.output)

    def _sparse_outputs(self, drafts: list[_Draft]) -> None:
        for draft in drafts:
            value = draft.output
            if draft.tile is None or draft.pool or value in self.graph.outputs:
                continue
            readers = [(d, self._stride_of(d, value)) for d in drafts if self._reads(d, value)]
            if readers and all(stride == (2, 2, 2) for _, stride in readers):
                draft.sparse = True
                c, *extent = self.graph.shapes[value]
                self.graph.shapes[value] = (c, *(-(-n // 2) for n in extent))
                for reader, _ in readers:
                    node = reader.shortcut if reader.shortcut is not None else reader.node
                    node = node if value in node.inputs else reader.node
                    node.attrs["stride"] = (1, 1, 1)

    @staticmethod
    def _reads(draft: _Draft, value: str) -> bool:
        first = [draft.prologue_input] if draft.prologue_input else draft.node.inputs[:1]
        read = [*first, *draft.node.inputs[1:], draft.residual]
        return value in read or (draft.shortcut is not None and value in draft.shortcut.inputs)

    @staticmethod
    def _stride_of(draft: _Draft, value: str) -> tuple[int, ...] | None:
        """The stride at which `draft` reads `value`, if it looks at single voxels only."""
        if draft.residual == value or draft.prologue_input == value:
            return None
        if draft.shortcut is not None and value in draft.shortcut.inputs:
            inside = value in draft.node.inputs
            return None if inside else tuple(draft.shortcut.attrs["stride"])
        node = draft.node
        if node.op == "global_avg_pool" or (node.op == "conv" and _pointwise(node)):
            return tuple(node.attrs.get("stride", (1, 1, 1)))
        return None

    # --- to plain operations -----------------------------------------------------------------

    def _tensor(self, draft: _Draft, role: str, array: NDArray[np.float64]) -> str:
        name = f"{self.part}.{draft.node.output}.{role}"
        self.tensors[name] = np.ascontiguousarray(array, dtype=np.float32)
        return name

    def _act(self, draft: _Draft, role: str, node: Node | None) -> dict[str, Any] | None:
        if node is None:
            return None
        found: dict[str, Any] = {"kind": node.attrs["kind"]}
        if "alpha" in node.attrs:
            found["alpha"] = float(node.attrs["alpha"])
        if "slope" in node.arrays:
            found["slope"] = self._tensor(draft, f"{role}.slope", node.arrays["slope"])
        return found

    def _map(
        self, draft: _Draft, role: str, affine: Node | None, act: Node | None, channels: int
    ) -> dict[str, Any]:
        scale = affine.arrays["scale"] if affine else np.ones(channels)
        shift = affine.arrays["shift"] if affine else np.zeros(channels)
        return {
            "scale": self._tensor(draft, f"{role}.scale", scale),
            "shift": self._tensor(draft, f"{role}.shift", shift),
            "act": self._act(draft, role, act),
        }

    def _lower(self, draft: _Draft) -> Iterator[Op]:
        node, shapes = draft.node, self.graph.shapes
        inputs, attrs = list(node.inputs), dict(node.attrs)
        tensors: dict[str, str] = {}
        if draft.prologue is not None and draft.prologue_input is not None:
            inputs[0] = draft.prologue_input
            channels = shapes[inputs[0]][0]
            attrs["prologue"] = self._map(draft, "prologue", *draft.prologue, channels)
        if draft.residual is not None:
            attrs["residual"] = draft.residual
        if node.op == "activation":
            attrs = {"act": self._act(draft, "act", node)}
            name = "affine"
        else:
            name = node.op
            attrs["act"] = self._act(draft, "act", draft.act)
        attrs["from"] = draft.names()
        if draft.pool:
            attrs["pool"] = True
        if draft.second is not None:
            affine, act, result = draft.second
            channels = shapes[result][0]
            attrs["second"] = {
                "output": result,
                "shape": list(shapes[result]),
                **self._map(draft, "second", affine, act, channels),
            }
        if name in _CONVS:
            yield from self._convolution(draft, name, inputs, attrs)
            return
        layouts = {"linear": (1, 0), "hyper_linear": (0, 2, 1)}
        for role, array in node.arrays.items():
            if role == "slope":
                continue
            if role == "weight" and name in layouts:
                array = array.transpose(layouts[name])
            tensors[role] = self._tensor(draft, role, array)
        work = 0.0
        if name in ("linear", "hyper_linear"):
            work = 2e-9 * node.arrays["weight"].size
        yield self._op(draft, name, inputs, attrs, tensors, work)

    def _convolution(
        self, draft: _Draft, name: str, inputs: list[str], attrs: dict[str, Any]
    ) -> Iterator[Op]:
        node, shapes = draft.node, self.graph.shapes
        weight, groups = node.arrays["weight"], attrs.pop("groups")
        kernel = tuple(int(k) for k in weight.shape[-3:])
        attrs["kernel"] = list(kernel)
        channels = shapes[inputs[0]][0]
        cout = int(weight.shape[-5])
        conv_voxels = draft.voxels
        work = 2e-9 * weight.size * conv_voxels
        if node.op == "hyper_conv":
            work /= weight.shape[0]
        depthwise = node.op == "conv" and groups == channels == cout > 1
        attrs["depthwise"] = depthwise
        if groups > 1 and not depthwise:
            weight = _ungrouped(weight, groups)
        flat = weight.reshape(*weight.shape[:-3], -1)
        # [taps, C], or [..., taps, Cin, Cout]
        flat = flat[:, 0].T if depthwise else np.moveaxis(flat, (-1, -2, -3), (-3, -2, -1))
        tensors = {
            "weight": self._tensor(draft, "weight", flat),
            "bias": self._tensor(draft, "bias", node.arrays["bias"]),
        }
        algorithm = "depthwise" if depthwise else "gather"
        if draft.tile is not None:
            algorithm = "winograd"
            attrs["tile"] = list(draft.tile)
            attrs["pairs"] = draft.pairs
        elif name == "conv" and self._one_channel(node) and "prologue" not in attrs:
            algorithm = "one-channel"
        attrs["algorithm"] = algorithm
        if draft.shortcut is not None:
            short = draft.shortcut
            attrs["shortcut"] = {
                "input": short.inputs[0],
                "stride": list(short.attrs["stride"]),
            }
            tensors["shortcut"] = self._tensor(
                draft, "shortcut", short.arrays["weight"][..., 0, 0, 0].T
            )
            tensors["bias"] = self._tensor(
                draft, "bias", node.arrays["bias"] + short.arrays["bias"]
            )
            work += 2e-9 * short.arrays["weight"].size * conv_voxels
        if draft.sparse:
            attrs["sparse"] = True
        yield self._op(draft, name, inputs, attrs, tensors, work)

    def _op(
        self,
        draft: _Draft,
        name: str,
        inputs: list[str],
        attrs: dict[str, Any],
        tensors: dict[str, str],
        work: float,
    ) -> Op:
        shapes, output = self.graph.shapes, draft.output
        moved = [shapes[value] for value in [*inputs, output]]
        if attrs.get("residual"):
            moved.append(shapes[attrs["residual"]])
        if attrs.get("shortcut"):
            moved.append(shapes[attrs["shortcut"]["input"]])
        if attrs.get("second"):
            moved.append(tuple(attrs["second"]["shape"]))
        stored = 2 if self.precision == "bf16" else 4
        size = sum(math.prod(s) * (stored if len(s) == 4 else 4) for s in moved)
        size += sum(self.tensors[tensor].nbytes for tensor in tensors.values())
        megabytes = 1e-6 * size
        layer = draft.node.layer
        return Op(name, inputs, output, shapes[output], attrs, tensors, layer, work, megabytes)


def _dense(node: Node) -> bool:
    return bool(node.attrs["groups"] == 1)


def _halves(node: Node, shape: tuple[int, ...]) -> bool:
    """Max-pooling of 2x2x2 blocks, without padding."""
    a = node.attrs
    even = all(s % 2 == 0 for s in shape[1:])
    return (
        tuple(a["kernel"]) == tuple(a["stride"]) == (2, 2, 2)
        and tuple(a["padding"]) == (0, 0, 0)
        and tuple(a["dilation"]) == (1, 1, 1)
        and (even or not a["ceil_mode"])
        and min(shape[1:]) >= 2
    )


def _pointwise(node: Node) -> bool:
    return (
        tuple(node.arrays["weight"].shape[-3:]) == (1, 1, 1)
        and tuple(node.attrs["padding"]) == (0, 0, 0)
        and _dense(node)
    )


def _winograd(node: Node) -> bool:
    """Whether Winograd's filtering can do it: 3x3x3, stride 1 or 2."""
    a = node.attrs
    return (
        tuple(node.arrays["weight"].shape[-3:]) == (3, 3, 3)
        and tuple(a["stride"]) in ((1, 1, 1), (2, 2, 2))
        and tuple(a["dilation"]) == (1, 1, 1)
        and node.arrays["weight"].shape[-4] > 1
        and _dense(node)
    )


def _ungrouped(weight: NDArray[np.float64], groups: int) -> NDArray[np.float64]:
    """`[..., Cout, Cin / groups, k, k, k]` → `[..., Cout, Cin, k, k, k]` with zeros."""
    *lead, cout, cin, kd, kh, kw = weight.shape
    full = np.zeros((*lead, cout, cin * groups, kd, kh, kw))
    step = cout // groups
    for g in range(groups):
        rows = slice(g * step, (g + 1) * step)
        full[..., rows, g * cin : (g + 1) * cin, :, :, :] = weight[..., rows, :, :, :, :]
    return full

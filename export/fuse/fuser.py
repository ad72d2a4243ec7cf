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
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.operations import Activation, Subsampling
from hyperfusion_rt.artifact.plan import Plan, Program, Side, Sides
from hyperfusion_rt.export.fuse.draft import (
    CONVS,
    TRANSPOSED,
    WITH_ACTIVATION,
    Draft,
    dense,
    halves,
    planar,
    pointwise,
    winograd,
)
from hyperfusion_rt.export.fuse.operations import Operations
from hyperfusion_rt.export.ir.cut import cut
from hyperfusion_rt.export.ir.ensemble import Ensemble
from hyperfusion_rt.export.ir.fold import fold
from hyperfusion_rt.export.ir.graph import Convolution, Graph, Node
from hyperfusion_rt.kernels.cpu.tiles import choose_tile, part_channels


def plan(graph: Graph, *, folded: bool = False, precision: str = "fp32") -> Plan:
    """Fold `graph` (unless `folded`), cut it and fuse both parts.

    Args:
        graph: inputs `image [C, D, H, W]` and, where the network takes a table, `tabular [T]`.
        precision: fp32 or bf16; see `Plan`.
    """
    if not folded:
        graph = fold(graph)
    return _plan(*cut(graph), 1, precision)


def plan_network(graph: Graph, *, precision: str = "fp32") -> Plan:
    """The plan of any network: its inputs and outputs keep their names and shapes."""

    def side(name: str) -> Side:
        last, shape = name in graph.last, graph.outer.get(name, graph.shapes[name])
        return Side(name, (*shape[1:], shape[0]) if last else shape, last)

    sides = Sides(
        inputs=tuple(side(name) for name in graph.inputs),
        outputs=tuple(side(name) for name in graph.outputs),
    )
    folded = fold(graph)
    made = {name: folded.shapes[name] for name in folded.outputs}
    head = Graph(made, [], list(folded.outputs), made)
    return _plan(folded, head, 1, precision, sides)


def plan_ensemble(ensemble: Ensemble, *, precision: str = "fp32") -> Plan:
    """The plan of a joined ensemble of folded networks."""
    return _plan(ensemble.trunk, ensemble.head, ensemble.boxes, precision)


def _plan(
    trunk: Graph, head: Graph, boxes: int, precision: str, sides: Sides | None = None
) -> Plan:
    tensors: dict[str, NDArray[np.float32]] = {}
    return Plan(
        trunk=_Fuser(trunk, "trunk", tensors, precision).program(),
        head=_Fuser(head, "head", tensors, precision).program(),
        tensors=tensors,
        precision=precision,
        boxes=boxes,
        sides=sides,
    )


class _Fuser:
    def __init__(
        self, graph: Graph, part: str, tensors: dict[str, NDArray[np.float32]], precision: str
    ) -> None:
        self.graph, self.part, self.tensors = graph.copy(), part, tensors
        self.precision = precision
        self.users: dict[str, list[Node]] = {}
        for node in self.graph.nodes:
            for value in node.inputs:
                self.users.setdefault(value, []).append(node)
        self.gone: set[str] = set()  # outputs of nodes that stand inside another operation

    def program(self) -> Program:
        """The operations of this part, in an order in which they can run."""
        order = {node.output: i for i, node in enumerate(self.graph.nodes)}
        drafts = self._left([self._grow(n) for n in self.graph.nodes if n.output not in self.gone])
        self._second_outputs(drafts)
        self._prologues(drafts)
        for draft in drafts:
            draft.tile, draft.pairs = self._tile(draft)
            read = draft.node.inputs[0] if draft.node.op in TRANSPOSED else draft.node.output
            draft.voxels = math.prod(self.graph.shapes[read][1:])
        self._shortcuts(drafts)
        drafts = self._left(drafts)
        self._sparse_outputs(drafts)
        drafts.sort(key=lambda d: max(order[n.output] for n in [d.node, *d.late]))
        written = Operations(self.graph, self.part, self.tensors, self.precision)
        return Program(
            inputs=dict(self.graph.inputs),
            ops=[written.of(draft) for draft in drafts],
            outputs=list(self.graph.outputs),
        )

    def _left(self, drafts: list[Draft]) -> list[Draft]:
        return [d for d in drafts if d.node.output not in self.gone]

    def _only_user(self, value: str) -> Node | None:
        users = self.users.get(value, [])
        return users[0] if len(users) == 1 and value not in self.graph.outputs else None

    def _absorb(self, draft: Draft, node: Node) -> None:
        self.gone.add(node.output)
        draft.late.append(node)
        draft.output = node.output

    def _grow(self, node: Node) -> Draft:
        """`node` with the residual, activation and pooling that follow it."""
        draft = Draft(node, node.output)
        if node.op not in WITH_ACTIVATION:
            return draft
        user = self._only_user(draft.output)
        adds = user is not None and user.op == "add" and user.output not in self.gone
        if node.op in CONVS and user is not None and adds:
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
            and (draft.act is None or draft.act.given(Activation).kind == "relu")
            and halves(user, self.graph.shapes[draft.output])
            and dense(node)
            and (winograd(node) or planar(node, self.graph, pools=True))
        ):
            draft.pool = True
            self._absorb(draft, user)
        return draft

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

    def _second_outputs(self, drafts: list[Draft]) -> None:
        """A convolution writes x and act(affine(x)) at once, where both are needed."""
        made = {d.node.output: d for d in drafts}
        for draft in drafts:
            if draft.node.op not in CONVS:
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

    def _prologues(self, drafts: list[Draft]) -> None:
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
                d.node.op in CONVS
                and d.node.inputs[0] == draft.output
                and d.residual != draft.output
                and pointwise(d.node)
                for d in users
            ):
                for user in users:
                    user.prologue = (draft.node, draft.act)
                self.gone.add(draft.node.output)

    def _tile(self, draft: Draft) -> tuple[tuple[int, int, int] | None, bool]:
        node = draft.node
        if node.op not in CONVS or not winograd(node) or planar(node, self.graph, pools=draft.pool):
            return None, False
        shape = self.graph.shapes[node.output]
        channels = self.graph.shapes[node.inputs[0]][0]
        window = node.given(Convolution)
        part = part_channels(channels, shape[0], window.groups)
        tile, pairs = choose_tile(*part, shape[1:], self.precision, window.stride[0])
        # Gathering does not pool.
        return ((2, 2, 2), False) if tile is None and draft.pool else (tile, pairs)

    def _shortcuts(self, drafts: list[Draft]) -> None:
        """A Winograd convolution computes the 1x1x1 convolution that it adds, tile by tile."""
        made = {d.output: d for d in drafts}
        for draft in drafts:
            other = made.get(draft.residual or "")
            if draft.node.op != "conv" or draft.tile is None or other is None:
                continue
            if not dense(draft.node):
                continue
            alone = other.act is None and other.second is None and other.prologue is None
            plain = other.node.op == "conv" and other.residual is None and alone
            if plain and pointwise(other.node) and self._only_user(other.output) is not None:
                draft.shortcut, draft.residual = other.node, None
                self.gone.add(other.node.output)

    def _sparse_outputs(self, drafts: list[Draft]) -> None:
        """A value that all read at every second voxel is made at these alone."""
        for draft in drafts:
            value = draft.output
            if draft.tile is None or draft.pool or value in self.graph.outputs:
                continue
            readers = [d for d in drafts if d.reads(value)]
            if readers and all(d.stride_of(value) == (2, 2, 2) for d in readers):
                draft.sparse = True
                c, *extent = self.graph.shapes[value]
                self.graph.shapes[value] = (c, *(-(-n // 2) for n in extent))
                for reader in readers:
                    node = reader.shortcut if reader.shortcut is not None else reader.node
                    node = node if value in node.inputs else reader.node
                    if node.op == "global_avg_pool":
                        node.attrs = Subsampling()
                    else:
                        node.attrs = replace(node.given(Convolution), stride=(1, 1, 1))

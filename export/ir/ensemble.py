"""Members and boxes as one network: one call for a case.

    trunk(box of the image) → every member's features          on each of the N boxes
    head(features of all boxes, tabular) → output, members     once per case

The N boxes of a case lie one after the other, `image [B, N·C, D, H, W]`: of each box its C
channels. The trunk sees a batch of B·N boxes `[C, D, H, W]`; its features of a case lie one box
after the other, so that turning `[B·N, F]` into the head's `[B, N·F]` moves nothing. `tabular [B,
ΣT]` holds the members' encoded rows in turn. `members [B, M·N·C]` is every member's raw output on
every box, `output [B, C]` what the ensemble's rule makes of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hyperfusion_rt.artifact.operations import Combination, Span
from hyperfusion_rt.config import Rule
from hyperfusion_rt.export.ir.cut import cut
from hyperfusion_rt.export.ir.graph import TABLE, Graph, Node, Shape

IMAGE, OUTPUT, MEMBERS = "image", "output", "members"


@dataclass(frozen=True)
class Ensemble:
    """`trunk` runs on every box, `head` on every case; see the module."""

    trunk: Graph
    head: Graph
    boxes: int

    @property
    def inputs(self) -> dict[str, Shape]:
        """Shapes of a case: `image` and, where there is a table, `tabular`, read or not."""
        image = _boxed(self.trunk.inputs[IMAGE], self.boxes)
        table = {name: self.head.inputs[name] for name in (TABLE,) if name in self.head.inputs}
        return {IMAGE: image, **table}


def _boxed(shape: Shape, boxes: int) -> Shape:
    return (boxes * shape[0], *shape[1:])


def join(
    members: Sequence[Graph], widths: Sequence[int], boxes: int, *, classes: bool, rule: Rule
) -> Ensemble:
    """One network of the folded `members`, each `image, tabular → output`.

    Args:
        widths: T of each member's table.
        boxes: N of a case.
        classes: outputs are logits, not numbers.
        rule: as `hyperfusion_rt.rules.combine`.
    """
    trunk = Graph({}, [], [], {})
    head = Graph({}, [], [OUTPUT, MEMBERS], {})
    raw: list[str] = []
    start = 0
    table = {TABLE: (sum(widths),)} if sum(widths) else {}
    for index, (graph, width) in enumerate(zip(members, widths, strict=True)):
        early, late = cut(graph)
        name = f"m{index}"
        trunk.inputs |= early.inputs
        trunk.shapes |= early.inputs
        _append(trunk, early, {IMAGE: IMAGE}, name)
        features = {v: v if v == IMAGE else f"{name}.{v}" for v in early.outputs}
        trunk.outputs += [v for v in features.values() if v not in trunk.outputs]
        row = TABLE
        if len(members) > 1:
            row = f"{name}.{TABLE}"
            head.shapes[row] = (width,)
            attrs = Span(start=start, stop=start + width)
            head.nodes.append(Node("slice", [TABLE], row, attrs, {}, f"{name}, its row"))
        start += width
        for value, joined in features.items():
            head.inputs[joined] = head.shapes[joined] = _boxed(graph.shapes[value], boxes)
        for box in range(boxes):
            given = {TABLE: row}
            for value, joined in features.items():
                given[value] = _of_box(head, joined, graph.shapes[value], box, boxes)
            made = _append(head, late, given, f"{name}.b{box}")
            raw.append(made[graph.outputs[0]])
    head.inputs |= table
    head.shapes |= table
    outputs = graph.shapes[graph.outputs[0]][0]
    head.shapes[MEMBERS], head.shapes[OUTPUT] = (outputs * len(raw),), (outputs,)
    head.nodes.append(Node("concat", raw, MEMBERS, None, {}, "the members"))
    how = Combination(members=len(members), boxes=boxes, classes=classes, rule=rule)
    head.nodes.append(Node("ensemble", [MEMBERS], OUTPUT, how, {}, "the ensemble"))
    if not trunk.nodes:
        trunk.outputs = []
    return Ensemble(trunk, head, boxes)


def labelled(graph: Graph, boxes: int) -> Ensemble:
    """A folded network that segments, `image → [L, D, H, W]`, on N boxes: `output [B, N·L, ...]`.

    Its head has no operation: what a label is needs no other box.
    """
    trunk = Graph(dict(graph.inputs), [], [OUTPUT], dict(graph.inputs))
    made = _append(trunk, graph, {IMAGE: IMAGE}, "m0")
    scores, shape = made[graph.outputs[0]], graph.shapes[graph.outputs[0]]
    for node in trunk.nodes:
        node.inputs = [OUTPUT if name == scores else name for name in node.inputs]
        node.output = OUTPUT if node.output == scores else node.output
    trunk.shapes[OUTPUT] = trunk.shapes.pop(scores)
    head = Graph({OUTPUT: _boxed(shape, boxes)}, [], [OUTPUT], {OUTPUT: _boxed(shape, boxes)})
    return Ensemble(trunk, head, boxes)


def _of_box(head: Graph, value: str, shape: Shape, box: int, boxes: int) -> str:
    """The part of a boxed `value` that belongs to `box`."""
    if boxes == 1:
        return value
    name = f"{value}.b{box}"
    if name not in head.shapes:
        attrs = Span(start=box * shape[0], stop=(box + 1) * shape[0])
        head.nodes.append(Node("slice", [value], name, attrs, {}, f"box {box}"))
        head.shapes[name] = shape
    return name


def _append(target: Graph, part: Graph, given: dict[str, str], prefix: str) -> dict[str, str]:
    """Add the nodes of `part`, which reads the values `given`; returns every value's new name."""
    names = dict(given)
    for node in part.nodes:
        name = f"{prefix}.{node.output}"
        inputs = [names[value] for value in node.inputs]
        layer = f"{prefix}: {node.layer}" if node.layer else ""
        target.nodes.append(Node(node.op, inputs, name, node.attrs, node.arrays, layer))
        target.shapes[name] = part.shapes[node.output]
        names[node.output] = name
    return names

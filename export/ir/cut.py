"""The cut of a folded graph into trunk(image) and head(features, table)."""

from __future__ import annotations

from hyperfusion_rt.export.ir.graph import TABLE, Graph


def cut(graph: Graph) -> tuple[Graph, Graph]:
    """Trunk(image) → features, and head(features, tabular) → output.

    The trunk holds what does not depend on the table; the features are what the head reads of it,
    or the outputs themselves where the table plays no part: then the head has no operation. A
    network that reads the table first, or no image at all, has an empty trunk.
    """
    late = graph.depends_on(TABLE) if TABLE in graph.inputs else set()
    early_nodes = [n for n in graph.nodes if n.output not in late]
    late_nodes = [n for n in graph.nodes if n.output in late]
    read = [value for n in late_nodes for value in n.inputs] + graph.outputs
    features = list(dict.fromkeys(v for v in read if v not in late))
    images = {v: s for v, s in graph.inputs.items() if v != TABLE}
    trunk = Graph(dict(images), early_nodes, features, dict(graph.shapes))
    inputs = {v: graph.shapes[v] for v in features}
    if TABLE in graph.inputs:
        inputs[TABLE] = graph.inputs[TABLE]
    head = Graph(inputs, late_nodes, list(graph.outputs), dict(graph.shapes))
    return trunk, head

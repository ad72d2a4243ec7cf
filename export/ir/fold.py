"""The exact algebra that takes normalisation and the table out of the volume.

Each rule looks for one place where it applies, changes the graph there, and says whether it did.
`fold` repeats them until none applies. All of it in float64.
"""

from __future__ import annotations

from collections.abc import Callable

from hyperfusion_rt.export.ir.fold_linear import (
    absorb_affine_back,
    absorb_affine_forward,
    affine_after_reshape,
    affine_before_add,
    affine_into_norm,
    compose_affine,
    compose_linear,
    merge_reshapes,
    merge_resizes,
    pad_into_window,
    transposed_is_conv,
)
from hyperfusion_rt.export.ir.fold_table import (
    embedding_tail,
    fold_states,
    linear_into_combine,
    pool_before_add,
    pool_before_hyper,
    trunk_emits_products,
)
from hyperfusion_rt.export.ir.graph import Array, Graph
from hyperfusion_rt.export.ir.recognise import (
    gated_activation,
    gelu,
    hard_gate,
    normalisation,
    nothing,
)


def fold(graph: Graph, states: Array | None = None) -> Graph:
    """A copy of `graph`, folded as far as the rules go.

    Args:
        states: `[S, T]`, if these are all the rows that the table can hold (the one-hot codes of a
            categorical column).
    """
    graph = graph.copy()
    graph.remove_dead()
    while any(rule(graph) for rule in RULES) or (states is not None and fold_states(graph, states)):
        graph.remove_dead()
    graph.remove_dead()
    graph.sort()
    return graph


RULES: tuple[Callable[[Graph], bool], ...] = (
    hard_gate,
    gated_activation,
    gelu,
    normalisation,
    compose_affine,
    nothing,
    absorb_affine_back,
    affine_into_norm,
    transposed_is_conv,
    affine_before_add,
    merge_reshapes,
    merge_resizes,
    pad_into_window,
    absorb_affine_forward,
    affine_after_reshape,
    compose_linear,
    embedding_tail,
    pool_before_add,
    pool_before_hyper,
    trunk_emits_products,
    linear_into_combine,
)

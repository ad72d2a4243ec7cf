"""Which tensors of a traced program share memory: what is written into one is seen in the others.

torch says so in three places. The examples that the trace has made lie in storages, each in its
part and order. An operation's schema says what it writes, and whether its result may lie in the
memory of its input: `contiguous` copies or does not, as its input lies. And dropout that is off
returns its input itself, though the trace has a copy.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from hyperfusion_rt.export.ir.aten import ITSELF, operation
from hyperfusion_rt.export.ir.builder import UnsupportedError


def written(node: fx.Node) -> list[fx.Node]:
    """The tensors that an operation writes into."""
    return _annotated(node, write=True)


def _annotated(node: fx.Node, *, write: bool) -> list[fx.Node]:
    """The inputs that an operation, by its schema, writes; or whose memory its result may share."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return []
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | node.kwargs
    marks = {a.name: a.alias_info for a in schema.arguments if a.alias_info is not None}
    found = [given.get(name) for name, mark in marks.items() if mark.is_write == write]
    return [source for source in found if isinstance(source, fx.Node)]


class _Place(NamedTuple):
    """Where a tensor lies: two in one place are the same numbers in the same memory."""

    storage: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _places(node: fx.Node) -> list[_Place]:
    return [
        _Place(t.untyped_storage()._cdata, int(t.storage_offset()), tuple(t.shape), t.stride())
        for t in pytree.tree_leaves(node.meta.get("val"))
        if isinstance(t, Tensor)
    ]


class Memory:
    """Of a program: where the tensors lie that its nodes make."""

    def __init__(self, graph: fx.Graph) -> None:
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.places: dict[fx.Node, list[_Place]] = {}
        self.akin: dict[int, int] = {}  # of a storage another that may be the same
        for node in graph.nodes:
            made = _places(node)
            itself = written(node) or node.all_input_nodes[: operation(node.target) in ITSELF]
            self.places[node] = self.places[itself[0]] if itself else made
            for source in itself or _annotated(node, write=False):
                families = [self._family(place) for place in (*made, *self.places[source])]
                self.akin.update(dict.fromkeys(families, families[0]))
        self.near: dict[int, list[fx.Node]] = {}  # what lies in storages that may be one
        for node, places in self.places.items():
            for family in {self._family(place) for place in places}:
                self.near.setdefault(family, []).append(node)

    def _family(self, place: _Place) -> int:
        """The same for all storages that may be one."""
        found = place.storage
        while self.akin.get(found, found) != found:
            found = self.akin[found]
        return found

    def names(self, source: fx.Node, by: fx.Node) -> list[fx.Node]:
        """All nodes that have made the very tensor that `by` writes, which is that of `source`.

        Raises:
            UnsupportedError: what may share its memory otherwise is read after `by`.
        """
        (place,) = self.places[source]
        now, found = self.order[by], []
        near = [node for node in self.near[self._family(place)] if self.order[node] < now]
        beside = [other for node in near for other in self.places[node]]
        part = any(math.prod(other.shape) > math.prod(place.shape) for other in beside)
        for node in near:
            if self.places[node] == [place] and isinstance(node.meta["val"], Tensor):
                found.append(node)
            elif any(self.order[user] > now for user in node.users):
                if all(other.storage != place.storage for other in self.places[node]):
                    what = "tensor that may share memory with one that is read later"
                elif part:
                    what = "part of another tensor"
                else:
                    what = "tensor with a part that is read later"
                raise UnsupportedError(f"in place on a {what}")
        return found

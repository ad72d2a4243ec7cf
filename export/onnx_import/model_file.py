"""An ONNX file, opened with care: what of it is damaged, too new or too large is said.

Nothing is taken from the file on trust: neither its sizes nor the names of other files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.errors import HyperFusionError, MissingExtraError

OPSETS = range(11, 24)
# Numbers of one tensor: 8 GB of float32.
_MOST = 1 << 31
# Above it protobuf cannot hold a file; weights beyond it are in files of their own.
_MOST_BYTES = (1 << 31) - 1
# A network of more nodes, or of more inputs and outputs, is no CNN.
_MOST_NODES, _MOST_ENDS = 100_000, 256


def damaged(path: Path, what: str) -> HyperFusionError:
    """The error of a file that is not what it says."""
    return HyperFusionError(
        f"{path}: not an ONNX file, or a damaged one: {what}", code="onnx-damaged"
    )


def _unreadable(path: Path, error: OSError) -> HyperFusionError:
    return HyperFusionError(
        f"{path}: cannot be read: {error.strerror or error}", code="onnx-unreadable"
    )


def open_model(path: Path) -> Any:
    """The model of a file, without functions of its own, and without what is in other files.

    Raises:
        MissingExtraError: onnx is not installed.
        HyperFusionError: it cannot be read, is damaged, or of another opset than 11 to 23.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise MissingExtraError("onnx", "train", "reading an ONNX file") from None
    model = onnx.ModelProto()
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise damaged(path, "larger than 2 GB: weights belong into files beside it")
        model.ParseFromString(path.read_bytes())
    except OSError as error:
        raise _unreadable(path, error) from None
    except DecodeError as error:
        raise damaged(path, str(error)) from None
    versions = {o.version for o in model.opset_import if o.domain in ("", "ai.onnx")}
    if model.graph.node and (len(versions) != 1 or not versions.issubset(OPSETS)):
        raise HyperFusionError(
            f"{path}: opset {', '.join(map(str, sorted(versions))) or 'unknown'}, but "
            f"{OPSETS[0]} to {OPSETS[-1]} are read; convert it, for example with "
            "onnx.version_converter",
            code="onnx-opset",
        )
    if model.functions:
        model = _inlined(path, model)
    graph = model.graph
    if not graph.node or not graph.output:
        raise damaged(path, "it has no node or no output")
    if len(graph.node) > _MOST_NODES or len(graph.input) > _MOST_NODES:
        raise damaged(path, f"{len(graph.node)} nodes and {len(graph.input)} inputs")
    return model


def ends(path: Path, items: Iterable[Any], what: str) -> list[Any]:
    """The inputs or outputs of a graph, which have names of their own and are not too many."""
    found = list(items)
    names = {item.name for item in found}
    if len(found) > _MOST_ENDS or len(names) < len(found) or "" in names:
        raise damaged(path, f"{len(found)} {what} with {len(names)} names")
    return found


def opset_of(model: Any) -> int:
    """The version of ONNX's own operations."""
    return next(int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx"))


# --- functions ------------------------------------------------------------------------------------


def _inlined(path: Path, model: Any) -> Any:
    """The model with its functions written out, unless that is without end."""
    from onnx import inliner

    bodies = {(f.domain, f.name): f.node for f in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(nodes: Iterable[Any], inside: frozenset[tuple[str, str]]) -> int:
        """How many nodes that makes."""
        total = 0
        for node in nodes:
            called = node.domain, node.op_type
            if called in inside:
                raise damaged(path, f"its function {node.op_type} calls itself")
            if called in bodies and called not in sizes:
                sizes[called] = size(bodies[called], inside | {called})
            parts = [g for a in node.attribute for g in (a.g, *a.graphs) if g.node]
            total += sizes.get(called, 1) + sum(size(g.node, inside) for g in parts)
            if total > _MOST_NODES:
                raise damaged(path, "its functions are too many nodes")
        return total

    try:
        size(model.graph.node, frozenset())
        return inliner.inline_local_functions(model)
    except HyperFusionError:
        raise
    except Exception as error:  # what it raises is not declared
        raise damaged(path, f"its functions cannot be resolved: {error}") from None


# --- weights --------------------------------------------------------------------------------------


class Weights(Mapping[str, NDArray[Any]]):
    """The constants of a model by name; read when they are asked for, and not kept.

    Attributes:
        numbers: how many there are, of all together.

    Raises:
        HyperFusionError: a tensor is damaged, or what it refers to is not there.
    """

    def __init__(self, path: Path, model: Any) -> None:
        self._path = path
        self._tensors = {t.name: t for t in model.graph.initializer}
        if len(self._tensors) != len(model.graph.initializer) or "" in self._tensors:
            raise damaged(path, "two initializers have one name, or one has none")
        if model.graph.sparse_initializer:
            raise HyperFusionError(
                f"{path}: it has sparse initializers, which are not read; write them as they are",
                code="onnx-unsupported",
            )
        self.numbers = sum(self._check(tensor) for tensor in model.graph.initializer)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.array(self._tensors[name])

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Any:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def _check(self, tensor: Any) -> int:
        """The number of elements."""
        if any(n < 0 for n in tensor.dims) or math.prod(tensor.dims) > _MOST:
            raise self._damaged(tensor, f"shape {list(tensor.dims)}")
        return math.prod(tensor.dims)

    def _damaged(self, tensor: Any, what: str) -> HyperFusionError:
        return damaged(self._path, f"the constant {tensor.name or 'of a node'}: {what}")

    def array(self, tensor: Any) -> NDArray[Any]:
        """A tensor's numbers: those of narrow floating-point types as float32."""
        from onnx import helper, numpy_helper

        count = self._check(tensor)
        try:
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        except (KeyError, ValueError, TypeError):
            raise self._damaged(tensor, f"the type {tensor.data_type}") from None
        if dtype.kind in "OUSc":
            raise self._damaged(tensor, "texts or complex numbers")
        try:
            if tensor.data_location == 1:  # EXTERNAL
                found = self._beside(tensor, count, dtype)
            else:
                found = numpy_helper.to_array(tensor)
            if found.dtype.kind not in "fiub" or found.dtype == np.float16:
                found = found.astype(np.float32)
        except HyperFusionError:
            raise
        except OSError as error:
            raise _unreadable(self._path, error) from None
        except Exception as error:  # what numpy_helper raises is not declared
            raise self._damaged(tensor, str(error)) from None
        if found.size != count:
            raise self._damaged(tensor, f"{found.size} numbers, not {count}")
        # Its own memory, not the file's: a graph keeps float64 as it is.
        own = found if found.dtype != np.float64 else found.copy()
        return np.asarray(own).reshape(tuple(tensor.dims))

    def _beside(self, tensor: Any, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Numbers that are in a file beside the model's, which must be in its folder."""
        given = {entry.key: entry.value for entry in tensor.external_data}
        folder = self._path.resolve().parent
        place = (folder / given.get("location", "")).resolve()
        if folder not in place.parents:
            raise self._damaged(tensor, f"{given.get('location')!r} is not beside it")
        offset, length = int(given.get("offset") or 0), count * dtype.itemsize
        if offset < 0 or int(given.get("length") or length) != length:
            raise self._damaged(tensor, f"{given}, but it needs {length} bytes")
        if not place.is_file():
            raise HyperFusionError(
                f"{place}: not there, but {self._path.name} keeps weights in it; copy it, too",
                code="onnx-unreadable",
            )
        if place.stat().st_size < offset + length:
            raise damaged(place, f"too short for the constant {tensor.name} of {self._path.name}")
        with place.open("rb") as file:
            file.seek(offset)
            return np.frombuffer(file.read(length), dtype).reshape(tuple(tensor.dims))

"""An ONNX file, opened with care: what of it is damaged, too new or too large is said.

Nothing is taken from the file on trust: neither its sizes nor the names of other files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
# A network of more nodes is no CNN.
_MOST_NODES = 100_000


def damaged(path: Path, what: str) -> HyperFusionError:
    """The error of a file that cannot be read."""
    return HyperFusionError(
        f"{path}: not an ONNX file, or a damaged one: {what}", code="onnx-damaged"
    )


def open_model(path: Path) -> Any:
    """The model of a file, checked, without the data that is in other files.

    Raises:
        MissingExtraError: onnx is not installed.
        HyperFusionError: it cannot be read, is damaged, or of another opset than 11 to 23.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError:
        raise MissingExtraError("onnx", "train", "reading an ONNX file") from None
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise damaged(path, "larger than 2 GB: weights belong into files beside it")
        content = path.read_bytes()
    except OSError as error:
        raise HyperFusionError(
            f"{path}: cannot be read: {error.strerror or error}", code="onnx-unreadable"
        ) from None
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise damaged(path, str(error)) from None
    if not model.graph.node or not model.graph.output:
        raise damaged(path, "it has no node or no output")
    if len(model.graph.node) > _MOST_NODES:
        raise damaged(path, f"{len(model.graph.node)} nodes")
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    if len(versions) != 1 or versions[0] not in OPSETS:
        raise HyperFusionError(
            f"{path}: opset {versions or 'unknown'}, but {OPSETS[0]} to {OPSETS[-1]} are read; "
            "convert it, for example with onnx.version_converter",
            code="onnx-opset",
        )
    if model.functions:
        model = _inlined(path, model)
    return model


def _inlined(path: Path, model: Any) -> Any:
    from onnx import inliner

    try:
        return inliner.inline_local_functions(model)
    except Exception as error:  # what it raises is not declared
        raise damaged(path, f"its functions cannot be resolved: {error}") from None


def opset_of(model: Any) -> int:
    """The version of ONNX's own operations."""
    return next(int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx"))


class Weights(Mapping[str, NDArray[Any]]):
    """The constants of a model by name; read when they are asked for, and not kept.

    Raises:
        HyperFusionError: a tensor is damaged, or what it refers to is not there.
    """

    def __init__(self, path: Path, model: Any) -> None:
        self._path = path
        self._tensors = {t.name: t for t in model.graph.initializer}
        if len(self._tensors) != len(model.graph.initializer):
            raise damaged(path, "two initializers have one name")
        if model.graph.sparse_initializer:
            raise damaged(path, "it has sparse initializers, which are not read")
        for tensor in model.graph.initializer:
            self._check(tensor)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.array(self._tensors[name])

    def __iter__(self) -> Any:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def _check(self, tensor: Any) -> int:
        """The number of elements."""
        if any(n < 0 for n in tensor.dims) or math.prod(tensor.dims) > _MOST:
            raise damaged(self._path, f"initializer {tensor.name}: shape {list(tensor.dims)}")
        return math.prod(tensor.dims)

    def array(self, tensor: Any) -> NDArray[Any]:
        """A tensor's numbers: float16 and bfloat16 as float32, others as they are."""
        from onnx import helper, numpy_helper

        count = self._check(tensor)
        try:
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            if tensor.data_location == 1:  # EXTERNAL
                found = self._beside(tensor, count, dtype)
            else:
                found = numpy_helper.to_array(tensor)
        except HyperFusionError:
            raise
        except Exception as error:  # what numpy_helper raises is not declared
            raise damaged(self._path, f"initializer {tensor.name}: {error}") from None
        if found.size != count:
            raise damaged(self._path, f"initializer {tensor.name}: {found.size} numbers")
        if found.dtype.kind not in "fiub" or str(found.dtype) in ("float16", "bfloat16"):
            found = found.astype(np.float32)
        if found.dtype.kind not in "fiub":
            raise damaged(self._path, f"initializer {tensor.name}: numbers of type {found.dtype}")
        return np.asarray(found).reshape(tuple(tensor.dims))

    def _beside(self, tensor: Any, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Numbers that are in a file beside the model's, which must be in its folder."""
        given = {entry.key: entry.value for entry in tensor.external_data}
        folder = self._path.resolve().parent
        place = (folder / given.get("location", "")).resolve()
        if folder not in place.parents:
            raise damaged(
                self._path, f"initializer {tensor.name}: {given.get('location')!r} is not beside it"
            )
        offset, length = int(given.get("offset", 0)), count * dtype.itemsize
        if not place.is_file():
            raise HyperFusionError(
                f"{place}: not there, but {self._path.name} keeps weights in it; copy it, too",
                code="onnx-unreadable",
            )
        if offset < 0 or place.stat().st_size < offset + length:
            raise damaged(place, f"too short for the initializer {tensor.name}")
        with place.open("rb") as file:
            file.seek(offset)
            return np.frombuffer(file.read(length), dtype).reshape(tuple(tensor.dims))

"""Files that other frameworks wrote; the folder `files` has the scripts that made them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from hyperfusion_rt.export.ir.fold import fold
from hyperfusion_rt.export.onnx_import.read import read_onnx

from .models import by_onnxruntime, difference, in_float64, natively

FILES = Path(__file__).parent / "files"
TOLERANCE = 5e-6
# Channels come last at Keras; what is turned on the way in and out is not moved.
LAST = {
    "keras_classifier": {"image"}, "keras_segmenter": {"image", "Identity:0"},
    "keras_gated": {"image"}, "keras_flat": {"image"}, "paddle_segmenter": set(),
    "paddle_flat": set(), "sklearn_regressor": set(),
}  # fmt: skip


@pytest.mark.parametrize("name", LAST)
def test_what_other_frameworks_write(name):
    path = FILES / f"{name}.onnx"
    with np.load(path.with_suffix(".npz")) as held:
        x, y = held["x"], held["y"]
    graph = read_onnx(path)
    assert graph.last == LAST[name]
    assert not Counter(node.op for node in fold(graph).nodes)["transpose"]
    feeds = dict.fromkeys(graph.inputs, x)
    (expected,) = by_onnxruntime(onnx.load(path), feeds)
    assert difference(expected, y) <= TOLERANCE
    assert difference(in_float64(graph, feeds)[0], y) <= TOLERANCE
    assert difference(natively(graph, feeds)[0], y) <= TOLERANCE


def test_every_file_is_tried():
    assert {path.stem for path in FILES.glob("*.onnx")} == set(LAST)

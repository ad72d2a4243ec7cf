"""The table's encoder as ONNX operations, against NumPy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hyperfusion_rt.config import Feature, NetworkConfig, TableSpec
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.data.encoder_columns import CategoricalColumn
from hyperfusion_rt.data.table_file import Row
from hyperfusion_rt.errors import TableError
from hyperfusion_rt.export.ir.ensemble import join
from hyperfusion_rt.export.ir.fold import fold
from hyperfusion_rt.export.ir.lower import lower
from hyperfusion_rt.export.onnx_file.model import FP32, write_onnx
from hyperfusion_rt.export.onnx_file.table import add_encoders, input_name, table_inputs
from hyperfusion_rt.export.onnx_file.writer import Writer
from hyperfusion_rt.models import build_network

from ..networks import SHAPES, shaken

ort = pytest.importorskip("onnxruntime", reason="the encoder's ONNX form is NOT run")

NAMES = ("AGE", "SEX", "YEARS", "GENE", "CSF", "SITE")


def rows(count, seed, gaps=0.3):
    """Correlated columns with gaps, a large offset, a category that is empty, one of one value."""
    rng = np.random.default_rng(seed)
    found = []
    for line in range(count):
        age = rng.normal(72, 7)
        cells = {
            "AGE": f"{age:.3f}",
            "SEX": rng.choice(["Female", "Male"]),
            "YEARS": f"{1e6 + 3 * age + rng.normal():.4f}",
            "GENE": str(rng.integers(0, 3)),
            "CSF": f"{900 - 5 * age + 40 * rng.normal():.2f}",
            "SITE": rng.choice(["a b", "C", "d,e"]),
        }
        for name in NAMES:
            if rng.random() < gaps and line > 2:
                cells[name] = ""
        found.append(Row(str(line), None, line, cells))
    return found


def fitted(imputer, seed, gaps=0.3):
    features = [
        Feature(name=n, kind="categorical" if n in ("SEX", "SITE") else "numeric") for n in NAMES
    ]
    spec = TableSpec(features=tuple(features), target="x", imputer=imputer)
    return TabularEncoder.fit(rows(60, seed, gaps), spec)


def raw_values(encoder, given):
    """What a client sends for `given` rows."""
    feed = {}
    for column in encoder.columns:
        cells = [row.values[column.name] for row in given]
        if isinstance(column, CategoricalColumn):
            array = np.array(cells, dtype=object)[:, None]
        else:
            array = np.array([float(c) if c else math.nan for c in cells])[:, None]
        feed[input_name(column)] = array
    return feed


def encoded(encoders, feed):
    w = Writer(FP32, {})
    add_encoders(w, encoders, "tabular")
    width = sum(e.width for e in encoders)
    model = w.model({}, ["tabular"], {"tabular": (width,)}, table_inputs(encoders[0]))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


@pytest.mark.parametrize("imputer", ["median", "iterative"])
@pytest.mark.parametrize("gaps", [0.0, 0.3, 0.7])
def test_parity(imputer, gaps):
    encoders = [fitted(imputer, seed) for seed in (1, 2, 3)]
    assert bool(encoders[0].steps) == (imputer == "iterative")
    given = rows(200, 9, gaps)
    expected = np.concatenate([e.encode(given) for e in encoders], 1)
    for batch in (1, 200):
        found = encoded(encoders, raw_values(encoders[0], given[:batch]))
        assert found.dtype == np.float32
        assert np.abs(found - expected[:batch]).max() <= 1e-6


def test_without_gaps_in_training():
    """No indicators, no imputer's steps; a gap still gets the median."""
    encoder = fitted("median", 1, gaps=0.0)
    given = rows(50, 4, 0.5)
    found = encoded([encoder], raw_values(encoder, given))
    assert np.abs(found - encoder.encode(given)).max() <= 1e-6


def test_what_the_encoder_refuses_is_nan():
    encoder = fitted("iterative", 1)
    given = rows(3, 5, 0.0)
    feed = raw_values(encoder, given)
    feed["table.SITE"][1, 0] = "Mars"
    found = encoded([encoder], feed)
    assert np.isfinite(found[[0, 2]]).all()
    assert np.isnan(found[1]).any()
    with pytest.raises(TableError, match="Mars"):
        encoder.encode_row(Row("1", None, 1, {**given[1].values, "SITE": "Mars"}))
    plain = TabularEncoder.passthrough(3)
    found = encoded([plain], {f"table.x{i}": np.array([[1.0], [math.nan]]) for i in range(3)})
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()
    for value, usable in ((1e15, True), (-1e15, True), (1.1e15, False), (-1e300, False)):
        found = encoded([plain], {f"table.x{i}": np.array([[value]]) for i in range(3)})
        assert np.isfinite(found).all() == usable


@pytest.mark.parametrize("imputer", ["median", "iterative"])
def test_the_head_takes_the_raw_table(imputer, tmp_path):
    encoders = [fitted(imputer, seed) for seed in (1, 2)]
    widths = [e.width for e in encoders]
    graphs = []
    for seed, width in enumerate(widths):
        torch.manual_seed(seed)
        config = NetworkConfig(architecture="ad", features=4)
        network = build_network(config, shape=SHAPES["ad"], tabular_width=width, outputs=3)
        shapes = {"image": (1, *SHAPES["ad"]), "tabular": (width,)}
        graphs.append(fold(lower(shaken(network, seed), shapes)))
    ensemble = join(graphs, widths, 2, classes=True, rule="confidence_weighted")
    write_onnx(ensemble, tmp_path / "whole.onnx")
    write_onnx(ensemble, tmp_path / "trunk.onnx", part="trunk")
    write_onnx(ensemble, tmp_path / "head.onnx", part="head", encoders=encoders)
    image = np.random.default_rng(0).standard_normal((5, 2, *SHAPES["ad"]), np.float32)
    given = rows(5, 6, 0.4)
    tabular = np.concatenate([e.encode(given) for e in encoders], 1)

    def session(name):
        return ort.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"])

    expected = session("whole.onnx").run(["output"], {"image": image, "tabular": tabular})[0]
    trunk = session("trunk.onnx")
    made = dict(
        zip([o.name for o in trunk.get_outputs()], trunk.run(None, {"image": image}), strict=True)
    )
    found = session("head.onnx").run(["output"], {**made, **raw_values(encoders[0], given)})[0]
    assert np.abs(found - expected).max() <= 1e-6
    assert found.sum(1) == pytest.approx(np.ones(5), abs=1e-6)

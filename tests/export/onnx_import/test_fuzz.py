"""A slice of the fuzzer: `python -m tests.export.onnx_import.fuzz` has the rest."""

from __future__ import annotations

from .damage import damaged_file
from .fuzz import fuzz
from .models import agrees
from .seeds import SEEDS


def test_seeds_are_whole_and_hold_every_operation(tmp_path):
    from hyperfusion_rt.export.onnx_import.read import OPERATIONS

    models = [seed() for seed in SEEDS]
    for model in models:
        agrees(model, tmp_path)
    tried = {node.op_type for model in models for node in model.graph.node}
    assert set(OPERATIONS) - tried <= {"Tile"}


def test_a_number_makes_one_file():
    assert damaged_file(7) == damaged_file(7) != damaged_file(8)


def test_damaged_files_end_as_graphs_or_errors():
    figures = fuzz(0, 150)
    assert not figures.failures, str(figures)
    assert sum(figures.kinds.values()) == 150
    assert {"onnx-damaged", "onnx-unsupported", "graph"} <= set(figures.kinds)

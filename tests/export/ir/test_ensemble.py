"""Members and boxes as one network: against one call per member and box, and NumPy's rules."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from hyperfusion_rt.artifact.operations import Combination
from hyperfusion_rt.config import Rule
from hyperfusion_rt.export.fuse.fuser import plan_ensemble
from hyperfusion_rt.export.ir.ensemble import join
from hyperfusion_rt.export.ir.fold import fold
from hyperfusion_rt.export.ir.graph import Graph, Node
from hyperfusion_rt.export.ir.lower import lower
from hyperfusion_rt.export.onnx_file.model import write_onnx
from hyperfusion_rt.models.combine import combine_outputs
from hyperfusion_rt.rules import combine
from hyperfusion_rt.runtime.engines.eager import TorchEngine
from hyperfusion_rt.runtime.engines.native import NativeEngine
from hyperfusion_rt.runtime.engines.ort import OnnxEngine

from ..networks import FUSIONS, SHAPES, MidTrunk, published, shaken

ort = pytest.importorskip("onnxruntime", reason="ONNX files NOT run")


def case_of(task, networks, boxes, batch, shape, channels):
    """Images `[B, N·C, D, H, W]`, rows `[B, M, T]`, and raw float64 outputs `[B, M, N, C]`."""
    rng = np.random.default_rng(7)
    width = 5 if task == "ad" else 2
    images = rng.standard_normal((batch, boxes * channels, *shape), np.float32)
    rows = rng.standard_normal((batch, len(networks), width), np.float32)
    raw = []
    with torch.no_grad():
        for m, network in enumerate(networks):
            for n in range(boxes):
                box = slice(n * channels, (n + 1) * channels)
                image = torch.from_numpy(images[:, box]).double()
                raw.append(network.double()(image, torch.from_numpy(rows[:, m]).double()).numpy())
    outputs = np.stack(raw, 1).reshape(batch, len(networks), boxes, -1)
    return images, rows, outputs


def engines(ensemble, path):
    write_onnx(ensemble, path)
    made = plan_ensemble(ensemble)
    return NativeEngine(made, 2), OnnxEngine(path, 2), TorchEngine(made, 2, "cpu")


def check(task, networks, boxes, shape, path, rule="mean", channels=1, answer=None):
    """`answer`: the task whose kind of answer the networks give, if not that of `task`."""
    images, rows, outputs = case_of(task, networks, boxes, 3, shape, channels)
    task = answer or task
    width = rows.shape[-1]
    graphs = [fold(lower(n, {"image": (channels, *shape), "tabular": (width,)})) for n in networks]
    ensemble = join(graphs, [width] * len(graphs), boxes, classes=task == "ad", rule=rule)
    expected = np.stack([combine(o, task == "ad", rule) for o in outputs])
    for engine in engines(ensemble, path):
        for batch in (1, 3):
            found = engine.run(images[:batch], rows[:batch].reshape(batch, -1))
            raw = outputs[:batch].reshape(batch, -1)
            assert np.abs(found["members"] - raw).max() <= 5e-6 * max(1, np.abs(raw).max())
            assert np.abs(found["output"] - expected[:batch]).max() <= 1e-5 * max(
                1, np.abs(expected).max()
            )


def members(task, fusion, count, **options):
    made = []
    for seed in range(count):
        network = published(task, fusion, **options)
        torch.manual_seed(seed)
        with torch.no_grad():
            for p in network.parameters():
                p.mul_(1 + 0.1 * torch.randn(()))
        made.append(network)
    return made


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize(("task", "boxes"), [("ad", 2), ("ad", 1), ("brain-age", 1)])
def test_every_network(task, boxes, fusion, tmp_path):
    check(task, members(task, fusion, 3), boxes, SHAPES[task], tmp_path / "x.onnx")


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("task", SHAPES)
def test_several_images_on_two_boxes(task, fusion, channels, tmp_path):
    """With two of them, each network gives the other's kind of answer."""
    shape = (13, 10, 15) if task == "ad" else (37, 36, 45)
    answer, outputs = None, None
    if channels == 2:
        answer, outputs = ("brain-age", 1) if task == "ad" else ("ad", 3)
    networks = members(task, fusion, 2, channels=channels, outputs=outputs, shape=shape)
    rule = "confidence_weighted" if (answer or task) == "ad" else "mean"
    check(task, networks, 2, shape, tmp_path / "x.onnx", rule, channels, answer)


@pytest.mark.parametrize("rule", get_args(Rule))
def test_every_rule(rule, tmp_path):
    check("ad", members("ad", "hyper", 4), 2, SHAPES["ad"], tmp_path / "x.onnx", rule)


def test_one_member_on_one_box(tmp_path):
    check("ad", members("ad", "hyper", 1), 1, SHAPES["ad"], tmp_path / "x.onnx")


def test_a_table_that_is_read_in_the_middle(tmp_path):
    """Then the head reads volumes: a box is some of their channels."""
    check("ad", [shaken(MidTrunk(), s) for s in (0, 1)], 2, (9, 10, 11), tmp_path / "x.onnx")


@pytest.mark.parametrize("rule", get_args(Rule))
def test_the_rule_itself(rule, tmp_path):
    """On outputs near and far from a tie, which a network seldom makes."""
    from hyperfusion_rt import _native

    rng = np.random.default_rng(1)
    raw = (rng.standard_normal((200, 4, 2, 3)) * rng.choice([0.1, 1, 30], (200, 1, 1, 1))).astype(
        np.float32
    )
    engine = _native.Engine(1)
    engine.output(engine.ensemble(engine.input(24), 4, 2, True, rule))
    engine.finish()
    found = np.empty((200, 3), np.float32)
    engine.run([raw.reshape(200, 24)], [found])
    expected = np.stack([combine(o, True, rule) for o in raw])
    assert np.abs(found - expected).max() <= 1e-6


@pytest.mark.parametrize("gap", [2, 6, 8, 10, 12, 14, 20])
@pytest.mark.parametrize("rule", get_args(Rule))
def test_the_rule_for_members_that_are_very_sure(rule, gap, tmp_path):
    """In float32, p log p of a p near 1 has no digits left; its inverse is the member's weight."""
    rng = np.random.default_rng(2)
    raw = rng.standard_normal((50, 3, 2, 3)).astype(np.float32)
    sure = rng.integers(3, size=(50, 3))
    for case, choice in enumerate(sure):
        for member, best in enumerate(choice):
            raw[case, member, :, best] += gap + member
    attrs = Combination(members=3, boxes=2, classes=True, rule=rule)
    node = Node("ensemble", ["members"], "output", attrs)
    graph = Graph({"members": (18,)}, [node], ["output"], {"members": (18,), "output": (3,)})
    write_onnx(graph, tmp_path / "x.onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(tmp_path / "x.onnx", options, providers=["CPUExecutionProvider"])
    flat = raw.reshape(50, 18)
    expected = np.stack([combine(o, True, rule) for o in raw])
    (found,) = session.run(None, {"members": flat})
    assert np.abs(found - expected).max() <= 2e-6
    by_torch = combine_outputs(torch.from_numpy(flat), 3, 2, True, rule).numpy()
    assert np.abs(by_torch - expected).max() <= 2e-6

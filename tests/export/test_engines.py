"""ONNX and the native engine, from the same graphs, against float64."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hyperfusion_rt.export.fuse.fuser import plan
from hyperfusion_rt.export.ir.cut import cut
from hyperfusion_rt.export.ir.fold import fold
from hyperfusion_rt.export.ir.lower import lower
from hyperfusion_rt.export.onnx_file.model import write_onnx
from hyperfusion_rt.export.onnx_import.read import read_onnx
from hyperfusion_rt.kernels.cpu.tiles import choose_tile
from hyperfusion_rt.runtime.engines.eager import TorchEngine
from hyperfusion_rt.runtime.engines.native import NativeEngine

from .ir.test_lower import MODULES, V
from .networks import (
    FUSIONS,
    SHAPES,
    MidTrunk,
    as_onnx,
    difference,
    exact,
    inputs,
    published,
    shaken,
)

ort = pytest.importorskip("onnxruntime", reason="ONNX files NOT run")
TOLERANCE = 5e-6
BF16 = 2e-2


def onnx_outputs(graph, feeds, path: Path):
    write_onnx(graph, path)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = {k: np.asarray(feeds[k], np.float32) for k in graph.inputs}
    return session.run(None, {item.name: given[item.name] for item in session.get_inputs()})


def compare_all(network, shapes, path: Path):
    """Every engine with `network`; bfloat16 against PyTorch's own where that is worse than BF16."""
    graph = lower(network, shapes)
    folded = fold(graph)
    engine = NativeEngine(plan(folded, folded=True), threads=2)
    narrow = plan(folded, folded=True, precision="bf16")
    rounded = NativeEngine(narrow, threads=2)
    in_torch = TorchEngine(plan(folded, folded=True), 2, "cpu")
    rounded_in_torch = TorchEngine(narrow, 2, "cpu")
    everything = inputs(graph, 7)
    outputs = exact(network, everything)
    scale = max(np.abs(outputs).max(), 0.1)  # a network of dead units leaves a bias of 0.001

    (output,) = graph.outputs
    seen = graph.outer.get(output, graph.shapes[output])

    def off(found, expected):
        assert (found.shape[1:], expected.shape[1:]) == (graph.shapes[output], seen)
        return np.abs(found.reshape(expected.shape) - expected).max() / scale

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        own = network.float()(*(x.float() for x in everything.values())).float().numpy()
    network.double()
    bf16 = max(BF16, 4 * off(own, outputs))
    for batch in (1, 2, 7):
        feeds = {name: value[:batch] for name, value in everything.items()}
        expected = outputs[:batch]
        for form in (graph, folded):
            (found,) = onnx_outputs(form, feeds, path)
            assert off(found, expected) <= TOLERANCE
        trunk, head = cut(folded)
        values = dict(feeds)
        for part in (trunk, head):
            if part.nodes:
                made = onnx_outputs(part, values, path)
                values.update(zip(part.outputs, made, strict=True))
        assert off(values[folded.outputs[0]], expected) <= TOLERANCE
        given = [feeds.get(k, torch.zeros(batch, 0)).float().numpy() for k in ("image", "tabular")]
        assert off(engine(*given), expected) <= TOLERANCE
        assert off(rounded(*given), expected) <= bf16
        assert off(in_torch(*given), expected) <= TOLERANCE
        assert off(rounded_in_torch(*given), expected) <= bf16
    return engine


@pytest.mark.parametrize("task", SHAPES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_published_networks(task, fusion, tmp_path):
    width = 5 if task == "ad" else 2
    shapes = {"image": (1, *SHAPES[task]), "tabular": (width,)}
    compare_all(published(task, fusion), shapes, tmp_path / "x.onnx")


@pytest.mark.parametrize(("task", "channels", "outputs"), [("ad", 3, 1), ("brain-age", 2, 3)])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_several_images_and_the_other_kind_of_answer(task, channels, outputs, fusion, tmp_path):
    """A number from the AD network, classes from the brain-age network; odd shapes."""
    shape = (13, 10, 15) if task == "ad" else (37, 36, 45)
    shapes = {"image": (channels, *shape), "tabular": (5 if task == "ad" else 2,)}
    network = published(task, fusion, channels, outputs, shape)
    engine = compare_all(network, shapes, tmp_path / "x.onnx")
    if fusion != "tabular":
        first = engine.trunk.program.ops[0]
        assert (first.op, first.algorithm) == ("conv", "planar")


@pytest.mark.parametrize("cout", [4, 20])
@pytest.mark.parametrize("cin", [1, 2, 4, 17])
@pytest.mark.parametrize("stride", [1, 2, (2, 1, 2)])
def test_how_an_image_of_several_channels_is_read(cin, cout, stride, tmp_path):
    """With strides and pooling that the planar kernels do not have, too."""
    torch.manual_seed(6)
    for pool in (nn.MaxPool3d(2), nn.Identity()):
        first = nn.Sequential(nn.Conv3d(cin, cout, 3, stride, 1), nn.ReLU(), pool)
        network = nn.Sequential(*first, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(cout, 3))
        engine = compare_all(shaken(network), {"image": (cin, 9, 6, 7)}, tmp_path / "x.onnx")
        how = engine.trunk.program.ops[0].algorithm
        if stride == 1:
            assert (how == "planar") == (cin < 5)
        assert str(engine.trunk.engine.steps[0]) == how


def test_cases_that_are_drawn_have_one_category_each(tmp_path):
    """A run without kept cases: folding a category's weights holds for one-hot inputs only."""
    from safetensors.torch import save_file

    from hyperfusion_rt.config import preset
    from hyperfusion_rt.data.encoder import TabularEncoder
    from hyperfusion_rt.data.table_file import Row
    from hyperfusion_rt.export import export_run
    from hyperfusion_rt.export.build import load_cases
    from hyperfusion_rt.models import network_of
    from hyperfusion_rt.training.run_folder import Run

    shape = {"shape": (36, 36, 36), "spacing": 5.0}
    config = preset("brain-age-small", {"network": {"features": 2}, "preprocessing": shape})
    rows = [Row(str(n), None, n, {"PTGENDER": sex}) for n, sex in enumerate(("Male", "Female"))]
    encoder = TabularEncoder.fit(rows, config.tabular)
    run = Run.create(tmp_path, config, "drawn")
    member = run.member(0)
    member.folder.mkdir()
    (member.folder / "encoder.json").write_text(encoder.model_dump_json())
    save_file(network_of(config, encoder.width).state_dict(), member.weights)
    run.write_metrics({})
    _, (drawn,), real = load_cases(run)
    assert not real
    assert sorted(set(map(tuple, drawn.tolist()))) == [(0.0, 1.0), (1.0, 0.0)]
    assert export_run(run, tmp_path / "drawn.hfrt").engines == ["native", "onnx"]


@pytest.mark.parametrize("boxes", [1, 2])
def test_cases_of_older_runs_are_read(boxes, tmp_path):
    """They had no axis of channels, and once of one box alone."""
    from safetensors.numpy import save_file

    from hyperfusion_rt.config import preset
    from hyperfusion_rt.export.build import load_cases
    from hyperfusion_rt.training.run_folder import Run

    run = Run.create(tmp_path, preset("ad-small"), "old")
    kept = np.random.default_rng(0).standard_normal((7, boxes, 4, 5, 6)).astype(np.float32)
    save_file({"image": kept}, run.folder / "cases.safetensors")
    image, rows, real = load_cases(run)
    assert (image.shape, rows, real) == ((7, 2, 1, 4, 5, 6), [], True)
    np.testing.assert_array_equal(image[:, :boxes, 0], kept)


def test_a_generated_layer_in_the_middle(tmp_path):
    shapes = {"image": (1, 9, 10, 11), "tabular": (5,)}
    engine = compare_all(shaken(MidTrunk()), shapes, tmp_path / "x.onnx")
    assert "hyper_conv" in [op.op for op in engine.head.program.ops]


@pytest.mark.parametrize("name", MODULES)
def test_every_operation(name, tmp_path):
    module = shaken(MODULES[name])
    graph = lower(module, {"image": V})
    if graph.outputs == ["image"]:
        pytest.skip("nothing is left to run: the module does nothing in eval mode")
    feeds = inputs(graph)
    expected = exact(module, {"image": feeds["image"].clone()})
    expected = expected.reshape(3, *graph.shapes["output"])
    (found,) = onnx_outputs(graph, feeds, tmp_path / "x.onnx")
    assert difference(found, expected) <= TOLERANCE
    image, none = feeds["image"].float().numpy(), np.zeros((3, 0), np.float32)
    for precision, limit in (("fp32", TOLERANCE), ("bf16", BF16)):
        made = plan(graph, precision=precision)
        for engine in (NativeEngine(made, threads=2), TorchEngine(made, 2, "cpu")):
            assert difference(engine(image, none), expected) <= limit


class PreActivation(nn.Module):
    """What fuses: a second output, a shortcut, skipped voxels, a residual, pooling."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.stem, self.n0 = nn.Conv3d(1, 16, 3, padding=1), nn.BatchNorm3d(16)
        self.n1, self.c1 = nn.BatchNorm3d(16), nn.Conv3d(16, 20, 3, padding=1)
        self.n2, self.c2 = nn.BatchNorm3d(20), nn.Conv3d(20, 32, 3, padding=1)
        self.short = nn.Conv3d(16, 32, 1)
        self.n3, self.c3 = nn.BatchNorm3d(32), nn.Conv3d(32, 32, 3, 2, 1)
        self.c4, self.short2 = nn.Conv3d(32, 24, 3, padding=1), nn.Conv3d(32, 24, 1, 2)
        self.c5, self.linear = nn.Conv3d(24, 24, 3, padding=1), nn.Linear(24, 3)

    def forward(self, x):
        x = nn.functional.max_pool3d(self.n0(self.stem(x)).relu(), 2)
        y = self.c2(self.n2(self.c1(self.n1(x).relu())).relu())
        x = y + self.short(x)
        y = self.c4(self.c3(self.n3(x).relu()).relu())
        x = (y + self.short2(x)).relu()
        return self.linear((self.c5(x) + x).mean((2, 3, 4)))


def test_fusion(tmp_path):
    engine = compare_all(shaken(PreActivation()), {"image": (1, 26, 27, 28)}, tmp_path / "x.onnx")
    convs = [op for op in engine.trunk.program.ops if op.op == "conv"]
    assert len(convs) == 6  # the two shortcuts are inside
    assert [op.pool for op in convs] == [True] + [False] * 5
    assert [bool(op.second) for op in convs] == [
        True,
        False,
        True,
        False,
        False,
        False,
    ]
    assert [bool(op.shortcut) for op in convs] == [0, 0, 1, 0, 1, 0]
    assert [op.sparse for op in convs] == [0, 0, 1, 0, 0, 0]
    assert convs[-1].residual == convs[-2].output
    assert convs[2].shape == (32, 7, 7, 7)


def test_many_inputs_per_scan(tmp_path):
    """What-if rows against one scan: one trunk, many heads."""
    network = published("ad", "hyper")
    graph = fold(lower(network, {"image": (1, 16, 24, 16), "tabular": (5,)}))
    engine = NativeEngine(plan(graph, folded=True))
    feeds = inputs(graph, 9)
    image = feeds["image"][:1]
    expected = exact(
        network, {"image": image.expand(9, -1, -1, -1, -1), "tabular": feeds["tabular"]}
    )
    features = engine.trunk([image.float().numpy()])
    rows = [np.repeat(f, 9, 0) for f in features]
    (found,) = engine.head([*rows, feeds["tabular"].float().numpy()])
    assert difference(found, expected) <= TOLERANCE


def test_the_tile_follows_the_size():
    assert choose_tile(32, 32, (32, 48, 32)) == ((4, 4, 4), False)
    assert choose_tile(256, 256, (4, 6, 4)) == ((2, 2, 2), False)
    assert choose_tile(256, 256, (4, 6, 4), "bf16") == ((2, 2, 2), True)
    assert choose_tile(256, 256, (1, 1, 1)) == (None, False)
    assert choose_tile(32, 64, (16, 24, 16), stride=2) == ((2, 2, 2), False)
    assert choose_tile(128, 256, (4, 6, 4), stride=2) == (None, False)  # its weights are large


MONAI = {
    "resnet18": lambda n: n.resnet18(spatial_dims=3, n_input_channels=1, num_classes=3),
    "densenet121": lambda n: n.DenseNet121(spatial_dims=3, in_channels=1, out_channels=3),
    "seresnet50": lambda n: n.SEResNet50(spatial_dims=3, in_channels=1, num_classes=3),
    "seresnext50": lambda n: n.SEResNext50(spatial_dims=3, in_channels=1, num_classes=3),
    "efficientnet": lambda n: n.EfficientNetBN(
        "efficientnet-b0", spatial_dims=3, in_channels=1, num_classes=3, pretrained=False
    ),
    "unet": lambda n: n.UNet(3, 1, 2, (8, 16, 24, 32), (2, 2, 2), num_res_units=2),
    "segresnet": lambda n: n.SegResNet(3, init_filters=8, in_channels=1, out_channels=2),
    "dynunet": lambda n: n.DynUNet(
        3, 1, 2, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[8, 16, 24, 32], res_block=True
    ),
    "basicunet": lambda n: n.BasicUNet(3, 1, 2, (8, 8, 16, 16, 24, 8)),
    "attentionunet": lambda n: n.AttentionUnet(3, 1, 2, (8, 16, 24), (2, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MONAI)
def test_networks_that_others_wrote(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI's own
        nets = pytest.importorskip("monai.networks.nets", reason="MONAI's networks NOT tried")
        # With random weights, squeeze and excitation amplify rounding; with some seeds float32's
        # beyond 1e-4 in every engine, and bfloat16's with all.
        torch.manual_seed(2)
        network = shaken(MONAI[name](nets))
    graph = lower(network, {"image": (1, 32, 32, 32)})
    folded = fold(graph)
    file = as_onnx(network.float(), (torch.zeros(1, 1, 32, 32, 32),), tmp_path / "its.onnx")
    read = fold(read_onnx(file))
    assert Counter(n.op for n in read.nodes) == Counter(n.op for n in folded.nodes)
    network.double()
    feeds = inputs(graph, 1)
    expected = exact(network, feeds)
    (found,) = onnx_outputs(folded, feeds, tmp_path / "x.onnx")
    assert difference(found, expected) <= 1e-4
    image, none = feeds["image"].float().numpy(), np.zeros((1, 0), np.float32)
    made = plan(folded, folded=True)
    for engine in (NativeEngine(made, threads=2), TorchEngine(made, 2, "cpu")):
        assert difference(engine(image, none), expected) <= 1e-4
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        own = network.float()(feeds["image"].float()).float().numpy()
    engine = NativeEngine(plan(folded, folded=True, precision="bf16"), threads=2)
    assert difference(engine(image, none), expected) <= max(BF16, 4 * difference(own, expected))

"""Every layer of both networks generated, and every place where features meet the table: ONNX and
the native engine against torch in float64.
"""

import numpy as np
import pytest
import torch

from hyperfusion_rt.config import LAYERS, PLACES, NetworkConfig
from hyperfusion_rt.data.encoder_columns import InputColumn
from hyperfusion_rt.export.build import gflop
from hyperfusion_rt.export.fuse.fuser import plan
from hyperfusion_rt.export.ir.cut import cut
from hyperfusion_rt.export.ir.fold import fold
from hyperfusion_rt.export.ir.lower import lower
from hyperfusion_rt.models import build_network, initialise_generators
from hyperfusion_rt.runtime.engines.native import NativeEngine

from .ir.test_ensemble import check, members
from .networks import exact, inputs, shaken
from .test_engines import TOLERANCE, onnx_outputs

SHAPES = {"ad": (6, 9, 7), "brain-age": (36, 37, 36)}
WIDTHS = {"ad": 5, "brain-age": 2}


def agrees(config, path, channels=1, columns=()):
    """Compare the engines with float64; returns the native one."""
    shape, width = SHAPES[config.architecture], WIDTHS[config.architecture]
    torch.manual_seed(1)
    network = build_network(
        config,
        shape=shape,
        tabular_width=width,
        outputs=3,
        channels=channels,
        columns=columns,
    )
    initialise_generators(network, torch.randn(50, width))
    shaken(network)
    graph = lower(network, {"image": (channels, *shape), "tabular": (width,)})
    folded = fold(graph)
    everything = inputs(graph, 3)
    expected = exact(network, everything)
    scale = max(np.abs(expected).max(), 0.1)
    engine = NativeEngine(plan(folded, folded=True), threads=2)
    for batch in (1, 3):
        feeds = {name: value[:batch] for name, value in everything.items()}
        values = dict(feeds)
        for part in cut(folded):
            if part.nodes:
                made = onnx_outputs(part, values, path)
                values.update(zip(part.outputs, made, strict=True))
        given = [feeds[name].float().numpy() for name in ("image", "tabular")]
        for found in (values[folded.outputs[0]], engine(*given)):
            assert found.shape == (batch, 3)
            assert np.abs(found - expected[:batch]).max() <= TOLERANCE * scale
    return engine


@pytest.mark.parametrize(
    ("architecture", "layer"), [(a, layer) for a in LAYERS for layer in (*LAYERS[a], "*")]
)
def test_a_generated_layer_exports(architecture, layer, tmp_path):
    config = NetworkConfig(architecture=architecture, features=2, hyper_layers=(layer,))
    agrees(config, tmp_path / "x.onnx")


@pytest.mark.parametrize(
    ("architecture", "layer"),
    [
        *(("ad", layer) for layer in ("block4.downsample.0", "block2.conv1", "fc1", "*")),
        *(("brain-age", layer) for layer in ("conv2_b", "linear1", "*")),
    ],
)
def test_a_layer_of_low_rank_exports(architecture, layer, tmp_path):
    config = NetworkConfig(
        architecture=architecture,
        features=2,
        hyper_layers=[layer],
        generator_rank=1,
        generated_part=0.5,
        embedding_dropout=0.3,
    )
    engine = agrees(config, tmp_path / "x.onnx")
    generated = [op.layer for op in engine.head.program.ops if op.op == "hyper_conv"]
    if layer in ("block4.downsample.0", "linear1", "fc1"):
        assert not any(len(op.shape) == 4 for op in engine.head.program.ops)
    elif layer != "*":
        assert generated == [f"{layer}.mix"]


@pytest.mark.parametrize("fusion", ["film", "daft", "concat", "tabmixer", "attention"])
@pytest.mark.parametrize(("architecture", "place"), [(a, p) for a in PLACES for p in PLACES[a]])
def test_every_place_exports(architecture, place, fusion, tmp_path):
    config = NetworkConfig(architecture=architecture, features=2, fusion=fusion, fusion_at=place)
    agrees(config, tmp_path / "x.onnx")


def test_tokens_of_missing_values_export(tmp_path):
    config = NetworkConfig(architecture="ad", features=2, fusion="attention")
    columns = (InputColumn((0,), 1), InputColumn((2, 3), None), InputColumn((4,), None))
    engine = agrees(config, tmp_path / "x.onnx", columns=columns)
    # The table does not enter the volume.
    assert not any(len(op.shape) == 4 for op in engine.head.program.ops)


@pytest.mark.parametrize("layer", ["conv_bn_relu.0", "block2.*", "*"])
def test_members_and_boxes_as_one_network(layer, tmp_path):
    """Where the first layer is generated, nothing is left for the trunk."""
    shape = SHAPES["ad"]
    fields = {"features": 2, "hyper_layers": [layer]}
    networks = members("ad", "hyper", 2, channels=2, shape=shape, **fields)
    check("ad", networks, 2, shape, tmp_path / "x.onnx", "confidence_weighted", 2)


@pytest.mark.parametrize("architecture", LAYERS)
def test_the_work_of_generated_layers_is_counted(architecture):
    shape, width = (1, 40, 40, 40), WIDTHS[architecture]

    def work(*layers):
        config = NetworkConfig(architecture=architecture, features=8, hyper_layers=layers)
        network = build_network(config, shape=shape[1:], tabular_width=width, outputs=1)
        return gflop(network, shape, width)

    plain = work()
    # On top of it, the weights are made.
    assert 0.99 * plain < work("*") < 1.5 * plain

"""What the GPU benchmark compares, on the CPU: every contender computes the same layer."""

import dataclasses
import importlib
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu_bench")


@pytest.mark.parametrize(
    "name", ["64 to 64, 3x3x3, 3x4x5", "brain age linear3", "AD f=4 block1, 4 members",
             "AD f=16 stem of 4 members"]
)  # fmt: skip
# torch.compile imports what torch itself deprecates.
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_every_contender_computes_the_layer(name, bench):
    layer = bench.LAYERS[name]
    size = (5, 4, 6) if layer.op == "conv3d_block" else layer.shape.size
    layer = dataclasses.replace(layer, shape=layer.shape._replace(batch=2, size=size))
    arguments = layer.arguments("fp16", "cpu")
    arguments["x"] = arguments["x"].float()  # half-precision convolutions are slow on the CPU
    expected = bench.exact(layer, arguments)
    for who, call in bench.contenders(layer).items():
        if who != "torch.compile":
            with torch.no_grad():
                assert bench.error(call(arguments), expected) < 1e-4, who
    wrong = expected.roll(1, 0)
    assert bench.error(wrong, expected) > 0.1
    assert bench.error(expected * torch.nan, expected) == float("inf")


def test_without_a_gpu_nothing_is_written(bench, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu_bench.py"])
    before = sorted(BENCHMARKS.iterdir())
    bench.main()
    assert "no GPU on this machine" in capsys.readouterr().out
    assert sorted(BENCHMARKS.iterdir()) == before

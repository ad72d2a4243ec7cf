"""What is timed: the options, who takes part, and how an answer is checked."""

import numpy as np
import pytest
from torch import nn

from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.bench.contenders import Subject, contenders
from hyperfusion_rt.bench.measure import TOLERANCE, bench, measure
from hyperfusion_rt.bench.options import BenchOptions
from hyperfusion_rt.errors import ConfigError, HyperFusionError
from hyperfusion_rt.export.imported import import_network
from hyperfusion_rt.export.ir.lower import lower
from hyperfusion_rt.export.onnx_file.model import write_onnx


def test_every_option_is_documented():
    assert all(field.description for field in BenchOptions.model_fields.values())


@pytest.mark.parametrize("fields", [{"batches": (0,)}, {"batches": ()}, {"rounds": 1}])
def test_a_wrong_option_is_said_by_its_name(fields):
    with pytest.raises(ConfigError) as error:
        BenchOptions(**fields)
    assert (error.value.code, error.value.parameter) == ("option-wrong", next(iter(fields)))


def test_every_contender_computes_the_network(session_run, tmp_path):
    subject = Subject.of(session_run, tmp_path)
    inputs = subject.inputs(2)
    found = contenders(subject, {"native": "fp32", "onnx": "fp32"}, 1, inputs)
    for name in ("hfrt native", "hfrt onnx", "onnxruntime", "torch eager"):
        answer = found[name].open()(*inputs)
        assert subject.difference(answer, 2) <= TOLERANCE["fp32"]
        assert subject.difference(answer + np.abs(subject.exact).max(), 2) > 0.9
    assert found["hfrt native bf16"].precision == "bf16"
    assert len(subject.inputs(9)[0]) == 9  # more than there are cases


def test_no_contender_and_no_run(session_run, session_artifact, tmp_path):
    artifact = Artifact.open(session_artifact)
    with pytest.raises(HyperFusionError, match="no contender is left") as error:
        measure(session_run, artifact, BenchOptions(only=("nobody",)))
    assert (error.value.code, error.value.parameter) == ("bench-no-contender", "only")
    with pytest.raises(ConfigError, match="name it with `run`") as error:
        bench(BenchOptions(artifact=session_artifact, run=tmp_path / "gone"))
    assert error.value.code == "bench-no-run"


@pytest.mark.parametrize("fields", [{"classes": "a,b,c"}, {"segmentation": "a,b,c"}])
def test_an_imported_network_is_timed_without_a_run(tmp_path, fields):
    layers = [nn.Conv3d(1, 3, 3, padding=1), nn.ReLU()]
    if "classes" in fields:
        layers += [nn.AdaptiveAvgPool3d(1), nn.Flatten()]
    path = tmp_path / "x.onnx"
    write_onnx(lower(nn.Sequential(*layers).eval(), {"input": (1, 8, 9, 10)}), path)
    made = import_network(path, scan_checks="off", engines=("native",), **fields).folder
    options = BenchOptions(
        artifact=made, batches=(2,), rounds=2, threads=1, out=tmp_path / "bench",
        only=("hfrt native", "onnxruntime"),
    )  # fmt: skip
    found = bench(options)
    names = [timing.contender for timing in found.timings]
    assert "hfrt native" in names
    assert "onnxruntime" in names
    assert all(timing.correct for timing in found.timings)
    path.write_bytes(b"other")
    with pytest.raises(ConfigError, match=r"imported from another x.onnx") as error:
        bench(options)
    path.unlink()
    with pytest.raises(ConfigError, match=r"the ONNX file behind .* name it with `run`"):
        bench(options)
    assert error.value.code == "bench-no-run"

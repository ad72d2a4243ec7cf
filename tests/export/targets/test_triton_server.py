"""The model repository: against the published schema, and run as its configurations say."""

from __future__ import annotations

import csv
import math
import re
import shutil

import numpy as np
import pytest
import torch

import hyperfusion_rt
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.data.volumes import extract, read_volume
from hyperfusion_rt.errors import ConfigError, EngineError, HyperFusionError, MissingExtraError
from hyperfusion_rt.export import build, export_run
from hyperfusion_rt.export.ir.ensemble import join
from hyperfusion_rt.export.ir.fold import fold
from hyperfusion_rt.export.ir.lower import lower
from hyperfusion_rt.export.ir.typed import Typed
from hyperfusion_rt.export.onnx_file.model import write_onnx
from hyperfusion_rt.export.targets import triton_server as serve
from hyperfusion_rt.export.targets.triton_server import check_repository, read_config
from hyperfusion_rt.runtime.engines.trt_build import BuildOptions

from ..networks import SHAPES, published

pb = pytest.importorskip(
    "tritonclient.grpc.model_config_pb2", reason="tritonclient is not installed: NOT validated"
)
ort = pytest.importorskip("onnxruntime", reason="the served models are NOT run")


@pytest.fixture(scope="module")
def served(session_run, tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    artifact = export_run(
        session_run, root / "ad.hfrt", engines=["onnx"], serve=root / "repo",
        rule="confidence_weighted",
    )  # fmt: skip
    return artifact, root / "repo"


@pytest.fixture
def repository(served, tmp_path):
    return shutil.copytree(served[1], tmp_path / "repo")


class Server:
    """Runs an ensemble as its configuration says, one ONNX file after the other."""

    def __init__(self, folder, name):
        self.folder, self.config = folder, read_config(folder / name / "config.pbtxt")

    def infer(self, request):
        kinds = {pb.TYPE_FP32: np.float32, pb.TYPE_FP64: np.float64, pb.TYPE_STRING: object}
        assert {t.name for t in self.config.input} == set(request)
        for tensor in self.config.input:
            array = request[tensor.name]
            assert array.dtype == kinds[tensor.data_type]
            assert list(array.shape[1:]) == list(tensor.dims)
            assert len(array) <= self.config.max_batch_size
        known = dict(request)
        for step in self.config.ensemble_scheduling.step:
            config = read_config(self.folder / step.model_name / "config.pbtxt")
            path = self.folder / step.model_name / "1" / config.default_model_filename
            session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
            feed = {inside: known[outside] for inside, outside in step.input_map.items()}
            made = dict(
                zip((o.name for o in session.get_outputs()), session.run(None, feed), strict=True)
            )
            known |= {outside: made[inside] for inside, outside in step.output_map.items()}
        return {tensor.name: known[tensor.name] for tensor in self.config.output}


def test_a_client_with_raw_values_gets_the_predictions(served, session_cohort):
    """The table's texts as numbers and names; images as the artifact's own code crops them."""
    artifact, repo = served
    scans = sorted((session_cohort / "scans").iterdir())[:6]
    with open(session_cohort / "data.csv", newline="") as file:
        table = {row["subject"]: row for row in csv.DictReader(file)}
    predictor = hyperfusion_rt.load(artifact.folder, engine="onnx")
    expected = {p.subject: p for p in predictor.predict(scans, session_cohort / "data.csv")}
    manifest = artifact.manifest
    images, rows, wanted, gaps = [], [], [], 0
    for scan in scans:
        subject = scan.name.split(".")[0]
        found = expected[subject]
        assert found.status == "ok"
        images.append(extract(read_volume(scan), manifest.preprocessing).images)
        rows.append(table[subject])
        wanted.append(found.values)
    request = {"image": np.stack(images).reshape(len(images), *manifest.image_shape)}
    for column in manifest.members[0].columns:
        cells = [row[column.name] for row in rows]
        gaps += sum(not cell for cell in cells)
        if column.kind == "categorical":
            request[f"table.{column.name}"] = np.array(cells, dtype=object)[:, None]
        else:
            numbers = [float(re.sub("[<>]", "", c)) if c else math.nan for c in cells]
            request[f"table.{column.name}"] = np.array(numbers)[:, None]
    assert gaps > 0
    answer = Server(repo, "ad").infer(request)
    assert np.abs(answer["output"] - np.array(wanted)).max() <= 1e-6
    assert answer["members"].shape == (len(rows), 2 * 2 * 3)
    assert (repo / "ad" / "labels.txt").read_text().split() == list(manifest.classes)


def test_the_configurations(served):
    _, repo = served
    trunk, head, whole = (
        read_config(repo / name / "config.pbtxt") for name in ("ad_trunk", "ad_head", "ad")
    )
    assert (trunk.backend, head.backend, whole.platform) == ("onnxruntime",) * 2 + ("ensemble",)
    for config in (trunk, head):
        assert config.max_batch_size == 32
        assert list(config.dynamic_batching.preferred_batch_size) == [8]
        assert config.dynamic_batching.max_queue_delay_microseconds > 0
    assert trunk.instance_group[0].kind == pb.ModelInstanceGroup.KIND_AUTO
    assert head.instance_group[0].kind == pb.ModelInstanceGroup.KIND_CPU
    assert [step.model_name for step in whole.ensemble_scheduling.step] == ["ad_trunk", "ad_head"]
    assert (repo / "ad" / "1").is_dir()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("ad/config.pbtxt", ('data_type: TYPE_FP32', "data_type: TYPE_FP99"), "TYPE_FP99"),
        ("ad/config.pbtxt", ("max_batch_size", "most"), "no field named"),
        ("ad_head/config.pbtxt", ("dims: 3", "dims: 4"), "its outputs are"),
        ("ad_trunk/config.pbtxt", ("dims: 48", "dims: 49"), "its inputs are"),
        ("ad_trunk/config.pbtxt", ("max_batch_size: 32", "max_batch_size: 8"), "smaller batches"),
        ("ad_trunk/config.pbtxt", ('name: "ad_trunk"', 'name: "other"'), "is named other"),
        ("ad_trunk/config.pbtxt", ('"model.onnx"', '"model.plan"'), "model.plan: is missing"),
        ("ad/config.pbtxt", ('value: "image"', 'value: "picture"'), "reads 'picture', which"),
        ("ad/config.pbtxt", ('key: "image"', 'key: "picture"'), "reads other tensors"),
        ("ad/config.pbtxt", ('value: "output"', 'value: "result"'), "nothing makes 'output'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_found(repository, file, change, message):
    path = repository / file
    text = path.read_text()
    assert change[0] in text
    check_repository(repository, "ad")
    path.write_text(text.replace(*change))
    with pytest.raises(HyperFusionError, match=message):
        check_repository(repository, "ad")


def test_other_models_are_left_alone(session_run, served, tmp_path):
    (tmp_path / "repo" / "other").mkdir(parents=True)
    options = {"engines": ["onnx"], "serve": tmp_path / "repo"}
    export_run(session_run, tmp_path / "a.hfrt", **options)
    names = {"other", "a", "a_trunk", "a_head"}
    assert {p.name for p in (tmp_path / "repo").iterdir()} == names
    before = (tmp_path / "repo" / "a" / "config.pbtxt").stat().st_mtime_ns
    (tmp_path / "b").mkdir()
    with pytest.raises(ConfigError, match="has a, a_trunk, a_head;"):
        export_run(session_run, tmp_path / "b" / "a.hfrt", **options)
    assert (tmp_path / "repo" / "a" / "config.pbtxt").stat().st_mtime_ns == before
    export_run(session_run, tmp_path / "b" / "a.hfrt", force=True, **options)
    assert {p.name for p in (tmp_path / "repo").iterdir()} == names
    assert (tmp_path / "repo" / "a" / "config.pbtxt").stat().st_mtime_ns != before


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("repo", "has a_head; choose another folder"),
        ("file", "file is a file; name a folder"),
        ("file/below", "file is a file; name a folder"),
        ("a.hfrt", "the artifact .* and the repository must be apart"),
        ("a.hfrt/models", "must be apart"),
        (".", "must be apart"),
    ],
)
def test_it_is_refused_before_anything_is_built(
    session_run, tmp_path, monkeypatch, folder, message
):
    (tmp_path / "repo" / "a_head").mkdir(parents=True)
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(build, "_build", None)
    with pytest.raises(ConfigError, match=message):
        export_run(session_run, tmp_path / "a.hfrt", engines=["onnx"], serve=tmp_path / folder)
    assert not (tmp_path / "a.hfrt").exists()


@pytest.mark.slow
def test_an_artifact_by_its_runs_name_is_replaced_and_served_models_are_not(
    session_run, tmp_path, hfrt
):
    arguments = ("export", "--run", session_run.folder, "--engine", "native", "--serve", "models")
    assert hfrt(tmp_path, *arguments)[0] == 0
    before = (tmp_path / "models" / "base" / "config.pbtxt").stat().st_mtime_ns
    status, _, err = hfrt(tmp_path, *arguments)
    assert status == 1
    assert "has base, base_trunk, base_head; choose another folder" in err
    assert hfrt(tmp_path, *arguments[:-2])[0] == 0
    assert (tmp_path / "models" / "base" / "config.pbtxt").stat().st_mtime_ns == before
    assert hfrt(tmp_path, *arguments, "--force")[0] == 0
    assert (tmp_path / "models" / "base" / "config.pbtxt").stat().st_mtime_ns != before


def test_a_backend_that_is_not_here_is_said_first(session_run, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_build", None)
    with pytest.raises(HyperFusionError, match=r"tensorrt|no NVIDIA GPU"):
        export_run(
            session_run, tmp_path / "a.hfrt", engines=["native"], serve=tmp_path / "repo",
            backend="tensorrt",
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_lone_request_is_a_batch_of_one(session_run, tmp_path, monkeypatch):
    """The server does not fill a batch up, whatever the artifact's engines take."""
    given = []

    def noted(engine, source, options):
        given.append(options.batch)
        raise EngineError("no GPU here")

    monkeypatch.setattr(serve, "build", noted)
    monkeypatch.setattr(serve, "load_package", lambda name: None)
    monkeypatch.setattr(serve, "find_gpu", lambda: None)
    with pytest.raises(EngineError, match="no GPU here"):
        export_run(
            session_run, tmp_path / "a.hfrt", engines=["native"], serve=tmp_path / "repo",
            backend="tensorrt", batch=(4, 8, 16),
        )  # fmt: skip
    assert given == [(1, 8, 16)]
    assert list((tmp_path / "repo").iterdir()) == []


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (1.01, False), (np.nan, False)])
def test_a_plan_is_compared_with_float64(factor, right, channels, tmp_path, monkeypatch):
    """The comparison alone: ONNX Runtime makes the features here, times `factor`."""
    shapes = {"image": (channels, *SHAPES["ad"]), "tabular": (5,)}
    graph = fold(lower(published("ad", "hyper", channels), shapes))
    made = join([graph], [5], 2, classes=True, rule="mean")
    write_onnx(made, tmp_path / "trunk.onnx", part="trunk")
    session = ort.InferenceSession(tmp_path / "trunk.onnx", providers=["CPUExecutionProvider"])

    class Features:
        def __init__(self, path, engine):
            assert engine == "trt"

        def run(self, image, tabular):
            names = [output.name for output in session.get_outputs()]
            found = session.run(None, {"image": image})
            return {n: factor * x for n, x in zip(names, found, strict=True)}

    monkeypatch.setattr(serve, "TrtEngine", Features)
    shape = (3, 2 * channels, *SHAPES["ad"])
    image = np.random.default_rng(0).standard_normal(shape, np.float32)
    if right:
        serve._compare_plan(tmp_path / "x", made, image, "fp32")
    else:
        with pytest.raises(HyperFusionError, match="differs from torch in float64"):
            serve._compare_plan(tmp_path / "x", made, image, "fp32")


def test_several_images_are_asked_for_and_served(tmp_path):
    """Of two boxes, with the other kind of answer: a number."""
    encoder = TabularEncoder.passthrough(5)
    network = published("ad", "hyper", channels=3, outputs=1)
    graph = fold(lower(network, {"image": (3, *SHAPES["ad"]), "tabular": (5,)}))
    made = join([graph], [5], 2, classes=False, rule="mean")
    image = np.random.default_rng(0).standard_normal((2, 6, *SHAPES["ad"]), np.float32)
    serve.write_repository(
        tmp_path, "t", made, [encoder], (), image,
        typed=Typed("fp32"), backend="onnx", options=BuildOptions(),
    )  # fmt: skip
    (wanted,) = [
        t for t in serve.read_config(tmp_path / "t" / "config.pbtxt").input if t.name == "image"
    ]
    assert list(wanted.dims) == [6, *SHAPES["ad"]]
    rows = {f"table.x{i}": np.full((2, 1), 0.1 * i) for i in range(5)}
    answer = Server(tmp_path, "t").infer({"image": image, **rows})
    row = 0.1 * torch.arange(5.0)[None].double()
    with torch.inference_mode():
        boxes = torch.from_numpy(image).double().view(4, 3, *SHAPES["ad"])
        exact = network.double()(boxes, row.expand(4, -1)).view(2, 2).mean(1)
    assert np.abs(answer["output"][:, 0] - exact.numpy()).max() <= 1e-5


def test_a_table_alone_is_a_head_alone(tmp_path):
    """A network without an image has no trunk, and asks for none."""
    encoder = TabularEncoder.passthrough(5)
    shapes = {"image": (1, *SHAPES["ad"]), "tabular": (5,)}
    graph = fold(lower(published("ad", "tabular"), shapes))
    made = join([graph], [5], 2, classes=True, rule="mean")
    cases = np.zeros((1, 2, *SHAPES["ad"]), np.float32)
    serve.write_repository(
        tmp_path, "t", made, [encoder], ("a", "b", "c"), cases,
        typed=Typed("fp32"), backend="onnx", options=BuildOptions(),
    )  # fmt: skip
    assert {p.name for p in tmp_path.iterdir()} == {"t", "t_head"}
    rows = {f"table.x{i}": np.full((2, 1), 0.1 * i) for i in range(5)}
    answer = Server(tmp_path, "t").infer(rows)
    assert answer["output"].sum(1) == pytest.approx(np.ones(2), abs=1e-6)


def test_what_cannot_be_served_is_said(session_run, tmp_path, monkeypatch):
    options = {"engines": ["native"], "serve": tmp_path / "repo"}
    with pytest.raises(ConfigError, match="no bfloat16 convolutions"):
        export_run(session_run, tmp_path / "a.hfrt", precision="bf16", **options)
    with pytest.raises(ConfigError, match="cannot be a model's name"):
        export_run(session_run, tmp_path / "a b.hfrt", **options)
    with pytest.raises(HyperFusionError, match="tensorrt"):
        export_run(session_run, tmp_path / "a.hfrt", backend="tensorrt", **options)
    assert not (tmp_path / "a.hfrt").exists()

    def missing():
        raise MissingExtraError("tritonclient[grpc]", "serve", "a model repository")

    monkeypatch.setattr(serve, "schema", missing)
    with pytest.raises(MissingExtraError, match=r"hyperfusion_rt\[serve\]"):
        export_run(session_run, tmp_path / "a.hfrt", **options)

"""Which engine is opened: by name, by trial, and what takes over where one cannot run."""

import json
import shutil
import time

import numpy as np
import pytest

import hyperfusion_rt
from hyperfusion_rt.artifact.manifest import Artifact, Build
from hyperfusion_rt.errors import ConfigError, EngineError, MissingExtraError
from hyperfusion_rt.export import export_run
from hyperfusion_rt.files import sha256
from hyperfusion_rt.runtime import identity
from hyperfusion_rt.runtime.engines import choose as engines
from hyperfusion_rt.runtime.engines import trt_build
from hyperfusion_rt.runtime.engines.choose import _stale, open_engine
from hyperfusion_rt.runtime.engines.gpu import Gpu, cudart, find_gpu
from hyperfusion_rt.runtime.engines.trt_build import BuildOptions, engine_key

H100 = Gpu("NVIDIA H100", 90, "580.1")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hyperfusion_rt"


@pytest.fixture
def no_gpu():
    try:
        find_gpu()
    except MissingExtraError:
        pytest.skip("cuda-python is not installed")
    except EngineError:
        return
    pytest.skip("this machine has a GPU")


@pytest.fixture(scope="module")
def rtx_artifact(session_run, tmp_path_factory):
    pytest.importorskip("tensorrt_rtx", reason="its engines are NOT built")
    out = tmp_path_factory.mktemp("rtx") / "rtx.hfrt"
    return export_run(
        session_run, out, engines=["trt-rtx", "onnx"], precision="fp16", batch=(1, 2, 4),
        workspace=1.0, capabilities=(80,),
    ).folder  # fmt: skip


class Slow:
    def __init__(self, engine, seconds):
        self.engine, self.seconds = engine, seconds

    def run(self, image, tabular):
        time.sleep(self.seconds)
        return self.engine.run(image, tabular)


def test_auto_is_the_fastest_and_is_remembered(session_artifact, cache, monkeypatch):
    artifact = Artifact.open(session_artifact)
    plain = engines.open_file
    seconds = {"native": 0.2, "onnx": 0.0}
    monkeypatch.setattr(
        engines, "open_file", lambda name, *rest: Slow(plain(name, *rest), seconds[name])
    )
    assert open_engine(artifact).name == "onnx"
    (entry,) = json.loads((cache / "trials.json").read_text()).values()
    assert entry["engine"] == "onnx"
    assert entry["ms"]["native"] > 200 > entry["ms"]["onnx"]
    # Without another trial, though now the other one would win.
    seconds |= {"native": 0.0, "onnx": 0.2}
    assert open_engine(artifact).name == "onnx"
    # Another number of threads is another trial.
    assert open_engine(artifact, threads=1).name == "native"
    assert len(json.loads((cache / "trials.json").read_text())) == 2


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}', "[" * 200_000])
def test_a_damaged_trial_file_only_costs_a_trial(session_artifact, cache, content):
    cache.mkdir(parents=True)
    (cache / "trials.json").write_text(content)
    assert open_engine(Artifact.open(session_artifact)).name in ("native", "onnx")
    assert "engine" in (cache / "trials.json").read_text()


def test_a_cache_that_cannot_be_written_is_no_error(session_artifact, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert open_engine(Artifact.open(session_artifact)).name in ("native", "onnx")


def test_what_cannot_run_is_left_out_of_the_trial(rtx_artifact, cache, no_gpu):
    opened = open_engine(Artifact.open(rtx_artifact))
    assert opened.name == "onnx"
    (note,) = opened.notes
    assert note.startswith("the trt-rtx engine cannot be used (no NVIDIA GPU can be used here")


def test_onnx_takes_over_with_a_warning(rtx_artifact, cohort, hfrt, no_gpu):
    shutil.copytree(rtx_artifact, cohort / "rtx.hfrt")
    status, _, err = hfrt(
        cohort, "infer", "scans", "--tabular", "data.csv", "--artifact", "rtx.hfrt",
        "--engine", "trt-rtx",
    )  # fmt: skip
    assert status == 0, err
    assert "warning: the trt-rtx engine cannot be used (no NVIDIA GPU" in err
    assert "the onnx engine takes over" in err
    page = (cohort / "predictions.html").read_text()
    assert "the onnx engine takes over" in page
    assert "onnx, fp32; differs from torch float64 by" in page


def test_without_onnx_it_is_an_error(rtx_artifact, session_run, tmp_path, no_gpu):
    alone = tmp_path / "alone.hfrt"
    export_run(
        session_run, alone, engines=["trt-rtx"], batch=(1, 1, 1), workspace=1.0, capabilities=(80,)
    )
    for name in ("trt-rtx", "auto"):
        with pytest.raises(EngineError, match="no NVIDIA GPU can be used here"):
            hyperfusion_rt.load(alone, engine=name)


def test_the_manifest_of_a_built_engine(rtx_artifact):
    artifact = Artifact.open(rtx_artifact)
    entry = artifact.entry("trt-rtx")
    made = entry.build
    assert entry.precision == "fp16"
    assert artifact.entry("onnx").precision == "fp32"
    assert made.source_sha256 == sha256(artifact.file("trt-rtx", "source"))
    assert made.narrow > 0
    assert 0 < made.emulated_drift <= 0.01
    assert entry.comparison.drift <= 0.01


def made(**change):
    values = {
        "version": "1.7", "batch": (1, 8, 32), "workspace_gib": 4.0, "capabilities": (80, 90),
        "gpu": "NVIDIA H100", "driver": "580.1", "seconds": 1.0, "layers": 3, "narrow": 0,
        "kept": {}, "emulated_drift": 0.0, "source_sha256": "0", "status": "run and compared",
    }  # fmt: skip
    return Build(**{**values, **change})


def test_what_makes_an_engine_stale():
    assert _stale(made(), "trt", "1.7", H100) == ""
    assert _stale(made(), "trt-rtx", "1.7", H100) == ""
    assert "version 1.6" in _stale(made(version="1.6"), "trt-rtx", "1.7", H100)
    assert "80, not 90" in _stale(made(capabilities=(80,)), "trt-rtx", "1.7", H100)
    assert "driver 570" in _stale(made(driver="570"), "trt", "1.7", H100)
    assert "A100" in _stale(made(gpu="A100"), "trt", "1.7", H100)
    # TensorRT-RTX compiles for the GPU where it is loaded.
    assert _stale(made(gpu="A100", driver="1"), "trt-rtx", "1.7", H100) == ""


def test_the_cache_is_keyed_by_everything_that_matters():
    options = BuildOptions()
    keys = {
        engine_key("trt", "a", options, "10.1", H100),
        engine_key("trt-rtx", "a", options, "10.1", H100),
        engine_key("trt", "b", options, "10.1", H100),
        engine_key("trt", "a", BuildOptions((1, 4, 32)), "10.1", H100),
        engine_key("trt", "a", options, "10.2", H100),
        engine_key("trt", "a", options, "10.1", Gpu("NVIDIA A100", 80, "580.1")),
        engine_key("trt", "a", options, "10.1", Gpu("NVIDIA H100", 90, "580.2")),
    }
    assert len(keys) == 7
    assert engine_key("trt", "a", options, "10.1", H100) in keys


def test_a_stale_engine_is_built_again_into_the_cache(rtx_artifact, cache):
    """For another machine's GPU; loading it there is what no machine without one can show."""
    artifact = Artifact.open(rtx_artifact)
    source = artifact.file("trt-rtx", "source")
    options = BuildOptions((1, 2, 4), 1.0, (89,))
    gpu = Gpu("NVIDIA L4", 89, "580.1")
    content, path = trt_build.rebuild("trt-rtx", source, options, gpu)
    assert path.read_bytes() == content
    assert path.parent == cache / "engines"
    before = path.stat().st_mtime_ns
    assert trt_build.rebuild("trt-rtx", source, options, gpu) == (content, path)
    assert path.stat().st_mtime_ns == before
    newer = Gpu("NVIDIA L4", 89, "590.1")
    assert trt_build.rebuild("trt-rtx", source, options, newer)[1] != path


def test_a_cache_that_cannot_be_written_only_costs_the_next_build(
    rtx_artifact, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    source = Artifact.open(rtx_artifact).file("trt-rtx", "source")
    options = BuildOptions((1, 2, 4), 1.0, (89,))
    content, path = trt_build.rebuild("trt-rtx", source, options, Gpu("NVIDIA L4", 89, "580.1"))
    assert content
    assert not path.exists()


class Broken:
    def __init__(self, message):
        self.message = message

    def run(self, image, tabular):
        raise RuntimeError(self.message)


def test_an_engine_that_opens_and_does_not_run_is_left_out(session_artifact, cache, monkeypatch):
    artifact = Artifact.open(session_artifact)
    plain = engines.open_file
    broken = {"native"}
    monkeypatch.setattr(
        engines,
        "open_file",
        lambda name, *rest: Broken("no memory") if name in broken else plain(name, *rest),
    )
    opened = open_engine(artifact)
    assert opened.name == "onnx"
    assert opened.notes == ("the native engine cannot be used (no memory)",)
    broken.add("onnx")
    with pytest.raises(EngineError, match=r"no engine runs here: .*native.*no memory.*onnx"):
        open_engine(artifact)


@pytest.mark.parametrize("what", ["package", "provider"])
def test_what_is_installed_or_chosen_later_is_tried(session_artifact, cache, monkeypatch, what):
    artifact = Artifact.open(session_artifact)
    open_engine(artifact)
    entries = json.loads((cache / "trials.json").read_text())
    if what == "package":
        monkeypatch.setattr(identity, "installed", lambda name: "99.0")
    else:
        monkeypatch.setenv("HFRT_ONNX_PROVIDER", "cpu")
    open_engine(artifact)
    assert len(json.loads((cache / "trials.json").read_text())) == len(entries) + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch", "8"), "write it as SMALLEST:USUAL:LARGEST"),
        (("--batch", "4:2:8"), "--batch 4:2:8"),
        (("--batch", "0:2:8"), "from 1 upwards"),
        (("--batch", "1:8:3000000000"), "at most 65536 cases"),
        (("--workspace", "0"), "more than 0 GiB"),
        (("--workspace", "nan"), "more than 0 GiB"),
        (("--workspace", "inf"), "at most 65536"),
        (("--serve-backend", "tensorrt"), "needs --serve DIR"),
        (("--engine", "turbo"), "there is no engine 'turbo'"),
        (("--engine", "onnx", "--precision", "fp16"), "onnx has fp32"),
    ],
)
def test_wrong_options_are_said(session_cohort, hfrt, arguments, message):
    status, _, err = hfrt(session_cohort, "export", *arguments)
    assert status == 1
    assert message in err


def test_a_missing_package_is_named(session_run, tmp_path, monkeypatch):
    monkeypatch.setattr(trt_build.importlib.util, "find_spec", lambda name: None)
    for engine, package, extra in (
        ("trt", "tensorrt", "trt"),
        ("trt-rtx", "tensorrt_rtx", "trt-rtx"),
    ):
        with pytest.raises(MissingExtraError) as error:
            export_run(session_run, tmp_path / "x.hfrt", engines=[engine])
        assert f"needs '{package}'" in str(error.value)
        assert f"hyperfusion_rt[{extra}]" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_rule_for_the_artifact(session_run, tmp_path):
    found = export_run(session_run, tmp_path / "x.hfrt", engines=["native"], rule="weighted_voting")
    assert found.manifest.combine == "weighted_voting"
    engine = open_engine(found).engine
    image = np.zeros((1, 2, 32, 48, 32), np.float32)
    width = sum(member.width for member in found.manifest.members)
    votes = engine.run(image, np.zeros((1, width), np.float32))["output"]
    assert votes.sum() == pytest.approx(1)
    age = session_run.config.tabular.model_copy(update={"classes": {}})
    config = session_run.config.model_copy(update={"tabular": age})
    run = type(session_run)(session_run.folder, config)
    with pytest.raises(ConfigError, match="`rule` most_confident: needs classes"):
        export_run(run, tmp_path / "y.hfrt", rule="most_confident")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", ["trt", "trt-rtx"])
def test_on_a_gpu(session_run, tmp_path, name, precision):
    """Built, run and compared; large batches; a replayed graph gives the same bits."""
    try:
        trt_build.load_package(name)
        gpu = find_gpu()
    except (MissingExtraError, EngineError) as error:
        pytest.skip(f"{name} NOT run: {error}")
    assert int(cudart().cudaRuntimeGetVersion()[1]) > 0
    artifact = export_run(
        session_run, tmp_path / "x.hfrt", engines=[name, "onnx"], precision=precision,
        batch=(1, 2, 4), workspace=1.0,
        capabilities=(gpu.capability,) if name == "trt-rtx" else (),
    )  # fmt: skip
    assert artifact.entry(name).build.status == "run and compared"
    opened = open_engine(artifact, name)
    assert (opened.name, opened.notes) == (name, ())
    rng = np.random.default_rng(0)
    image = rng.standard_normal((7, 2, 32, 48, 32), np.float32)
    width = sum(member.width for member in artifact.manifest.members)
    rows = rng.standard_normal((7, width), np.float32)
    first = opened.engine.run(image, rows)
    for _ in range(20):
        again = opened.engine.run(image, rows)
        for key, value in first.items():
            np.testing.assert_array_equal(again[key], value)

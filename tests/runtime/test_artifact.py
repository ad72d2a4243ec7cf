"""The artifact refuses what is damaged, incomplete, edited or too new."""

import json
import shutil

import numpy as np
import pytest

import hyperfusion_rt
from hyperfusion_rt.errors import ArtifactError, ConfigError, EngineError, HyperFusionError
from hyperfusion_rt.export import build, export_run
from hyperfusion_rt.export.compare import compare, reference_outputs
from hyperfusion_rt.runtime.artifact import Artifact, latest_artifact
from hyperfusion_rt.runtime.engines import open_engines
from hyperfusion_rt.training.train import load_member


@pytest.fixture
def artifact(session_artifact, tmp_path):
    return shutil.copytree(session_artifact, tmp_path / "a.hfrt")


def edit(folder, change):
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_manifest_round_trips(session_artifact):
    manifest = Artifact.open(session_artifact).manifest
    assert manifest.checksum == manifest.digest()
    assert manifest.classes == ("CN", "MCI", "AD")
    assert len(manifest.members) == 2
    parts = [(e.engine, e.member, e.part) for e in manifest.engines]
    whole = [("native", i, "whole") for i in range(2)]
    onnx = [("onnx", i, part) for i in range(2) for part in ("whole", "trunk", "head")]
    assert sorted(parts) == sorted(whole + onnx)
    assert manifest.provenance.cases["train"] == 24
    for entry in manifest.engines:
        assert entry.comparison.real_cases
        assert entry.comparison.cases == 7
        assert entry.comparison.batches == (1, 2, 7)
        assert 0 < entry.comparison.largest_difference <= 1e-4


def test_a_changed_byte_is_refused(artifact):
    path = artifact / "member-1.native"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"member-1\.native: is damaged"):
        hyperfusion_rt.load(artifact)


def test_a_missing_file_is_named(artifact):
    (artifact / "member-0.native").unlink()
    with pytest.raises(ArtifactError, match=r"member-0\.native: is missing"):
        hyperfusion_rt.load(artifact)


def test_an_edited_manifest_is_refused(artifact):
    edit(artifact, lambda m: m["preprocessing"].update(spacing=2.5))
    with pytest.raises(ArtifactError, match="changed after it was written"):
        Artifact.open(artifact)


def test_a_newer_format_is_refused(artifact):
    edit(artifact, lambda m: m.update(format_version=99, brand_new_field=1))
    with pytest.raises(ArtifactError, match="upgrade hyperfusion_rt"):
        Artifact.open(artifact)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("[]", "no format_version"),
        ('{"format_version": 2}', "damaged at name"),
        ('{"format_version": 1}', "format version 1, but this program reads 2; export again"),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_broken_manifest(artifact, text, message):
    (artifact / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ArtifactError, match=message):
        Artifact.open(artifact)


def test_a_file_name_cannot_leave_the_folder(artifact):
    opened = Artifact.open(artifact)
    first, *others = opened.manifest.engines
    moved = first.model_copy(update={"file": "../outside.native"})
    manifest = opened.manifest.model_copy(update={"engines": (moved, *others)})
    with pytest.raises(ArtifactError, match="leaves the folder"):
        Artifact(artifact, manifest).files(first.engine)


def test_engines_are_chosen_and_refused_by_name(session_artifact):
    artifact = Artifact.open(session_artifact)
    assert open_engines(artifact)[0] == "native"
    assert open_engines(artifact, "onnx")[0] == "onnx"
    with pytest.raises(EngineError, match="will need an NVIDIA GPU"):
        open_engines(artifact, "trt")
    with pytest.raises(EngineError, match="there is no engine 'turbo'"):
        open_engines(artifact, "turbo")


def test_no_artifact(tmp_path):
    with pytest.raises(ArtifactError, match="hfrt export"):
        latest_artifact(tmp_path)
    with pytest.raises(ArtifactError, match="not an artifact"):
        Artifact.open(tmp_path)


class Wrong:
    """An engine that is off by a little in one class, and only in larger batches."""

    def __init__(self, engine, error):
        self.engine, self.error = engine, error

    def __call__(self, image, tabular):
        found = self.engine(image, tabular).copy()
        if len(image) > 2:
            found[-1, 1] += self.error
        return found


def test_the_comparison_catches_a_wrong_engine(session_run, session_artifact):
    image, rows, real = build.load_cases(session_run)
    network = load_member(session_run, session_run.members[0])
    expected = reference_outputs(network, image, rows[0])
    _, engines = open_engines(Artifact.open(session_artifact))
    for error in (np.float32(np.abs(engines[0](image, rows[0])).max() * 2e-4), np.nan):
        with pytest.raises(HyperFusionError, match="more than the tolerance"):
            compare(
                Wrong(engines[0], error), expected, image, rows[0], real_cases=real, name="wrong"
            )


def test_a_failed_export_leaves_the_old_artifact(session_run, artifact, monkeypatch):
    before = (artifact / "manifest.json").read_bytes()

    def fail(*args, **kwargs):
        raise HyperFusionError("differs")

    monkeypatch.setattr(build, "compare", fail)
    with pytest.raises(HyperFusionError, match="differs"):
        export_run(session_run, artifact, force=True)
    assert (artifact / "manifest.json").read_bytes() == before
    assert sorted(p.name for p in artifact.parent.iterdir()) == ["a.hfrt"]


def test_export_does_not_overwrite_unasked(session_run, artifact):
    with pytest.raises(ConfigError, match="exists; choose another"):
        export_run(session_run, artifact)
    with pytest.raises(ConfigError, match=r"ends in \.hfrt"):
        export_run(session_run, artifact.with_name("model"))

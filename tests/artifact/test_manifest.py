"""The artifact refuses what is damaged, incomplete, edited or too new."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import hyperfusion_rt
from hyperfusion_rt.artifact.description import describe
from hyperfusion_rt.artifact.manifest import Artifact, Manifest, digest_of, only_artifact
from hyperfusion_rt.errors import ArtifactError, ConfigError, EngineError, HyperFusionError
from hyperfusion_rt.export import build, export_run
from hyperfusion_rt.export.compare import Expected, compare
from hyperfusion_rt.runtime.engines.choose import open_engine
from hyperfusion_rt.training.results import load_member


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
    parts = [(e.engine, e.part) for e in manifest.engines]
    onnx = [("onnx", part) for part in ("whole", "trunk", "head")]
    assert sorted(parts) == sorted([("native", "whole"), *onnx])
    assert manifest.provenance.cases["train"] == 24
    for entry in manifest.engines:
        assert entry.comparison.real_cases
        assert entry.comparison.cases == 7
        assert entry.comparison.batches == (1, 2, 7)
        assert 0 < entry.comparison.largest_difference <= 1e-4
        assert 0 < entry.comparison.drift <= 1e-5


def test_a_description_names_every_channel(artifact):
    def several(content):
        content["preprocessing"]["channels"] = [
            {"name": "T1w", "files": "*_T1w.nii.gz"},
            {"name": "PET", "files": "P/*", "normalisation": "fixed-range", "range": [0, 3]},
        ]
        content["checksum"] = digest_of(content)

    edit(artifact, several)
    said = dict(describe(artifact).sections["preprocessing"])
    assert said["image T1w"] == "*_T1w.nii.gz, zscore-foreground"
    assert said["image PET"] == "P/*, fixed-range 0 to 3"


def test_a_changed_byte_is_refused(artifact):
    path = artifact / "model.native"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.native: is damaged"):
        hyperfusion_rt.load(artifact, engine="native")


def test_a_missing_file_is_named(artifact):
    (artifact / "model.native").unlink()
    with pytest.raises(ArtifactError, match=r"model\.native: is missing"):
        hyperfusion_rt.load(artifact, engine="native")


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
        ('{"format_version": 3}', "damaged at name"),
        ('{"format_version": 2}', "format version 2, but this program reads 3 to 9; export again"),
        ("\udcff", "cannot be read"),
        ("[" * 200_000, "cannot be read"),
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
        Artifact(artifact, manifest).file(first.engine)


def test_engines_are_chosen_and_refused_by_name(session_artifact):
    artifact = Artifact.open(session_artifact)
    assert open_engine(artifact, "native").name == "native"
    assert open_engine(artifact, "onnx").name == "onnx"
    assert open_engine(artifact).name in ("native", "onnx")
    advice = "export again with 'hfrt export `engines` native `engines` onnx `engines` trt'"
    with pytest.raises(ArtifactError, match=f"only native, onnx; {advice}"):
        open_engine(artifact, "trt")
    with pytest.raises(EngineError, match="there is no engine 'turbo'"):
        open_engine(artifact, "turbo")


def test_the_only_artifact_is_taken_and_several_are_refused(session_artifact, tmp_path):
    shutil.copytree(session_artifact, tmp_path / "b.hfrt")
    (tmp_path / "c.hfrt").mkdir()  # holds no artifact
    assert only_artifact(tmp_path) == tmp_path / "b.hfrt"
    checksum = Artifact.open(session_artifact).manifest.checksum
    assert Artifact.open(tmp_path / "b.hfrt").label == f"{tmp_path / 'b.hfrt'} ({checksum[:8]})"
    shutil.copytree(session_artifact, tmp_path / "a.hfrt")
    with pytest.raises(ArtifactError, match=r"2 artifacts are here \(a\.hfrt, b\.hfrt\)") as error:
        only_artifact(tmp_path)
    assert (error.value.code, error.value.parameter) == ("artifact-ambiguous", "artifact")


def test_no_artifact(tmp_path):
    with pytest.raises(ArtifactError, match="hfrt export"):
        only_artifact(tmp_path)
    with pytest.raises(ArtifactError, match="not an artifact"):
        Artifact.open(tmp_path)
    (tmp_path / "data.csv").write_text("")
    with pytest.raises(ArtifactError, match=r"data\.csv: a file, not an artifact's folder"):
        Artifact.open(tmp_path / "data.csv")


class Wrong:
    """An engine that is off by a little in one output, and only in larger batches."""

    def __init__(self, engine, output, error):
        self.engine, self.output, self.error = engine, output, error

    def run(self, image, tabular):
        found = {name: value.copy() for name, value in self.engine.run(image, tabular).items()}
        if len(image) > 2:
            found[self.output][-1, 1] += self.error
        return found


@pytest.fixture(scope="module")
def expected(session_run):
    image, rows, real = build.load_cases(session_run)
    networks = [load_member(session_run, member) for member in session_run.members]
    return Expected.of(networks, image, rows, real=real, classes=True, rule="mean")


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        ("members", 2e-4, "of the outputs' scale, more than the tolerance 1e-04"),
        ("members", np.nan, "inf of the outputs' scale"),
        ("output", 0.02, "in probability, more than the tolerance 1e-02"),
        ("output", 2e-5, "in probability from 'mean' of its members"),
        ("output", np.nan, "inf in probability"),
    ],
)
def test_the_comparison_catches_a_wrong_engine(expected, session_artifact, output, error, message):
    engine = open_engine(Artifact.open(session_artifact), "native").engine
    if output == "members":
        error *= np.abs(expected.outputs[:, 0]).max()
    compare(engine, expected, name="right")
    with pytest.raises(HyperFusionError, match=message):
        compare(Wrong(engine, output, np.float32(error)), expected, name="wrong")


def test_a_failed_export_leaves_the_old_artifact(session_run, artifact, monkeypatch):
    before = (artifact / "manifest.json").read_bytes()

    def fail(*args, **kwargs):
        raise HyperFusionError("differs")

    monkeypatch.setattr(build, "compare", fail)
    with pytest.raises(HyperFusionError, match="differs"):
        export_run(session_run, artifact, force=True)
    assert (artifact / "manifest.json").read_bytes() == before
    assert sorted(p.name for p in artifact.parent.iterdir()) == ["a.hfrt"]


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_force_replaces_artifacts_alone(session_run, artifact, tmp_path, kind):
    out = tmp_path / "mine.hfrt"
    if kind == "file":
        out.write_text("mine")
    elif kind == "link":
        out.symlink_to(artifact)
    else:
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(ConfigError, match="exists and is no artifact's folder"):
        export_run(session_run, out, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.slow
def test_two_exports_at_once_do_not_replace_each_other(session_run, tmp_path, monkeypatch):
    """The other one ends while this one is being built."""
    out = tmp_path / "a.hfrt"
    plain = build._build

    def slow(*arguments):
        found = plain(*arguments)
        monkeypatch.setattr(build, "_build", plain)
        export_run(session_run, out, engines=["onnx"])
        return found

    monkeypatch.setattr(build, "_build", slow)
    with pytest.raises(ConfigError, match="exists; choose another"):
        export_run(session_run, out, engines=["native"])
    assert Artifact.open(out).engines == ["onnx"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.hfrt"]


def test_the_old_artifact_comes_back_where_the_new_one_cannot_be_put(
    session_run, artifact, monkeypatch
):
    before = (artifact / "manifest.json").read_bytes()
    plain = Path.rename

    def rename(source, target):
        if target == artifact and not source.name.endswith(".old"):
            raise OSError(30, "Read-only file system")
        return plain(source, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(HyperFusionError, match="Read-only file system"):
        export_run(session_run, artifact, engines=["native"], force=True)
    assert (artifact / "manifest.json").read_bytes() == before
    assert [p.name for p in artifact.parent.iterdir()] == ["a.hfrt"]


def test_export_does_not_overwrite_unasked(session_run, artifact):
    with pytest.raises(ConfigError, match="exists; choose another"):
        export_run(session_run, artifact)
    with pytest.raises(ConfigError, match=r"ends in \.hfrt"):
        export_run(session_run, artifact.with_name("model"))


@pytest.mark.parametrize("version", [3, 4])
def test_an_older_artifact_is_read(artifact, version):
    def older(content):
        content |= {"format_version": version, "task": "ad"}
        for name in ("target_spread", "training_cases", "population", "card"):
            del content[name]
        del content["table"]["unit"], content["table"]["map"]
        del content["preprocessing"]["channels"], content["preprocessing"]["range"]
        if version == 3:
            del content["scan_reference"]
        content["checksum"] = digest_of(content)

    edit(artifact, older)
    manifest = Artifact.open(artifact).manifest
    assert (manifest.task, manifest.unit) == ("classification", "probability")
    assert [channel.files for channel in manifest.preprocessing.channels] == [""]
    content = json.loads((artifact / "manifest.json").read_text())
    content |= {"task": "brain-age", "classes": [], "unit": "years"}
    content["table"] |= {"target": "AGE", "classes": {}}
    aged = Manifest.model_validate(content)
    assert (aged.task, aged.table.unit, aged.table.answers) == ("regression", "years", ("years",))

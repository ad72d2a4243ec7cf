"""What the identity of a run covers: every module on the way from file to number."""

from pathlib import Path

import grimp
import pytest

import hyperfusion_rt
from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.runtime import identity
from hyperfusion_rt.runtime.engines.registry import ENGINES


@pytest.fixture(scope="module")
def imports():
    return grimp.build_graph("hyperfusion_rt", exclude_type_checking_imports=True, cache_dir=None)


def test_every_module_on_the_way_from_file_to_number_is_covered(imports):
    # The engines are named by text, so that they are imported late: their imports count too.
    starts = ["hyperfusion_rt.runtime.predictor", *(kind.module for kind in ENGINES.values())]
    reached = set(starts).union(*(imports.find_upstream_modules(start) for start in starts))
    named = {name.removeprefix("hyperfusion_rt.") for name in reached - {"hyperfusion_rt"}}
    # A package of ours without code is not imported by name.
    assert named <= set(identity.CODE)
    assert set(identity.CODE) - named <= {"kernels.gpu"}
    assert len(set(identity.CODE)) == len(identity.CODE)


@pytest.mark.parametrize("name", ["rules", "kernels.reference", "kernels.gpu"])
def test_a_change_of_code_is_another_identity(monkeypatch, tmp_path, name):
    """Modules are found by name, single files and packages alike."""
    root = Path(hyperfusion_rt.__file__).parent
    for module in identity.CODE:
        place = tmp_path.joinpath(*module.split("."))
        source = root.joinpath(*module.split("."))
        if source.is_dir():
            place, source = place / "__init__", source / "__init__"
        place.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{place}.py").write_bytes(Path(f"{source}.py").read_bytes())
    monkeypatch.setattr(hyperfusion_rt, "__file__", str(tmp_path / "__init__.py"))
    before = identity.code_digest.__wrapped__()
    place = tmp_path.joinpath(*name.split("."))
    place = place / "__init__.py" if place.is_dir() else Path(f"{place}.py")
    existed = place.exists()
    place.write_bytes(b"# another line\n" + (place.read_bytes() if existed else b""))
    assert (identity.code_digest.__wrapped__() != before) == (name in identity.CODE)


def test_a_module_that_is_gone_is_an_error(monkeypatch):
    monkeypatch.setattr(identity, "CODE", (*identity.CODE, "data.renamed"))
    with pytest.raises(FileNotFoundError, match="renamed"):
        identity.code_digest.__wrapped__()


def test_an_identity_names_the_packages_of_its_engine_and_scans(session_artifact):
    artifact = Artifact.open(session_artifact)
    onnx = identity.identity(artifact, "onnx", "registered")
    assert "numpy" not in onnx["packages"]
    assert onnx["packages"].startswith("onnxruntime ")
    assert "pydicom" in identity.identity(artifact, "native", "raw")["packages"]
    assert identity.identity(artifact, "native", "registered")["packages"] == ""
    assert {"numpy", "onnxruntime", "torch", "pydicom"} <= identity.versions().keys()

"""From a case to its map: which answer, which grid, which files."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hyperfusion_rt.config import Box, Preprocessing
from hyperfusion_rt.data.cohort import Case
from hyperfusion_rt.data.imports import import_nibabel
from hyperfusion_rt.data.volumes import VoxelGrid
from hyperfusion_rt.errors import ConfigError, EngineError
from hyperfusion_rt.runtime.case_input import CaseInput
from hyperfusion_rt.runtime.cohort.explain import explain_image
from hyperfusion_rt.runtime.options import ExplainOptions

nib = import_nibabel()
PREPROCESSING = Preprocessing(
    boxes=(Box(name="box", center=(1.0, 2.0, 3.0)),), shape=(8, 8, 8), spacing=2.0
)
PLACE = np.array([5, 2, 6])  # the only voxel of the box that counts


class Spot:
    """Answers from one voxel: of CN, of AD."""

    splits = False

    def values(self, found):
        return found["output"], None

    def run(self, image, tabular):
        value = image[(slice(None), 0, *PLACE)]
        output = np.stack([-value, value], 1).astype(np.float32)
        return {"output": output, "members": output}


def predictor(folder, source, transform=None, classes=("CN", "AD")):
    scan = folder / "S1.nii.gz"
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = -30
    voxels = np.random.default_rng(0).integers(1, 99, (30, 32, 31)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, affine), scan)
    images = np.zeros((1, 1, 8, 8, 8), np.float32)
    images[(0, 0, *PLACE)] = 3
    grid = VoxelGrid((30, 32, 31), affine)
    read = CaseInput(images, None, None, (), {}, transform=transform, grid=grid)
    engine = Spot()
    return SimpleNamespace(
        manifest=SimpleNamespace(
            preprocessing=PREPROCESSING,
            classes=classes,
            labels=(),
            members=[SimpleNamespace(width=1, warnings=lambda row: [])],
            table=SimpleNamespace(target="DX"),
        ),
        artifact=SimpleNamespace(reference=lambda: None, folder=folder, engines=["onnx"]),
        options=SimpleNamespace(source=source),
        engine="onnx",
        threads=1,
        network=engine,
        read=lambda case: (read, np.ones(1, np.float32)),
        run=lambda images, rows: (engine.run(images[:, 0][None], rows)["output"][0], None),
    ), Case("S1", None, scan, SimpleNamespace())


def spot_mm():
    return np.array([1, 2, 3]) + 2 * (PLACE - 3.5)


@pytest.mark.parametrize("source", ["registered", "raw"])
def test_the_map_lies_in_the_scans_own_space(tmp_path, source):
    transform = None
    if source == "raw":  # template mm to scan mm
        transform = np.eye(4)
        transform[:3, 3] = 6, -4, 10
    loaded, case = predictor(tmp_path, source, transform)
    found = explain_image(loaded, case, ExplainOptions(cube=2.0))
    assert (found.voxels.shape, found.of, found.method) == ((30, 32, 31), "AD", "occlusion")
    (where,) = np.argwhere(found.voxels)
    mm = found.affine[:3, :3] @ where + found.affine[:3, 3]
    expected = spot_mm() + (0 if transform is None else transform[:3, 3])
    assert np.abs(mm - expected).max() <= 1
    assert found.voxels[tuple(where)] == pytest.approx(3, rel=0.05)  # blurred, little is left


def test_another_class_has_another_map(tmp_path):
    loaded, case = predictor(tmp_path, "registered")
    one, other = (
        explain_image(loaded, case, ExplainOptions(cube=2.0, of=of)) for of in ("AD", "CN")
    )
    np.testing.assert_array_equal(one.voxels, -other.voxels)
    assert (one.of, other.of) == ("AD", "CN")


def test_a_number_is_named_by_its_target(tmp_path):
    loaded, case = predictor(tmp_path, "registered", classes=())
    assert explain_image(loaded, case, ExplainOptions(cube=2.0)).of == "DX"
    with pytest.raises(ConfigError, match="`of` 'AD': the model answers one number, DX"):
        explain_image(loaded, case, ExplainOptions(of="AD"))


def test_gradients_need_a_plan(tmp_path):
    loaded, case = predictor(tmp_path, "registered")
    with pytest.raises(EngineError, match="has only onnx") as error:
        explain_image(loaded, case, ExplainOptions(method="gradients"))
    assert error.value.code == "artifact-lacks-engine"
    assert isinstance(case.scan, Path)

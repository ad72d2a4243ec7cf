"""Further scans of the same subjects, and scans that stay what they were."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from hyperfusion_rt.config import load_config
from hyperfusion_rt.data.channels import find_cases
from hyperfusion_rt.data.cohort import join
from hyperfusion_rt.data.simulate import anatomy, simulate_cohort
from hyperfusion_rt.data.simulate import template as templates
from hyperfusion_rt.data.table_file import read_table
from hyperfusion_rt.data.volumes import load_boxes, read_volume
from hyperfusion_rt.errors import ConfigError

GOLDEN = Path(__file__).parents[2] / "golden" / "simulated.json"


def simulate(out: Path, **options: object) -> Path:
    simulate_cohort(out, **{"task": "ad", "subjects": 2, "seed": 3, "jobs": 1, **options})
    return out


def cases(root: Path) -> list[tuple[str, str | None]]:
    config = load_config(root / "hfrt.yaml")
    scans = find_cases([root / "scans"], config.preprocessing.channels)
    cohort = join(scans, read_table(root / "data.csv"))
    assert not cohort.problems
    assert not any(case.warnings for case in cohort.cases)
    return [(case.subject, case.session) for case in cohort.cases]


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("once") / "cohort")


@pytest.fixture(scope="module")
def thrice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("thrice") / "cohort", scans=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ad", "brain-age", "place"])
def test_a_subject_stays_what_it_was(name: str, tmp_path: Path) -> None:
    """The table to the letter, voxels to what another machine rounds otherwise."""
    golden = json.loads(GOLDEN.read_text())[name]
    simulate(tmp_path, subjects=1, **golden["options"])
    with open(tmp_path / "data.csv", newline="", encoding="utf-8") as file:
        assert next(csv.DictReader(file)) == golden["row"]
    voxels = read_volume(tmp_path / "scans" / "S3-0001.nii.gz").voxels
    found = voxels[4::8, 4::8, 4::8].astype(int).ravel()
    assert np.abs(found - golden["voxels"]).max() <= 1


def test_the_first_scan_is_that_of_a_cohort_with_one(once: Path, thrice: Path) -> None:
    for name in ("data.csv", "truth.csv", "optimum.json", "hfrt.yaml"):
        assert (once / name).read_bytes() == (thrice / name).read_bytes()
    for subject in ("S3-0001", "S3-0002"):
        folder, name = thrice / "scans" / subject, f"{subject}.nii.gz"
        assert {p.relative_to(folder).as_posix() for p in folder.rglob("*.*")} == {
            f"ses-{k}/{name}" for k in (1, 2, 3)
        }
        assert (folder / "ses-1" / name).read_bytes() == (once / "scans" / name).read_bytes()


def test_sessions_are_found_with_their_rows(thrice: Path, tmp_path: Path) -> None:
    wanted = [(f"S3-000{i}", str(k)) for i in (1, 2) for k in (1, 2, 3)]
    assert cases(thrice) == wanted
    two = simulate(tmp_path, scans=2, flair=True)
    assert cases(two) == [key for key in wanted if key[1] != "3"]


def test_scans_of_a_subject_are_alike_and_not_the_same(thrice: Path) -> None:
    """Whiter noise apart, two scans of one brain are nearer than scans of two."""
    config = load_config(thrice / "hfrt.yaml").preprocessing
    paths = sorted((thrice / "scans").rglob("*.nii.gz"))
    boxes = [load_boxes(path, config).images.astype(float) for path in paths]
    far = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a in boxes[:3] for b in boxes[3:]]
    for group in (boxes[:3], boxes[3:]):
        for k in range(3):
            near = np.corrcoef(group[k].ravel(), group[k - 1].ravel())[0, 1]
            assert max(far) + 0.05 < near < 0.999


def test_a_pose_is_small_and_moves_the_image() -> None:
    template = templates.load_template(2)
    rng = np.random.default_rng(0)
    poses = [anatomy.pose(template, rng) for _ in range(2000)]
    middle = (np.asarray(template.channels.shape[1:]) - 1) / 2
    shifts = np.array([p[:3, :3] @ middle + p[:3, 3] - middle for p in poses]) * template.spacing
    angles = np.array([np.arccos((np.trace(p[:3, :3]) - 1) / 2) for p in poses])
    assert shifts.std(0) == pytest.approx(3 * [anatomy._POSE_MM], rel=0.08)
    # The length of a vector of three normal numbers has the mean 1.596.
    assert np.degrees(angles).mean() == pytest.approx(1.596 * anatomy._POSE_DEGREES, rel=0.05)


def test_a_shifted_pose_is_a_shifted_scan() -> None:
    """A shift by whole voxels takes the brain with it: the same noise on moved tissue."""
    template = templates.load_template(2)
    head = anatomy.make_head(template, (0.5,), np.random.default_rng(1))
    still, moved = np.eye(4), np.eye(4)
    moved[:3, 3] = (2, -1, 3)
    before, after = (
        anatomy.scan(template, head, np.random.default_rng(2), moved=pose).voxels.astype(float)
        for pose in (still, moved)
    )
    plain = anatomy.scan(template, head, np.random.default_rng(2)).voxels
    assert np.abs(before - plain).max() <= 1
    inner = np.s_[20:70, 20:90, 20:70]
    back = np.roll(before, (-2, 1, -3), (0, 1, 2))
    apart = np.corrcoef(before[inner].ravel(), after[inner].ravel())[0, 1]
    assert np.corrcoef(back[inner].ravel(), after[inner].ravel())[0, 1] > max(0.93, apart + 0.2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scans": 0}, "0 scans"),
        ({"model": "time"}, "'time'.*additive, place"),
        ({"model": "place", "task": "brain-age"}, "only task 'ad'"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()

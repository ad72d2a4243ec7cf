"""The simulated cohort: what is written, and anatomy that answers to its latent."""

import csv
import json
import subprocess
import sys
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from hyperfusion_rt.config import load_config
from hyperfusion_rt.data.simulate import anatomy, bayes_optimum, population, simulate_cohort
from hyperfusion_rt.data.simulate import template as templates
from hyperfusion_rt.data.volumes import load_boxes, read_volume
from hyperfusion_rt.errors import ConfigError, HyperFusionError, MissingExtraError

SUBJECTS = 4


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def ad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ad") / "cohort"
    simulate_cohort(root, task="ad", subjects=SUBJECTS, seed=3, spacing=2, jobs=1)
    return root


@pytest.fixture(scope="module")
def template() -> templates.Template:
    return templates.load_template(2)


@pytest.fixture(scope="module")
def brains(template: templates.Template) -> dict[float, anatomy.Brain]:
    """One person, five degrees of atrophy: the random parts are the same."""
    latents = (-3.0, -1.5, 0.0, 1.5, 3.0)
    return {a: made(template, (a,), 8) for a in latents}


def made(template: templates.Template, atrophy: tuple[float, ...], seed: int) -> anatomy.Brain:
    rng = np.random.default_rng(seed)
    return anatomy.scan(template, anatomy.make_head(template, atrophy, rng), rng)


# ---- the folder


def test_what_is_written(ad: Path) -> None:
    ids = [f"S3-{i:04d}" for i in range(1, SUBJECTS + 1)]
    assert sorted(p.name for p in (ad / "scans").iterdir()) == [f"{i}.nii.gz" for i in ids]
    table, truth = rows(ad / "data.csv"), rows(ad / "truth.csv")
    assert [r["subject"] for r in table] == [r["subject"] for r in truth] == ids
    assert list(table[0]) == ["subject", *population.AD_COLUMNS]
    assert load_config(ad / "hfrt.yaml").preset == "ad-small"
    assert json.loads((ad / "optimum.json").read_text()) == bayes_optimum("ad")
    parts = ("atrophy_age", "atrophy_sex", "atrophy_dx", "atrophy_noise")
    for row in truth:
        assert float(row["atrophy"]) == pytest.approx(sum(float(row[p]) for p in parts), abs=3e-4)
        assert float(row["smallest_jacobian"]) > 0


@pytest.mark.slow
def test_same_bytes_whatever_the_jobs_and_the_size(ad: Path, tmp_path: Path) -> None:
    """Two workers and fewer subjects: the first ones are the same, byte for byte."""
    seen: list[int] = []
    simulate_cohort(
        tmp_path, task="ad", subjects=2, seed=3, spacing=2, jobs=2, on_subject=seen.append
    )
    assert seen == [0, 1]
    whole = files(ad)
    for name, content in files(tmp_path).items():
        if name in ("data.csv", "truth.csv"):
            assert content.splitlines() == whole[name].splitlines()[:3]
        else:
            assert content == whole[name], name


def test_seeds_differ_in_ids_and_content(tmp_path: Path) -> None:
    truths = []
    for seed in (0, 1):
        out = tmp_path / str(seed)
        simulate_cohort(out, task="brain-age", subjects=1, seed=seed, spacing=2, jobs=1)
        assert load_config(out / "hfrt.yaml").preset == "brain-age-small"
        assert list(rows(out / "data.csv")[0]) == ["subject", *population.BRAIN_AGE_COLUMNS]
        truths += rows(out / "truth.csv")
    assert truths[0]["subject"] != truths[1]["subject"]
    assert truths[0]["atrophy"] != truths[1]["atrophy"]


def test_a_folder_with_content_is_refused(ad: Path, tmp_path: Path) -> None:
    before = files(ad)
    with pytest.raises(ConfigError, match=r"not empty; choose another folder .*`force`"):
        simulate_cohort(ad, task="ad", subjects=1, seed=3, spacing=2)
    assert files(ad) == before
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds something else"):
        simulate_cohort(tmp_path, task="ad", subjects=1, seed=3, spacing=2, force=True)
    assert (tmp_path / "thesis.tex").exists()
    with pytest.raises(HyperFusionError, match="cannot be written"):
        simulate_cohort(tmp_path / "thesis.tex" / "x", task="ad", subjects=1, seed=3, spacing=2)


def test_force_replaces_a_cohort(tmp_path: Path) -> None:
    for subjects in (2, 1):
        simulate_cohort(
            tmp_path, task="ad", subjects=subjects, seed=3, spacing=2, jobs=1, force=True
        )
    assert [p.name for p in (tmp_path / "scans").iterdir()] == ["S3-0001.nii.gz"]


def test_force_replaces_an_unfinished_cohort(tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    for step in (stop, None):
        with nullcontext() if step is None else pytest.raises(KeyboardInterrupt):
            simulate_cohort(
                tmp_path, task="ad", subjects=1, seed=3, spacing=2, jobs=1, force=True,
                on_subject=step,
            )  # fmt: skip
        assert (tmp_path / "hfrt.yaml").exists() == (step is None)


@pytest.mark.parametrize(
    "wrong", [{"spacing": 3}, {"task": "sex"}, {"subjects": 0}, {"seed": -1}, {"spacing": 1.5}]
)
def test_arguments_out_of_range(tmp_path: Path, wrong: dict[str, object]) -> None:
    right = {"task": "ad", "subjects": 1, "seed": 0, "spacing": 2}
    with pytest.raises(ConfigError, match=str(next(iter(wrong.values())))):
        simulate_cohort(tmp_path / "out", **{**right, **wrong})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("package", "extra"), [("nilearn", "simulate"), ("torch", "train")])
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == package else find(name, *a)
    )
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*hyperfusion_rt\[{extra}\]"):
        simulate_cohort(tmp_path / "out", task="ad", subjects=1, seed=0, spacing=2)
    assert not (tmp_path / "out").exists()


def test_data_does_not_import_the_simulation() -> None:
    code = (
        "import sys, hyperfusion_rt.data.volumes, hyperfusion_rt.data.cohort; "
        "assert not {'torch', 'hyperfusion_rt.data.simulate'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ---- the scans


def test_scans_are_int16_in_mni_space_with_a_background_of_zero(ad: Path) -> None:
    for scan in sorted((ad / "scans").iterdir()):
        volume = read_volume(scan)
        assert volume.voxels.dtype == np.int16
        assert np.linalg.norm(volume.affine[:3, :3], axis=0) == pytest.approx([2, 2, 2])
        head = volume.voxels > 0
        assert volume.voxels.min() == 0
        assert 0.18 < head.mean() < 0.28
        faces = [head[0], head[-1], head[:, 0], head[:, -1], head[:, :, -1]]
        assert sum(int(face.sum()) for face in faces) <= 0.01 * head.size
        # The centre of a brain in MNI space.
        centre = volume.affine[:3] @ np.r_[np.argwhere(head).mean(0), 1]
        assert centre == pytest.approx([0, -20, 8], abs=5)


def test_every_orientation_holds_the_same_brain(
    template: templates.Template, brains: dict[float, anatomy.Brain], tmp_path: Path
) -> None:
    """A mark at one ear's height lands where it should, however the scan is stored."""
    from hyperfusion_rt.data.simulate import cohort

    brain = brains[0.0]
    config = load_config(_yaml(tmp_path))
    voxels = brain.voxels.copy()
    index = (20, 70, 40)
    voxels[index] = 32000
    world = brain.affine @ [*index, 1]
    boxes = []
    for orientation in cohort._ORIENTATIONS:
        path = tmp_path / f"{orientation}.nii.gz"
        cohort._write_scan(path, voxels, brain.affine, orientation)
        volume = read_volume(path)
        brightest = np.unravel_index(np.argmax(volume.voxels), volume.voxels.shape)
        assert volume.affine @ [*brightest, 1] == pytest.approx(world)
        boxes.append(load_boxes(path, config.preprocessing).images)
    assert len({read_volume(p).affine[:3, :3].tobytes() for p in tmp_path.glob("*.gz")}) == 4
    for other in boxes[1:]:
        np.testing.assert_array_equal(other, boxes[0])


def _yaml(folder: Path) -> Path:
    path = folder / "hfrt.yaml"
    path.write_text("preset: ad-small\n")
    return path


@pytest.mark.parametrize("spacing", [1, 2])
def test_landmarks_of_the_template(spacing: int) -> None:
    """Known MNI places: inside the body of a ventricle, the corona radiata, the hippocampus."""
    found = templates.load_template(spacing)
    t1, hippocampi, ventricles, *_, brain = found.channels.numpy()
    inverse = np.linalg.inv(found.affine)

    def at(volume: np.ndarray, *mm: float) -> float:
        return float(volume[tuple(np.rint(inverse @ [*mm, 1])[:3].astype(int))])

    for side in (-1, 1):
        assert at(ventricles, side * 6, 5, 14) > 0.5
        assert at(t1, side * 6, 5, 14) < 110 < 150 < at(t1, side * 26, -12, 30)
        assert at(hippocampi, side * 28, -21, -15) > 0.5
        assert at(hippocampi, side * 28, 21, -15) == 0
        assert at(brain, side * 85, -21, -15) == 0
    ml = spacing**3 / 1000
    assert 7 < hippocampi.sum() * ml < 11
    assert 10 < ventricles.sum() * ml < 20


# ---- the anatomy


def test_volumes_follow_the_atrophy(brains: dict[float, anatomy.Brain]) -> None:
    hippocampi = [b.hippocampi_ml for b in brains.values()]
    ventricles = [b.ventricles_ml for b in brains.values()]
    assert all(b < 0.95 * a for a, b in pairwise(hippocampi))
    assert all(b > 1.04 * a for a, b in pairwise(ventricles))
    assert hippocampi[-1] < 0.55 * hippocampi[0]
    assert ventricles[-1] > 1.8 * ventricles[0]
    # Atrophy stays inside: the head keeps its size.
    heads = [np.count_nonzero(b.voxels) for b in brains.values()]
    assert max(heads) < 1.02 * min(heads)


@pytest.mark.parametrize("atrophy", [-6.0, -2.0, 0.0, 2.0, 6.0])
def test_nothing_folds(template: templates.Template, atrophy: float) -> None:
    for seed in range(3):
        head = anatomy.make_head(template, (atrophy,), np.random.default_rng(seed))
        assert head.smallest_jacobian > 0.1


def test_the_growing_field_has_the_divergence_it_was_asked_for() -> None:
    """∇·u = -growth (without its mean), on a smooth growth far from the grid's limits."""
    import torch

    axes = np.meshgrid(*[np.arange(n) - n / 2 for n in (32, 28, 24)], indexing="ij")
    growth = np.exp(-sum(a * a for a in axes) / 18)
    u = templates._growing(growth)
    divergence = sum(torch.gradient(u[i], spacing=4.0, dim=i)[0] for i in range(3)).numpy()
    inner = np.s_[2:-2, 2:-2, 2:-2]
    wanted = growth.mean() - growth
    assert np.abs(divergence - wanted)[inner].max() < 0.12 * np.abs(wanted).max()


def test_a_constant_velocity_is_a_translation() -> None:
    import torch

    field = torch.tensor([3.0, -2.0, 0.5])[:, None, None, None].expand(3, 9, 8, 7)
    moved = anatomy.exponential(field)
    assert torch.allclose(moved, field, atol=1e-5)
    assert torch.allclose(anatomy.jacobian(moved), torch.ones(9, 8, 7), atol=1e-5)


def test_the_flow_composes(template: templates.Template) -> None:
    """exp(v) ∘ exp(-v) is the identity, up to interpolation."""
    v = anatomy.velocity(template, [anatomy.strength(1.0)], np.random.default_rng(0))
    there, back = anatomy.exponential(v), anatomy.exponential(-v)
    points = anatomy._lookup(v.shape[1:]) + back.permute(1, 2, 3, 0) / 4
    rest = back + anatomy._sample(there, points, "border")
    inner = rest[:, 3:-3, 3:-3, 3:-3]
    assert float(inner.abs().max()) < 0.4
    assert float(inner.abs().mean()) < 0.02 * float(there.abs().mean())

"""The images of a case: which files belong together, and what is cut out of them."""

import nibabel as nib
import numpy as np
import pytest

from hyperfusion_rt.config import Box, Channel, Preprocessing
from hyperfusion_rt.data.channels import find_cases
from hyperfusion_rt.data.scan_check import checked_boxes
from hyperfusion_rt.data.volumes import extract, read_volume
from hyperfusion_rt.errors import CODES, CohortError, ScanError

T1 = Channel(name="T1w", files="*_T1w.nii.gz")
FLAIR = Channel(name="FLAIR", files="*_FLAIR.nii.gz", t1_weighted=False)
BOX = Box(name="middle", center=(0, 0, 0))


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root, *channels, paths=()):
    scans = find_cases([root / path for path in paths] or [root], channels)
    return [
        (s.subject, s.session, [p.relative_to(root).as_posix() for p in (s.path, *s.more)], s.code)
        for s in scans
    ]


@pytest.mark.parametrize(
    ("first", "second", "channels"),
    [
        ("sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_FLAIR.nii.gz", (T1, FLAIR)),
        ("sub-01_T1w.nii.gz", "sub-01_FLAIR.nii.gz", (T1, FLAIR)),
        ("01_T1w.nii.gz", "01_FLAIR.nii.gz", (T1, FLAIR)),
        (
            "T1/01.nii.gz",
            "FLAIR/01.nii.gz",
            (Channel(name="a", files="T1/*"), Channel(name="b", files="FLAIR/*")),
        ),
        (
            "01/T1_brain.nii.gz",
            "01/T2_FLAIR_brain.nii.gz",
            (
                Channel(name="a", files="T1_brain.nii.gz"),
                Channel(name="b", files="T2_FLAIR_brain.nii.gz"),
            ),
        ),
        (
            "01/mri/T1.mgz",
            "01/mri/FLAIR.mgz",
            (Channel(name="a", files="mri/T1.mgz"), Channel(name="b", files="mri/FLAIR.mgz")),
        ),
        (
            "sub-01/anat/sub-01_T1w.nii.gz",
            "sub-01/pet/sub-01_trc-PiB_pet.nii.gz",
            (T1, Channel(name="pet", files="*_pet.nii.gz")),
        ),
        (
            "t1_01.nii.gz",
            "fl_01.nii.gz",
            (Channel(name="a", files="t1_*"), Channel(name="b", files="fl_*")),
        ),
    ],
)
def test_images_of_a_subject_are_put_together(tmp_path, first, second, channels):
    other = (first.replace("01", "02"), second.replace("01", "02"))
    touch(tmp_path, first, second, *other, "sub-03/anat/sub-03_bold.nii.gz")
    assert found(tmp_path, *channels) == [
        ("01", None, [first, second], ""),
        ("02", None, [*other], ""),
    ]
    # A file that is given stands for its case.
    for name in (first, second):
        assert found(tmp_path, *channels, paths=[name]) == [("01", None, [first, second], "")]


def test_sessions_are_told_apart(tmp_path):
    names = [
        f"sub-01/ses-{s}/anat/sub-01_ses-{s}_{c}.nii.gz" for s in "ab" for c in ("T1w", "FLAIR")
    ]
    touch(tmp_path, *names)
    assert found(tmp_path, T1, FLAIR) == [
        ("01", "a", names[:2], ""),
        ("01", "b", names[2:], ""),
    ]


def test_what_has_no_partner_or_several_is_a_defect(tmp_path):
    touch(tmp_path, "1_T1w.nii.gz", "2_FLAIR.nii.gz", "x/3_FLAIR.nii.gz", "y/3_FLAIR.nii.gz",
          "3_T1w.nii.gz", "4_T1w.nii.gz", "4_FLAIR.nii.gz")  # fmt: skip
    # Folders name the subject where nothing else does: the 3s lie in x and y.
    scans = {s.path.name: s for s in find_cases([tmp_path], (T1, FLAIR))}
    assert scans["4_T1w.nii.gz"].defect is None
    lacking = scans["1_T1w.nii.gz"]
    assert lacking.code == "scan-channel-missing"
    assert "no image of channel 'FLAIR': no file *_FLAIR.nii.gz" in lacking.defect
    assert "without one of 'T1w' (*_T1w.nii.gz)" in scans["2_FLAIR.nii.gz"].defect
    assert {s.code for s in scans.values()} <= {"", *CODES}


def test_several_partners_are_refused(tmp_path):
    touch(tmp_path, "sub-1_T1w.nii.gz", "a/sub-1_FLAIR.nii.gz", "b/sub-1_FLAIR.nii.gz")
    scan = find_cases([tmp_path], (T1, FLAIR))[-1]
    assert scan.code == "scan-ambiguous"
    assert "several images of channel 'FLAIR'" in scan.defect


def test_a_channel_without_any_file_is_named(tmp_path):
    touch(tmp_path, "sub-1_T1w.nii.gz")
    with pytest.raises(CohortError, match=r"channel 'FLAIR' is \(\*_FLAIR") as caught:
        find_cases([tmp_path], (T1, FLAIR))
    assert caught.value.code == "cohort-no-scan"


def test_one_channel_of_another_kind(tmp_path):
    touch(tmp_path, "sub-1/dwi/sub-1_FA.nii.gz", "sub-1/anat/sub-1_T1w.nii.gz")
    fa = Channel(name="FA", files="*_FA.nii.gz", t1_weighted=False)
    assert found(tmp_path, fa) == [("1", None, ["sub-1/dwi/sub-1_FA.nii.gz"], "")]


def test_t1_scans_do_not_pass_for_another_channel(tmp_path):
    touch(tmp_path, "sub-1_T1w.nii.gz", "sub-1_FLAIR.nii.gz")
    with pytest.raises(CohortError, match="only channel 'FLAIR' is none") as caught:
        find_cases([tmp_path], (Channel(name="FLAIR", t1_weighted=False),))
    assert caught.value.code == "cohort-no-scan"
    assert len(find_cases([tmp_path], (Channel(name="T1w", t1_weighted=False),))) == 1


# ---- what is cut out


def ball(shape, spacing, shift=0.0):
    """A ball of 25 mm around (0, 0, 0), brighter to the front, in a scan around it."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -0.5 * (np.array(shape) - 1) * spacing + shift
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3]
    mm = grid + affine[:3, 3]
    inside = np.linalg.norm(mm, axis=-1) < 25
    return np.where(inside, 100 + mm[..., 1], 0), affine


def write(path, voxels, affine):
    nib.Nifti1Image(np.asarray(voxels, np.float32), affine).to_filename(path)
    return path


def settings(*channels, **fields):
    return Preprocessing(boxes=(BOX,), shape=(12, 12, 12), spacing=2.0, channels=channels, **fields)


def test_channels_of_different_grids_show_the_same_place(tmp_path):
    fine = write(tmp_path / "1_T1w.nii.gz", *ball((60, 60, 60), (1, 1, 1)))
    coarse = write(tmp_path / "1_FLAIR.nii.gz", *ball((32, 34, 20), (2, 2, 3), shift=0.7))
    volumes = [read_volume(path) for path in (fine, coarse)]
    boxes = checked_boxes(volumes, settings(T1, FLAIR), None, "refuse")
    assert boxes.images.shape == (1, 2, 12, 12, 12)
    assert len(boxes.coverage) == len(boxes.fill) == len(boxes.contrast) == 2
    first, second = boxes.images[0]
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.999
    alone = extract(volumes[1], settings(T1, FLAIR), channel=FLAIR).images
    assert np.array_equal(second, alone[0, 0])


def test_a_fixed_range_keeps_quantities(tmp_path):
    voxels, affine = ball((60, 60, 60), (1, 1, 1))
    volume = read_volume(write(tmp_path / "x.nii", voxels, affine))
    pet = Channel(name="pet", t1_weighted=False, normalisation="fixed-range", range=(0, 200))
    image = extract(volume, settings(pet)).images[0, 0]
    mm = 2.0 * (np.arange(12) - 5.5)
    assert np.allclose(image[6], np.broadcast_to((100 + mm)[:, None] / 200, (12, 12)), atol=1e-6)
    cut = pet.model_copy(update={"range": (95.0, 105.0)})
    image = extract(volume, settings(cut)).images
    assert (image.min(), image.max()) == (0.0, 1.0)
    # Another offset is another quantity; z-scored it would be the same.
    shifted = read_volume(write(tmp_path / "y.nii", voxels + 20, affine))
    assert not np.allclose(extract(shifted, settings(pet)).images[0, 0], image[0, 0], atol=0.05)
    with pytest.raises(ScanError, match="does the range fit the image") as caught:
        extract(volume, settings(pet.model_copy(update={"range": (1e4, 2e4)})))
    assert caught.value.code == "scan-constant"


def test_a_mask_is_no_constant(tmp_path):
    mask = Channel(name="mask", t1_weighted=False, normalisation="fixed-range", range=(0, 1))
    voxels = np.zeros((40, 40, 40))
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = -39
    voxels[18:20, 19:21, 20] = 1
    image = extract(read_volume(write(tmp_path / "x.nii", voxels, affine)), settings(mask)).images
    assert set(np.unique(image)) == {0.0, 1.0}
    for value in (0, 1):
        volume = read_volume(write(tmp_path / "y.nii", np.full_like(voxels, value), affine))
        with pytest.raises(ScanError, match="has the same value"):
            extract(volume, settings(mask))


def test_outside_the_scan_is_zero_in_a_fixed_range(tmp_path):
    affine = np.eye(4)
    affine[:3, 3] = (0, -20, -20)  # nothing left of the middle
    volume = read_volume(
        write(tmp_path / "x.nii", np.full((20, 40, 40), 5.0) + np.arange(40) % 3, affine)
    )
    ct = Channel(name="ct", t1_weighted=False, normalisation="fixed-range", range=(-10, 10))
    image = extract(volume, settings(ct, min_coverage=0.1)).images[0, 0]
    assert (image[:5] == 0).all()
    assert set(np.unique(image[6:])) <= set(np.float32([0.75, 0.8, 0.85]))


def test_only_a_t1_image_is_refused_for_looking_unlike_the_training(tmp_path):
    from hyperfusion_rt.data.scan_check import (
        BoxUsual,
        Landmarks,
        Reference,
        Usual,
        judge_boxes,
    )

    path = write(tmp_path / "x.nii", *ball((60, 60, 60), (1, 1, 1)))
    usual = Usual(median=0.5, spread=0.05)
    each = BoxUsual(fill=usual, contrast=usual, correlation=usual)
    for channel, refused in ((T1, True), (FLAIR, False)):
        boxes = extract(read_volume(path), settings(channel))
        reference = Reference(
            Landmarks(np.zeros((0, 3), np.float32), np.zeros(0, np.float32)),
            (each,),
            -boxes.images[0],  # the opposite
        )
        if refused:
            with pytest.raises(ScanError, match="does not look like those of the training"):
                judge_boxes([path], boxes, settings(channel), reference)
        else:
            (said,) = judge_boxes([path], boxes, settings(channel), reference)
            assert "correlation with the mean box -1.00" in said

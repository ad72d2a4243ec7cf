"""Which images a folder holds of each subject, found from the files' names alone."""

import pytest

from hyperfusion_rt.study.channels import Images, find_images

IDS = {f"S{i}" for i in range(6)}


@pytest.fixture
def found(tmp_path):
    def find(*names):
        for name in names:
            for subject in sorted(IDS):
                path = tmp_path / name.replace("*", subject)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        return find_images(tmp_path, IDS)

    return find


@pytest.mark.parametrize(
    ("files", "channels"),
    [
        (("*_T1w.nii.gz", "*_FLAIR.nii.gz"), ("T1w:*_T1w.nii.gz", "FLAIR:*_FLAIR.nii.gz")),
        (
            ("sub-*/anat/sub-*_FLAIR.nii", "sub-*/anat/sub-*_T1w.nii"),
            ("T1w:*_T1w.nii", "FLAIR:*_FLAIR.nii"),
        ),
        (
            ("sub-*/ses-1/anat/sub-*_ses-1_T2w.nii.gz", "sub-*/ses-1/anat/sub-*_ses-1_T1w.nii.gz"),
            ("T1w:*_T1w.nii.gz", "T2w:*_T2w.nii.gz"),
        ),
        (("FLAIR/*.nii.gz", "T1w/*.nii.gz"), ("T1w:T1w/*.nii.gz", "FLAIR:FLAIR/*.nii.gz")),
        (("PET/*_PET.nii.gz", "T1/*_T1.nii.gz"), ("T1:T1/*_T1.nii.gz", "PET:PET/*_PET.nii.gz")),
        (("*/t1.nii.gz", "*/fa.nii.gz"), ("t1:t1.nii.gz", "fa:fa.nii.gz")),
        (("*/T1/x.nii.gz", "*/FLAIR/x.nii.gz"), ("T1:T1/*.nii.gz", "FLAIR:FLAIR/*.nii.gz")),
        (
            ("*_t1_brain.nii.gz", "*_flair_brain.nii.gz"),
            ("t1:*_t1_brain.nii.gz", "flair:*_flair_brain.nii.gz"),
        ),
        (("*_T1w.nii.gz", "*_FLAIR.nii"), ("T1w:*_T1w.nii.gz", "FLAIR:*_FLAIR.nii")),
    ],
)
def test_several_kinds_are_channels(found, files, channels):
    images = found(*files)
    assert tuple(f"{one.name}:{one.files}" for one in images.channels) == channels
    assert [one.t1_weighted for one in images.channels] == [True, False]
    assert images.subjects == (6, 6)


@pytest.mark.parametrize(
    "files",
    [
        ("*.nii.gz",),
        ("*_T1w.nii.gz", "*_T1w_mask.nii.gz"),
        ("*/T1.nii.gz", "*/aseg.mgz", "*/brain_seg.nii.gz"),
        ("sub-*_run-1_T1w.nii.gz", "sub-*_run-2_T1w.nii.gz"),
        ("*/ses-1/T1.nii.gz", "*/ses-2/T1.nii.gz"),
        ("sub-*/anat/sub-*_T1w.nii.gz", "sub-*/anat/sub-*_space-MNI152Lin_T1w.nii.gz"),
        ("sub-*/anat/sub-*_T1w.nii.gz", "sub-*/func/sub-*_task-rest_bold.nii.gz"),
        ("*_T1w.nii.gz", "other_*_FLAIR.nii.gz"),  # nobody of the table
    ],
)
def test_one_kind_makes_no_channels(found, files):
    assert found(*files) == Images()


def test_of_two_t1_images_the_prepared_one_is_read(found):
    images = found("*_T1w.nii.gz", "*_T1w_brain.nii.gz")
    assert [one.files for one in images.channels] == ["*_T1w_brain.nii.gz"]
    assert images.others == ("*_T1w.nii.gz",)


def test_an_image_that_few_subjects_have_is_no_channel(found, tmp_path):
    for subject in ("S0", "S1"):
        (tmp_path / f"{subject}_PET.nii.gz").touch()
    assert found("*_T1w.nii.gz") == Images()

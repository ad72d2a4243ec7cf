"""The join, the boxes, the parts: what is decided of a study, and what is wrong with it."""

import pytest

from hyperfusion_rt.config import load_config
from hyperfusion_rt.errors import CohortError, TableError
from hyperfusion_rt.training.dataset import check_study

FLAT = [f"S{i:02d}.nii.gz" for i in range(48)]


def test_the_join_is_counted(study):
    made = study.draft(names=[*FLAT[:40], "X1.nii.gz", "X2.nii.gz"])
    matched = made.matched
    assert (matched.scans, matched.rows, matched.cases, matched.subjects) == (42, 48, 40, 40)
    assert "id_column: PTID                         # 40 of 42 scans have a row" in study.text
    without = [p.subject for p in matched.problems if p.kind == "scan-without-row"]
    assert without == ["X1", "X2"]
    assert sum(p.kind == "row-without-scan" for p in matched.problems) == 8
    assert "X1" not in study.text  # a draft names no subject


def test_sessions(study):
    study.rows = [{**row, "VISCODE": visit} for row in study.rows for visit in ("bl", "m12")]
    made = study.draft(names=[f"S{i:02d}/ses-{v}/T1.nii" for i in range(48) for v in ("bl", "m12")])
    assert made.matched.session_column == "VISCODE"
    assert (made.matched.cases, made.matched.subjects) == (96, 48)
    assert "  # session_column: VISCODE " in study.text
    check = check_study(load_config(study.root / "hfrt.yaml"), study.root)
    assert (check.refused, check.cases) == ([], 96)
    assert "VISCODE" not in {one.name for one in made.unused}


def test_a_column_of_ids_with_an_unusual_name_is_found(study):
    study.rename("PTID", "Code")
    made = study.draft()
    assert made.config.tabular.id_column == "Code"


def test_a_column_with_a_usual_name_that_holds_no_id_of_a_scan_is_not_taken(study):
    study.rename("PTID", "MRI")
    study.set("ID", lambda i: 1000 + i)
    made = study.draft()
    assert made.config.tabular.id_column == "MRI"


def test_two_columns_of_ids_are_both_named(study):
    study.rename("PTID", "A")
    study.set("B", lambda i: f"S{(i + 1) % 48:02d}")
    with pytest.raises(TableError, match="'A' and 'B' both hold the ids of 48 of 48") as error:
        study.draft()
    assert error.value.code == "table-ambiguous-column"
    assert error.value.parameter == "id_column"
    assert study.again(id_column="B").matched.id_column == "B"
    study.rename("A", "PTID")
    study.rename("B", "subject")
    with pytest.raises(TableError, match="mean different rows") as error:
        study.draft()
    assert error.value.parameter == "id_column"


def test_no_column_of_subjects(study):
    study.rename("PTID", "Code")
    with pytest.raises(TableError) as error:
        study.draft(names=["a.nii.gz", "b.nii.gz"])
    assert error.value.code == "table-no-subject-column"


def test_scans_that_match_no_row_show_ids_of_both_sides(study):
    with pytest.raises(CohortError) as error:
        study.draft(names=[f"case{i}.nii.gz" for i in range(5)])
    message = str(error.value)
    assert "none of 5 scans" in message
    assert "'case0', 'case1', 'case2', ..." in message
    assert "column 'PTID' 'S00', 'S01', 'S02', ..." in message
    assert error.value.code == "cohort-no-usable-case"


@pytest.mark.parametrize(
    ("scans", "table", "code"),
    [
        ((), "PTID,DX\nS00,CN\n", "cohort-not-found"),
        (("notes.txt",), "PTID,DX\nS00,CN\n", "cohort-no-scan"),
        (("S00.nii.gz",), "PTID,DX\n", "table-empty"),
        (("S00.nii.gz",), "", "table-empty"),
        (("S00.nii.gz",), None, "table-not-found"),
    ],
)
def test_nothing_to_read(study, scans, table, code):
    for name in scans:
        (study.root / "mri").mkdir(exist_ok=True)
        (study.root / "mri" / name).touch()
    if table is not None:
        (study.root / "x.csv").write_text(table)
    with pytest.raises((CohortError, TableError)) as error:
        study.again()
    assert error.value.code == code


@pytest.mark.parametrize(
    ("options", "preset", "shape", "architecture"),
    [
        ({}, "ad-small", (32, 48, 32), "ad"),
        ({"target": "AGE"}, "brain-age-small", (48, 64, 53), "brain-age"),
        ({"target": "AGE", "boxes": "hippocampi"}, "ad-small", (32, 48, 32), "ad"),
        ({"boxes": "whole-brain"}, "brain-age-small", (48, 64, 53), "brain-age"),
        ({"preset_name": "ad"}, "ad", (64, 96, 64), "ad"),
        ({"preset_name": "ad", "target": "AGE"}, "ad", (64, 96, 64), "ad"),
        ({"preset_name": "ad", "boxes": "whole-brain"}, "ad", (90, 120, 99), "brain-age"),
        (
            {"preset_name": "brain-age-small", "boxes": "hippocampi"},
            "brain-age-small", (32, 48, 32), "ad",
        ),
    ],
)  # fmt: skip
def test_boxes_and_preset_go_together(study, options, preset, shape, architecture):
    config = study.draft(**options).config
    assert (config.preset, config.preprocessing.shape) == (preset, shape)
    assert config.network.architecture == architecture
    assert len(config.preprocessing.boxes) == (1 if shape in ((48, 64, 53), (90, 120, 99)) else 2)
    assert "shape: [" in study.text  # given, or shown as a comment


def test_parts_fit_the_subjects(study):
    assert study.draft().parts == 5
    rows = study.rows
    study.rows = rows[:24]
    assert study.draft().parts == 3
    study.rows = rows[:7]
    made = study.draft()
    assert made.parts == 3
    assert any("7 subjects can be used, which is too few" in text for text in made.warnings)


def test_stratified_by_sex_and_age_but_not_by_the_target(study):
    assert study.draft().stratify == ("SEX", "AGE")
    assert study.draft(target="AGE").stratify == ("SEX",)


def test_gaps_choose_the_imputer(study):
    assert study.draft().imputer == "median"
    study.rows = [
        {**row, "PTID": f"S{i:02d}", "AGE": f"{float(row['AGE']) + i / 100:.2f}"}
        for i, row in enumerate(study.rows * 2)
    ]
    study.set("EDU", [""] * 20)
    assert study.draft(names=[f"S{i:02d}.nii.gz" for i in range(96)]).imputer == "iterative"


def test_paths_are_seen_from_the_configuration(study):
    from hyperfusion_rt.study.draft import draft

    study.write()
    made = draft(study.root / "mri", study.root / "x.csv", study.root / "study" / "one")
    assert (made.config.scans, made.config.table) == ("../../mri", "../../x.csv")


def test_channels_are_drafted(study):
    names = [f"sub-S{i:02d}_{kind}.nii.gz" for i in range(48) for kind in ("T1w", "FLAIR")]
    made = study.draft(names=names)
    assert [one.name for one in made.config.preprocessing.channels] == ["T1w", "FLAIR"]
    assert made.matched.scans == made.matched.cases == 48
    assert "- {name: FLAIR, files: '*_FLAIR.nii.gz', t1_weighted: false}  # 48 subjects" in (
        study.text
    )
    assert "fixed-range" in study.text


@pytest.mark.parametrize(
    ("names", "channels"),
    [
        (("{}_T1w.nii.gz", "{}_FLAIR.nii.gz"), ["T1w", "FLAIR"]),
        (("sub-{0}/anat/sub-{0}_T1w.nii", "sub-{0}/anat/sub-{0}_FLAIR.nii"), ["T1w", "FLAIR"]),
        (("FLAIR/{}.nii.gz", "T1w/{}.nii.gz"), ["T1w", "FLAIR"]),
        (("PET/{}_PET.nii.gz", "T1/{}_T1.nii.gz"), ["T1", "PET"]),
        (("{}/t1.nii.gz", "{}/fa.nii.gz"), ["t1", "fa"]),
        (("{}/T1/x.nii.gz", "{}/FLAIR/x.nii.gz"), ["T1", "FLAIR"]),
        (("{}_T1w.nii.gz", "{}_T1w_brain.nii.gz"), ["T1w_brain"]),
        (("sub-{}_FLAIR.nii.gz",), ["FLAIR"]),
        (("sub-{}_FLAIR.nii.gz", "sub-{}_pet.nii.gz"), ["FLAIR", "pet"]),
        (("{}.nii.gz",), []),
        (("{}/x.mgz",), []),
    ],
)
@pytest.mark.parametrize("column", ["PTID", "Code"])
def test_training_finds_what_was_drafted(study, names, channels, column):
    study.rename("PTID", column)
    made = study.draft(names=[name.format(f"S{i:02d}") for i in range(48) for name in names])
    assert [one.name for one in made.images.channels] == channels
    assert (made.matched.scans, made.matched.cases) == (48, 48)
    assert made.config.tabular.id_column == column
    check = check_study(load_config(study.root / "hfrt.yaml"), study.root)
    assert (check.refused, check.cases, check.left_out) == ([], 48, ())


def test_a_subject_without_an_image_of_a_channel_is_said(study):
    names = [f"S{i:02d}_{kind}.nii.gz" for i in range(48) for kind in ("T1w", "FLAIR")]
    made = study.draft(names=names[:-1])
    assert made.matched.cases == 47
    (problem,) = [p for p in made.matched.problems if p.source == "scan"]
    assert (problem.subject, problem.code) == ("S47", "scan-channel-missing")


def test_a_folder_of_masks_holds_no_scan(study):
    with pytest.raises(CohortError) as error:
        study.draft(names=[f"sub-S{i:02d}_mask.nii.gz" for i in range(48)])
    assert error.value.code == "cohort-no-scan"

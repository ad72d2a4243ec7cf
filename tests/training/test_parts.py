"""A split that the study gives: by a column, by a file, by names or by numbers."""

import numpy as np
import pytest

from hyperfusion_rt.config import load_config
from hyperfusion_rt.errors import CODES, CohortError, ConfigError, HyperFusionError
from hyperfusion_rt.training.dataset import check_parts_rotate

from .studies import AD, Study

NAMES = ["train", "Train", "training", "val", "test"]


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path)


def sizes(check, member=0):
    return {p.part: p.cases for p in check.parts if p.member == member}


def refused(study, **training):
    check = study.check(training=training)
    assert len(check.refused) == 1, check.refused
    assert check.refused[0].code in CODES
    return check.refused[0]


def test_a_column_of_names(study):
    study.set("part", [NAMES[i % 5] for i in range(40)])
    check = study.check(training={"split_column": "part"})
    assert check.refused == []
    assert sizes(check) == {"train": 24, "validation": 8, "test": 8}
    # The study's own validation part is that of every member.
    check = study.check(training={"split_column": "part", "members": 2})
    assert sizes(check, 1) == {"train": 24, "validation": 8}


def test_without_a_validation_part_the_training_subjects_take_turns(study):
    study.set("part", ["train", "train", "train", "test"] * 10)
    check = study.check(training={"split_column": "part", "members": 2, "parts": 4})
    assert sizes(check) == {"train": 20, "validation": 10, "test": 10}
    assert sizes(check, 1) == {"train": 20, "validation": 10}


@pytest.mark.parametrize(("test", "found"), [(None, 4), (0, 4), (3, 4)])
def test_a_column_of_numbers(study, test, found):
    study.set("fold", [f"{i % 10}.0" for i in range(40)])  # as spreadsheets write them
    change = {"split_column": "fold"} | ({} if test is None else {"test_part": test})
    check = study.check(training=change)
    assert sizes(check) == {"train": 32, "validation": 4, "test": found}


def test_a_file(study):
    lines = ["participant_id,split"] + [f"sub-S{i:02d},{NAMES[i % 5]}" for i in range(38)]
    (study.root / "split.csv").write_text("\n".join([*lines, "sub-X1,train", "sub-X2,test"]))
    check = study.check(training={"split_file": "split.csv"})
    assert sizes(check) == {"train": 24, "validation": 7, "test": 7}
    assert [(left.subject, left.code) for left in check.left_out] == [
        ("S38", "split-missing"), ("S39", "split-missing"),
    ]  # fmt: skip
    texts = " ".join(f.text for f in check.findings)
    assert "split.csv: 2 of its subjects have no case in this study: X1, X2" in texts


def test_a_file_has_the_studys_own_column_of_subjects(study):
    study.set("Kennung", lambda row: row["subject"])
    lines = ["Kennung,split"] + [f"S{i:02d},{NAMES[i % 5]}" for i in range(40)]
    (study.root / "split.csv").write_text("\n".join(lines))
    check = study.check(training={"split_file": "split.csv"}, tabular={"id_column": "Kennung"})
    assert sizes(check) == {"train": 24, "validation": 8, "test": 8}


def test_a_file_of_other_subjects_is_refused(study):
    (study.root / "split.csv").write_text("subject,fold\nA,1\nB,2\nC,3\n")
    with pytest.raises(CohortError, match="none of its subjects has a case in this study") as error:
        study.check(training={"split_file": "split.csv"})
    assert error.value.code == "split-invalid"
    assert "A, B, C" in str(error.value)
    assert "S00, S01, S02 and 37 more" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subject,where\nS00,train\n", "needs one column called split, part, fold or set"),
        ("subject,split,fold\nS00,train,1\n", "split, fold are such columns"),
        ("subject,split\nS00,train\nS00,test\n", "line 3 has the same subject"),
    ],
)
def test_a_file_that_cannot_be_used(study, text, message):
    (study.root / "split.csv").write_text(text)
    with pytest.raises(HyperFusionError, match=message):
        study.check(training={"split_file": "split.csv"})


def test_words_that_name_no_part_are_refused(study):
    study.set("part", ["train", "validation", "tset", "test"] * 10)
    finding = refused(study, split_column="part")
    assert "column 'part': 'tset' in 10 cases: write train, validation or test" in finding.text
    study.set("part", ["1", "2", "3", "test"] * 10)
    assert "has numbers in 30 cases beside names of parts" in (
        refused(study, split_column="part").text
    )
    study.set("part", ["-1", "0", "1", "2"] * 10)
    assert "column 'part': '-1' in 10 cases: write" in refused(study, split_column="part").text
    study.set("part", ["1", "2"] * 20)
    assert "has 2 parts, and three at least are needed" in refused(study, split_column="part").text
    study.set("part", ["test", "validation"] * 20)
    assert "no case is for training" in refused(study, split_column="part").text


def test_a_split_column_is_no_feature(study):
    study.set("fold", [f"{i % 5}" for i in range(40)])
    study.write(AD)
    text = (study.root / "hfrt.yaml").read_text()
    text = text.replace("  stratify", "  - {name: fold, kind: numeric}\n  stratify")
    assert study.check(text).refused == []
    found = study.check(text, training={"split_column": "fold"}).refused
    assert ["'fold' is training.split_column" in finding.text for finding in found] == [True]


def test_a_split_without_a_test_part_is_said(study):
    study.set("part", ["train", "train", "val"] * 14)
    found = [f.text for f in study.check(training={"split_column": "part"}).warnings]
    assert "the test part has 0 cases: its figures say nothing; add cases" in found


def test_a_split_column_that_is_not_there_is_refused(study):
    finding = refused(study, split_column="SEXX")
    assert "training.split_column 'SEXX': the table has no such column" in finding.text
    assert "did you mean 'SEX'" in finding.text


def test_a_subject_on_two_sides_is_refused(study):
    for i, row in enumerate(study.rows):
        row["visit"] = "m00" if i % 2 else "m12"
    for i in range(1, 40, 2):  # two sessions of every second subject
        study.rows[i]["subject"] = study.rows[i - 1]["subject"]
    for scan in (study.root / "scans").iterdir():
        scan.unlink()
    for row in study.rows:
        folder = study.root / "scans" / f"sub-{row['subject']}" / f"ses-{row['visit']}" / "anat"
        folder.mkdir(parents=True)
        (folder / f"sub-{row['subject']}_ses-{row['visit']}_T1w.nii.gz").touch()
    study.set("part", ["train", "train", "test", "test", "val", "val", "train", "train"] * 5)
    assert study.check(training={"split_column": "part"}).refused == []
    study.rows[0]["part"] = "test"
    finding = refused(study, split_column="part")
    assert finding.code == "split-subject-twice"
    assert "1 subjects are in two parts: S00 is in" in finding.text


def test_the_test_part_rotates(study):
    study.write(AD)
    found = []
    for test in range(5):
        change = {"training": {"test_part": test}}
        config = load_config(study.root / "hfrt.yaml", change)
        assert check_parts_rotate(config, study.root) == (0, 1, 2, 3, 4)
        found.append(study.check(**change))
    assert all(sizes(c) == {"train": 24, "validation": 8, "test": 8} for c in found)
    assert len({str(c.parts) for c in found}) > 1


def test_a_named_test_part_does_not_rotate(study):
    study.set("part", [NAMES[i % 5] for i in range(40)])
    study.write(AD)
    config = load_config(study.root / "hfrt.yaml", {"training": {"split_column": "part"}})
    with pytest.raises(ConfigError, match="number the parts"):
        check_parts_rotate(config, study.root)
    finding = refused(study, split_column="part", test_part=1)
    assert "test_part goes with numbered parts" in finding.text
    study.set("part", [str(i % 4) for i in range(40)])
    assert "has the parts 0, 1, 2, 3" in refused(study, split_column="part", test_part=7).text


def test_all_parts_are_dealt_once_for_every_test_part(study):
    from hyperfusion_rt.data.cohort import join
    from hyperfusion_rt.data.scan_search import find_scans
    from hyperfusion_rt.data.table_file import read_table
    from hyperfusion_rt.training.parts import parts_of

    study.write(AD)
    cases = join(find_scans(study.root / "scans"), read_table(study.root / "data.csv")).cases
    targets = np.array([("CN", "MCI", "AD").index(c.row.values["DX"]) for c in cases], float)
    of = []
    for test in range(5):
        change = {"training": {"test_part": test}}
        parts = parts_of(load_config(study.root / "hfrt.yaml", change), cases, targets, None)
        of.append(parts.of)
        assert set(np.flatnonzero(parts.names(0) == "test")) == set(
            np.flatnonzero(parts.of == test)
        )
        assert sorted([*parts.validation, test]) == [0, 1, 2, 3, 4]
    assert all(np.array_equal(one, of[0]) for one in of)

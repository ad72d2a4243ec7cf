"""Cohorts whose tables call columns and cells otherwise than the artifact's training did."""

import csv
import json
from pathlib import Path

import pytest

import hyperfusion_rt
from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.config import TableSpec
from hyperfusion_rt.errors import ConfigError, TableError
from hyperfusion_rt.runtime.cohort.bids_app import bids_app
from hyperfusion_rt.runtime.options import BidsOptions, PredictOptions

INFER = ("infer", "scans", "--engine", "native", "--unmatched-rows", "ignore", "--tabular")
MAPS = ("--map", "AGE=age", "--map", "PTGENDER=sex:M=Male,F=Female")


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    with open(path, newline="") as file:
        return {row["subject"]: row for row in csv.DictReader(file)}


def numbers(path: Path) -> dict[str, list[str]]:
    names = ("prediction", "p_CN", "p_MCI", "p_AD", "member_spread", "status")
    return {subject: [row[name] for name in names] for subject, row in rows_of(path).items()}


def renamed(cohort: Path, name: str, **cells: dict[str, str]) -> list[dict[str, str]]:
    """`data.csv` with `age` and `sex` (`M`, `F`) in the place of its own columns.

    `cells`: by column, those of single subjects.
    """
    found = []
    for subject, row in rows_of(cohort / "data.csv").items():
        new = {"subject": subject, "age": row["AGE"], "sex": row["PTGENDER"][:1]}
        new |= {k: v for k, v in row.items() if k not in ("subject", "AGE", "PTGENDER")}
        new |= {column: given[subject] for column, given in cells.items() if subject in given}
        found.append(new)
    with open(cohort / name, "w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    return found


def with_map(folder: Path, maps: dict) -> None:
    """Let the artifact carry a map."""
    found = Artifact.open(folder)
    table = TableSpec.model_validate({**found.manifest.table.model_dump(), "map": maps})
    Artifact(folder, found.manifest.model_copy(update={"table": table})).write()


@pytest.fixture
def bids(cohort: Path) -> Path:
    """The eight scans and their rows as a BIDS dataset; `01` has two sessions of her own ages."""
    root = cohort / "bids"
    rows = {row["subject"]: row for row in renamed(cohort, "renamed.csv")}
    lines = []
    for n, scan in enumerate(sorted((cohort / "scans").iterdir()), 1):
        row = rows[scan.name.removesuffix(".nii.gz")]
        row = {"participant_id": f"sub-0{n}", **{k: v for k, v in row.items() if k != "subject"}}
        place = f"sub-0{n}/ses-a" if n == 1 else f"sub-0{n}"
        target = root / place / "anat" / f"{place.replace('/', '_')}_T1w.nii.gz"
        target.parent.mkdir(parents=True)
        target.symlink_to(scan)
        lines = lines or ["\t".join(row)]
        lines.append("\t".join(cell or "n/a" for cell in row.values()))
    (root / "participants.tsv").write_text("\n".join(lines) + "\n")
    (root / "dataset_description.json").write_text('{"Name": "a", "BIDSVersion": "1.10.0"}')
    return root


@pytest.fixture
def expected(cohort, hfrt) -> dict[str, list[str]]:
    """What is predicted with the table as the training had it."""
    assert hfrt(cohort, *INFER, "data.csv", "--out", "first.csv")[0] == 0
    return numbers(cohort / "first.csv")


def test_a_map_gives_the_same_numbers(cohort, hfrt, expected):
    renamed(cohort, "new.csv")
    status, out, _ = hfrt(cohort, *INFER, "new.csv", *MAPS)
    assert status == 0
    assert numbers(cohort / "predictions.csv") == expected
    note = "new.csv: 'PTGENDER' is read from column 'sex', as asked for: "
    assert note in out
    record = json.loads((cohort / "predictions.csv.run.json").read_text())
    assert record["options"]["map"] == ["AGE=age", "PTGENDER=sex:M=Male,F=Female"]
    assert any(text.startswith(note) for text in record["joined"])


def test_without_a_map_the_message_has_it(cohort, hfrt, expected):
    renamed(cohort, "new.csv")
    status, out, err = hfrt(cohort, *INFER, "new.csv")
    assert (status, out) == (1, "")
    assert "missing columns: 'AGE'; did you mean 'age'?, 'PTGENDER'" in err
    given = err.strip().partition("in their place: ")[2].split("; ")
    maps = [word for text in given for word in text.split(" ", 1)]
    assert maps[::2] == ["--map", "--map"]
    assert hfrt(cohort, *INFER, "new.csv", *maps)[0] == 0
    assert numbers(cohort / "predictions.csv") == expected


@pytest.mark.slow
def test_the_artifact_carries_a_map(cohort, hfrt, expected):
    renamed(cohort, "new.csv")
    maps = {
        "AGE": {"column": "age"},
        "PTGENDER": {"column": "sex", "values": {"m": "male", "F": "Female"}},
    }
    with_map(cohort / "base.hfrt", maps)
    status, out, _ = hfrt(cohort, *INFER, "new.csv")
    assert status == 0
    assert "'AGE' is read from column 'age', as the artifact says" in out
    assert numbers(cohort / "predictions.csv") == expected
    # The model's own columns go before it, and what is asked for before both.
    status, out, _ = hfrt(cohort, *INFER, "data.csv")
    assert (status, "as the artifact says" in out) == (0, False)
    assert hfrt(cohort, *INFER, "new.csv", "--map", "PTGENDER=sex:M=Female,F=Male")[0] == 0
    assert numbers(cohort / "predictions.csv") != expected
    assert "or column 'sex'" in hfrt(cohort, "inspect", "base.hfrt")[1]


def test_a_mapped_number_is_checked_as_the_models_own(cohort, hfrt):
    renamed(cohort, "new.csv", age={"S5-0001": "120", "S5-0002": "old"})
    status, _, err = hfrt(cohort, *INFER, "new.csv", *MAPS)
    assert status == 3
    assert "S5-0002: line 3, column 'age' (read as 'AGE'): 'old' is no usable number" in err
    found = rows_of(cohort / "predictions.csv")
    assert found["S5-0002"]["code"] == "table-not-a-number"
    assert "AGE 120 is outside the training range" in found["S5-0001"]["warnings"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SEX=sex", "--map SEX=sex: the model has no column 'SEX'"),
        ("AGE=years", "new.csv: --map AGE=years: there is no column 'years'"),
        ("PTGENDER=sex:M=Man", "'Man' is not a known value of 'PTGENDER'; allowed: Female, Male"),
        ("AGE", "--map AGE: is no map; write it as"),
        ("PTGENDER=sex:M=Male,m=Female", "'m' is both 'Male' and 'Female'"),
    ],
)
def test_a_wrong_map_ends_the_run(cohort, hfrt, text, message):
    renamed(cohort, "new.csv")
    status, out, err = hfrt(cohort, *INFER, "new.csv", "--map", text)
    assert (status, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (cohort / "predictions.csv").exists()


# ---- runs that are continued, and shards


def tried(cohort: Path) -> list[str]:
    """The subjects that the last run predicted itself."""
    lines = (cohort / "predictions.csv.journal").read_text().splitlines()
    last = max(n for n, line in enumerate(lines) if line.startswith('{"start"'))
    found = [json.loads(line) for line in lines[last:]]
    return sorted(line["case"]["subject"] for line in found if "case" in line)


def test_what_another_map_changes_is_predicted_again(cohort, hfrt):
    renamed(cohort, "new.csv", sex={"S5-0001": "X", "S5-0002": "X"})
    men = [n for n, row in rows_of(cohort / "data.csv").items() if row["PTGENDER"] == "Male"]
    scans = {path.name.removesuffix(".nii.gz") for path in (cohort / "scans").iterdir()}
    assert hfrt(cohort, *INFER, "new.csv", *MAPS)[0] == 3
    assert hfrt(cohort, *INFER, "new.csv", *MAPS, "--resume")[0] == 0
    assert tried(cohort) == []  # both failures are known
    more = ("--map", "AGE=age", "--map", "PTGENDER=sex:M=Male,F=Female,X=")
    assert hfrt(cohort, *INFER, "new.csv", *more, "--resume")[0] == 0
    assert tried(cohort) == ["S5-0001", "S5-0002"]
    other = ("--map", "AGE=age", "--map", "PTGENDER=sex:M=Female,F=Female,X=")
    assert hfrt(cohort, *INFER, "new.csv", *other, "--resume")[0] == 0
    again = sorted((scans & set(men)) - {"S5-0001", "S5-0002"})
    assert again
    assert tried(cohort) == again


def test_shards_with_another_map_are_not_of_one_run(cohort, hfrt):
    renamed(cohort, "new.csv")
    shards = (cohort / "predictions.shard-1-of-2.csv", cohort / "predictions.shard-2-of-2.csv")
    assert hfrt(cohort, *INFER, "new.csv", *MAPS, "--shard", "1/2")[0] == 0
    swapped = ("--map", "AGE=age", "--map", "PTGENDER=sex:M=Female,F=Male")
    assert hfrt(cohort, *INFER, "new.csv", *swapped, "--shard", "2/2")[0] == 0
    status, _, err = hfrt(cohort, "merge", *shards)
    assert (status, "another map" in err) == (1, True)
    assert hfrt(cohort, *INFER, "new.csv", *MAPS[2:], *MAPS[:2], "--shard", "2/2")[0] == 0
    assert hfrt(cohort, "merge", *shards)[0] == 0


def test_shards_with_another_filter_are_not_of_one_run(cohort, hfrt):
    renamed(cohort, "new.csv")
    for scan in sorted((cohort / "scans").iterdir()):
        scan.rename(scan.with_name(f"sub-{scan.name.split('.')[0].replace('-', '')}_T1w.nii.gz"))
    text = (cohort / "new.csv").read_text().replace("-", "")
    (cohort / "new.csv").write_text(text)
    (cohort / "f.json").write_text('{"t1w": {"suffix": "T1w"}}')
    shards = (cohort / "predictions.shard-1-of-2.csv", cohort / "predictions.shard-2-of-2.csv")
    chosen = (*INFER, "new.csv", *MAPS, "--bids-filter", "f.json")
    assert hfrt(cohort, *chosen, "--shard", "1/2")[0] == 0
    assert hfrt(cohort, *INFER, "new.csv", *MAPS, "--shard", "2/2")[0] == 0
    status, _, err = hfrt(cohort, "merge", *shards)
    assert (status, "another bids_filter" in err) == (1, True)


# ---- BIDS


def test_a_bids_dataset_needs_no_map(cohort, bids, hfrt, expected):
    arguments = ("bids", "--tabular", "bids/participants.tsv", "--engine", "native")
    status, out, _ = hfrt(cohort, "infer", *arguments)
    assert status == 0
    found = numbers(cohort / "predictions.csv")
    assert list(found.values()) == list(expected.values())
    assert "participants.tsv: 'AGE' is read from column 'age', as BIDS writes it\n" in out
    assert "'PTGENDER' is read from column 'sex', as BIDS writes it: " in out
    # The same file under another name is no table of BIDS.
    (bids / "participants.tsv").rename(bids / "people.tsv")
    status, _, err = hfrt(cohort, "infer", "bids", "--tabular", "bids/people.tsv")
    assert status == 1
    assert "--map PTGENDER=sex:" in err


def test_a_sessions_own_age_is_read(bids):
    (bids / "sub-01" / "sub-01_sessions.tsv").write_text("session_id\tage\nses-a\t89+\n")
    artifact = bids.parent / "base.hfrt"
    found = hyperfusion_rt.load(artifact, engine="native").gather(bids, bids / "participants.tsv")
    first = found.cases[0]
    assert (first.row.values["AGE"], first.session) == ("89", "a")
    assert "column 'age' says '89+', which is read as 89" in first.warnings
    assert all(case.row.values["AGE"] == case.row.values["age"] for case in found.cases[1:])


def test_other_in_a_bids_dataset(bids):
    path = bids / "participants.tsv"
    lines = path.read_text().splitlines()
    names, cells = lines[0].split("\t"), lines[2].split("\t")
    cells[names.index("sex")] = "O"
    path.write_text("\n".join([*lines[:2], "\t".join(cells), *lines[3:]]) + "\n")
    found = hyperfusion_rt.load(bids.parent / "base.hfrt", engine="native").predict(bids, path)
    assert {item.status for item in found} == {"ok"}
    said = "column 'sex' says 'O', which is read as missing: the model does not know it"
    assert [said in item.warnings for item in found] == [n == 1 for n in range(8)]


def test_codes_are_never_guessed(bids):
    path = bids / "participants.tsv"
    path.write_text(path.read_text().replace("\tM\t", "\t1\t").replace("\tF\t", "\t2\t"))
    predictor = hyperfusion_rt.load(bids.parent / "base.hfrt", engine="native")
    with pytest.raises(TableError) as error:
        predictor.gather(bids, path)
    assert error.value.code == "table-missing-column"
    assert "'PTGENDER=sex:" in str(error.value)
    assert "1=?" in str(error.value)
    assert "is no sex as BIDS writes it" in str(error.value)


def test_a_bids_app_with_maps(bids, tmp_path):
    out = tmp_path / "out"
    fields = {"artifact": bids.parent / "base.hfrt", "engine": "native", "threads": 1}
    first = bids_app(bids, out, "participant", BidsOptions(**fields, participant_label=("02",)))
    assert any("as BIDS writes it" in note for note in first.result.joined)
    mapped = BidsOptions(**fields, participant_label=("03",), map=("AGE=age",))
    found = bids_app(bids, out, "participant", mapped)
    assert found.result.summary["ok"] == 1
    assert any("as asked for" in note for note in found.result.joined)
    group = bids_app(bids, out, "group", BidsOptions(**fields))
    assert "not all of one map: AGE=age, none" in group.result.notes


# ---- the target


def test_evaluate_reads_a_mapped_target(cohort, hfrt):
    for row in (rows := renamed(cohort, "new.csv")):
        row["group"] = {"CN": "HC"}.get(row.pop("DX"), "")
    with open(cohort / "new.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    command = ("evaluate", "base.hfrt", "scans", "--tabular", "new.csv", "--engine", "native")
    command = (*command, "--include-seen", *MAPS)
    status, _, err = hfrt(cohort, *command)
    assert (status, "has no column 'DX'" in err) == (1, True)
    status, _, err = hfrt(cohort, *command, "--map", "DX=group:HC=healthy")
    assert (status, "'healthy' is not a known value of 'DX'" in err) == (1, True)
    status, out, _ = hfrt(cohort, *command, "--map", "DX=group:HC=CN")
    assert status == 0
    assert "'DX' is read from column 'group', as asked for: 'HC' as 'CN' in " in out
    with open(cohort / "evaluation/cases.csv", newline="") as file:
        cases = list(csv.DictReader(file))
    known = [case for case in cases if case["truth"]]
    assert {case["truth"] for case in known} == {"CN"}
    assert {case["sex"] for case in known} <= {"Male", "Female"}
    (cohort / "new.csv").write_text((cohort / "new.csv").read_text().replace("group", "dx", 1))
    status, _, err = hfrt(cohort, *command)
    assert (status, "read another in its place: --map DX=dx" in err) == (1, True)


# ---- training


def test_training_reads_a_table_through_the_map(cohort, session_cohort, hfrt):
    renamed(cohort, "new.csv", age={"S5-0003": "-4"})
    (cohort / "hfrt.yaml").write_text(
        "preset: ad-small\n"
        f"scans: {session_cohort / 'scans'}\n"
        "table: new.csv\n"
        "tabular:\n"
        "  map:\n"
        "    AGE: {column: age}\n"
        "    PTGENDER: {column: sex, values: {M: Male, F: Female, O: ''}}\n"
    )
    status, out, err = hfrt(cohort, "check")
    assert status == 0, err
    assert "new.csv: 'AGE' is read from column 'age', as tabular.map says" in out
    assert "PTGENDER  feature, categorical: " in out
    assert "'AGE': -4 in 1 row is no age in years" in out + err
    status, out, _ = hfrt(cohort, "config")
    assert status == 0
    assert "    PTGENDER: {column: sex, values: {M: Male, F: Female, O: ''}}\n" in out
    (cohort / "again.yaml").write_text(out)
    assert hfrt(cohort, "config", "--config", "again.yaml")[1].count("column: sex") == 1


def test_python_takes_a_list_of_maps(session_artifact):
    assert PredictOptions(map=["AGE=age"]).map == ("AGE=age",)
    with pytest.raises(ConfigError, match="is no map"):
        hyperfusion_rt.load(session_artifact, map=["AGE"])

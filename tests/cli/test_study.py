"""`hfrt init` and `hfrt config` as they are typed."""

import csv
import json
import subprocess
import sys

import jsonschema
import pytest
import yaml

INIT = ("init", "--scans", "mri", "--table", "patients.csv")


@pytest.fixture
def study(session_cohort, tmp_path):
    """The simulated cohort as somebody else would keep it: other names of columns and classes."""
    with open(session_cohort / "data.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = {"subject": "Patient ID", "DX": "Diagnosis", "AGE": "age", "PTGENDER": "sex"}
    classes = {"CN": "no", "AD": "yes", "Dementia": "yes"}
    changed = []
    for i, row in enumerate(rows):
        new = {names.get(key, key): value for key, value in row.items()}
        new["Diagnosis"] = classes.get(row["DX"], "mild")
        new["scan_date"] = f"2020-01-{1 + i % 28:02d}"
        changed.append(new)
    with open(tmp_path / "patients.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, changed[0])
        writer.writeheader()
        writer.writerows(changed)
    (tmp_path / "mri").symlink_to(session_cohort / "scans")
    return tmp_path


def test_a_study_is_ready_in_one_command(study, hfrt):
    status, out, err = hfrt(study, *INIT)
    assert (status, err) == (0, "")
    assert "patients.csv: subjects: column 'Patient ID'" in out
    assert "40 of 40 scans have a row" in out
    assert "target: Diagnosis, classes: no " in out
    assert "not read: scan_date: dates or times" in out
    assert out.splitlines()[-1] == "hfrt.yaml: written. Next: read it; hfrt check; hfrt train"
    text = (study / "hfrt.yaml").read_text()
    assert text.startswith("# Drafted by `hfrt init`")
    assert "'no': ['no']" in text
    assert max(map(len, text.splitlines())) <= 120
    status, out, err = hfrt(study, "check")
    assert (status, err) == (0, "")
    assert "40 cases can be used, 0 are left out" in out
    small = ("network.features=2", "training.epochs=1", "training.embedding_epochs=1")
    change = [word for pair in small for word in ("--set", pair)]
    status, out, _ = hfrt(study, "train", *change, "--json")
    assert status == 0
    assert json.loads(out)["test"]["cases"] > 0


def test_as_json(study, hfrt):
    status, out, _ = hfrt(study, *INIT, "--target", "age", "--out", "age.yaml", "--json")
    found = json.loads(out)
    assert (status, found["written"]) == (0, "age.yaml")
    assert found["join"]["cases"] == found["join"]["scans"] == 40
    assert found["join"]["id_column"] == "Patient ID"
    assert found["target"]["unit"] == "years"
    assert found["boxes"] == "whole-brain"
    assert {"name": "scan_date", "reason": "dates or times"} in found["not_read"]
    assert [one["kind"] for one in found["features"] if one["name"] == "sex"] == ["categorical"]
    status, out, _ = hfrt(study, "config", "--config", "age.yaml", "--json")
    assert json.loads(out)["config"] == found["config"]


def test_a_file_is_not_overwritten_unasked(study, hfrt):
    (study / "hfrt.yaml").write_text("mine")
    status, _, err = hfrt(study, *INIT)
    assert status == 1
    assert err == (
        "error: hfrt.yaml: is there already; replace it with --force, or name another file with "
        "--out\n"
    )
    assert (study / "hfrt.yaml").read_text() == "mine"
    assert hfrt(study, *INIT, "--force")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "Diagnosi"], "--target Diagnosi: there is no such column; did you mean"),
        (["--id-column", "PID"], "there is no column 'PID'"),
        (["--unit", "ml", "--task", "classification"], "--unit goes with numbers, but --task is"),
        (["--preset", "nonsense"], "there is no preset 'nonsense'"),
        (["--target", "scan_date"], "neither classes nor numbers"),
    ],
)
def test_what_is_wrong_is_one_line_in_words_of_the_terminal(study, hfrt, arguments, message):
    status, out, err = hfrt(study, *INIT, *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (study / "hfrt.yaml").exists()


def test_the_schema_beside_the_draft_is_named(study, hfrt):
    status, out, _ = hfrt(study, "config", "--schema")
    assert status == 0
    (study / "hfrt.schema.json").write_text(out)
    hfrt(study, *INIT)
    text = (study / "hfrt.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=hfrt.schema.json\n")
    jsonschema.Draft202012Validator(json.loads(out)).validate(yaml.safe_load(text))


def test_config_prints_the_whole(study, hfrt):
    hfrt(study, *INIT)
    status, out, _ = hfrt(study, "config", "--set", "training.epochs=3")
    assert status == 0
    assert "  epochs: 3                               # --set\n" in out
    assert "task: classification                      # hfrt.yaml\n" in out
    assert "  schedule: cosine                        # preset ad-small\n" in out
    (study / "whole.yaml").write_text(out)
    whole, parts = (
        json.loads(hfrt(study, "config", *more, "--json")[1])
        for more in (["--config", "whole.yaml"], ["--set", "training.epochs=3"])
    )
    assert whole["config"] == parts["config"]
    assert parts["from"]["training.epochs"] == "--set"
    status, out, _ = hfrt(study, "config", "--preset", "brain-age")
    assert status == 0
    assert "preset: brain-age                         # preset brain-age\n" in out


def test_config_says_what_is_wrong(tmp_path, hfrt):
    assert "hfrt.yaml: no such file" in hfrt(tmp_path, "config")[2]
    assert "there is no preset 'x'" in hfrt(tmp_path, "config", "--preset", "x")[2]
    _, _, err = hfrt(tmp_path, "config", "--preset", "ad", "--config", "hfrt.yaml")
    assert err == "error: --config and --preset: give one of them\n"
    _, _, err = hfrt(tmp_path, "config", "--preset", "ad", "--set", "training.epoch=3")
    assert "did you mean 'epochs'?" in err


def test_no_torch_is_needed(study):
    code = (
        "import sys; from hyperfusion_rt.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    for arguments in (INIT, ("config",)):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, cwd=study, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "False"

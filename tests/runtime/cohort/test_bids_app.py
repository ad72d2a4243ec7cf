"""BIDS in and out: what the BIDS validator says, and several processes at one folder."""

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import pytest

import hyperfusion_rt
from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.config import Channel
from hyperfusion_rt.errors import CohortError, ConfigError, HyperFusionError
from hyperfusion_rt.runtime.cohort.bids_app import BidsResult, bids_app
from hyperfusion_rt.runtime.cohort.bids_source import source_of
from hyperfusion_rt.runtime.options import BidsOptions
from hyperfusion_rt.runtime.outputs import bids_derivative as bids
from hyperfusion_rt.runtime.outputs.bids_derivative import write_derivative
from hyperfusion_rt.runtime.prediction import Prediction

README = "A small data set of simulated scans, made to test programs that read BIDS. " * 3
T1W = {
    "Modality": "MR",
    "Manufacturer": "none: simulated",
}


def validate(folder: Path) -> list[str]:
    """`severity code location` of every issue; errors come with `error` first."""
    beside = str(Path(sys.executable).parent)  # the suite may run without its environment's PATH
    program = shutil.which("bids-validator-deno", path=beside) or shutil.which(
        "bids-validator-deno"
    )
    if program is None:
        pytest.skip("bids-validator-deno is not installed: pip install 'hyperfusion_rt[dev]'")
    found = subprocess.run(
        [program, "--format", "json", "--max-rows", "-1", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    try:
        issues = json.loads(found.stdout)["issues"]["issues"]
    except ValueError:
        pytest.fail(f"the validator gave no report: {found.stdout[:500]} {found.stderr[:500]}")
    return [f"{i['severity']} {i['code']} {i.get('subCode', '')} {i['location']}" for i in issues]


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.fixture
def dataset(cohort: Path) -> Path:
    """Five participants of the cohort: 01 has two sessions, 02 to 04 none, 05 no scan."""
    root = cohort / "bids"
    scans = sorted((cohort / "scans").glob("*.nii.gz"))
    with open(cohort / "data.csv", newline="") as stream:
        table = {row[next(iter(row))]: row for row in csv.DictReader(stream)}
    root.mkdir()
    (root / "README").write_text(README)
    (root / "CHANGES").write_text("1.2.0 2024-05-01\n  - More participants.\n1.0.0 2023-01-01\n")
    names = list(next(iter(table.values())))[1:]
    description = {
        "Name": "A simulated cohort",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "License": "CC0",
        "Authors": ["A. Author", "B. Author"],
    }
    (root / "dataset_description.json").write_text(json.dumps(description))
    lines = ["\t".join(("participant_id", *names))]
    places = ["sub-01/ses-a", "sub-01/ses-b", "sub-02", "sub-03", "sub-04"]
    for place, scan in zip(places, scans, strict=False):
        name = place.replace("/", "_")
        target = root / place / "anat" / f"{name}_T1w.nii.gz"
        target.parent.mkdir(parents=True)
        image = nib.load(scan)
        image.header.set_xyzt_units("mm", "sec")
        nib.save(image, target)
        target.with_name(f"{name}_T1w.json").write_text(json.dumps(T1W))
    for number in range(1, 5):
        row = table[scans[number].name.removesuffix(".nii.gz")]
        cells = [row[name] or "n/a" for name in names]
        lines.append("\t".join((f"sub-0{number}", *cells)))
    (root / "participants.tsv").write_text("\n".join(lines) + "\n")
    sidecar = {name: {"Description": f"{name} of the participant"} for name in names}
    (root / "participants.json").write_text(json.dumps(sidecar))
    return root


def run(dataset: Path, out: Path, level: str = "participant", **options) -> BidsResult:
    """As its scans are registered, although it calls itself raw."""
    artifact, on_case = dataset.parent / "base.hfrt", options.pop("on_case", None)
    options = {"source": "registered", **options}
    chosen = BidsOptions(artifact=artifact, engine="native", threads=1, **options)
    return bids_app(dataset, out, level, chosen, on_case=on_case)


def test_the_input_is_valid(dataset):
    issues = validate(dataset)
    # What a simulated scan cannot tell of its scanner is all that is missing.
    others = [line for line in issues if "KEY_RECOMMENDED" not in line]
    assert others == []
    assert not [line for line in issues if line.startswith("error")]


def test_the_validator_notices(dataset):
    out = dataset / "derivatives" / "hfrt"
    run(dataset, out, participant_label=["02"])
    (out / "sub-02" / "sub-02_predictions.tsv").write_text("a\n1\n")
    (out / "participants.tsv").write_text("participant_id\nsub-03\n")
    assert {line.split()[1] for line in validate(out)} >= {
        "NOT_INCLUDED",
        "PARTICIPANT_ID_MISMATCH",
    }


def test_participant_and_group(dataset):
    out = dataset / "derivatives" / "hfrt"
    done = []
    result = run(dataset, out, on_case=lambda n, of: done.append((n, of)))
    assert done == [(n, 5) for n in range(1, 6)]
    assert result.result.summary["ok"] == 5
    assert result.missing == ()
    assert validate(out) == []
    group = run(dataset, out, "group")
    assert validate(out) == []

    table = dataset / "participants.tsv"
    expected = hyperfusion_rt.load(dataset.parent / "base.hfrt", engine="native").predict(
        dataset, table
    )
    rows = rows_of(group.table)
    assert len(rows) == 5
    for row, item in zip(rows, expected, strict=True):
        assert row["participant_id"] == f"sub-{item.subject}"
        assert row["session_id"] == (f"ses-{item.session}" if item.session else "n/a")
        values = [float(row[name]) for name in ("p_CN", "p_MCI", "p_AD")]
        assert values == pytest.approx(item.values, rel=1e-5)
        name = "_".join(
            part for part in (row["participant_id"], row["session_id"]) if part != "n/a"
        )
        place = name.replace("_", "/")
        assert row["scan"] == f"bids:source:{place}/anat/{name}_T1w.nii.gz"
        own = rows_of(out / row["participant_id"] / f"{row['participant_id']}_sessions.tsv")
        assert {k: v for k, v in row.items() if k != "participant_id"} in own
    for path in out.rglob("*.tsv"):
        sidecar = json.loads(path.with_suffix(".json").read_text())
        assert all(sidecar[name]["Description"] for name in rows_of(path)[0])
    counts = rows_of(out / "participants.tsv")
    assert [row["predicted"] for row in counts] == ["2", "1", "1", "1"]

    about = json.loads((out / "dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative"
    assert about["GeneratedBy"][0]["Name"] == "hyperfusion_rt"
    assert about["GeneratedBy"][0]["Version"] == hyperfusion_rt.__version__
    assert about["SourceDatasets"] == [{"URL": "../..", "Version": "1.2.0"}]
    assert (out / about["DatasetLinks"]["source"]).resolve() == dataset.resolve()
    assert about["Authors"] == ["A. Author", "B. Author"]
    assert "sub-01" not in group.report.read_text().split("Participants without a result")[1]
    # the output, inside the dataset, is not taken for scans
    assert run(dataset, out).result.summary["ok"] == 5


def test_processes_share_the_folder(dataset):
    out = dataset.parent / "out"
    code = (
        "import sys; from pathlib import Path\n"
        "from hyperfusion_rt.runtime.cohort.bids_app import bids_app\n"
        "from hyperfusion_rt.runtime.options import BidsOptions\n"
        "options = BidsOptions(engine='native', threads=1, artifact=sys.argv[3],"
        " source='registered', participant_label=sys.argv[4:])\n"
        "bids_app(Path(sys.argv[1]), Path(sys.argv[2]), 'participant', options)"
    )
    artifact = dataset.parent / "base.hfrt"
    start = [sys.executable, "-c", code, str(dataset), str(out), str(artifact)]
    running = [subprocess.Popen([*start, *labels]) for labels in (("01", "02"), ("sub-03",))]
    assert [process.wait(60) for process in running] == [0, 0]
    assert not [path for path in out.rglob(".*") if path.name != ".bidsignore"]
    assert validate(out) == []
    group = run(dataset, out, "group")
    assert group.missing == ("04",)
    assert "sub-04" in group.report.read_text().split("Participants without a result")[1]
    assert [row["participant_id"] for row in rows_of(out / "participants.tsv")] == [
        "sub-01",
        "sub-02",
        "sub-03",
    ]
    assert validate(out) == []


def test_one_session_leaves_the_others(dataset):
    out = dataset.parent / "out"
    first = run(dataset, out, session_label=["ses-a"])
    assert [item.subject for item in first.result.predictions] == ["01"]
    assert first.missing == ("02", "03", "04")
    run(dataset, out, participant_label=["01"], session_label=["b"])
    table = out / "sub-01" / "sub-01_sessions.tsv"
    assert [row["session_id"] for row in rows_of(table)] == ["ses-a", "ses-b"]
    # without a label, what is there of sessions that are gone goes, too
    shutil.rmtree(dataset / "sub-01" / "ses-a")
    run(dataset, out, participant_label=["01"])
    assert [row["session_id"] for row in rows_of(table)] == ["ses-b"]
    with pytest.raises(ConfigError, match=r"session_label.* has no 'bb'; did you mean 'b'"):
        run(dataset, out, session_label=["bb"])


def test_what_cannot_be_predicted_is_a_row(dataset):
    scan = dataset / "sub-02" / "anat" / "sub-02_T1w.nii.gz"
    scan.write_bytes(scan.read_bytes()[:5000])
    second = dataset / "sub-03" / "anat" / "sub-03_acq-x_T1w.nii.gz"
    shutil.copy(dataset / "sub-03" / "anat" / "sub-03_T1w.nii.gz", second)
    run_2 = dataset / "sub-04" / "anat" / "sub-04_run-2_T1w.nii.gz"
    shutil.copy(dataset / "sub-04" / "anat" / "sub-04_T1w.nii.gz", run_2)
    (dataset / "sub-06" / "func").mkdir(parents=True)
    with open(dataset / "participants.tsv", "a") as stream:
        stream.write(
            "sub-05"
            + "\tn/a" * len(rows_of(dataset / "participants.tsv")[0].keys() - {"participant_id"})
            + "\n"
        )
    out = dataset / "derivatives" / "hfrt"
    run(dataset, out, participant_label=["sub-01", "03", "04"])
    labelled = run(dataset, out, participant_label=["02", "05", "06"])
    assert [item.subject for item in labelled.result.predictions] == ["02", "05", "06"]
    group = run(dataset, out, "group")
    assert group.missing == ()
    rows = {(row["participant_id"], row["session_id"]): row for row in rows_of(group.table)}
    status = {subject: row["status"] for (subject, session), row in rows.items()}
    assert status == {
        "sub-01": "ok",
        "sub-02": "error",
        "sub-03": "error",
        "sub-04": "ok",
        "sub-05": "skipped",
        "sub-06": "skipped",
    }
    assert "several scans" in rows["sub-03", "n/a"]["reason"]
    assert "another run" in rows["sub-04", "n/a"]["warnings"]
    assert "no scan was found" in rows["sub-05", "n/a"]["reason"]
    assert rows["sub-02", "n/a"]["p_CN"] == "n/a"
    assert validate(out) == []


def test_labels_that_are_not_there(dataset):
    out = dataset.parent / "out"
    with pytest.raises(ConfigError, match=r"`participant_label`: .*bids has no '1'.*'01'"):
        run(dataset, out, participant_label=["1"])
    with pytest.raises(ConfigError, match="leave out `participant_label`"):
        run(dataset, out, "group", participant_label=["01"])
    with pytest.raises(ConfigError, match="run the participant level first"):
        run(dataset, out, "group")
    with pytest.raises(ConfigError, match="no folder sub-"):
        run(dataset / "sub-01", out)
    with pytest.raises(ConfigError, match="name the participants' table"):
        run(dataset, out, tabular=dataset / "no.tsv")
    (dataset / "sub-0_1").mkdir()
    with pytest.raises(ConfigError, match=r"have the same BIDS label '01'"):
        run(dataset, out)


def describe(dataset: Path, kind: str | None) -> None:
    path = dataset / "dataset_description.json"
    content = json.loads(path.read_text())
    content.pop("DatasetType", None)
    path.write_text(json.dumps(content | ({"DatasetType": kind} if kind else {})))


@pytest.mark.parametrize("kind", ["raw", None])
def test_scans_of_a_dataset_are_raw_where_nobody_says_else(dataset, hfrt, kind):
    describe(dataset, kind)
    sidecar = dataset / "sub-02" / "anat" / "sub-02_T1w.json"
    sidecar.write_text(json.dumps(T1W | {"ContrastBolusIngredient": "GADOLINIUM"}))
    out = dataset.parent / "out"
    command = ["bids-app", dataset, out, "participant", "--participant-label", "02", "--json"]
    status, text, err = hfrt(dataset.parent, *command, "--engine", "native")
    found = json.loads(text)
    assert found["source"] == "raw", err
    assert "the scans are taken for raw: neither dataset_description.json" in found["joined"][0]
    record = json.loads((out / "logs" / "sub-02" / "sub-02.json").read_text())
    assert record["identity"]["source"] == "raw"
    (row,) = found["predictions"]
    assert (status, row["status"]) == (0, "ok")
    assert row["doubt"] < 0.1  # a figure of its registration
    assert "with contrast agent 'GADOLINIUM' by its JSON file" in row["warnings"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("derivative", "dataset_description.json says that the dataset is a derivative"),
        ("space", "the name of sub-02_space-MNI152NLin6Asym_T1w.nii.gz says MNI space"),
        ("filter", "the name of sub-02_space-MNI152NLin6Asym_T1w.nii.gz says MNI space"),
        ("sidecar", "hfrt preprocess made sub-02_T1w.nii.gz"),
    ],
)
def test_registered_scans_are_known(dataset, change, said):
    anat, options = dataset / "sub-02" / "anat", {}
    scan, sidecar = anat / "sub-02_T1w.nii.gz", anat / "sub-02_T1w.json"
    if change == "derivative":
        describe(dataset, "derivative")
    elif change == "sidecar":
        sidecar.write_text('{"transform_maps": "", "warnings": []}')
    else:
        shutil.copy(scan, anat / "sub-02_space-MNI152NLin6Asym_T1w.nii.gz")
    if change == "filter":
        options["bids_filter"] = dataset.parent / "f.json"
        options["bids_filter"].write_text('{"t1w": {"space": "MNI152NLin6Asym"}}')
    out = dataset.parent / "out"
    result = run(dataset, out, source=None, participant_label=["02"], **options)
    assert result.source == "registered"
    assert result.result.joined[0] == f"the scans are taken for registered: {said}"
    assert result.result.summary["ok"] == 1


def test_a_description_that_cannot_be_read_says_nothing(dataset):
    path = dataset / "dataset_description.json"
    path.write_text(path.read_text().rstrip().rstrip("}") + ",}")
    with pytest.raises(CohortError, match="mend it, or give `source`") as error:
        run(dataset, dataset.parent / "out", source=None, participant_label=["02"])
    assert error.value.code == "bids-description-unreadable"


def test_other_images_are_not_registered(dataset):
    manifest = Artifact.open(dataset.parent / "base.hfrt").manifest
    assert source_of(dataset, [dataset], manifest, None)[0] == "raw"
    for channels in (
        [Channel(name="T1w", files="*_T1w*"), Channel(name="FLAIR", files="*_FLAIR*")],
        [Channel(name="FLAIR", t1_weighted=False)],
    ):
        reads = manifest.preprocessing.model_copy(update={"channels": channels})
        other = manifest.model_copy(update={"preprocessing": reads})
        source, why = source_of(dataset, [dataset], other, None)
        assert (source, why) == (
            "registered", "the artifact reads other than one T1-weighted image"
        )  # fmt: skip


def test_a_filter_chooses_scans(dataset, hfrt):
    """Participant 03 has two scans, and only one of 02's has the name that is asked for."""
    for number in ("02", "03"):
        anat = dataset / f"sub-{number}" / "anat"
        shutil.copy(anat / f"sub-{number}_T1w.nii.gz", anat / f"sub-{number}_acq-x_T1w.nii.gz")
    path = dataset.parent / "f.json"
    path.write_text('{"t1w": {"acquisition": "x"}, "bold": {}}')
    out = dataset.parent / "out"
    result = run(dataset, out, bids_filter=path)
    status = {}
    for item in result.result.predictions:
        status.setdefault(item.subject, []).append(item.status)
    assert {subject: sorted(found) for subject, found in status.items()} == {
        "01": ["skipped"] * 3,  # two sessions, and the row
        "02": ["ok", "skipped"],
        "03": ["ok", "skipped"],
        "04": ["skipped"] * 2,
    }
    rows = {row["participant_id"]: row for row in rows_of(run(dataset, out, "group").table)}
    assert rows["sub-03"]["scan"].endswith("sub-03_acq-x_T1w.nii.gz")
    assert "not chosen by f.json: no acq, and 'x' is wanted" in rows["sub-04"]["reason"]
    # one participant of whom nothing is chosen, by herself
    (first, _) = run(dataset, out, participant_label=["04"], bids_filter=path).result.predictions
    assert (first.status, first.code) == ("skipped", "scan-passed-over")

    root = dataset.parent
    command = ["infer", dataset, "--tabular", dataset / "participants.tsv", "--engine", "native"]
    command += ["--bids-filter", path, "--json"]
    status, text, _ = hfrt(root, *command)
    assert status == 0
    predicted = [r["subject"] for r in json.loads(text)["predictions"] if r["status"] == "ok"]
    assert predicted == ["02", "03"]
    path.write_text('{"t1w": {"acquisition": "y"}}')
    status, text, _ = hfrt(root, *command, "--out", "p.csv")
    error = json.loads(text)["error"]
    assert (status, error["code"]) == (1, "bids-filter-no-match")
    assert "--bids-filter" in error["message"]


def test_a_contrast_agent_is_warned_of(dataset):
    anat = dataset / "sub-02" / "anat"
    (anat / "sub-02_T1w.nii.gz").rename(anat / "sub-02_ce-gadolinium_T1w.nii.gz")
    result = run(dataset, dataset.parent / "out", participant_label=["02"])
    (item,) = result.result.predictions
    (said,) = [text for text in item.warnings if "contrast agent" in text]
    assert said.startswith("with contrast agent 'gadolinium' by its name")
    # once, where hfrt preprocess wrote it beside the copy
    content = {"transform_maps": "", "warnings": [said]}
    (anat / "sub-02_ce-gadolinium_T1w.json").write_text(json.dumps(content))
    result = run(dataset, dataset.parent / "out", participant_label=["02"])
    (item,) = result.result.predictions
    found = [text for text in item.warnings if "contrast agent" in text]
    assert found == [f"when it was registered: {said}"]


def test_another_table(dataset):
    table = dataset.parent / "other.csv"
    text = (dataset / "participants.tsv").read_text()
    table.write_text(text.replace("participant_id", "ID").replace("\t", ",").replace("sub-04", "9"))
    result = run(dataset, dataset.parent / "out", tabular=table)
    status = {item.subject: item.status for item in result.result.predictions}
    assert status == {"01": "ok", "02": "ok", "03": "ok", "04": "error", "9": "skipped"}


def test_folders_of_others_are_refused(dataset):
    before = (dataset / "dataset_description.json").read_text()
    for out in (dataset, dataset.parent):
        with pytest.raises(ConfigError, match="is or holds the source dataset"):
            run(dataset, out)
    other = dataset.parent / "fmriprep"
    other.mkdir()
    (other / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "fMRIPrep"}]}')
    with pytest.raises(ConfigError, match="holds another dataset"):
        run(dataset, other)
    for damaged in ("[1]", "{", '{"GeneratedBy": "x"}', '{"GeneratedBy": [1]}'):
        (other / "dataset_description.json").write_text(damaged)
        with pytest.raises(ConfigError, match="holds another dataset"):
            run(dataset, other)
    assert (dataset / "dataset_description.json").read_text() == before


def test_results_of_another_artifact_are_refused(dataset):
    out = dataset.parent / "out"
    run(dataset, out, participant_label=["01", "02"])
    manifest = Artifact.open(dataset.parent / "base.hfrt").manifest
    other = manifest.model_copy(update={"checksum": "0" * 64})
    with pytest.raises(ConfigError, match="holds predictions of another artifact"):
        write_derivative(out, other, [], dataset)
    record = out / "logs" / "sub-02" / "sub-02.json"
    content = json.loads(record.read_text())
    content["identity"]["artifact"] = "0" * 64
    record.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="made by different artifacts"):
        run(dataset, out, "group")
    for damaged in ("{", "[]", "{}", '{"predictions": [1]}', '{"predictions": [], "identity": 1}'):
        record.write_text(damaged)
        with pytest.raises(ConfigError, match=r"sub-02.json: cannot be read.*delete it and run"):
            run(dataset, out, "group")


def test_group_level_elsewhere(dataset):
    out = dataset.parent / "out"
    run(dataset, out, participant_label=["02"])
    moved = dataset.rename(dataset.with_name("moved"))
    (row,) = rows_of(run(moved, out, "group").table)
    assert row["scan"] == "bids:source:sub-02/anat/sub-02_T1w.nii.gz"


def predictions(values: tuple[float, ...]) -> list[Prediction]:
    return [
        Prediction("002_S_1", "m-06", "ok", values=values, spread=0.01, quality={"c\tc": 1 / 3}),
        Prediction("002_S_1", "m-06", "skipped", "another\trun"),
        Prediction("002_S_1", "m12", "error", 'tab\there,\r\nline "two"\x00 \u2028'),
        Prediction("003_S_2", None, "ok", values=values, spread=float("nan")),
        Prediction("", None, "error", "line 3: no id"),
    ]


@pytest.mark.parametrize("years", [False, True])
def test_ids_and_text_that_bids_does_not_know(dataset, years):
    manifest = Artifact.open(dataset.parent / "base.hfrt").manifest
    if years:
        manifest = manifest.model_copy(
            update={"classes": (), "unit": "years", "task": "regression"}
        )
    out = dataset.parent / "out"
    values = (71.25,) if years else (0.5, 0.3, 0.2)
    write_derivative(out, manifest, predictions(values), dataset)
    assert validate(out) == []
    rows = rows_of(out / "sub-002S1" / "sub-002S1_sessions.tsv")
    assert [row["session_id"] for row in rows] == ["ses-m06", "ses-m12"]
    assert rows[0]["years" if years else "p_CN"] == ("71.25" if years else "0.5")
    assert (rows[0]["reason"], rows[0]["warnings"]) == ("n/a", "another run")
    assert (rows[1]["reason"], rows[1]["warnings"]) == ("tab here, line 'two'", "n/a")
    assert rows[1]["member_spread"] == "n/a"
    assert len(rows_of(out / "group_predictions.tsv")) == 4
    assert rows_of(out / "participants.tsv")[0]["source_id"] == "002_S_1"
    # who is not there any more has no files
    write_derivative(out, manifest, predictions(values)[3:], dataset)
    assert [path.name for path in out.glob("sub-*")] == ["sub-003S2"]
    assert validate(out) == []
    again = [replace(predictions(values)[3], subject="003S2"), predictions(values)[3]]
    with pytest.raises(ConfigError, match="have the same BIDS label '003S2'"):
        write_derivative(out, manifest, again, dataset)


def test_a_full_disk_leaves_the_old_table(dataset, monkeypatch):
    manifest = Artifact.open(dataset.parent / "base.hfrt").manifest
    out = dataset.parent / "out"
    before = predictions((0.5, 0.3, 0.2))
    write_derivative(out, manifest, before, dataset)
    tables = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def full(path: Path, text: str, *, private: bool = False) -> None:
        raise HyperFusionError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr(bids, "write_text", full)
    with pytest.raises(HyperFusionError, match="No space left"):
        write_derivative(out, manifest, before[:3], dataset)
    kept = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert kept == tables


def test_infer_writes_a_derivative(dataset, hfrt):
    """`hfrt infer BIDS_DIR --tabular participants.tsv`, from the command line."""
    root = dataset.parent
    arguments = ("infer", dataset, "--tabular", dataset / "participants.tsv", "--engine", "native")
    status, _, err = hfrt(root, *arguments, "--derivative", "made", "--out", "p.csv")
    assert status in (0, 3), err
    rows = (root / "made" / "group_predictions.tsv").read_text().splitlines()
    assert len(rows) > 1
    assert validate(root / "made") == []
    command = ("bids-app", dataset, "app", "participant", "--engine", "native")
    status, out, err = hfrt(root, *command, "--from", "registered")
    assert status in (0, 3), err
    assert "the scans are taken for registered: as asked for" in out
    status, out, err = hfrt(root, "bids-app", dataset, "app", "group")
    assert "group_predictions.tsv" in out
    assert validate(root / "app") == []
    plain = root / "scans"  # no dataset
    status, _, err = hfrt(root, "infer", plain, *arguments[2:], "--derivative", "x")
    assert (status, "is no BIDS dataset" in err) == (1, True)

"""Predictions against the truth: what is counted, what is known from the training, what is said."""

import csv
import gzip
import json
import re
import shutil
import stat
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from sklearn import metrics as sk

from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.errors import CohortError, ConfigError, TableError
from hyperfusion_rt.export import export_run
from hyperfusion_rt.runtime.cohort.evaluate import as_dict, evaluate, write_evaluation
from hyperfusion_rt.runtime.cohort.infer import infer
from hyperfusion_rt.runtime.evaluation import (
    EvaluatedCase,
    Evaluation,
    agreement,
    columns_of_groups,
    measure,
    read_truth,
)
from hyperfusion_rt.runtime.options import CohortOptions, EvaluateOptions
from hyperfusion_rt.runtime.outputs.chart import Axis, Chart
from hyperfusion_rt.runtime.prediction import Prediction


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def put(path, column, values):
    """Write cells of a table: subject → text."""
    rows = table(path)
    for row in rows:
        row[column] = values(row) if callable(values) else values.get(row["subject"], row[column])
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def noisy(source, target):
    """Another scan of the same head: a few grey values differ."""
    image = nib.load(source)
    voxels = np.asarray(image.dataobj).copy()
    voxels[voxels > 0] += 1
    again = nib.Nifti1Image(voxels, image.affine, image.header)
    target.parent.mkdir(exist_ok=True)
    nib.save(again, target)


@pytest.fixture(scope="module")
def new_people(session_cohort, session_artifact, tmp_path_factory):
    """24 subjects that the artifact was not trained on, with a session each."""
    root = tmp_path_factory.mktemp("new")
    text = (session_cohort / "data.csv").read_text().replace("S5-", "N-")
    (root / "data.csv").write_text("\n".join(text.splitlines()[:25]) + "\n")
    for n in range(1, 25):
        noisy(
            session_cohort / "scans" / f"S5-{n:04}.nii.gz",
            root / "scans" / f"N-{n:04}.nii.gz",
        )
    shutil.copytree(session_artifact, root / "base.hfrt")
    return root


@pytest.fixture
def people(new_people, tmp_path):
    """A copy whose files may be spoilt."""
    root = tmp_path / "people"
    (root / "scans").mkdir(parents=True)
    for scan in (new_people / "scans").iterdir():
        (root / "scans" / scan.name).symlink_to(scan)
    shutil.copy(new_people / "data.csv", root / "data.csv")
    (root / "base.hfrt").symlink_to(new_people / "base.hfrt")
    return root


ARGUMENTS = ("evaluate", "base.hfrt", "scans", "--tabular", "data.csv", "--engine", "native")


def test_the_figures_are_those_of_the_predictions(people, hfrt):
    status, out, err = hfrt(people, *ARGUMENTS)
    assert (status, err) == (0, "")
    content = json.loads((people / "evaluation/evaluation.json").read_text())
    cases = table(people / "evaluation/cases.csv")
    assert list(cases[0]) == [
        "subject", "session", "truth", "prediction", "p_CN", "p_MCI", "p_AD", "member_spread",
        "prediction_set", "seen", "correct", "sex", "age", "counted", "status", "code", "reason",
        "warnings",
    ]  # fmt: skip
    status, _, _ = hfrt(people, "infer", "scans", "--tabular", "data.csv", "--engine", "native")
    predicted = {row["subject"]: row for row in table(people / "predictions.csv")}
    assert len(cases) == len(predicted) == 24
    for case in cases:
        for name in ("prediction", "p_CN", "p_MCI", "p_AD"):
            assert case[name] == predicted[case["subject"]][name]
        assert (case["correct"] == "yes") == (case["truth"] == case["prediction"])
    names = ["CN", "MCI", "AD"]
    truth = [names.index(case["truth"]) for case in cases]
    answers = [names.index(case["prediction"]) for case in cases]
    figures = content["figures"]
    assert figures["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, answers))
    assert figures["confusion"] == sk.confusion_matrix(truth, answers).tolist()
    assert content["counts"] == {"cases": 24, "counted": 24, "failed": 0}
    assert set(content["groups"]) == {"sex", "age"}
    women = content["groups"]["sex"]["figures"]["Female"]
    assert women["cases"] == sum(case["sex"] == "Female" for case in cases)
    assert content["not_counted"] == {}
    assert "24 of 24 cases are counted, of 24 subjects" in out
    assert f"{figures['balanced_accuracy']:.3f}" in out
    assert "rows: the truth; columns: the prediction" in out
    assert max(map(len, out.splitlines())) <= 100


def test_the_files_are_private_and_the_page_is_whole(people, hfrt):
    assert hfrt(people, *ARGUMENTS, "--out", "found")[0] == 0
    files = {path.name: path for path in (people / "found").iterdir()}
    assert set(files) == {"evaluation.json", "cases.csv", "evaluation.html"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.values()} == {0o600}
    page = files["evaluation.html"].read_text()
    assert not re.search("N-00|https?://(?!www.w3)|<script", page)
    assert "nan" not in re.sub("<style.*</style>", "", page, flags=re.DOTALL).lower().split()
    for text in ("predicted</th>", ">true</th>", "ROC curves", "Calibration", "By sex", "By age"):
        assert text in page
    assert page.count("<svg") == 2
    assert "N-00" not in files["evaluation.json"].read_text()


def test_cases_of_the_training_are_not_counted(session_run, session_cohort, session_artifact):
    out = session_cohort / "ev"
    args = session_artifact, [session_cohort / "scans"], session_cohort / "data.csv"
    found = evaluate(*args, EvaluateOptions(engine="native", out=out))
    parts = {row["subject"]: row for row in table(session_run.folder / "splits.csv")}
    in_test = {name for name, row in parts.items() if row["member_0"] == row["member_1"] == "test"}
    assert {case.prediction.subject for case in found.counted} == in_test
    assert {case.prediction.seen for case in found.cases} == {"", "both"}
    assert sum(found.left_out.values()) == 32
    assert any("32 cases stood in the training" in note for note in found.notes)
    # What training said of its test set.
    own = session_run.metrics["test"]
    assert found.figures["confusion"] == own["confusion"]
    assert found.seen_figures is None
    again = evaluate(*args, EvaluateOptions(engine="native", out=out, include_seen=True))
    assert again.figures == found.figures
    assert again.seen_figures["cases"] == 32
    assert as_dict(again)["seen_in_training"]["not_a_test"] is True
    assert "not a test" in (out / "evaluation.html").read_text()
    shutil.rmtree(out)


def test_a_case_is_known_by_its_id_or_its_scan(cohort, hfrt):
    scans = cohort / "scans"
    for path in sorted(scans.iterdir())[3:]:
        path.unlink()
    seen, other, renamed = sorted(scans.iterdir())
    # Another scan of a known subject; a known scan, packed again, of an unknown one.
    real = other.resolve()
    other.unlink()
    noisy(real, other)
    content = gzip.decompress(renamed.read_bytes())
    renamed.unlink()
    (scans / "new.nii.gz").write_bytes(gzip.compress(content, 1))
    lines = (cohort / "data.csv").read_text().splitlines()
    row = next(line for line in lines if line.startswith(renamed.name.split(".")[0]))
    (cohort / "data.csv").write_text("\n".join([*lines, "new" + row[row.index(",") :]]) + "\n")
    status, out, _ = hfrt(
        cohort, "infer", "scans", "--tabular", "data.csv", "--unmatched-rows", "ignore",
        "--engine", "native", "--feature-cache", "kept",
    )  # fmt: skip
    assert status == 0
    rows = {r["subject"]: r["seen"] for r in table(cohort / "predictions.csv")}
    parts = {seen.name.split(".")[0]: "both", other.name.split(".")[0]: "id", "new": "scan"}
    known = Artifact.open(cohort / "base.hfrt").manifest.training_cases
    expected = {
        name: how if known.seen(name) or name == "new" else "" for name, how in parts.items()
    }
    assert rows == expected
    assert "both" in rows.values()
    assert f"{sum(map(bool, rows.values()))} of 3 cases stood in the training" in out
    # From the kept features, too, which are found without decoding.
    again = hfrt(
        cohort, "infer", "scans", "--tabular", "data.csv", "--unmatched-rows", "ignore",
        "--engine", "native", "--feature-cache", "kept", "--out", "again.csv",
    )  # fmt: skip
    assert again[0] == 0
    assert {r["subject"]: r["seen"] for r in table(cohort / "again.csv")} == rows


def known_cases(cohort, session_run):
    """Leave only scans that every member has trained or validated on."""
    rows = table(session_run.folder / "splits.csv")
    test = {row["subject"] for row in rows if row["member_0"] == "test"}
    for scan in (cohort / "scans").iterdir():
        if scan.name.split(".")[0] in test:
            scan.unlink()
    return len(list((cohort / "scans").iterdir()))


def test_only_cases_of_the_training_are_no_test(cohort, hfrt, session_run):
    count = known_cases(cohort, session_run)
    status, out, err = hfrt(cohort, *ARGUMENTS)
    assert (status, out) == (1, "")
    assert f"all {count} cases with a truth stood in the training" in err
    assert "--include-seen" in err
    assert "--seen-by scan" in err
    assert not (cohort / "evaluation").exists()
    with pytest.raises(CohortError) as error:  # the scans tell it only when they are read
        evaluate(
            cohort / "base.hfrt",
            [cohort / "scans"],
            cohort / "data.csv",
            EvaluateOptions(engine="native", out=cohort / "x", seen_by="scan"),
        )
    assert error.value.code == "evaluation-all-seen"
    status, out, _ = hfrt(cohort, *ARGUMENTS, "--include-seen")
    assert status == 0
    assert "NOT A TEST" in out
    assert "no case is counted" in out


def test_ids_of_another_study_can_be_told_by_their_scans(people, new_people, hfrt):
    """People who happen to have the ids of the training's."""
    text = (people / "data.csv").read_text()
    (people / "data.csv").write_text(text.replace("N-", "S5-"))
    for scan in list((people / "scans").iterdir()):
        scan.rename(scan.with_name(scan.name.replace("N-", "S5-")))
    assert hfrt(people, *ARGUMENTS, "--seen-by", "scan")[0] == 0
    cases = table(people / "evaluation/cases.csv")
    assert {case["counted"] for case in cases} == {"yes"}
    assert {case["seen"] for case in cases} == {"", "id"}


@pytest.mark.slow
def test_an_artifact_without_hashes(people, session_run, tmp_path, hfrt):
    (people / "base.hfrt").unlink()
    made = export_run(
        session_run, people / "base.hfrt", engines=("native",), no_training_hashes=True
    )
    assert made.manifest.training_cases is None
    assert "training_cases" not in (session_run.folder / "metrics.json").read_text()
    status, _, err = hfrt(people, *ARGUMENTS)
    assert status == 0
    assert "carries no hashes of its training" in err
    assert "seen" not in table(people / "evaluation/cases.csv")[0]
    hfrt(people, "infer", "scans", "--tabular", "data.csv", "--engine", "native")
    assert "seen" not in table(people / "predictions.csv")[0]


def test_the_run_and_the_artifact_hold_the_hashes_of_what_was_trained_on(
    session_run, session_artifact
):
    known = Artifact.open(session_artifact).manifest.training_cases
    path = session_run.folder / "training_cases.json"
    assert json.loads(path.read_text()) == known.model_dump(mode="json")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    rows = table(session_run.folder / "splits.csv")
    for row in rows:
        trained = {row["member_0"], row["member_1"]} != {"test"}
        assert (known.seen(row["subject"]) == "id") == trained
    assert len(known.subjects) == len(known.scans) == 32
    assert "S5-" not in (session_artifact / "manifest.json").read_text()


# ---- bad input


@pytest.mark.slow
def test_a_table_without_the_target(people, hfrt):
    text = (people / "data.csv").read_text()
    (people / "data.csv").write_text(text.replace("DX", "Dx1", 1))
    status, out, err = hfrt(people, *ARGUMENTS)
    assert (status, out) == (1, "")
    assert "data.csv: has no column 'DX', the target of base" in err
    assert "did you mean 'Dx1'?" in err
    # infer does not mind, and has no truth.
    assert hfrt(people, "infer", "scans", "--tabular", "data.csv", "--engine", "native")[0] == 0
    assert "truth" not in table(people / "predictions.csv")[0]
    page = (people / "predictions.html").read_text()
    shown = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    assert "truth" not in shown.lower()


@pytest.mark.parametrize(("cell", "said"), [("", "the column is empty"), ("SMC", "'SMC' in 24")])
def test_no_truth_at_all(people, hfrt, cell, said):
    put(people / "data.csv", "DX", lambda row: cell)
    status, _, err = hfrt(people, *ARGUMENTS)
    assert status == 1
    assert "none of the 24 scans with a row has a value of 'DX'" in err
    assert said in err
    assert err.count("\n") == 1


def test_what_cannot_be_counted_is_listed(people, hfrt):
    put(people / "data.csv", "DX", {"N-0001": "", "N-0002": "SMC", "N-0003": "SMC"})
    put(people / "data.csv", "AGE", {"N-0004": "seventy"})
    put(people / "data.csv", "PTGENDER", {"N-0006": ""})
    broken = people / "scans" / "N-0005.nii.gz"
    content = broken.read_bytes()[:3000]
    broken.unlink()
    broken.write_bytes(content)
    (people / "scans" / "N-0007.nii.gz").unlink()
    status, out, err = hfrt(people, *ARGUMENTS)
    assert status == 3
    assert "Traceback" not in out + err
    cases = {case["subject"]: case for case in table(people / "evaluation/cases.csv")}
    codes = {name: case["code"] for name, case in cases.items() if case["code"]}
    assert codes == {
        "N-0001": "table-missing-value",
        "N-0002": "table-unknown-category",
        "N-0003": "table-unknown-category",
        "N-0004": "table-not-a-number",
        "N-0005": "scan-truncated",
        "N-0007": "row-without-scan",
    }
    assert {case["counted"] for name, case in cases.items() if name in codes} == {"no"}
    assert cases["N-0002"]["truth"] == "SMC"
    assert (cases["N-0006"]["sex"], cases["N-0006"]["counted"]) == ("", "yes")
    content = json.loads((people / "evaluation/evaluation.json").read_text())
    assert content["counts"] == {"cases": 24, "counted": 18, "failed": 2}
    assert sum(content["not_counted"].values()) == 6
    assert "column 'DX': 'SMC' in 2: none of the classes CN, MCI, AD, not counted" in err
    unknown = content["groups"]["sex"]["figures"][""]
    assert unknown == {"cases": 1, "too_few": True}
    assert "N-0004" in err


def test_every_case_fails(people, hfrt):
    for scan in list((people / "scans").iterdir())[2:]:
        scan.unlink()
    for scan in (people / "scans").iterdir():
        scan.unlink()
        scan.write_bytes(b"")
    status, out, err = hfrt(people, *ARGUMENTS)
    # An empty file is no scan of anybody's row.
    assert status == 1 or "no case is counted" in out
    assert "Traceback" not in out + err


def test_one_case_one_class(people, hfrt):
    for scan in list((people / "scans").iterdir()):
        if scan.name != "N-0003.nii.gz":
            scan.unlink()
    status, out, err = hfrt(people, *ARGUMENTS)
    assert (status, "Traceback" in out + err) == (0, False)
    assert "one class only" in out
    figures = json.loads((people / "evaluation/evaluation.json").read_text())["figures"]
    assert (figures["cases"], figures["auc"], figures["balanced_accuracy_95"]) == (1, None, None)


@pytest.mark.parametrize("out", ["data.csv", "base.hfrt", "base.hfrt/more", "here"])
def test_it_never_writes_over_what_it_reads(people, hfrt, out):
    given = "data.csv"
    if out == "here":
        (people / "here").mkdir()
        given = shutil.copy(people / "data.csv", people / "here" / "cases.csv")
    arguments = [given if a == "data.csv" else a for a in ARGUMENTS]
    status, _, err = hfrt(people, *arguments, "--out", out)
    assert status == 1
    assert err.startswith("error: --out")
    with pytest.raises(ConfigError):
        evaluate(
            people / "base.hfrt",
            [people / "scans"],
            people / given,
            EvaluateOptions(out=people / out),
        )


@pytest.mark.parametrize("out", ["data.csv/x", "/proc/x"])
def test_a_folder_that_cannot_be_written_is_said_before_the_work(people, hfrt, monkeypatch, out):
    monkeypatch.setattr("hyperfusion_rt.runtime.cohort.evaluate.Predictor", pytest.fail)
    status, _, err = hfrt(people, *ARGUMENTS, "--out", out)
    assert status == 1
    assert err.startswith(f"error: --out {out}: cannot be written: ")


# ---- what infer does with a truth


def test_infer_says_what_the_table_knows(people, hfrt):
    put(people / "data.csv", "DX", {"N-0001": "", "N-0002": "SMC", "N-0003": "LMCI"})
    command = ("infer", "scans", "--tabular", "data.csv", "--engine", "native")
    status, out, _ = hfrt(people, *command)
    assert status == 0
    rows = {row["subject"]: row["truth"] for row in table(people / "predictions.csv")}
    assert [rows[f"N-000{n}"] for n in (1, 2, 3)] == ["", "SMC", "LMCI"]
    lines = out.splitlines()
    first = lines.index("on 22 of 24 cases (with a truth, 1 more have one that cannot be read):")
    assert lines[first + 1].startswith("  balanced accuracy 0.")
    assert "chance 0.333)" in lines[first + 1]
    assert max(map(len, lines)) <= 100
    page = (people / "predictions.html").read_text()
    assert "Against the truth, on 22 of 24 cases" in page
    content = json.loads(hfrt(people, *command, "--json", "--out", "b.csv")[1])
    assert content["truth"]["figures"]["cases"] == 22
    # A truth that comes later is read, though the prediction was made before.
    put(people / "data.csv", "DX", {"N-0001": "AD"})
    assert hfrt(people, *command, "--resume")[0] == 0
    rows = {row["subject"]: row["truth"] for row in table(people / "predictions.csv")}
    assert rows["N-0001"] == "AD"


def test_infer_counts_no_case_of_the_training(cohort, session_run, hfrt):
    count = known_cases(cohort, session_run)
    found = infer(
        [cohort / "scans"],
        cohort / "data.csv",
        CohortOptions(
            artifact=cohort / "base.hfrt",
            engine="native",
            out=cohort / "p.csv",
            unmatched_rows="ignore",
        ),
    )
    assert found.agreement.seen == found.agreement.known == count
    assert found.agreement.figures["cases"] == 0
    seen, sets, line = found.remarks
    assert seen.startswith(f"{count} of {count} cases stood in the training")
    assert sets.startswith("prediction sets at 0.9: ")
    assert sets.endswith("have one class")  # of none it is known whether it holds the truth
    assert line.startswith(f"on 0 of {count} cases")
    assert line.endswith("none is left to count")


# ---- numbers


@pytest.fixture
def years(session_artifact):
    """The manifest of an artifact that predicts ages."""
    manifest = Artifact.open(session_artifact).manifest
    spec = manifest.table.model_copy(update={"target": "AGE", "classes": {}, "unit": "years"})
    change = {"classes": (), "unit": "years", "table": spec, "training_cases": None}
    change |= {"calibration": None}  # it is of classes
    return manifest.model_copy(update=change)


def aged(manifest, count, constant=False):
    rng = np.random.default_rng(3)
    cases = []
    for n in range(count):
        true = float(rng.uniform(50, 90))
        value = 70.0 if constant else 0.8 * true + 14 + float(rng.normal(0, 4))
        item = Prediction(f"P{n}", None, "ok", values=(value,), truth=f"{true}")
        cases.append(EvaluatedCase(item, true, "Female", true, counted=True))
    figures = measure(manifest, [c.prediction for c in cases], [c.truth for c in cases])
    about = {"machine": {"processor": "a test"}}
    return Evaluation(manifest, "native", cases, figures, {}, about=about)


@pytest.mark.parametrize(("count", "constant"), [(60, False), (1, False), (2, False), (20, True)])
def test_a_page_of_numbers(years, tmp_path, count, constant):
    found = aged(years, count, constant)
    write_evaluation(tmp_path, found)
    page = (tmp_path / "evaluation.html").read_text()
    assert page.count("<svg") == 2
    assert page.count("<circle") == 2 * count
    for label in ("true AGE (years)", "predicted AGE (years)", "predicted − true (years)"):
        assert label in page
    assert not re.search(r"\bnan\b|\binf\b", page)
    cases = table(tmp_path / "cases.csv")
    assert list(cases[0])[2:6] == ["truth", "years", "member_spread", "error"]
    error = float(cases[0]["years"]) - float(cases[0]["truth"])
    assert float(cases[0]["error"]) == pytest.approx(error, abs=1e-3)


def test_no_counted_case_has_a_page(years, tmp_path):
    found = aged(years, 5)
    cases = [replace(case, counted=False) for case in found.cases]
    none = replace(found, cases=cases, figures=measure(years, [], []))
    write_evaluation(tmp_path, none)
    assert "0 of 5 cases are counted" in (tmp_path / "evaluation.html").read_text()


def test_a_truth_that_is_no_age(years):
    def row(text):
        return replace(ROW, values={"AGE": text})

    from hyperfusion_rt.data.table_file import Row

    ROW = Row("a", None, 7, {})
    assert read_truth(years, row("71.5")) == 71.5
    assert read_truth(years, row("")) is None
    for text, code in (("-4", "table-impossible-value"), ("old", "table-not-a-number")):
        with pytest.raises(TableError, match=r"line 7, column 'AGE'") as error:
            read_truth(years, row(text))
        assert error.value.code == code
    items = [
        Prediction(f"P{n}", None, "ok", values=(70.0 + n,), truth=text)
        for n, text in enumerate(["70", "999", "", "75", "72"])
    ]
    found = agreement(years, items)
    assert (found.predicted, found.known, found.unclear) == (5, 3, 1)
    assert found.figures["mae"] == pytest.approx((0 + 2 + 2) / 3)
    assert "mean absolute error" in found.lines[1]
    none = [replace(item, truth=None) for item in items]
    assert agreement(years, none) is None


def test_years_to_an_onset_may_be_below_0(years):
    from hyperfusion_rt.data.table_file import Row

    spec = years.table.model_copy(update={"target": "EYO"})
    onset = years.model_copy(update={"table": spec})
    assert read_truth(onset, Row("a", None, 7, {"EYO": "-12.5"})) == -12.5


def test_columns_of_sex_and_age(session_artifact, years):
    manifest = Artifact.open(session_artifact).manifest
    assert columns_of_groups(manifest.table, ["sex", "age", "PTGENDER", "AGE"]) == (
        "PTGENDER",
        "AGE",
    )
    assert columns_of_groups(manifest.table, ["id", "Sex", "age_months", "AgeAtScan"]) == (
        "Sex",
        "AgeAtScan",
    )
    assert columns_of_groups(manifest.table, ["id", "sextile", "manager"]) == (None, None)
    assert columns_of_groups(years.table, ["AGE"])[1] == "AGE"


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (48, 93, [50, 60, 70, 80, 90]),
        (-3, 1, [-3, -2, -1, 0, 1]),
        (0.001, 0.0012, [0.001, 0.00105, 0.0011, 0.00115, 0.0012]),
    ],
)
def test_ticks_are_round_numbers(low, high, ticks):
    assert Axis("x", low, high).ticks() == pytest.approx(ticks, abs=1e-9)


def test_many_points_are_thinned():
    chart = Chart("t", "a", Axis("x", 0, 1), Axis("y", 0, 1))
    chart.points([(n / 10_000, 0.5) for n in range(10_000)])
    assert len(chart.dots) <= 4000
    assert chart.note == "one of 3 is drawn, of 10,000 cases"
    same = Axis.around("x", [5.0, 5.0])
    assert same.low < 5 < same.high

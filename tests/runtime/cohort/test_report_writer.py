"""The report and its folder: what is written where, and what is never overwritten or told."""

import base64
import gzip
import importlib
import os
import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from hyperfusion_rt.data.table_file import Row
from hyperfusion_rt.data.volumes import read_volume
from hyperfusion_rt.errors import ConfigError, ScanError
from hyperfusion_rt.runtime.cohort.report import ReportWriter, check_folder, folder_of, report_of
from hyperfusion_rt.runtime.cohort.subjects import Chosen, KeptPictures, cells
from hyperfusion_rt.runtime.outputs.planes import pictures, plane_shapes, small_volume

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def made():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("report_cohort")


@pytest.fixture
def scans(made, tmp_path):
    return [made.write_scan(tmp_path / f"scan-{n}.nii.gz", n, mm=8.0) for n in range(3)]


def everything(path):
    """All that a report says, packed volumes unpacked; the viewer's own code left out."""
    text = ""
    for file in [path, *sorted(folder_of(path).glob("*"))]:
        found = file.read_text(encoding="utf-8")
        found = re.sub(r'<script type="application/gzip" id="viewer-code">[^<]*', "", found)
        for packed in re.findall(r'<script type="application/gzip" id="v\d+">([^<]*)', found):
            text += gzip.decompress(base64.b64decode(packed)).decode("latin-1")
        text += found
    return text


def test_every_table_has_a_report_of_its_own():
    tables = [
        "p.csv", "p.tsv", "p.parquet", "p.jsonl", "p.CSV", "p.tsv.csv", "p.csv.csv", "p.x.csv",
        "q.csv", "p.csv.tsv",
    ]  # fmt: skip
    reports = [report_of(Path("out") / name) for name in tables]
    assert reports[0] == Path("out/p.html")
    assert reports[1] == Path("out/p.tsv.html")
    assert len(set(reports)) == len({folder_of(path) for path in reports}) == len(tables)


def test_two_tables_in_a_folder_keep_their_reports(made, scans, tmp_path):
    found = made.made_up(4, scans, answers=False)
    for name in ("a", "b"):
        ReportWriter(tmp_path / f"{name}.html", True, 2, found.reader).write(found.result)
    before = {p: p.read_bytes() for p in tmp_path.glob("a*/*")}
    assert len(before) == 3
    ReportWriter(tmp_path / "b.html", True, 4, found.reader).write(found.result)
    assert {p: p.read_bytes() for p in tmp_path.glob("a*/*")} == before
    # All have room now: what stood in the folder is not left behind.
    assert not (tmp_path / "b_subjects").exists()


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path):
    check_folder(tmp_path / "x.html")
    folder = tmp_path / "x_subjects"
    folder.mkdir()
    check_folder(tmp_path / "x.html")
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="not by a report") as caught:
        check_folder(tmp_path / "x.html")
    assert caught.value.code == "output-wrong-name"


def test_a_run_refuses_such_a_folder_before_it_works(cohort, hfrt):
    folder = cohort / "predictions_subjects"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    status, _, err = hfrt(cohort, "infer", "scans", "--tabular", "data.csv", "--engine", "native")
    assert (status, "not by a report" in err) == (1, True)
    assert not (cohort / "predictions.csv").exists()
    assert (folder / "thesis.tex").exists()


def test_flagged_subjects_stand_first_and_failed_ones_last(made, scans, tmp_path):
    found = made.made_up(8, scans, failures=2)
    calm = [
        replace(item, values=(0.9, 0.05, 0.05), certainty=None, warnings=())
        if item.status == "ok" and n != 4
        else item
        for n, item in enumerate(found.result.predictions)
    ]
    flagged = replace(calm[4], warnings=("AGE 104 is unusual",))
    result = replace(found.result, predictions=[*calm[:4], flagged, *calm[5:]])
    path = tmp_path / "p.html"
    ReportWriter(path, True, 3, found.reader).write(result)
    text = path.read_text(encoding="utf-8")
    assert re.findall(r'<article class="subject ok" id="s(\d+)"', text) == ["5", "1", "2"]
    assert "3 of 8 subjects are here, those with flags first." in text
    pages = sorted(p.name for p in folder_of(path).glob("*.html"))
    assert pages == [f"{n:05d}.html" for n in (3, 4, 6, 7, 8)]
    assert 'href="p_subjects/00003.html"' in text
    for file in [*folder_of(path).iterdir(), path]:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder_of(path).stat().st_mode) == 0o700


def test_none_are_shown_where_none_are_asked_for_or_the_run_was_interrupted(made, scans, tmp_path):
    found = made.made_up(3, scans)
    ReportWriter(tmp_path / "a.html", True, 0, found.reader).write(found.result)
    stopped = replace(found.result, ending="interrupted")
    ReportWriter(tmp_path / "b.html", True, 3, found.reader).write(stopped)
    for name in ("a", "b"):
        assert "<article" not in (tmp_path / f"{name}.html").read_text(encoding="utf-8")


def test_a_scan_that_is_gone_or_another_says_so(made, scans, tmp_path):
    found = made.made_up(3, scans, answers=False)
    scans[0].unlink()
    os.utime(scans[1], (0, 0))
    views = list(
        found.reader.views(
            Chosen(n, item, item) for n, item in enumerate(found.result.predictions, 1)
        )
    )
    assert [view.no_planes for view in views] == [
        "No picture: the scan is not there any more since it was predicted.",
        "No picture: the scan has changed since it was predicted.",
        "",
    ]
    assert [len(view.planes) for view in views] == [0, 0, 3]
    damaged = replace(found.result.predictions[2], stamp=None)
    scans[2].write_bytes(b"damaged")
    for ids in (True, False):
        reader = replace(found.reader, ids=ids)
        (view,) = reader.views([Chosen(1, damaged, damaged)])
        assert view.no_planes.startswith("No picture: ")
        assert (str(scans[2]) in view.no_planes) == ids


def test_what_stands_in_for_a_gap_is_shown(made):
    encoder = made.manifest().members[0]
    row = made.row_of(0, made.np.random.default_rng(0), gaps=0.0)
    case = made.Case("S1", None, Path("x"), Row("S1", None, 2, {**row, "ABETA": "", "SEX": ""}))
    shown = {cell.column: cell for cell in cells((encoder,), case)}
    assert shown["AGE"].text == row["AGE"]
    assert shown["AGE"].stand_in == ""
    column = next(c for c in encoder.columns if c.name == "ABETA")
    assert shown["ABETA"].text == ""
    assert float(shown["ABETA"].stand_in) == pytest.approx(column.fill, rel=1e-3)
    assert shown["SEX"].stand_in in ("Female", "Male")
    bad = replace(case, row=Row("S1", None, 2, {**row, "SEX": "none of them"}))
    assert [c.stand_in for c in cells((encoder,), bad)] == [""] * len(encoder.columns)


def test_planes_of_raw_scans_are_kept_as_they_are_predicted(made, scans):
    shapes = plane_shapes(made.manifest().preprocessing)
    kept = KeptPictures(shapes)
    volumes = [read_volume(path) for path in scans]
    for path, volume in zip(scans, volumes, strict=True):
        kept.keep(path, volume)
    for path, volume in zip(scans, volumes, strict=True):
        assert kept.get(path) == (pictures(volume, shapes), small_volume(volume))
    assert kept.get(Path("another.nii")) == ((), b"")


@pytest.mark.slow
def test_a_report_of_raw_scans_shows_their_registration(cohort, hfrt):
    for scan in sorted((cohort / "scans").iterdir())[2:]:
        scan.unlink()
    arguments = ("infer", "scans", "--tabular", "data.csv", "--unmatched-rows", "ignore")
    status, _, err = hfrt(cohort, *arguments, "--engine", "native", "--from", "raw")
    assert status == 0, err
    text = (cohort / "predictions.html").read_text(encoding="utf-8")
    assert text.count('class="plane"') == 6
    assert text.count('class="brain"') == 3  # the outline of the template's, once a plane
    assert text.count("<h4>Registration</h4>") == 2
    assert "probability that the place is more than 2 mm off" in text
    # Of an earlier run nothing is kept, and it is not registered again.
    status, _, err = hfrt(cohort, *arguments, "--engine", "native", "--from", "raw", "--resume")
    assert status == 0, err
    text = (cohort / "predictions.html").read_text(encoding="utf-8")
    assert text.count("No picture: registered in an earlier run.") == 2


def test_a_case_that_cannot_be_explained_does_not_end_the_report(made, scans, tmp_path):
    found = made.made_up(2, scans)

    def explain(case):
        raise ScanError(f"{case.scan}: odd", code="scan-damaged")

    reader = replace(found.reader, explain=explain)
    ReportWriter(tmp_path / "p.html", True, 2, reader).write(found.result)
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert text.count("Other rows have no answers: ") == 2
    assert text.count('class="plane"') == 6


def test_a_report_may_name_nobody(made, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    scans = [made.write_scan(folder / f"sub-Zebra{n}.nii.gz", n, mm=8.0) for n in range(2)]
    found = made.made_up(6, scans, failures=2, names="Zebra{:03d}".format, ids=False)
    scans[0].unlink()
    path = tmp_path / "p.html"
    ReportWriter(path, False, 2, found.reader).write(found.result)
    said = everything(path)
    assert len(list(folder_of(path).glob("*.html"))) == 4
    assert "row 1" in said
    assert "Zebra" not in said
    assert str(tmp_path) not in said
    # A head has a face: no volume stands on such a page.
    assert '<script type="application/gzip" id="v' not in said
    ReportWriter(path, True, 2, replace(found.reader, ids=True)).write(found.result)
    assert "Zebra" in everything(path)
    assert '<script type="application/gzip" id="v' in everything(path)


def test_the_report_of_a_run_shows_its_subjects(cohort, hfrt):
    arguments = ("infer", "scans", "--tabular", "data.csv", "--engine", "native")
    status, _, err = hfrt(cohort, *arguments, "--report-subjects", 5, "--unmatched-rows", "ignore")
    assert status == 0, err
    text = (cohort / "predictions.html").read_text(encoding="utf-8")
    assert text.count("<article") == 5
    assert text.count('class="plane"') == 15
    assert len(list((cohort / "predictions_subjects").glob("*.html"))) == 3

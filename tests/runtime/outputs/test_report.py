"""The report: valid HTML that fetches nothing and runs only its own, whatever its texts say."""

import base64
import gzip
import hashlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from hyperfusion_rt.artifact.manifest import Comparison, EngineFile, Manifest, Provenance
from hyperfusion_rt.config import Box, Preprocessing, TableSpec
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.errors import CODES, HyperFusionError
from hyperfusion_rt.runtime.outputs.inference_page import inference_page
from hyperfusion_rt.runtime.outputs.report import Page, Picture, Pictures
from hyperfusion_rt.runtime.outputs.table import label, summarise
from hyperfusion_rt.runtime.outputs.viewer import SOURCE, load_viewer
from hyperfusion_rt.runtime.pipeline import Usage
from hyperfusion_rt.runtime.prediction import Certainty, Prediction, Seconds

VOID = {"meta", "img", "input"}
DRAWN = {"line", "polyline", "polygon", "rect", "circle", "path", "use"}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=\'http://example.org/x.png\' onerror="alert(1)">',
    "{{ 7 * 7 }}{% include 'page.html' %}{# gone #}",
    "</td></table></style><!-- & &amp; ' -->",
    "S1 & <b>S2",
]


class Checked(HTMLParser):
    """Parses a page and refuses what browsers would have to guess.

    `texts`: tag → the texts of such elements; `attributes`: (tag, name, value) of all; `tables`: of
    each table its rows, each a list of (tag, columns that it spans, text).
    """

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.texts, self.attributes, self.tables = [], {}, [], []
        assert text.startswith("<!doctype html>\n<html lang=")
        self.feed(text)
        self.close()
        assert self.open == []
        assert self.texts["html"] == [""]
        names = [value for _, name, value in self.attributes if name == "id"]
        assert len(names) == len(set(names))
        labels = {value for _, name, value in self.attributes if name == "aria-labelledby"}
        assert labels <= set(names)
        for table in self.tables:
            assert len({sum(columns for _, columns, _ in row) for row in table}) == 1

    def handle_starttag(self, tag, attrs):
        inside = re.fullmatch(rf'<{tag}((?: [a-zA-Z-]+="[^"<>]*")*)/?>', self.get_starttag_text())
        assert inside, self.get_starttag_text()
        assert len(dict(attrs)) == len(attrs)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td"):
            self.tables[-1][-1].append((tag, int(dict(attrs).get("colspan", 1)), ""))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open:
            assert data.isspace()
            return
        if data.strip():
            self.texts[self.open[-1]][-1] += data
            if {"th", "td"} & set(self.open):
                tag, columns, text = self.tables[-1][-1][-1]
                self.tables[-1][-1][-1] = tag, columns, text + data

    def handle_startendtag(self, tag, attrs):
        assert tag in DRAWN, f"<{tag}/>"
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_comment(self, data):
        raise AssertionError(data)

    def column(self, name, table=0):
        """The texts under a header."""
        at = [text for _, _, text in self.tables[table][0]].index(name)
        return [row[at][2] for row in self.tables[table][1:]]


def manifest(classes=("CN", "MCI", "AD"), name="base"):
    found = Comparison(
        against="torch float64", cases=4, real_cases=True, batches=(1,), largest_difference=1e-6,
        tolerance=1e-4, drift=1e-7, drift_tolerance=1e-3,
    )  # fmt: skip
    file = EngineFile(
        engine="native", part="whole", file="model.native", sha256="0" * 64, size=1,
        precision="fp32", device="cpu", comparison=found,
    )  # fmt: skip
    source = Provenance(
        created="2025-01-01T00:00:00+00:00", run="base", network={"fusion": "hyper", "features": 8},
        parameters=1234567, gflop=1.0, versions={"numpy": "2.0"}, cases={"train": 30}, metrics={},
    )  # fmt: skip
    box = Box(name="brain", center=(0.0, 0.0, 0.0))
    return Manifest(
        format_version=3, name=name, task="classification" if classes else "regression",
        classes=classes, unit="probability" if classes else "years",
        preprocessing=Preprocessing(boxes=(box,), shape=(8, 8, 8), spacing=2.0),
        table=TableSpec(features=(), target="DX" if classes else "AGE"),
        members=(TabularEncoder(columns=()),),
        combine="mean", engines=(file,), provenance=source,
    )  # fmt: skip


def rows_of(table):
    """The texts of a table's rows."""
    return [[text for _, _, text in row] for row in table]


def ok(subject, values=(0.2, 0.3, 0.5), **other):
    return Prediction(subject, None, "ok", values=values, seconds=Seconds(0.01), **other)


def written(page, path):
    page.write(path)
    text = path.read_text(encoding="utf-8")
    return text, Checked(text)


def inference(predictions, path, notes=(), **other):
    found = manifest(**other)
    machine = {"processor": "A & B <C>", "cores": "2"}
    summary = summarise(predictions, 1.0)
    return written(inference_page(found, predictions, summary, "native", machine, notes), path)


def test_an_inference_page_says_everything(tmp_path):
    failed = Prediction("S3", "M12", "error", "scans/S3.nii: truncated", code="scan-truncated")
    absent = Prediction("S2", None, "skipped", "data.csv, line 3: no scan", code="row-without-scan")
    remarked = ok("S4", spread=0.01234, warnings=("AGE 104 is unusual",))
    text, page = inference([ok("S1"), absent, failed, remarked], tmp_path / "x.html", ("a note",))
    assert page.texts["h1"] == page.texts["title"] == ["Predictions of DX"]
    assert page.texts["h2"] == [
        "Predicted classes", "Without a prediction, by code", "Cases", "What bounded the run",
        "Provenance",
    ]  # fmt: skip
    assert page.texts["b"] == ["2", "1", "1", "1", "1.0 s", "10 ms"]
    assert page.texts["li"] == ["CN", "MCI", "AD"]
    assert rows_of(page.tables[0]) == [
        ["", "predicted", ""], ["CN", "0", ""], ["MCI", "0", ""], ["AD", "2", ""],
    ]  # fmt: skip
    assert rows_of(page.tables[1]) == [
        ["code", "meaning", "cases"],
        ["scan-truncated", CODES["scan-truncated"], "1"],
        ["row-without-scan", CODES["row-without-scan"], "1"],
    ]
    assert rows_of(page.tables[2]) == [
        ["subject", "session", "status", "prediction", "probability", "CN / MCI / AD", "spread",
         "flags, reason"],
        ["S3", "M12", "error", "", "", "", "", "scans/S3.nii: truncated"],
        ["S1", "", "ok", "AD", "", "0.20 / 0.30 / 0.50", "", ""],
        ["S4", "", "ok", "AD", "", "0.20 / 0.30 / 0.50", "0.0123", "AGE 104 is unusual"],
        ["S2", "", "skipped", "", "", "", "", "data.csv, line 3: no scan"],
    ]  # fmt: skip
    assert 'title="CN 0.20, MCI 0.30, AD 0.50"' in text
    origin = {row[0][2]: row[1][2] for row in page.tables[-1]}
    assert origin["model"] == "hyper, f = 8, 1 member(s), 1,234,567 parameters"
    expected = "native, fp32; differs from torch float64 by 1.0e-06 of the outputs' scale"
    assert origin["engine"] == expected
    assert (origin["warning"], origin["processor"]) == ("a note", "A & B <C>")


def test_the_bars_have_the_colours_of_the_legend(tmp_path):
    names = tuple("ABCDEFGHIJ")
    _, page = inference([ok("S1", values=(0.1,) * 10)], tmp_path / "x.html", classes=names)
    colours = [value for tag, name, value in page.attributes if (tag, name) == ("i", "class")]
    distribution, legend, bar = colours[:10], colours[10:20], colours[20:]
    assert distribution == legend == bar == [f"k{index % 8}" for index in range(10)]
    widths = [value for tag, name, value in page.attributes if (tag, name) == ("i", "style")]
    assert widths[10:] == ["width:10.0%"] * 10
    (style,) = page.texts["style"]
    assert all(re.search(rf"\.{colour} {{ background", style) for colour in colours)


def test_ages_are_numbers(tmp_path):
    cases = [ok("S1", values=(71.234,), spread=0.5), Prediction("S2", None, "error", "empty")]
    _, page = inference(cases, tmp_path / "x.html", classes=())
    assert rows_of(page.tables[0]) == [
        ["subject", "status", "years", "spread", "flags, reason"],
        ["S2", "error", "", "", "empty"],
        ["S1", "ok", "71.23", "0.5", ""],
    ]
    assert page.texts["h2"][0] == "Predicted AGE"


def test_what_is_close_is_not_called_decided(tmp_path):
    values = [(0.34, 0.33, 0.33), (0.46, 0.44, 0.10), (0.50, 0.45, 0.05), (0.53, 0.47, 0.0)]
    cases = [ok(f"S{n}", values=p) for n, p in enumerate(values)]
    _, page = inference(cases, tmp_path / "x.html")
    assert page.column("prediction", 1) == [
        "CN, MCI or AD (close)", "CN or MCI (close)", "CN or MCI (close)", "CN",
    ]  # fmt: skip
    assert page.texts["b"][:2] == ["4", "3"]
    # The table for programs names the class with the highest probability, as ever.
    assert [label(manifest(), item) for item in cases] == ["CN"] * 4


def test_columns_without_a_cell_are_left_out(tmp_path):
    _, page = inference([ok("S1")], tmp_path / "x.html")
    assert rows_of(page.tables[1])[0] == [
        "subject", "status", "prediction", "probability", "CN / MCI / AD",
    ]  # fmt: skip
    sure = Certainty(level=0.9, classes=("MCI", "AD"))
    cases = [ok("S1", truth="AD", spread=0.1, certainty=sure)]
    _, page = inference(cases, tmp_path / "x.html")
    assert rows_of(page.tables[1]) == [
        ["subject", "status", "prediction", "probability", "CN / MCI / AD", "set at 90 %",
         "DX in the table", "spread", "flags, reason"],
        ["S1", "ok", "AD", "", "0.20 / 0.30 / 0.50", "MCI, AD", "AD", "0.1", "not one class"],
    ]  # fmt: skip


def test_the_run_is_bounded_by_its_busiest_stage(tmp_path):
    usage = Usage()
    usage.workers, usage.wall = {"prepare": 2, "engine": 1}, 10.0
    usage.busy = {"prepare": 19.0, "engine": 4.0}
    found = [ok("S1")]
    page = inference_page(manifest(), found, summarise(found, 10.0), "native", {}, usage=usage)
    _, page = written(page, tmp_path / "x.html")
    (text,) = [text for text in page.texts["p"] if "bounded" in text]
    assert text == (
        "Reading and preparing scans bounded the run: reading and preparing scans 95% busy "
        "(2 threads); the engine 40% busy (1 thread)."
    )


@pytest.mark.parametrize("hostile", HOSTILE)
def test_texts_stay_texts(tmp_path, hostile):
    cases = [
        Prediction(hostile, hostile, "error", hostile),
        ok(hostile, warnings=(hostile,)),
        Prediction(hostile, None, "skipped", hostile),
    ]
    text, page = inference(
        cases, tmp_path / "x.html", (hostile,), classes=("CN", hostile, "AD"), name=hostile
    )
    assert page.texts["p"][0].startswith(f"Model {hostile}. ")
    assert page.texts["li"] == ["CN", hostile, "AD"]
    assert page.column("subject", 1) == [hostile] * 3
    assert [row[-1][2] for row in page.tables[1][1:]] == [hostile] * 3
    assert {"CN 0.20, " + hostile + " 0.30, AD 0.50"} == {
        value for _, name, value in page.attributes if name == "title"
    }
    assert {row[0][2]: row[1][2] for row in page.tables[-1]}["warning"] == hostile
    assert_alone(text, page)


def assert_alone(text, page):
    """Nothing runs but its own scripts, whose hashes the policy names; nothing is fetched."""
    assert not {"link", "iframe", "object", "form"} & set(page.texts)
    policy = next(value for tag, name, value in page.attributes if value.startswith("default-src"))
    for script in page.texts.get("script", []):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("srcset", "action")
        assert name != "href" or value.startswith("#")
        assert name != "src" or (tag, value[:22]) == ("img", "data:image/png;base64,")
    (style,) = page.texts["style"]
    assert not re.search(r"url\(|@import|@font-face", style)
    assert policy.startswith("default-src 'none'; ")


def test_every_part_of_a_page_resists(tmp_path):
    for hostile in HOSTILE:
        page = Page(hostile)
        page.text(hostile, soft=True)
        page.heading(hostile)
        page.cards([(hostile, hostile)])
        page.table(["", hostile, "n"], [(hostile, hostile, 1234), ("b", True, 0.123456)])
        page.add(Pictures(((hostile, (Picture(hostile, b"\x89PNG"),)),)))
        text, found = written(page, tmp_path / "x.html")
        assert found.texts["p"][0] == found.texts["h2"][0] == found.texts["b"][0] == hostile
        assert [t for row in found.tables[0] for _, _, t in row] == [
            "", hostile, "n", hostile, hostile, "1,234", "b", "True", "0.1235",
        ]  # fmt: skip
        assert ("img", "alt", hostile) in found.attributes
        assert_alone(text, found)


def test_the_first_cell_names_the_row_and_numbers_stand_right(tmp_path):
    page = Page("x")
    page.table(["", "n"], [("a", 1), ("b", 2.5)])
    page.table(["", ""], [("a", "b")])
    page.table(["c", "n"], [])
    text, found = written(page, tmp_path / "x.html")
    assert [[tag for tag, _, _ in row] for row in found.tables[0]] == [["td", "th"]] + [
        ["th", "td"]
    ] * 2
    assert '<th scope="col" class="n">n</th>' in text
    assert '<th scope="row">a</th><td class="n">1</td>' in text
    assert len(found.tables[1]) == 1
    assert len(found.tables[2]) == 1


def test_more_rows_than_a_page_holds(tmp_path, monkeypatch):
    monkeypatch.setattr("hyperfusion_rt.runtime.outputs.cases.MOST", 200)
    cases = [ok(f"S{index:04}") for index in range(300)]
    cases += [Prediction(f"E{index}", None, "error", "x") for index in range(3)]
    _, page = inference(cases, tmp_path / "x.html")
    subjects = page.column("subject", 1)
    assert subjects == ["E0", "E1", "E2", *[f"S{index:04}" for index in range(197)]]
    assert "103 more are in the table of predictions." in page.texts["p"]
    assert page.texts["b"][:2] == ["300", "3"]
    _, page = inference(cases[:200], tmp_path / "x.html")
    assert len(page.column("subject", 1)) == 200
    assert "more are" not in "".join(page.texts["p"])


def test_an_empty_cohort(tmp_path):
    _, page = inference([], tmp_path / "x.html")
    assert page.texts["b"] == ["0"]
    assert page.texts["p"][-1] == "No cases."
    assert page.texts["h2"] == ["Cases", "Provenance"]
    assert "ul" not in page.texts


def test_a_page_goes_into_another(tmp_path):
    page, other = Page("outer"), Page("inner")
    page.heading("A")
    other.text("first")
    other.heading("B")
    other.text("second")
    page.append(other)
    _, found = written(page, tmp_path / "x.html")
    assert found.texts["h1"] == ["outer"]
    assert found.texts["h2"] == ["A", "inner", "B"]
    assert found.texts["p"] == ["first", "second"]


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.html"
    path.write_text("before")
    page = Page("x")
    page.sections[0].parts.append(object())
    with pytest.raises(Exception, match="template"):
        page.write(path)
    assert path.read_text() == "before"
    with pytest.raises(HyperFusionError, match="cannot be written"):
        Page("x").write(path / "below.html")
    assert [item.name for item in tmp_path.iterdir()] == ["x.html"]


def test_jinja_is_imported_only_when_a_page_is_written():
    code = (
        "import sys; import hyperfusion_rt.runtime.outputs.report, hyperfusion_rt.cli.app; "
        "sys.exit('jinja2' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_viewer_is_the_published_file():
    """What its licences say of it: the file of the npm package, unchanged."""
    folder = files("hyperfusion_rt.runtime.outputs").joinpath("templates/vendor")
    said = folder.joinpath("LICENSES.txt").read_text(encoding="utf-8")
    script = files("hyperfusion_rt.runtime.outputs").joinpath(SOURCE).read_bytes()
    assert hashlib.sha256(script).hexdigest() in said
    unpacked = gzip.decompress(base64.b64decode(load_viewer().data))
    assert unpacked == script
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    assert load_viewer().hash == f"sha256-{digest}"
    # It stands in the page as it is: nothing in it may end the element that holds it.
    assert "</script" not in said.lower()

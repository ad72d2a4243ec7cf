"""The report in headless Chromium: clicks, keys, filters, narrow, light, dark, no WebGL, axe.

Skipped aloud where there is no Chromium, or playwright is not installed.
"""

import importlib
import shutil
from pathlib import Path

import pytest

from hyperfusion_rt.runtime.cohort.report import ReportWriter

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
HOSTILE = "</script><img src=x onerror=\"document.title='ran'\">"


@pytest.fixture(scope="module")
def made():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("report_cohort")


@pytest.fixture(scope="module")
def report(made, tmp_path_factory):
    """130 cases, 6 of them on the page one by one, the first with a hostile name."""
    folder = tmp_path_factory.mktemp("report")
    scans = [made.write_scan(folder / f"scan-{n}.nii.gz", n) for n in range(3)]
    found = made.made_up(130, scans, failures=4, names=lambda n: HOSTILE if n == 1 else f"S{n:05d}")
    path = folder / "out" / "predictions.html"
    ReportWriter(path, True, 6, found.reader).write(found.result)
    return path


@pytest.fixture(scope="module")
def small(made, tmp_path_factory):
    """A dozen cases, all on the page: axe looks at every element."""
    folder = tmp_path_factory.mktemp("small")
    scans = [made.write_scan(folder / "scan.nii.gz", 0)]
    found = made.made_up(12, scans, failures=1)
    ReportWriter(folder / "predictions.html", True, 12, found.reader).write(found.result)
    return folder / "predictions.html"


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("there is no chromium here: the report was not looked at in a browser")
    with api.sync_playwright() as started:
        found = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def look(browser, report):
    """Open the report: `look(hash, **context) -> page`. What goes wrong there fails the test."""
    pages, wrong = [], []

    def opened(address="", path=report, **context):
        page = browser.new_context(**context).new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:"))
                else wrong.append(r.url))  # fmt: skip
        page.goto(f"{path.as_uri()}{address}")
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.context.close()
    assert wrong == []


def becomes(page, ask, expected):
    """Pages do not answer a key at once: what `ask` says is `expected` before long."""
    for _ in range(200):
        if (found := ask()) == expected:
            return
        page.wait_for_timeout(50)
    assert found == expected


def focus_becomes(page, attribute, expected):
    becomes(page, lambda: page.evaluate(f"document.activeElement.{attribute}"), expected)


def shown(page):
    """The subjects of the rows that are visible, in their order."""
    return page.locator("table.cases tbody th:visible").all_inner_texts()


def test_it_searches_filters_and_sorts_by_keyboard_alone(look):
    page = look()
    keys = page.keyboard
    count = page.locator(".cases-tools .count")
    becomes(page, count.inner_text, "100 of 130 shown")
    page.locator(".cases-tools .words").focus()
    keys.type("s00012")
    becomes(page, lambda: shown(page), ["S00012"])
    becomes(page, count.inner_text, "1 of 1 shown, of 130 cases")
    keys.press("Escape")
    becomes(page, count.inner_text, "100 of 130 shown")
    keys.press("Tab")
    focus_becomes(page, "dataset.of", "status")
    keys.type("error")
    becomes(page, lambda: shown(page), [f"S{n:05d}" for n in range(126, 130)])
    keys.press("Home")
    for _ in range(10):  # on to the head of the table
        keys.press("Tab")
        if page.evaluate("document.activeElement.closest('th')?.dataset.by") == "subject":
            break
    keys.press("Enter")
    head = page.locator("th[data-by=subject]")
    becomes(page, lambda: head.get_attribute("aria-sort"), "ascending")
    keys.press("Space")
    becomes(page, lambda: head.get_attribute("aria-sort"), "descending")
    becomes(page, lambda: shown(page)[0], "S00129")
    # Into the table, down, into a subject, to the next, and back.
    page.locator("table.cases tbody th a:visible").first.focus()
    keys.press("End")
    keys.press("ArrowUp")
    becomes(page, lambda: page.evaluate("document.activeElement.textContent")[:2], "S0")
    page.locator(".words").fill("warning s00003")
    page.locator(".words").fill("s00003")
    page.locator("table.cases tbody th a:visible").first.focus()
    keys.press("Enter")
    becomes(page, page.locator(".subject:visible h3").inner_text, "S00003")
    focus_becomes(page, "id", "s4")
    keys.press("Escape")
    focus_becomes(page, "textContent", "S00003")


def test_sorting_by_a_number_and_filtering_by_a_flag(look):
    page = look()
    page.locator(".by").select_option("spread")
    values = page.locator("td[data-key=spread]:visible").all_inner_texts()
    numbers = [float(value) for value in values]
    assert numbers == sorted(numbers)
    page.locator(".way").click()
    values = page.locator("td[data-key=spread]:visible").all_inner_texts()
    assert [float(v) for v in values] == sorted(map(float, values), reverse=True)
    page.locator(".filter[data-of=flag]").select_option("close")
    texts = page.locator("td[data-key=answer]:visible").all_inner_texts()
    assert texts
    assert all("(close)" in text for text in texts)
    page.locator(".filter[data-of=flag]").select_option("")
    page.locator("a[data-filter-code='scan-truncated']").click()
    statuses = page.locator("td[data-key=status]:visible").all_inner_texts()
    assert set(statuses) == {"error"}
    page.locator(".filter[data-of=code]").select_option("")
    page.locator(".more").click()
    becomes(page, lambda: len(shown(page)), 130)
    assert page.locator(".more").is_hidden()


def test_a_subject_shows_everything(look):
    page = look("#s4")
    subject = page.locator("#s4")
    assert subject.is_visible()
    assert page.locator(".subject:visible").count() == 1
    planes = subject.locator(".plane")
    assert planes.count() == 3
    assert subject.locator(".plane img").first.evaluate("image => image.naturalWidth") == 112
    titles = subject.locator(".planes figcaption").all_inner_texts()
    assert titles == ["axial, z = -14.5 mm", "coronal, y = -20.5 mm", "sagittal, x = -26.5 mm"]
    assert page.locator("symbol#plane-0 text").all_text_contents() == ["L", "R"]
    assert page.locator("symbol#plane-0 rect").count() == 2
    overlay = subject.locator("img.map").first
    becomes(page, lambda: overlay.evaluate("image => getComputedStyle(image).opacity"), "0.6")
    slider = subject.locator(".strength input")
    slider.focus()
    page.keyboard.press("Home")
    becomes(page, lambda: overlay.evaluate("image => getComputedStyle(image).opacity"), "0")
    assert subject.locator(".cells .gap").count() == 1  # of this row; it says so
    assert "imputed" in subject.locator(".cells .gap").inner_text()
    assert subject.locator(".charts svg").count() == 4
    assert subject.locator(".reasons tbody tr").count() == 8
    assert "set at 90 %" in subject.locator(".answer").inner_text()
    assert subject.locator(".chances tbody tr").count() == 3
    # To the next by key and by click; all others are on pages of their own.
    before = page.url
    subject.focus()
    page.keyboard.press("ArrowLeft")
    becomes(page, lambda: page.url != before, True)
    page.locator(".subject:visible .steps .after").click()
    becomes(page, lambda: page.url, before)


def test_a_subject_beyond_has_a_page_of_its_own(look, report):
    page = look()
    page.locator(".words").fill("S00090")
    page.locator("table.cases tbody th a:visible").click()
    page.wait_for_load_state()
    becomes(page, lambda: page.url.endswith("/predictions_subjects/00091.html"), True)
    becomes(page, page.locator("h3").inner_text, "S00090")
    assert page.locator(".plane").count() == 3
    page.locator(".back").click()
    page.wait_for_load_state()
    becomes(page, lambda: page.url.endswith("/predictions.html#row-91"), True)


def test_a_hostile_name_stays_a_name(look, report):
    page = look()
    page.locator(".words").fill("onerror")
    becomes(page, lambda: shown(page), [HOSTILE])
    page.locator("table.cases tbody th a:visible").click()
    page.wait_for_load_state()
    assert page.title() != "ran"
    becomes(page, page.locator(".subject:visible h3").inner_text, HOSTILE)


def test_a_script_that_is_not_ours_does_not_run(browser, report, tmp_path):
    text = report.read_text(encoding="utf-8")
    bad = (
        "<script>document.title = 'ran'</script><img src=x onerror=\"document.title='ran'\"></main>"
    )
    (tmp_path / "x.html").write_text(text.replace("</main>", bad), encoding="utf-8")
    page = browser.new_page()
    page.goto((tmp_path / "x.html").as_uri())
    page.wait_for_timeout(300)
    assert page.title() == "Predictions of DX"
    page.close()


def test_narrow_it_has_cards_and_nothing_to_scroll_sideways(look):
    for scheme in ("light", "dark"):
        page = look(viewport={"width": 390, "height": 800}, color_scheme=scheme)
        row = page.locator("table.cases tbody tr").first
        assert row.evaluate("row => getComputedStyle(row).display") == "grid"
        for address in ("", "#s4"):
            page.evaluate("hash => { location.hash = hash }", address)
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 390
        assert page.locator(".cases-tools .words").bounding_box()["height"] >= 40


def test_without_a_script_the_table_stands_whole(look):
    page = look("#s4", java_script_enabled=False)
    assert page.locator("table.cases tbody tr:visible").count() == 130
    assert not page.locator(".cases-tools").is_visible()
    assert page.locator("#s4").is_visible()
    assert not page.locator("#s4 .look").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_reader(look, scheme):
    page = look("#s4", color_scheme=scheme)
    ink, back, axis = page.evaluate("""() => [
        getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor,
        getComputedStyle(document.querySelector("#s4 .charts .axis")).fill]""")

    def bright(colour):
        return sum(map(int, colour[4:-1].split(",")))

    assert ink == axis
    assert (bright(ink) > bright(back)) == (scheme == "dark")


def axe(page):
    """What axe-core finds that is serious or critical."""
    package = pytest.importorskip("axe_playwright_python", reason="axe is not installed")
    source = (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    page.evaluate(source)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        (item["id"], item["impact"], [node["target"] for node in item["nodes"]][:3])
        for item in found["violations"]
        if item["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390)])
def test_axe_finds_nothing_serious(look, small, scheme, width):
    page = look("#s4", small, color_scheme=scheme, viewport={"width": width, "height": 900})
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert axe(page) == []


def test_the_scan_in_3d(look, small):
    page = look("#s4", small)
    page.locator("#s4 .look").click()
    page.locator("#viewer[data-ready]").wait_for()
    becomes(page, page.locator("#viewer h3").inner_text, "S00003 in 3D")
    drawn = page.evaluate("""() => new Promise(done => requestAnimationFrame(() => {
        const canvas = document.querySelector("#viewer canvas");
        const gl = canvas.getContext("webgl2");
        done([gl.isContextLost(), canvas.width > 100]);
    }))""")
    assert drawn == [False, True]
    assert axe(page) == []
    page.keyboard.press("Escape")
    page.locator("#viewer").wait_for(state="hidden")
    focus_becomes(page, "className", "look")


def test_without_webgl_a_sentence_says_so(look):
    page = look("#s4")
    page.evaluate("HTMLCanvasElement.prototype.getContext = () => null")
    page.locator("#s4 .look").click()
    assert "no WebGL2" in page.locator("#s4 .no-3d").inner_text()
    assert page.locator("#s4 .plane").first.is_visible()
    assert not page.locator("#viewer").is_visible()

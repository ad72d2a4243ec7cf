"""The report of many subjects: how large it is, how long it takes to write and to open.

    python benchmarks/report.py    # writes benchmarks/report.md and .json
    python benchmarks/report.py --artifact ad.hfrt --cohort new/    # and with real answers

Simulated scans of 2 mm, made-up predictions with what-if curves, Shapley values and maps of the
usual size. The page is opened in headless Chromium from a file: until its content stands
(DOMContentLoaded), until it is loaded, and until a search is answered, each the median of several
openings.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).parent))
from report_cohort import made_up

from hyperfusion_rt.machine import describe_machine, usable_cores
from hyperfusion_rt.runtime.cohort.report import ReportWriter, folder_of

HERE = Path(__file__).parent
OPENINGS = 5
ROUNDS = 3
LIMIT_MB, LIMIT_SECONDS = 60.0, 3.0  # of 500 subjects


def write_report(path: Path, scans: list[Path], subjects: int, inside: int) -> dict[str, Any]:
    """Write the report of `subjects`, `inside` of them in the file; seconds and sizes."""
    found = made_up(subjects, scans, failures=subjects // 100, threads=usable_cores())
    wall, cpu = time.perf_counter(), time.process_time()
    ReportWriter(path, True, inside, found.reader).write(found.result)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    pages = list(folder_of(path).glob("*.html"))
    return {
        "subjects": subjects,
        "in_the_file": min(inside, subjects),
        "file_mb": path.stat().st_size / 1e6,
        "pages": len(pages),
        "folder_mb": sum(page.stat().st_size for page in pages) / 1e6,
        "write_seconds": wall,
        "write_cpu_seconds": cpu,
    }


def infer(artifact: Path, cohort: Path, scratch: Path, program: str) -> list[dict[str, Any]]:
    """`hfrt infer` of the first 500 subjects of a simulated cohort: with and without the report's
    questions, in turn; seconds of the whole command, and its page opened."""
    scans = scratch / "scans"
    scans.mkdir()
    files = sorted((cohort / "scans").iterdir())[:500]
    for file in files:
        (scans / file.name).symlink_to(file.resolve())
    subject = files[12].name.split(".")[0]
    found = []
    for explain in ("none", "table"):
        seconds = []
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "hyperfusion_rt.cli", "infer", "scans", "--tabular",
                 cohort.resolve() / "data.csv", "--artifact", artifact.resolve(), "--engine",
                 "native", "--explain", explain, "--out", f"{explain}.csv", "--force",
                 "--unmatched-rows", "ignore"],
                cwd=scratch, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            seconds.append(time.perf_counter() - begun)
        page = scratch / f"{explain}.html"
        opened = open_report(page, program, subject, 13)
        size = page.stat().st_size / 1e6
        found.append(
            {"explain": explain, "subjects": len(files), "seconds": statistics.median(seconds)}
            | {"file_mb": size}
            | opened
        )
    return found


def open_report(path: Path, program: str, subject: str, row: int) -> dict[str, Any]:
    """Seconds from the navigation until it stands, is loaded, and answers a search."""
    from playwright.sync_api import sync_playwright

    seconds: dict[str, list[float]] = {"content": [], "loaded": [], "answered": [], "search": []}
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        version = browser.version
        for _ in range(OPENINGS):
            page = browser.new_context().new_page()
            page.set_default_timeout(120_000)
            begun = time.perf_counter()
            page.goto(path.as_uri(), wait_until="commit")
            page.locator(".cases.ready").wait_for()
            asked = time.perf_counter()
            page.locator(".words").fill(subject.lower())
            page.locator(f"#row-{row}:visible").wait_for()
            seconds["answered"].append(time.perf_counter() - begun)
            seconds["search"].append(time.perf_counter() - asked)
            page.wait_for_load_state("load")
            timing = page.evaluate("performance.getEntriesByType('navigation')[0].toJSON()")
            seconds["content"].append(timing["domContentLoadedEventEnd"] / 1e3)
            seconds["loaded"].append(timing["loadEventEnd"] / 1e3)
            page.context.close()
        browser.close()
    return {"chromium": version} | {name: statistics.median(v) for name, v in seconds.items()}


def write(found: list[dict[str, Any]], real: list[dict[str, Any]]) -> str:
    """The page, and the figures as JSON."""
    machine = describe_machine()
    lines = [
        "# The report of many subjects",
        "",
        "Written by `python benchmarks/report.py`. Simulated scans of 2 mm, made-up answers: "
        "planes, a map, four what-if curves and Shapley values each. Headless Chromium "
        f"{found[0]['chromium']}, from a file; medians of {OPENINGS} openings. `answered`: from "
        "the navigation until a search has its answer.",
        "",
        f"Machine: {'; '.join(f'{key} {v}' for key, v in machine.items())}.",
        "",
        "| subjects | in the file | file | folder | to write (CPU) | content stands | loaded | "
        "answered | one search |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for f in found:
        cells = [
            f"{f['subjects']:,}",
            f"{f['in_the_file']:,}",
            f"{f['file_mb']:.1f} MB",
            f"{f['pages']:,} pages, {f['folder_mb']:.0f} MB",
            f"{f['write_seconds']:.0f} s ({f['write_cpu_seconds']:.0f} s)",
            *(f"{f[name]:.2f} s" for name in ("content", "loaded", "answered", "search")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"The bounds for 500 subjects: under {LIMIT_MB:.0f} MB, open in under {LIMIT_SECONDS:.0f} "
        "s. The script ends with an error beyond them.",
    ]
    if real:
        lines += [
            "",
            f"`hfrt infer` of {real[0]['subjects']} simulated subjects, with a network of the "
            "preset ad-small and its real answers: curves over every column and exact Shapley "
            f"values of each, or neither. The whole command, start to exit, median of {ROUNDS}:",
            "",
            "| asked of each subject | whole command | file | loaded | answered | one search |",
            "|---|---|---|---|---|---|",
        ]
        for f in real:
            asked = "curves, Shapley values" if f["explain"] == "table" else "nothing"
            times = (f"{f[name]:.2f} s" for name in ("loaded", "answered", "search"))
            cells = [asked, f"{f['seconds']:.1f} s", f"{f['file_mb']:.1f} MB", *times]
            lines.append(f"| {' | '.join(cells)} |")
    content = {"machine": machine, "reports": found, "real": real}
    (HERE / "report.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    text = "\n".join(lines) + "\n"
    (HERE / "report.md").write_text(text, encoding="utf-8")
    return text


def main(
    many: Annotated[int, typer.Option(help="Subjects of the large report.")] = 10_000,
    scans: Annotated[
        Path | None, typer.Option(help="Scans to show, registered; default: simulated, 2 mm.")
    ] = None,
    artifact: Annotated[
        Path | None, typer.Option(help="Of the preset ad-small: `hfrt infer` is measured, too.")
    ] = None,
    cohort: Annotated[
        Path | None, typer.Option(help="With artifact: 500 simulated subjects or more.")
    ] = None,
) -> None:
    """Write both reports, open them, and write the page."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        raise SystemExit("there is no chromium: nothing can be opened")
    found: list[dict[str, Any]] = []
    real: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if scans is None:
            from hyperfusion_rt.data.simulate import simulate_cohort

            simulate_cohort(folder / "cohort", task="ad", subjects=40, seed=1, spacing=2)
            scans = folder / "cohort" / "scans"
        files = sorted(scans.glob("*.nii.gz"))
        for subjects in (500, many):
            path = folder / f"predictions-{subjects}.html"
            item = write_report(path, files, subjects, 500)
            found.append(item | open_report(path, program, "s00012", 13))
            print(write(found, real))
        if artifact is not None and cohort is not None:
            real += infer(artifact, cohort, folder, program)
            print(write(found, real))
    first = found[0]
    if first["file_mb"] > LIMIT_MB or max(first["loaded"], first["answered"]) > LIMIT_SECONDS:
        raise SystemExit("500 subjects: too large, or too slow to open")


if __name__ == "__main__":
    typer.run(main)

"""How fast is an engine beside its peers, at the published sizes?

    python benchmarks/engines.py             # writes engines.md and .json, and a PNG per network
    python benchmarks/engines.py --redraw    # the PNGs alone, from the .json

Random weights (time does not depend on them). Every contender is compared with float64 before it
is timed; all get the same threads and take turns; the figures are medians. The time of one scan
from its file is measured on simulated 1 mm volumes.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import typer

from hyperfusion_rt.bench.chart import chart
from hyperfusion_rt.bench.measure import bench, random_run
from hyperfusion_rt.bench.options import BenchOptions
from hyperfusion_rt.bench.race import end_to_end
from hyperfusion_rt.bench.result import Benchmark
from hyperfusion_rt.data.cohort import Case
from hyperfusion_rt.data.simulate import simulate_cohort
from hyperfusion_rt.data.table_file import Row
from hyperfusion_rt.export import export_run
from hyperfusion_rt.runtime.options import PredictOptions
from hyperfusion_rt.runtime.predictor import Predictor

HERE = Path(__file__).parent
NETWORKS = (("ad", 16), ("ad", 4), ("brain-age", 16))


def from_file(
    preset: str, features: int, scans: list[Path], threads: int | None
) -> dict[str, float]:
    """Median ms of one 1 mm scan, from the file to the prediction."""
    with tempfile.TemporaryDirectory() as scratch:
        run = random_run(preset, features, Path(scratch))
        artifact = export_run(run, Path(scratch) / "bench.hfrt")
        predictor = Predictor(artifact, PredictOptions(threads=threads))
        names = predictor.manifest.members[0].names
        row = Row("any", None, 2, dict.fromkeys(names, "0.5"))
        return end_to_end(predictor, [Case("any", None, scan, row) for scan in scans])


def table(report: Benchmark) -> str:
    """One network's table in Markdown."""
    lines = [
        f"### {report.network}: {report.gflop_per_box:.2f} GFLOP per box",
        "",
        "| contender | type | batch | median ms | IQR ms | ms per box | GFLOP/s | off float64 by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for t in report.timings:
        lines.append(
            f"| {t.contender} | {t.precision} | {t.batch} | {t.median_ms:.2f} | {t.spread_ms:.2f} "
            f"| {t.ms_per_box:.2f} | {t.gflops:.0f} | {t.difference:.0e}"
            f"{'' if t.correct else ' **wrong**'} |"
        )
    for name, reason in report.left_out.items():
        lines.append(f"\nLeft out: {name}: {reason}")
    if report.end_to_end:
        parts = ", ".join(f"{k} {v:.1f}" for k, v in report.end_to_end.items() if k != "scans")
        lines.append(
            f"\nOne 1 mm scan from its file, all its boxes, ms (median of "
            f"{report.end_to_end['scans']:.0f}): {parts}."
        )
    lines.append(
        f"\nLimits in this run: {report.limit_gflops:.0f} GFLOP/s (float32 multiply-adds in "
        f"registers), {report.limit_gbs:.0f} GB/s (copy, read and write)."
    )
    return "\n".join(lines)


def picture(preset: str, features: int) -> Path:
    """The chart of a network."""
    return HERE / f"engines-{preset}-f{features}.png"


def redrawn() -> None:
    """Draw the charts of the last measurement again."""
    reports = json.loads((HERE / "engines.json").read_text(encoding="utf-8"))
    for network, report in zip(NETWORKS, reports, strict=True):
        chart(Benchmark.from_dict(report), picture(*network))


def main(
    rounds: int = 9, threads: int | None = None, scans: int = 10, redraw: bool = False
) -> None:
    """Measure every network and write the tables; with --redraw, draw the last ones again."""
    if redraw:
        redrawn()
        return
    reports: list[Benchmark] = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        simulate_cohort(root / "cohort", task="ad", subjects=scans, seed=1, spacing=1)
        files = sorted((root / "cohort" / "scans").iterdir())
        for preset, features in NETWORKS:
            name = f"engines-{preset}-f{features}"
            report = bench(
                BenchOptions(
                    preset_name=preset,
                    features=features,
                    batches=(1, 8),
                    threads=threads,
                    rounds=rounds,
                    out=root / name,
                ),
                print,
            )
            report.end_to_end = from_file(preset, features, files, threads)
            chart(report, picture(preset, features))
            reports.append(report)
    machine = "; ".join(f"{k} {v}" for k, v in reports[0].machine.items())
    header = (
        "# Engines\n\nWritten by `python benchmarks/engines.py`. Medians of "
        f"{rounds}, contenders in turn, {reports[0].threads} threads each, checked against float64 "
        f"before timing.\n\nMachine: {machine}.\n"
    )
    (HERE / "engines.md").write_text(
        header + "\n" + "\n\n".join(table(report) for report in reports) + "\n", encoding="utf-8"
    )
    content = [report.as_dict() for report in reports]
    (HERE / "engines.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

"""The chart of a benchmark."""

from __future__ import annotations

from pathlib import Path

from hyperfusion_rt.bench.result import Benchmark
from hyperfusion_rt.files import replacing


def chart(found: Benchmark, path: Path) -> None:
    """A bar chart of ms per box, one panel per batch size, as PNG."""
    from matplotlib.figure import Figure

    batches = sorted({timing.batch for timing in found.timings})
    figure = Figure(figsize=(5.2 * len(batches), 3.6), layout="constrained")
    panels = figure.subplots(1, len(batches), squeeze=False)[0]
    floor = 1e3 * found.gflop_per_box / found.limit_gflops
    for axes, batch in zip(panels, batches, strict=True):
        rows = [timing for timing in found.timings if timing.batch == batch][::-1]
        ours = [row.contender.startswith("hfrt") for row in rows]
        bars = axes.barh(
            [row.contender for row in rows],
            [row.ms_per_box for row in rows],
            xerr=[row.spread_ms / batch / 2 for row in rows],
            color=["C0" if own else "0.7" for own in ours],
        )
        axes.bar_label(bars, [f" {row.ms_per_box:.1f}" for row in rows], fontsize=8, padding=4)
        axes.axvline(floor, color="C3", lw=1, ls=":")
        axes.set_title(f"batch {batch}", fontsize=10)
        axes.set_xlabel("ms per box (dotted: fp32 operations at the machine's limit)", fontsize=8)
        axes.margins(x=0.15)
    figure.suptitle(
        f"{found.network}; {found.threads} threads; {found.machine['processor']}", fontsize=10
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)

"""The chart of a benchmark."""

from __future__ import annotations

from pathlib import Path

from hyperfusion_rt.bench.result import Benchmark, Timing
from hyperfusion_rt.files import replacing


def reach(timing: Timing) -> tuple[float, float]:
    """How far the quartiles lie below and above the median, in ms per box; never below 0 ms.

    Of results of older versions, which know the distance of the quartiles alone, half of it each.
    """
    half = timing.spread_ms / 2
    low = timing.median_ms - half if timing.low_ms is None else timing.low_ms
    high = timing.median_ms + half if timing.high_ms is None else timing.high_ms
    below, above = timing.median_ms - max(low, 0.0), high - timing.median_ms
    # Of few times, the quartiles are interpolated: the median may lie at one of them.
    return max(below, 0.0) / timing.batch, max(above, 0.0) / timing.batch


def chart(found: Benchmark, path: Path) -> None:
    """A bar chart of ms per box with quartiles, one panel per batch size, as PNG."""
    from matplotlib.figure import Figure

    batches = sorted({timing.batch for timing in found.timings})
    figure = Figure(figsize=(5.2 * len(batches), 3.6), layout="constrained")
    panels = figure.subplots(1, len(batches), squeeze=False)[0]
    floor = 1e3 * found.gflop_per_box / found.limit_gflops
    for axes, batch in zip(panels, batches, strict=True):
        rows = [timing for timing in found.timings if timing.batch == batch][::-1]
        ours = [row.contender.startswith("hfrt") for row in rows]
        below, above = zip(*map(reach, rows), strict=True)
        axes.axvline(floor, color="C3", lw=1, ls=":", zorder=0.5)
        bars = axes.barh(
            [row.contender for row in rows],
            [row.ms_per_box for row in rows],
            xerr=[below, above],
            color=["C0" if own else "0.7" for own in ours],
            error_kw={"lw": 1, "capsize": 2},
        )
        axes.bar_label(
            bars,
            [f"{row.ms_per_box:.1f}" for row in rows],
            fontsize=8,
            padding=4,
            # The dotted line does not run through a number.
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
        axes.set_title(f"batch {batch}", fontsize=10)
        axes.set_xlabel(
            "ms per box, median and quartiles\n(dotted: fp32 operations at the machine's limit)",
            fontsize=8,
        )
        axes.margins(x=0.15)
        axes.set_xlim(left=0)
    figure.suptitle(
        f"{found.network}; {found.threads} threads; {found.machine['processor']}", fontsize=10
    )
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)

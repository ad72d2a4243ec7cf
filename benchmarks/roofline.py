"""The roofline of `native.py`: every layer of both engines, beside the machine's limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]


def chart(rows: list[Row], limit: float, copy: float, path: Path) -> None:
    """The roofline: every layer of both engines, direct-equivalent GFLOP/s over FLOP per byte."""
    from matplotlib.figure import Figure

    networks = list(dict.fromkeys(row["network"] for row in rows))
    figure = Figure(figsize=(5 * len(networks), 4.4), layout="constrained")
    panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    for axes, network in zip(panels, networks, strict=True):
        mine = [row for row in rows if row["network"] == network]
        intensity = np.array([1e3 * row["gflop"] / row["mb"] for row in mine])
        x = np.geomspace(min(2, intensity.min() / 2), intensity.max() * 2, 100)
        axes.plot(x, np.minimum(limit, x * copy), color="0.4", lw=1)
        axes.axhline(limit, color="0.4", lw=0.5, ls=":")
        axes.annotate("multiply-adds in registers", (x[0], limit), va="bottom", fontsize=7,
                      color="0.4")  # fmt: skip
        for key, label, mark, colour in (
            ("ms", "native fp32", "o", "C0"),
            ("openvino_ms", "OpenVINO f32", "x", "C1"),
        ):
            times = [row[key] for row in mine]
            rates = [1e3 * row["gflop"] / t for row, t in zip(mine, times, strict=True)]
            axes.scatter(intensity, rates, marker=mark, color=colour, label=label, s=26)
        axes.set(xscale="log", yscale="log", title=network, xlabel="FLOP per byte of the layer")
        axes.legend(fontsize=7, loc="lower right")
    panels[0].set_ylabel("GFLOP/s of the direct algorithm")
    figure.draw_without_rendering()  # so that points have their place on the page
    for axes, network in zip(panels, networks, strict=True):
        label_points(axes, [row for row in rows if row["network"] == network])
    figure.savefig(path, dpi=120)


def label_points(axes: Any, rows: list[Row]) -> None:
    """Name the layers beside their points; no name lies on another, on a point or on the legend."""
    from matplotlib.transforms import Bbox

    scale = axes.figure.dpi / 72  # pixels of a point of print
    taken = [axes.get_legend().get_window_extent()]
    places = {}
    for row in rows:
        x = 1e3 * row["gflop"] / row["mb"]
        for key in ("ms", "openvino_ms"):
            at = axes.transData.transform((x, 1e3 * row["gflop"] / row[key]))
            taken.append(Bbox.from_extents(*(at - 3 * scale), *(at + 3 * scale)))
            if key == "ms":
                places[row["layer"]] = at
    # Nearest first: right, left, above, below, and ever farther.
    ways = [
        (side, 8.0 * step)
        for step in (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5)
        for side in ("left", "right")
    ]

    def write(name: str, at: Any, side: str, up: float) -> Any:
        line = {"arrowstyle": "-", "lw": 0.4, "color": "0.5"} if abs(up) > 8 else None
        return axes.annotate(
            name.replace(".layer", ""), axes.transData.inverted().transform(at),
            (5.0 if side == "left" else -5.0, up), textcoords="offset points", fontsize=6,
            ha=side, va="center", arrowprops=line,
        )  # fmt: skip

    for name, at in sorted(places.items(), key=lambda item: -item[1][1]):
        for side, up in ways:
            text = write(name, at, side, up)
            box = text.get_window_extent()
            mine = Bbox.from_extents(box.x0 - 1, box.y0, box.x1 + 1, box.y1)
            if axes.bbox.x0 < mine.x0 and mine.x1 < axes.bbox.x1 and not mine.count_overlaps(taken):
                taken.append(mine)
                break
            text.remove()
        else:  # no place is free: the nearest
            write(name, at, *ways[0])

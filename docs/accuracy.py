"""Draws `assets/accuracy.png` from `benchmarks/results`: the networks beside HyperFusion."""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

_HERE = Path(__file__).parent
_RESULTS = _HERE.parent / "benchmarks" / "results"
_NAMES = {"hyper": "HyperFusion", "daft": "DAFT", "film": "FiLM", "concat": "concatenation"}
_COLOURS = dict(zip(_NAMES, ("#1f5fbf", "#c2571a", "#2f8f5b", "#777777"), strict=True))


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((_RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _differences(axes: Axes) -> None:
    """HyperFusion minus each rival on both models, with 95 % intervals."""
    rows = []
    for file, model in (("accuracy-ad", "additive"), ("accuracy-ad-place", "place")):
        pairs = _read(file)["pairs"]
        rows += [(f"{_NAMES[n]}, {model}", n, pairs[n]) for n in _NAMES if n in pairs]
    for place, (_, name, pair) in enumerate(rows):
        axes.plot([100 * x for x in pair["95"]], [place] * 2, color=_COLOURS[name], lw=2)
        axes.plot(100 * pair["difference"], place, "o", color=_COLOURS[name])
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks(range(len(rows)), [text for text, _, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("points of balanced accuracy")
    axes.set_title("HyperFusion minus")


def _curve(axes: Axes) -> None:
    """Balanced accuracy by the number of subjects to train with."""
    found = _read("curve-ad")
    sizes = list(found["sizes"])
    for step, name in enumerate(_NAMES):
        ones = [found["sizes"][size][name] for size in sizes]
        # Side by side, so that the intervals can be told apart.
        at = [int(size) * (1 + 0.04 * (step - 1.5)) for size in sizes]
        means = [one["mean"] for one in ones]
        beyond = [[abs(one["95"][side] - one["mean"]) for one in ones] for side in (0, 1)]
        axes.errorbar(at, means, beyond, label=_NAMES[name], color=_COLOURS[name], capsize=2)
    axes.axhline(found["optimum"]["both"], color="black", ls="--", lw=0.8, label="optimum")
    axes.set_xscale("log")
    axes.set_xticks([int(size) for size in sizes], sizes)
    axes.minorticks_off()
    axes.set_xlabel("subjects to train with")
    axes.set_title("balanced accuracy, additive")
    axes.legend(loc="lower right")


def main() -> None:
    """Write the picture."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    _differences(left)
    _curve(right)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    path = _HERE / "assets" / "accuracy.png"
    figure.savefig(path, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main()

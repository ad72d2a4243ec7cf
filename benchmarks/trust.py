"""Does registration know when it is wrong? Real heads, spoilt at random, where the pose is known.

    python benchmarks/trust.py      # writes benchmarks/trust.md, .json and trust.png; 6 minutes

The six heads of `heads.py` (whose truths it uses) are spoilt by one to three of: a turn, a field,
noise, a crop, thick slices, other voxel sizes, another contrast, a lesion of 10 to 40 mm, a shift.
A registration is wrong where it lies more than 2 mm from the truth, mean over the brain. `doubt`
is a logistic function of the logarithms of `disagreement`, `misfit` and `inside`. Its coefficients
are round numbers, chosen on the first three heads; a regression with an L2 penalty on these stands
beside. The figures of the other three are of a seed that nobody had looked at.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import numpy as np
import typer
from heads import BUILD, HEADS, ants, truth_of
from scan_collection import fetch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from spoil import spoilt_at_random

from hyperfusion_rt.data.raw.image import read_raw
from hyperfusion_rt.data.raw.judge import DOUBT, Thresholds, distance, doubt, evidence
from hyperfusion_rt.data.raw.register import locate
from hyperfusion_rt.data.raw.template import load_template
from hyperfusion_rt.machine import describe_machine

HERE = Path(__file__).parent
WRONG_MM = 2.0
CHOSEN_ON = ("Colin27", "avg152, blurred average", "2009a extended, average brain")
FLAG, REFUSE = 0.1, 0.5
# Doubt is looked at alone: no scan is refused for its contrast.
ANY_CONTRAST = Thresholds(
    refuse_residual=np.inf, refuse_csf=(-np.inf, np.inf), refuse_grey=(-np.inf, np.inf)
)
SEEDS = (11, 13)  # of the scans that the coefficients were chosen on, and of the others


def scans(
    names: list[str], count: int, seed: int, volumes: dict[str, Path]
) -> list[dict[str, Any]]:
    """`count` spoilt scans of the heads in turn."""
    rng, template, found = np.random.default_rng(seed), load_template(), []
    python = ants(BUILD / "ants")
    heads = {
        name: (read_raw(volumes[HEADS[name][0]]), truth_of(name, volumes, python)) for name in names
    }
    for number in range(count):
        name = names[number % len(names)]
        scan, pose, how = spoilt_at_random(*heads[name], rng)
        wide, fit, _ = locate(scan.shrunk(2), ANY_CONTRAST)
        found.append({
            "head": name, "how": how, "mm": distance(fit.transform, pose, template),
            "disagreement": distance(wide.transform, fit.transform, template),
            "misfit": fit.misfit, "inside": fit.inside,
        })  # fmt: skip
    return found


def inputs(rows: list[dict[str, Any]]) -> np.ndarray:
    """What the doubt is a function of `[N, 3]`."""
    return np.array([evidence(*figures_of(row)) for row in rows])


def figures_of(row: dict[str, Any]) -> tuple[float, float, float]:
    """In the order of `doubt`."""
    return row["disagreement"], row["misfit"], row["inside"]


def wrong(rows: list[dict[str, Any]]) -> np.ndarray:
    """`[N]`."""
    return np.array([row["mm"] > WRONG_MM for row in rows])


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the doubt as it is built in."""
    doubts = np.array([doubt(*figures_of(row)) for row in rows])
    is_wrong = wrong(rows)
    found: dict[str, Any] = {
        "scans": len(rows), "wrong": int(is_wrong.sum()),
        "auc": float(roc_auc_score(is_wrong, doubts)),
        "wrong, not refused": int((is_wrong & (doubts <= REFUSE)).sum()),
        "wrong, not even flagged": int((is_wrong & (doubts <= FLAG)).sum()),
        "right, flagged": int((~is_wrong & (doubts > FLAG)).sum()),
        "right, refused": int((~is_wrong & (doubts > REFUSE)).sum()),
    }  # fmt: skip
    bins = np.array([0, 0.02, 0.1, 0.5, 0.9, 1.0001])
    place = np.digitize(doubts, bins) - 1
    found["calibration"] = [
        {"from": float(bins[b]), "scans": int((place == b).sum()),
         "doubt": float(doubts[place == b].mean()), "wrong": float(is_wrong[place == b].mean())}
        for b in range(len(bins) - 1) if (place == b).any()
    ]  # fmt: skip
    return found


def draw(rows: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Error by doubt, and the ROC."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for colour, (name, part) in zip(("#999999", "#1f5fbf"), rows.items(), strict=True):
        doubts = np.array([doubt(*figures_of(row)) for row in part])
        left.plot([row["mm"] for row in part], doubts, ".", color=colour, label=name, ms=4)
        false, true, _ = roc_curve(wrong(part), doubts)
        right.plot(
            false, true, color=colour, label=f"{name}: {roc_auc_score(wrong(part), doubts):.3f}"
        )
    left.axvline(WRONG_MM, color="black", lw=0.6, ls="--")
    for level in (FLAG, REFUSE):
        left.axhline(level, color="black", lw=0.6, ls=":")
    left.set_xscale("log")
    left.set_yscale("logit")
    left.set_xlabel("mm from the truth")
    left.set_ylabel("doubt")
    right.set_xlabel("right ones flagged")
    right.set_ylabel("wrong ones flagged")
    for axes in (left, right):
        axes.legend(fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100, metadata={"Software": None})


def page(content: dict[str, Any]) -> str:
    """The tables."""
    machine = "; ".join(f"{k} {v}" for k, v in content["machine"].items())
    of = content["figures"]
    lines = [
        "# Does registration know when it is wrong?", "",
        f"Written by `python benchmarks/trust.py`. Machine: {machine}.", "",
        (__doc__ or "").split("\n\n")[2].replace("\n", " "), "",
        f"Built in: {content['built in']}; by regression: {content['fitted']}.", "",
        "| | " + " | ".join(of) + " |", "|---|" + "---|" * len(of),
    ]  # fmt: skip
    for name in next(iter(of.values())):
        if name != "calibration":
            cells = (f"{one[name]:.4g}" for one in of.values())
            lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| doubt from | scans | mean doubt | wrong |", "|---|---|---|---|"]
    for row in of["the others"]["calibration"]:
        lines.append(
            f"| {row['from']:g} | {row['scans']} | {row['doubt']:.3f} | {row['wrong']:.3f} |"
        )
    lines += ["", "![Doubt by error, and ROC](trust.png)"]
    return "\n".join(lines) + "\n"


def main(
    count: Annotated[int, typer.Option(help="Scans of each half of the heads.")] = 300,
    cache: Annotated[Path, typer.Option(help="Of the volumes.")] = BUILD / "scans",
) -> None:
    """Measure, and write the page."""
    volumes = {real.name: real.path(cache) for real in fetch(cache)}
    others = [name for name in HEADS if name not in CHOSEN_ON]
    halves = {"chosen on": (CHOSEN_ON, SEEDS[0]), "the others": (tuple(others), SEEDS[1])}
    rows = {
        half: scans(list(names), count, seed, volumes) for half, (names, seed) in halves.items()
    }
    model = LogisticRegression(C=10.0).fit(inputs(rows["chosen on"]), wrong(rows["chosen on"]))
    content = {
        "machine": describe_machine(),
        "fitted": [round(float(x), 2) for x in (*model.intercept_, *model.coef_[0])],
        "built in": list(DOUBT),
        "figures": {name: figures(part) for name, part in rows.items()},
        "rows": rows,
    }
    draw(rows, HERE / "trust.png")
    (HERE / "trust.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (HERE / "trust.md").write_text(page(content), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

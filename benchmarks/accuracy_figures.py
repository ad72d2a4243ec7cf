"""The figures of benchmarks/accuracy.py: what a network's answers are worth, and the pages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.metrics.repeatability import repeatability

Floats = NDArray[np.float64]
SAMPLES = 10000


@dataclass(frozen=True)
class Study:
    """The answers of one network for one seed."""

    truth: Floats  # [N], of the new subjects in order
    answers: Floats  # [N, C]
    scans: tuple[Floats, Floats] | None = None  # [n, C] each: two scans of the same subjects
    # Pairs [m, C] of a scan and of the same half a millimetre elsewhere.
    moved: tuple[Floats, Floats] | None = None
    shifted: tuple[Floats, Floats] | None = None
    seconds: float = 0.0


def hits(study: Study) -> Floats:
    """What a subject adds to the figure: its class's share of the mean recall, or its error."""
    if study.answers.shape[1] == 1:
        return np.abs(study.answers[:, 0] - study.truth)
    right = (study.answers.argmax(1) == study.truth).astype(np.float64)
    counts = np.bincount(study.truth.astype(int), minlength=study.answers.shape[1])
    weight: Floats = right * len(right) / (counts[study.truth.astype(int)] * len(counts))
    return weight


def resampled(values: Sequence[Floats], truths_of: Sequence[Floats], samples: int) -> Floats:
    """Means `[samples]` over seeds of bootstrap means over subjects, by class."""
    total = np.zeros(samples)
    for seed, (value, truth) in enumerate(zip(values, truths_of, strict=True)):
        rng = np.random.default_rng([seed, 7])
        classes = np.unique(truth) if len(np.unique(truth)) < 10 else np.zeros(1)
        mean = np.zeros(samples)
        for one in classes:
            chosen = np.flatnonzero(truth == one) if len(classes) > 1 else np.arange(len(truth))
            drawn = rng.integers(len(chosen), size=(samples, len(chosen)))
            mean += value[chosen][drawn].sum(1) / len(truth)
        total += mean / len(values)
    return total


def icc(studies: Sequence[Study], column: int) -> list[float]:
    """ICC(2,1) of one answer between the two scans, for each seed."""
    found = []
    for first, second in (study.scans for study in studies if study.scans):
        values = np.concatenate([first[:, column], second[:, column]])
        subjects = [str(n) for n in range(len(first))]
        sessions = ["1"] * len(subjects) + ["2"] * len(subjects)
        found.append(float(repeatability(values, 2 * subjects, sessions)["icc_agreement"]))
    return found


def change(pairs: Sequence[tuple[Floats, Floats] | None]) -> float:
    """The median over scans of an answer's largest change."""
    return float(np.median(np.concatenate([np.abs(a - b).max(1) for a, b in filter(None, pairs)])))


def measured(studies: Sequence[Study]) -> dict[str, Any]:
    """The figures of one network over the seeds."""
    each = [hits(study) for study in studies]
    spread = resampled(each, [study.truth for study in studies], SAMPLES)
    found: dict[str, Any] = {
        "each": [float(one.mean()) for one in each],
        "mean": float(np.mean([one.mean() for one in each])),
        "95": np.percentile(spread, [2.5, 97.5]).tolist(),
        "seconds": float(np.mean([study.seconds for study in studies])),
    }
    if studies[0].answers.shape[1] > 1:
        logs = [
            -np.log(
                np.maximum(s.answers[np.arange(len(s.truth)), s.truth.astype(int)], 1e-9)
            ).mean()
            for s in studies
        ]
        found["log_loss"] = float(np.mean(logs))
    pairs = [study.moved for study in studies]
    if any(pair is not None and (pair[0] != pair[1]).any() for pair in pairs):  # reads scans
        found["moved_median"] = change(pairs)
        found["shift_median"] = change([study.shifted for study in studies])
        agreed = [icc(studies, column) for column in range(studies[0].answers.shape[1])]
        found["icc"] = float(np.mean(agreed))
        found["icc_lowest"] = float(np.min(agreed))
    return found


def against(studies: Sequence[Study], others: Sequence[Study]) -> dict[str, Any]:
    """The difference of two networks on the same subjects, with the bootstrap's p."""
    pairs = [hits(a) - hits(b) for a, b in zip(studies, others, strict=True)]
    spread = resampled(pairs, [study.truth for study in studies], SAMPLES)
    beyond = min((spread <= 0).mean(), (spread >= 0).mean())
    return {
        "difference": float(np.mean([pair.mean() for pair in pairs])),
        "95": np.percentile(spread, [2.5, 97.5]).tolist(),
        "p": float(min(1.0, 2 * max(beyond, 1 / SAMPLES))),
        "each": [float(pair.mean()) for pair in pairs],
    }


# ---- the pages


@dataclass(frozen=True)
class Page:
    """What is measured: `classes` (balanced accuracy) or years; where it is written, and of what.

    `text`: what the rows are, before the table. `path`: without a suffix. What is written holds
    `runs`: the commands, each with its machine and its day.
    """

    path: Path
    title: str
    text: str
    classes: bool

    @property
    def figure(self) -> str:
        """What stands in the tables."""
        return "balanced accuracy" if self.classes else "mean absolute error (years)"

    def number(self, value: float, sign: str = "") -> str:
        """A figure as it stands in the tables."""
        return f"{value:{sign}.{3 if self.classes else 2}f}"

    def with_interval(self, value: float, interval: Sequence[float], sign: str = "") -> str:
        """A figure and its 95 % interval."""
        low, high = (self.number(bound, sign) for bound in interval)
        return f"{self.number(value, sign)} ({low} to {high})"

    def write(self, found: dict[str, Any], lines: Sequence[str]) -> None:
        """Write the figures as JSON and the page."""
        self.path.parent.mkdir(exist_ok=True)
        text = json.dumps(found, indent=1) + "\n"
        self.path.with_suffix(".json").write_text(text, encoding="utf-8")
        head = [f"# {self.title}", ""]
        for run in found["runs"]:
            machine = ", ".join(f"{name} {value}" for name, value in run["machine"].items())
            head += [f"`{run['command']}` · {machine} · {run['date']}", ""]
        head += [self.text, ""]
        self.path.with_suffix(".md").write_text("\n".join([*head, *lines]) + "\n", "utf-8")


def comparison(page: Page, found: dict[str, Any]) -> list[str]:
    """The table of the networks, and of the pairs with the first."""
    columns = ["", f"{page.figure} (95 %)", "each seed"]
    columns += ["log loss"] * page.classes
    columns += ["moved", "shifted", "ICC", "minutes to train, one core"]
    lines = _header(columns)
    unit = "" if page.classes else " y"
    for name, one in found["networks"].items():
        each = ", ".join(page.number(value) for value in one["each"])
        cells = [name, page.with_interval(one["mean"], one["95"]), each]
        if page.classes:
            cells.append(f"{one['log_loss']:.3f}")
        if "icc" in one:  # it reads scans
            cells += [f"{one[k]:.3f}{unit}" for k in ("moved_median", "shift_median")]
            cells.append(f"{one['icc']:.3f}")
        else:
            cells += ["", "", ""]
        cells.append(f"{one['seconds'] / 60:.1f}" if one["seconds"] else "")
        lines.append(_row(cells))
    lines += ["", *_header([f"{found['first']} minus", "difference (95 %)", "p", "each seed"])]
    for name, one in found["pairs"].items():
        each = ", ".join(page.number(value, "+") for value in one["each"])
        between = page.with_interval(one["difference"], one["95"], "+")
        lines.append(_row([name, between, f"{one['p']:.4f}", each]))
    return lines


def curve(page: Page, found: dict[str, Any]) -> list[str]:
    """The table of the networks by the number of subjects to train with."""
    sizes = list(found["sizes"])
    lines = _header(["", *sizes])
    for name in found["sizes"][sizes[0]]:
        ones = (found["sizes"][size][name] for size in sizes)
        lines.append(_row([name, *(page.with_interval(one["mean"], one["95"]) for one in ones)]))
    return lines


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _header(cells: Sequence[str]) -> list[str]:
    return [_row(cells), "|" + "---|" * len(cells)]

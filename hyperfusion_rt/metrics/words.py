"""Figures as a reader wants them: named, with three digits, an interval and a chance level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hyperfusion_rt.number_text import number

_OF_CLASSES = {
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC",
    "macro_f1": "macro F1",
    "brier": "Brier score (0 is best)",
    "ece": "calibration error (0 is best)",
}
_OF_NUMBERS = {
    "mae": "mean absolute error",
    "r": "correlation with the truth",
    "bias": "mean error (predicted - true)",
    "bias_slope": "slope of the error on the truth",
    "coverage_68": "truth within 1 predicted sd (0.68 is right)",
    "coverage_95": "truth within 1.96 predicted sd (0.95 is right)",
    "nll": "negative log likelihood",
}
# Where a figure's chance level stands, and what chance is.
_CHANCE = {"balanced_accuracy": "chance", "auc": "auc_chance", "mae": "chance"}
_MAIN = ("balanced accuracy", "AUC", "macro F1", "mean absolute error", "correlation")
_WITHOUT_UNIT = ("r", "bias_slope", "coverage_68", "coverage_95", "nll")


@dataclass(frozen=True)
class Figure:
    """One figure in words. `interval`, `chance`: empty where it has none; `note` says why."""

    name: str
    value: str
    interval: str
    chance: str
    cases: int
    note: str = ""


def is_empty(metrics: dict[str, Any]) -> bool:
    """Whether there is no figure."""
    return not metrics.get("cases") or bool(metrics.get("too_few"))


def figures_in_words(metrics: dict[str, Any]) -> list[Figure]:
    """What `classification` or `regression` found, in the order in which it is read."""
    if is_empty(metrics):
        return []
    numbers = "mae" in metrics
    unit = f" {metrics['unit']}" if metrics.get("unit") else ""
    reasons = metrics.get("reasons", {})
    found = []
    for key, name in (_OF_NUMBERS if numbers else _OF_CLASSES).items():
        if key not in metrics:  # of an older version
            continue
        of = "" if key in _WITHOUT_UNIT else unit
        if key == "auc" and len(metrics.get("classes", ())) != 2:
            name = "AUC, one against the rest"
        value, chance = metrics[key], metrics.get(_CHANCE.get(key, ""))
        found.append(
            Figure(
                name,
                "none" if value is None else number(value) + of,
                interval(metrics.get(f"{key}_95")),
                "" if chance is None else number(chance) + of,
                metrics["cases"],
                reasons.get(key, ""),
            )
        )
    for index, (name, value) in enumerate(metrics.get("recall", {}).items()):
        found.append(
            Figure(
                f"recall of {name}",
                "none" if value is None else number(value),
                interval(metrics.get("recall_95", {}).get(name)),
                "",
                sum(metrics["confusion"][index]),
                "no case" if value is None else reasons.get(f"recall of {name}", ""),
            )
        )
    return found


def interval(found: list[float] | None) -> str:
    """`0.61 to 0.8`; empty where there is none."""
    return f"{number(found[0])} to {number(found[1])}" if found else ""


def headline(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """A run's or cohort's main figures: (figure, caption)."""
    found = []
    for item in figures_in_words(metrics):
        if not item.name.startswith(_MAIN) or item.value == "none":
            continue
        found.append((item.value, item.name + with_percent(item.interval)))
        if item.chance and not item.name.startswith("AUC"):
            guess = "always guessing the median" if "mae" in metrics else "chance"
            found.append((item.chance, guess))
    return found


def in_lines(metrics: dict[str, Any]) -> list[str]:
    """The main figures: `balanced accuracy 0.700 (95 % 0.610 to 0.780, chance 0.333)`, ..."""
    shown = [item for item in figures_in_words(metrics) if item.name.startswith(_MAIN)]
    parts = []
    for item in shown:
        beside = with_percent(item.interval).removeprefix(", ")
        chance = f"chance {item.chance}" if item.chance else ""
        brackets = ", ".join(filter(None, (beside, chance)))
        parts.append(f"{item.name} {item.value}" + (f" ({brackets})" if brackets else ""))
    return parts


def with_percent(interval: str) -> str:
    """`, 95 % 0.61 to 0.8`; empty where there is none."""
    return f", 95 % {interval}" if interval else ""

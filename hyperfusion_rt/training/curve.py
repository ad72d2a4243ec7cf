"""The learning curve: what a training was like epoch by epoch, and its picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hyperfusion_rt.files import replacing
from hyperfusion_rt.training.run_folder import Run

_ACCURACY, _MAE = "validation_balanced_accuracy", "validation_mae"


@dataclass(frozen=True)
class Curve:
    """One member's training, `[E]` epochs that were run.

    `epochs`: from 1. `figure`: of the validation part; `figure_name`: in words, with its unit.
    `kept`: the index of the epoch whose weights were kept, None where no epoch gave finite answers;
    `how`: why that one. `chance`: what guessing gives on the validation part (1 over the number of
    classes; always the median), None while it is not known.
    """

    member: int
    epochs: tuple[int, ...]
    train_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    figure: tuple[float, ...]
    figure_name: str
    kept: int | None
    how: str
    chance: float | None


def curves(run: Run, metrics: dict[str, Any] | None = None) -> list[Curve]:
    """The curve of every member of `run`.

    Args:
        metrics: what training measured, where it is not written yet; default: the run's own.
    """
    training = run.config.training
    how = "best" if training.keep == "best" else "last"
    validation = (run.metrics if metrics is None else metrics).get("validation", [])
    unit = f" ({run.config.tabular.unit})" if run.config.tabular.unit else ""
    found = []
    for index, member in enumerate(run.members):
        columns = _columns(member.folder / "history.csv")
        accuracy = _ACCURACY in columns
        figure = columns[_ACCURACY if accuracy else _MAE]
        losses = columns["validation_loss"]
        scores = [
            (value if accuracy else -value, -loss)
            for value, loss in zip(figure, losses, strict=True)
        ]
        found.append(
            Curve(
                member=index,
                epochs=tuple(int(epoch) + 1 for epoch in columns["epoch"]),
                train_loss=tuple(columns["train_loss"]),
                validation_loss=tuple(losses),
                figure=tuple(figure),
                figure_name="balanced accuracy" if accuracy else f"mean absolute error{unit}",
                kept=kept_epoch(scores, training.keep),
                how=f"{how} epoch" + (", average of the weights" if training.ema else ""),
                chance=validation[index].get("chance") if index < len(validation) else None,
            )
        )
    return found


def kept_epoch(scores: Sequence[tuple[float, float]], keep: Literal["best", "last"]) -> int | None:
    """The index of the epoch whose weights training keeps: of `scores` the larger the better.

    Of equal ones the first, as the training loop does it; one that is not finite is never the best.
    """
    if keep == "last":
        return len(scores) - 1 if scores else None
    finite = [i for i, score in enumerate(scores) if all(map(math.isfinite, score))]
    return max(finite, key=lambda i: scores[i], default=None)


def _columns(path: Path) -> dict[str, list[float]]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}


def learning_curve(run: Run, metrics: dict[str, Any] | None = None) -> Path:
    """Draw loss and metric over the epochs of every member; returns the PNG's path.

    A ring marks the epoch whose weights were kept, a dotted line what guessing gives.

    Args:
        metrics: as of `curves`.
    """
    # The object interface needs no backend and leaves matplotlib's global state alone.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    found = curves(run, metrics)
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    several = len(found) > 1
    for one in found:
        color = f"C{one.member}"
        label = f"member {one.member}, " if several else ""
        # A single epoch is a point: a line would not show.
        dot = "." if len(one.epochs) == 1 else ""
        left.plot(one.epochs, one.train_loss, color=color, marker=dot, label=f"{label}train")
        left.plot(
            one.epochs,
            one.validation_loss,
            color=color,
            marker=dot,
            ls="--",
            label=f"{label}validation",
        )
        right.plot(one.epochs, one.figure, color=color, marker=dot, ls="--")
        right.set_ylabel(one.figure_name)
        if one.kept is not None:
            last = one is found[-1]
            for axes, values in ((left, one.validation_loss), (right, one.figure)):
                place = [one.epochs[one.kept]], [values[one.kept]]
                kept = f"kept: {one.how}" if last else None
                axes.plot(*place, "o", color=color, mfc="none", ms=9, mew=1.6, label=kept)
    chances = dict.fromkeys(one.chance for one in found if one.chance is not None)
    guessing = [
        right.axhline(chance, color="0.4", lw=1, ls=":", label="guessing") for chance in chances
    ][:1]
    left.set_ylabel("loss")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    # Below the axes, where it hides nothing; the right ones have the same lines.
    shown = [*left.get_legend_handles_labels()[0], *guessing]
    figure.legend(handles=shown, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    path = run.folder / "learning_curve.png"
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return path

"""The learning curve as a picture."""

from __future__ import annotations

import csv
from pathlib import Path

from hyperfusion_rt.files import replacing
from hyperfusion_rt.training.run_folder import Run


def _columns(path: Path) -> dict[str, list[float]]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}


def learning_curve(run: Run) -> Path:
    """Draw loss and metric over the epochs of every member; returns the PNG's path."""
    # The object interface needs no backend and leaves matplotlib's global state alone.
    from matplotlib.figure import Figure

    unit = f" ({run.config.tabular.unit})" if run.config.tabular.unit else ""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, member in enumerate(run.members):
        columns = _columns(member.folder / "history.csv")
        epochs = [epoch + 1 for epoch in columns["epoch"]]
        color = f"C{index}"
        label = f"member {index}, " if len(run.members) > 1 else ""
        left.plot(epochs, columns["train_loss"], color=color, label=f"{label}train")
        left.plot(
            epochs, columns["validation_loss"], color=color, ls="--", label=f"{label}validation"
        )
        accuracy = "validation_balanced_accuracy" in columns
        metric = "validation_balanced_accuracy" if accuracy else "validation_mae"
        values = columns[metric]
        best = (max if accuracy else min)(range(len(values)), key=values.__getitem__)
        right.plot(epochs, values, color=color, label=f"{label}validation")
        right.plot(epochs[best], values[best], "o", color=color)
        right.set_ylabel("balanced accuracy" if accuracy else f"mean absolute error{unit}")
    left.set_ylabel("loss")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    path = run.folder / "learning_curve.png"
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return path

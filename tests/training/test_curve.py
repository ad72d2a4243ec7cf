"""What the learning curve says: which epoch was kept, and what guessing gives."""

import subprocess
import sys

import pytest

from hyperfusion_rt.training.curve import curves, kept_epoch, learning_curve
from hyperfusion_rt.training.run_folder import Run

NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "keep", "kept"),
    [
        ([(0.4, -1.0), (0.6, -0.9), (0.5, -0.8)], "best", 1),
        ([(0.4, -1.0), (0.6, -0.9), (0.5, -0.8)], "last", 2),
        ([(0.6, -0.9), (0.6, -0.8), (0.6, -0.8)], "best", 1),  # the smaller loss, then the first
        ([(NAN, NAN), (0.2, -0.9), (0.9, NAN)], "best", 1),
        ([(NAN, NAN)], "best", None),
        ([], "last", None),
    ],
)
def test_which_epoch_is_kept(scores, keep, kept):
    assert kept_epoch(scores, keep) == kept


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_marked_epoch_is_the_one_that_training_kept(session_cohort, tmp_path, keep):
    """`best_epoch` of the checkpoint is the loop's own word."""
    import torch

    from hyperfusion_rt.config import load_config
    from hyperfusion_rt.training.train import train

    change = {
        "network": {"features": 2, "fusion": "tabular"},
        "training": {"epochs": 4, "embedding_epochs": 0, "keep": keep, "ema": 0.5, "parts": 5},
    }
    run = train(load_config(session_cohort / "hfrt.yaml", change), session_cohort, parent=tmp_path)
    (one,) = curves(run)
    assert one.epochs == (1, 2, 3, 4)
    best = torch.load(run.member(0).folder / "checkpoint.pt", weights_only=True)["best_epoch"]
    assert one.kept == (best if keep == "best" else 3)
    assert one.how == f"{keep} epoch, average of the weights"


def test_the_curves_of_an_ensemble(session_run):
    found = curves(session_run)
    assert [one.member for one in found] == [0, 1]
    for one, validated in zip(found, session_run.metrics["validation"], strict=True):
        assert one.epochs == (1, 2)
        assert (one.figure_name, one.chance) == ("balanced accuracy", validated["chance"])
        # The figures are of the weights that were kept.
        if session_run.config.training.keep == "last":
            assert one.kept == 1
    assert [one.chance for one in curves(session_run, {})] == [None, None]


def test_the_picture(session_run, monkeypatch):
    """Whole epochs, the kept one and guessing are in it."""
    from matplotlib.figure import Figure

    drawn = []
    plain = Figure.savefig

    def keep(figure, *arguments, **options):
        drawn.append(figure)
        return plain(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    learning_curve(Run.open(session_run.folder))
    (figure,) = drawn
    for axes in figure.axes:
        low, high = axes.get_xlim()
        inside = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert inside
        assert all(tick == round(tick) for tick in inside)
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[-1] == "guessing"
    assert any(text.startswith("kept: ") for text in texts)


def test_matplotlib_is_imported_only_for_the_picture():
    code = "import sys, hyperfusion_rt.training.curve; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

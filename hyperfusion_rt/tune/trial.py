"""One trial: a training whose validation figures are reported epoch by epoch."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperfusion_rt.errors import HyperFusionError, reason_of
from hyperfusion_rt.training.curve import curves
from hyperfusion_rt.training.options import TrainOptions
from hyperfusion_rt.training.run_folder import Run
from hyperfusion_rt.training.trackers import Tracker
from hyperfusion_rt.training.train import Callbacks, train
from hyperfusion_rt.tune.search import REASON, TRIES, Claim, Search

if TYPE_CHECKING:
    import optuna

FIGURE, LOSS, EPOCHS, SECONDS = "figure", "loss", "epochs", "seconds"  # attributes of a trial


class _Pruned(Exception):
    """A trial has been given up."""


def work(
    search: Search,
    study: optuna.Study,
    claim: Claim,
    device: str | None = None,
    trackers: Sequence[Tracker] = (),
    callbacks: Callbacks | None = None,
) -> None:
    """Train a trial to its end, whatever that is, and tell the study.

    Raises:
        HyperFusionError: what would stop every other trial as well: a package is missing.
    """
    import optuna

    state, trial = optuna.trial.TrialState, claim.trial
    began, before = time.monotonic(), float(trial.user_attrs.get(SECONDS, 0))

    def ended(how: Any, value: float | None = None) -> None:
        trial.set_user_attr(SECONDS, round(before + time.monotonic() - began, 1))
        study.tell(claim.number, value, state=how)

    try:
        run = _train(search, claim, device, trackers, callbacks or Callbacks())
        figure, loss = _at_the_end(run)
        trial.set_user_attr(FIGURE, figure)
        trial.set_user_attr(LOSS, loss)
        ended(state.COMPLETE, search.plan.score(figure, loss))
    except _Pruned:
        ended(state.PRUNED)
    except Exception as error:
        code, reason = reason_of(error, f"trial {claim.number}")
        trial.set_user_attr(REASON, f"{code}: {reason}")
        # What diverges tells the search where not to look; what fails says nothing of the fields.
        ended(state.PRUNED if code == "training-diverged" else state.FAIL)
    except BaseException:  # Ctrl-C: not a death
        trial.set_user_attr(SECONDS, round(before + time.monotonic() - began, 1))
        trial.set_user_attr(TRIES, {})
        raise
    finally:
        claim.close()


def _train(
    search: Search,
    claim: Claim,
    device: str | None,
    trackers: Sequence[Tracker],
    callbacks: Callbacks,
) -> Run:
    plan, place, trial = search.plan, search.place(claim.number), claim.trial
    config = plan.config_of(claim.fields)
    epochs = config.training.epochs

    def on_epoch(member: int, epoch: int, row: dict[str, Any]) -> None:
        if callbacks.on_epoch is not None:
            callbacks.on_epoch(member, epoch, row)
        figure, loss = _of_row(row)
        trial.set_user_attr(EPOCHS, member * epochs + epoch + 1)
        value = plan.score(figure, loss)
        if not math.isfinite(value):
            return
        trial.set_user_attr(FIGURE, figure)
        trial.set_user_attr(LOSS, loss)
        trial.report(value, member * epochs + epoch)
        last = member == config.training.members - 1 and epoch == epochs - 1
        if not last and trial.should_prune():
            raise _Pruned

    if place.exists() and not (place / "config.json").exists():
        shutil.rmtree(place)  # it was stopped before it began
    return train(
        config,
        Path(plan.root),
        name=place.name,
        parent=search.trials,
        resume=Run.open(place) if place.exists() else None,
        like=search.folder,
        options=TrainOptions(device=device, trackers=tuple(trackers)),
        callbacks=Callbacks(
            on_scan=callbacks.on_scan,
            on_epoch=on_epoch,
            on_network=callbacks.on_network,
            on_features=callbacks.on_features,
        ),
    )


def _of_row(row: dict[str, Any]) -> tuple[float, float]:
    """Figure and loss of an epoch's row."""
    name = next(n for n in ("validation_balanced_accuracy", "validation_mae") if n in row)
    return float(row[name]), float(row["validation_loss"])


def _at_the_end(run: Run) -> tuple[float, float]:
    """Figure and loss of the weights that were kept, the mean over the members.

    Raises:
        HyperFusionError: a member has no finite figure.
    """
    kept = [
        (c.figure[c.kept], c.validation_loss[c.kept]) for c in curves(run) if c.kept is not None
    ]
    if len(kept) < run.config.training.members:
        raise HyperFusionError(
            f"{run.folder}: no epoch gave finite answers to the validation part",
            code="training-diverged",
        )
    figures, losses = zip(*kept, strict=True)
    return sum(figures) / len(kept), sum(losses) / len(kept)

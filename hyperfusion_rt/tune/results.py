"""What a search has come to: its trials, its best one, what mattered, and the files that say so."""

from __future__ import annotations

import contextlib
import csv
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hyperfusion_rt.config.merge import merge
from hyperfusion_rt.files import write_text
from hyperfusion_rt.tune.search import REASON, Search
from hyperfusion_rt.tune.space import leaves, nested
from hyperfusion_rt.tune.trial import EPOCHS, FIGURE, LOSS, SECONDS
from hyperfusion_rt.yaml_text import scalar

if TYPE_CHECKING:
    import optuna

COMPLETE, PRUNED, DIVERGED, FAILED, RUNNING = "complete", "pruned", "diverged", "failed", "running"
ENDED = (COMPLETE, PRUNED, DIVERGED, FAILED)
_FEWEST = 4  # complete trials that say what mattered


@dataclass(frozen=True)
class Trial:
    """A trial: what was tried, and what came of it.

    `figure`, `loss`: of the validation part, of the weights that were kept; of a trial that did not
    reach its end, those of its last epoch. `score`: what was compared. `course`: the score after
    each epoch, from 1 on, of all members one after the other. `seconds`: of all its processes.
    """

    number: int
    state: str
    fields: dict[str, Any]
    score: float | None
    figure: float | None
    loss: float | None
    epochs: int
    seconds: float | None
    reason: str
    course: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Tuned:
    """What a search has come to. `importance`: of each field, together 1; empty of few trials."""

    search: Search
    trials: tuple[Trial, ...]
    importance: dict[str, float]
    first_is_study: bool

    def of(self, *states: str) -> list[Trial]:
        """The trials in these states."""
        return [trial for trial in self.trials if trial.state in states]

    @property
    def best(self) -> Trial | None:
        """The complete trial with the best score; None while there is none."""
        sign = 1 if self.search.plan.maximises else -1
        return max(self.of(COMPLETE), key=lambda t: sign * (t.score or 0.0), default=None)

    @property
    def study_itself(self) -> Trial | None:
        """The trial of the study as it was, if it was tried and reached its end."""
        first = self.of(COMPLETE)[:1]
        return first[0] if self.first_is_study and first and first[0].number == 0 else None

    @property
    def change(self) -> dict[str, Any]:
        """What the best trial changes of `hfrt.yaml`, nested; empty while there is none."""
        plan = self.search.plan
        return merge(plan.changes, nested(self.best.fields)) if self.best else {}

    @property
    def settings(self) -> list[str]:
        """`change` as `section.field=value`: what `hfrt train` takes to train it again."""
        return [f"{name}={scalar(value)}" for name, value in leaves(self.change)]


def read(search: Search, study: optuna.Study) -> Tuned:
    """What the study holds."""
    from optuna.trial import TrialState

    names = {
        TrialState.COMPLETE: COMPLETE,
        TrialState.PRUNED: PRUNED,
        TrialState.FAIL: FAILED,
        TrialState.RUNNING: RUNNING,
    }
    found = []
    for item in study.get_trials(deepcopy=False):
        if item.state not in names:
            continue  # it waits
        told, reason = item.user_attrs, str(item.user_attrs.get(REASON, ""))
        state = names[item.state]
        found.append(
            Trial(
                number=item.number,
                state=DIVERGED if state == PRUNED and reason else state,
                fields=search.fields(item.params),
                score=item.value if state == COMPLETE else None,
                figure=told.get(FIGURE),
                loss=told.get(LOSS),
                epochs=int(told.get(EPOCHS, 0)),
                seconds=told.get(SECONDS),
                reason=reason,
                course=tuple((s + 1, v) for s, v in sorted(item.intermediate_values.items())),
            )
        )
    return Tuned(search, tuple(found), _importance(study), search.plan_first() is not None)


def _importance(study: optuna.Study) -> dict[str, float]:
    """How much of the spread of the scores each field explains, by fANOVA (Hutter 2014)."""
    import optuna

    done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(done) < _FEWEST or len({trial.value for trial in done}) < 2:
        return {}
    with warnings.catch_warnings(), contextlib.suppress(ValueError, RuntimeError):
        warnings.simplefilter("ignore")
        made = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return dict(optuna.importance.get_param_importances(study, evaluator=made))
    return {}


def write(found: Tuned) -> None:
    """Write `trials.csv`, and `best.yaml` where there is a best trial."""
    folder, best = found.search.folder, found.best
    write_text(folder / "trials.csv", _table(found))
    if best is None:
        return
    figure = f"{found.search.plan.metric_name} {_metric(found, best):.4g}"
    head = [
        f"# The best of {len(found.of(*ENDED))} trials: {best.number}, {figure}.",
        "# Put this under the preset of hfrt.yaml, in the place of what stands there of these",
        "# fields.",
    ]
    text = yaml.safe_dump(_plain(found.change), sort_keys=False, allow_unicode=True)
    write_text(folder / "best.yaml", "\n".join(head) + "\n" + text)


def _metric(found: Tuned, trial: Trial) -> float:
    value = trial.loss if found.search.plan.metric == "loss" else trial.figure
    return float("nan") if value is None else value


def _plain(value: Any) -> Any:
    """Without tuples, which YAML would tag."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _table(found: Tuned) -> str:
    names = list(found.search.plan.space)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    told = ("figure", "loss", "epochs", "seconds")
    writer.writerow(["trial", "state", *told, *names, "reason"])
    for trial in found.trials:
        values = ["" if (v := getattr(trial, name)) is None else f"{v:.6g}" for name in told]
        fields = [scalar(trial.fields[name]) if name in trial.fields else "" for name in names]
        writer.writerow([trial.number, trial.state, *values, *fields, trial.reason])
    return stream.getvalue()


def as_dict(found: Tuned) -> dict[str, Any]:
    """What `--json` prints."""
    plan, best, itself = found.search.plan, found.best, found.study_itself
    return {
        "search": str(found.search.folder),
        "metric": plan.metric_name,
        "best": None if best is None else _of(best),
        "study_itself": None if itself is None else _of(itself),
        "settings": found.settings,
        "states": {state: len(found.of(state)) for state in (*ENDED, RUNNING)},
        "importance": found.importance,
        "trials": [_of(trial) for trial in found.trials],
    }


def _of(trial: Trial) -> dict[str, Any]:
    told = ("number", "state", "figure", "loss", "epochs", "seconds", "fields", "reason")
    return {name: getattr(trial, name) for name in told}


def run_of(found: Tuned, trial: Trial) -> Path:
    """The run of a trial."""
    return found.search.place(trial.number)

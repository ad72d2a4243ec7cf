"""The folder of a search, and which trial is whose.

tune/NAME/
  tune.json              what it began with: the configuration, what is searched, metric, seeds
  study.db               Optuna's study: what was tried, and what came of it
  splits.csv, inputs.json  as of a run: every trial must have the same cases in the same parts
  trials/trial-0007/     a run each (`training.run_folder`)
  trials/trial-0007.log  what its process said, if it said anything
  locks/trial-0007       held by the process that trains it, as long as it lives
  trials.csv, best.yaml, tune.html

Several processes, also of several commands, work on one search. Who takes a trial holds the
folder's lock meanwhile, and the trial's own lock until it has ended. The system gives a lock back
when its process dies, however it dies: a trial that runs in the study and whose lock is free was
interrupted, and goes on from its last epoch. One that is interrupted twice without an epoch in
between has failed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperfusion_rt.config import Config, Frozen, preset
from hyperfusion_rt.config.merge import merge
from hyperfusion_rt.errors import MissingExtraError
from hyperfusion_rt.files import write_text
from hyperfusion_rt.training.run_folder import new_folder, newest_with, read_plan
from hyperfusion_rt.tune.options import Metric, Pruner
from hyperfusion_rt.tune.space import Choices, Range, Space, field_of, nested

if TYPE_CHECKING:
    import optuna

PLAN = "tune.json"
_STUDY = "tune"
_WAIT = 120  # seconds that a process waits for another one's write
_TRIES = 2  # without an epoch in between
TRIES, REASON = "tries", "reason"  # attributes of a trial


class Plan(Frozen):
    """What `tune.json` holds. `study`: the content of `hfrt.yaml`; `changes`: what overrules it.

    `root`: the cohort's folder; `config`: its file there; `cases`: of the first member's
    validation part.
    """

    program: str
    root: str
    config: str
    study: dict[str, Any]
    changes: dict[str, Any]
    space: dict[str, Range | Choices]
    metric: Metric
    pruner: Pruner
    sampler: str = "TPE"
    seed: int
    cases: int

    def config_of(self, fields: dict[str, Any]) -> Config:
        """The study's configuration with these fields changed."""
        return configured(self.study, self.changes, fields)

    @cached_property
    def base(self) -> Config:
        """The study's own configuration."""
        return self.config_of({})

    @property
    def maximises(self) -> bool:
        """Whether a larger value is better."""
        return self.metric == "figure" and bool(self.base.tabular.classes)

    def score(self, figure: float, loss: float) -> float:
        """What is compared of a figure and a loss of the validation part.

        A balanced accuracy of few cases has few values: of equal ones the smaller loss is better.
        It moves the score by less than 1e-4, which is less than a case among thousands.
        """
        if self.metric == "loss":
            return loss
        return figure - 1e-4 * loss / (1 + loss) if self.maximises else figure

    @property
    def metric_name(self) -> str:
        """In words, with its unit."""
        if self.metric == "loss":
            return "validation loss"
        unit = self.base.tabular.unit
        if self.maximises:
            return "validation balanced accuracy"
        return "validation mean absolute error" + (f" ({unit})" if unit else "")


def configured(study: dict[str, Any], changes: dict[str, Any], fields: dict[str, Any]) -> Config:
    """The configuration of a study, with what overrules it, and with fields on top.

    Raises:
        ConfigError: a field is unknown or out of range.
    """
    return preset(str(study["preset"]), merge(merge(study, changes), nested(fields)))


@dataclass
class Claim:
    """A trial that this process trains. `trial`: Optuna's, that its figures are reported to."""

    number: int
    fields: dict[str, Any]
    trial: optuna.Trial
    lock: int

    def close(self) -> None:
        """Give the lock back: it has ended, or another may go on with it."""
        os.close(self.lock)


@dataclass(frozen=True)
class Search:
    """The folder of a search."""

    folder: Path
    plan: Plan

    @classmethod
    def create(cls, parent: Path, plan: Plan, name: str | None) -> Search:
        """Make the folder `parent/NAME`; the first trial is the study as it is, if it can be.

        Raises:
            ConfigError: it exists.
        """
        _need_optuna()
        made = cls(new_folder(parent, "tune", name), plan)
        made.folder.mkdir(parents=True)
        first = made.plan_first()
        with made.locked(), made.opened() as study:
            if first is not None:
                study.enqueue_trial(first)
        write_text(made.folder / PLAN, plan.model_dump_json(indent=1) + "\n", private=True)
        return made

    @classmethod
    def open(cls, folder: Path) -> Search:
        """Open the folder.

        Raises:
            ConfigError: it holds no readable plan.
        """
        _need_optuna()
        missing = f"is no search (no {PLAN}); begin one without `resume`"
        return cls(folder, read_plan(folder / PLAN, Plan.model_validate_json, missing))

    @classmethod
    def latest(cls, parent: Path) -> Search:
        """The newest under `parent`.

        Raises:
            ConfigError: there is none.
        """
        missing = "no search here; begin one without `resume`"
        return cls.open(newest_with(parent, PLAN, missing))

    @property
    def trials(self) -> Path:
        """The folder of the runs."""
        return self.folder / "trials"

    def place(self, number: int) -> Path:
        """The run folder of a trial."""
        return self.trials / f"trial-{number:04d}"

    def plan_first(self) -> dict[str, Any] | None:
        """The study's own values as the search has them; None where one is not in the space."""
        base = self.plan.base
        own = {name: field_of(base, name) for name in self.plan.space}
        found = {name: item.holds(own[name]) for name, item in self.plan.space.items()}
        # A policy of augmentation, for one, takes other fields along.
        if None in found.values() or self.plan.config_of(own) != base:
            return None
        return found

    def fields(self, params: dict[str, Any]) -> dict[str, Any]:
        """What Optuna keeps of a trial as values of the configuration."""
        space = self.plan.space
        return {name: space[name].value(params[name]) for name in space if name in params}

    # ---- the study

    @contextlib.contextmanager
    def opened(self) -> Iterator[optuna.Study]:
        """Optuna's study."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        training, plan = self.plan.base.training, self.plan
        steps = training.epochs * training.members
        # The first epochs say little: the rate is still high, and an average of weights young.
        first = training.epochs // 3
        pruners: dict[Pruner, Any] = {
            "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=first),
            "hyperband": lambda: optuna.pruners.HyperbandPruner(
                min_resource=max(1, first), max_resource=max(1, steps)
            ),
            "none": optuna.pruners.NopPruner,
        }
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{(self.folder / 'study.db').resolve()}",
            engine_kwargs={"connect_args": {"timeout": _WAIT}},
        )
        try:
            yield optuna.create_study(
                storage=storage,
                study_name=_STUDY,
                load_if_exists=True,
                direction="maximize" if plan.maximises else "minimize",
                sampler=self._sampler(0),
                pruner=pruners[plan.pruner](),
            )
        finally:
            storage.remove_session()
            storage.engine.dispose()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """No other process takes a trial meanwhile."""
        with open(self.folder / "lock", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def claim(self, study: optuna.Study, trials: int) -> Claim | None:
        """Take a trial that was interrupted, or a new one while there are fewer than `trials`.

        None where nothing is left to take: others may still be at work.
        """
        from optuna.trial import Trial, TrialState

        with self.locked():
            known = study.get_trials(deepcopy=False)
            for found in known:
                if found.state != TrialState.RUNNING:
                    continue
                lock = self._lock(found.number)
                if lock is None:
                    continue
                trial = Trial(study, found._trial_id)
                if self._try(trial, len(found.intermediate_values)):
                    return Claim(found.number, self.fields(found.params), trial, lock)
                study.tell(found.number, state=TrialState.FAIL)
                os.close(lock)
            if sum(t.state != TrialState.WAITING for t in known) >= trials:
                return None
            study.sampler = self._sampler(len(known))
            trial = study.ask(fixed_distributions=distributions(self.plan.space))
            lock = self._lock(trial.number)
            assert lock is not None
            self._try(trial, 0)
            return Claim(trial.number, self.fields(trial.params), trial, lock)

    def _sampler(self, number: int) -> Any:
        import optuna

        # Anew for each trial: what is drawn for it does not depend on who draws. Of those that
        # still run it knows that they are tried.
        seed = abs(self.plan.seed) % 2**16 * 2**15 + number
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)

    def _lock(self, number: int) -> int | None:
        """The lock of a trial; None where its process lives."""
        folder = self.folder / "locks"
        folder.mkdir(exist_ok=True)
        handle = os.open(folder / f"trial-{number:04d}", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        return handle

    def _try(self, trial: optuna.Trial, epochs: int) -> bool:
        """Count one more try since `epochs` were done; False where there were enough."""
        kept: dict[str, int] = trial.user_attrs.get(TRIES, {})
        times = kept.get("times", 0) if kept.get("epochs") == epochs else 0
        if times >= _TRIES:
            trial.set_user_attr(
                REASON,
                f"training-process-died: its process ended {times} times without a word before it "
                "had done another epoch; was there too little memory?",
            )
            return False
        trial.set_user_attr(TRIES, {"epochs": epochs, "times": times + 1})
        return True


def distributions(space: Space) -> dict[str, Any]:
    """What Optuna draws of each field."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    found: dict[str, Any] = {}
    for name, item in space.items():
        if isinstance(item, Choices):
            found[name] = CategoricalDistribution(item.texts)
        elif item.whole:
            found[name] = IntDistribution(int(item.low), int(item.high), log=item.log)
        else:
            found[name] = FloatDistribution(item.low, item.high, log=item.log)
    return found


def _need_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise MissingExtraError("optuna", "tune", "searching hyperparameters") from None

"""`tune`: from a study and a space to the trial that is best on the validation part."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, cast

import hyperfusion_rt
from hyperfusion_rt.config import Config, load_config
from hyperfusion_rt.config.load import read_mapping
from hyperfusion_rt.errors import ConfigError, HyperFusionError, MissingExtraError
from hyperfusion_rt.files import write_text
from hyperfusion_rt.machine import usable_cores
from hyperfusion_rt.training.child import logged, on_threads
from hyperfusion_rt.training.dataset import Dataset, gather, inputs_of, inputs_text, splits_csv
from hyperfusion_rt.training.own_network import check_network
from hyperfusion_rt.training.train import INPUTS, SPLITS, Callbacks, choose_device
from hyperfusion_rt.tune import results
from hyperfusion_rt.tune.options import TuneOptions
from hyperfusion_rt.tune.page import search_page
from hyperfusion_rt.tune.results import ENDED, Trial, Tuned
from hyperfusion_rt.tune.search import Claim, Plan, Search, configured
from hyperfusion_rt.tune.space import read_space, space_of
from hyperfusion_rt.tune.trial import work

# Told of each trial that has ended: (how many have, of how many, the trial).
OnTrial = Callable[[int, int, Trial], None]
# Told of each trial that this process begins.
OnClaim = Callable[[Claim], None]

_NOTHING = 5  # the exit status of a process that found no trial to take
_DEATHS = 3  # of processes for each that may run, without a trial that ends


def tune(
    path: Path,
    options: TuneOptions | None = None,
    changes: dict[str, Any] | None = None,
    *,
    callbacks: Callbacks | None = None,
    on_claim: OnClaim | None = None,
    on_trial: OnTrial | None = None,
) -> Tuned:
    """Train `options.trials` settings of the study of `path`; the best on its validation part.

    Writes `tune/NAME` beside `path`. Nothing of it is chosen by the test part. A trial that fails
    does not stop the others.

    Args:
        path: `hfrt.yaml`; its folder is the cohort's.
        changes: what overrules it, as nested as it. What they fix is not searched.

    Raises:
        HyperFusionError: what is wrong with the study or the space; or no trial reached its end.
    """
    options, calls = options or TuneOptions(), callbacks or Callbacks()
    choose_device(options.device)
    for name in options.trackers:
        if find_spec(name) is None:
            raise MissingExtraError(name, name, f"`trackers` {name}")
    root = path.parent.resolve()
    if options.resume:
        parent = root / "tune"
        search = Search.open(parent / options.name) if options.name else Search.latest(parent)
        _refuse_another_cohort(search, calls)
    else:
        search = _begin(path, options, changes or {}, calls)
    told = _Told(search, options, on_trial)
    if (options.jobs or 1) == 1:
        _here(search, options, calls, on_claim, told)
    else:
        _in_processes(search, options, told)
    found = told.look()
    results.write(found)
    if found.best is None and not found.of(results.RUNNING):
        reasons = [trial.reason for trial in found.of(*ENDED) if trial.reason]
        raise HyperFusionError(
            f"{search.folder}: no trial reached its end"
            + (f"; the first: {reasons[0]}" if reasons else "; raise `trials`"),
            code="search-no-result",
        )
    search_page(found).write(search.folder / "tune.html")
    return found


def _begin(path: Path, options: TuneOptions, changes: dict[str, Any], calls: Callbacks) -> Search:
    """Look at the study, and make the folder of the search.

    Raises:
        HyperFusionError: what is wrong with the study or the space.
    """
    root = path.parent.resolve()
    config = load_config(path, changes)
    study = read_mapping(path)

    def probe(name: str, value: Any) -> Any:
        return configured(study, changes, {name: value})

    metric = options.metric or "figure"
    if options.space is None:
        space = space_of(config, changes, probe)
    else:
        space = read_space(options.space, changes, probe, metric)
    check_network(config, root, calls.on_network)
    dataset, texts = _cohort(config, root, calls)
    plan = Plan(
        program=f"hyperfusion_rt {hyperfusion_rt.__version__}",
        root=str(root),
        config=path.name,
        study=study,
        changes=changes,
        space=space,
        metric=metric,
        pruner=options.pruner or "median",
        seed=options.seed or 0,
        cases=int((dataset.parts.names(0) == "validation").sum()),
    )
    search = Search.create(root / "tune", plan, options.name)
    for name, text in texts.items():
        write_text(search.folder / name, text, private=True)
    return search


def _cohort(config: Config, root: Path, calls: Callbacks) -> tuple[Dataset, dict[str, str]]:
    """The cohort, decoded, and what tells it from another, by the name of its file."""
    dataset = gather(config, root, calls.on_scan)
    if calls.on_check is not None:
        calls.on_check(dataset.check)
    inputs = inputs_text(inputs_of(dataset, config))
    return dataset, {INPUTS: inputs, SPLITS: splits_csv(dataset, config, root)}


def _refuse_another_cohort(search: Search, calls: Callbacks) -> None:
    """Refuse to go on with other cases or parts: figures of two validation parts are no rivals.

    Raises:
        HyperFusionError: the cohort has changed, or cannot be read.
    """
    _, texts = _cohort(search.plan.base, Path(search.plan.root), calls)
    for name, text in texts.items():
        path = search.folder / name
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise ConfigError(
                f"{path}: the cohort has changed since this search began, so it cannot go on; "
                "begin anew without `resume`",
                code="run-cohort-changed",
            )


class _Told:
    """Which trials have ended, and until when others may begin."""

    def __init__(self, search: Search, options: TuneOptions, on_trial: OnTrial | None) -> None:
        self.search, self.trials, self.on_trial = search, options.trials, on_trial
        minutes = options.timeout
        self.end = None if minutes is None else time.monotonic() + 60 * minutes
        with search.opened() as study:
            known = results.read(search, study)
        self.known = {trial.number for trial in known.of(*ENDED)}

    @property
    def late(self) -> bool:
        """Whether no further trial begins."""
        return self.end is not None and time.monotonic() > self.end

    def look(self) -> Tuned:
        """Read what has ended, and say what is new."""
        with self.search.opened() as study:
            found = results.read(self.search, study)
        for trial in found.of(*ENDED):
            if trial.number not in self.known:
                self.known.add(trial.number)
                if self.on_trial is not None:
                    self.on_trial(len(self.known), self.trials, trial)
        return found


def _here(
    search: Search,
    options: TuneOptions,
    calls: Callbacks,
    on_claim: OnClaim | None,
    told: _Told,
) -> None:
    """Trial after trial in this process."""
    import torch

    torch.set_num_threads(options.threads or usable_cores())
    while not told.late:
        with search.opened() as study:
            claim = search.claim(study, options.trials)
            if claim is None:
                return
            if on_claim is not None:
                on_claim(claim)
            work(search, study, claim, options.device, options.trackers, calls)
        results.write(told.look())


def _in_processes(search: Search, options: TuneOptions, told: _Told) -> None:
    """Each trial in a process of its own: one that dies takes none of the others along.

    Raises:
        HyperFusionError: processes die, and no trial ends.
    """
    jobs = options.jobs or 1
    threads = options.threads or max(1, usable_cores() // jobs)
    given = (str(search.folder.resolve()), options.trials, options.device, threads)
    context = multiprocessing.get_context("spawn")
    running: dict[int, Any] = {}  # by sentinel
    deaths, open_ = 0, True
    try:
        while True:
            left = options.trials - len(told.known)
            while open_ and not told.late and len(running) < min(jobs, left):
                process = context.Process(
                    target=_process, args=(*given, options.trackers), daemon=True
                )
                process.start()
                running[process.sentinel] = process
            if not running:
                return
            for sentinel in wait(list(running)):
                process = running.pop(cast(int, sentinel))
                process.join()
                # Nothing is left to take; unless another one dies.
                open_ = process.exitcode != _NOTHING
                before = len(told.known)
                results.write(told.look())
                deaths = deaths + 1 if process.exitcode not in (0, _NOTHING) else deaths
                deaths = 0 if len(told.known) > before else deaths
            if deaths > _DEATHS * jobs:
                raise HyperFusionError(
                    f"{search.folder}: {deaths} processes ended without a word, and no trial did; "
                    f"was there too little memory? See {search.trials}, and go on with `resume` "
                    "and fewer `jobs`",
                    code="training-process-died",
                )
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()


def _process(
    folder: str, trials: int, device: str | None, threads: int, trackers: tuple[Any, ...]
) -> None:
    """What a process of its own does: one trial."""
    search = Search.open(Path(folder))
    with search.opened() as study, on_threads(threads):
        claim = search.claim(study, trials)
        if claim is None:
            sys.exit(_NOTHING)
        place = search.place(claim.number)
        with logged(place.with_name(f"{place.name}.log")):
            try:
                work(search, study, claim, device, trackers)
            except KeyboardInterrupt:
                sys.exit(130)

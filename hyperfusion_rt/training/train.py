"""`train`: from a configuration and a folder with a cohort to a finished run."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import torch

import hyperfusion_rt
from hyperfusion_rt.config import Config
from hyperfusion_rt.data.raw.landmarks import template_landmarks
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.files import write_text
from hyperfusion_rt.machine import describe_machine
from hyperfusion_rt.training.check import Check
from hyperfusion_rt.training.curve import learning_curve
from hyperfusion_rt.training.dataset import Dataset, gather, inputs_of, inputs_text, splits_csv
from hyperfusion_rt.training.decode import Share
from hyperfusion_rt.training.group import Group, Place, joined, place_given
from hyperfusion_rt.training.launch import launch
from hyperfusion_rt.training.loop import Trainer, split_of
from hyperfusion_rt.training.members import train_members
from hyperfusion_rt.training.memory import peak_memory
from hyperfusion_rt.training.options import TrainOptions, WhereOptions
from hyperfusion_rt.training.own_network import OnNetwork, check_network, keep_network
from hyperfusion_rt.training.results import answers_of, evaluate
from hyperfusion_rt.training.run_folder import Run
from hyperfusion_rt.training.scan_reference import keep_reference, reference_of
from hyperfusion_rt.training.training_cases import keep_training_cases

INPUTS = "inputs.json"
SPLITS = "splits.csv"


@dataclass(frozen=True)
class Callbacks:
    """What the caller wants to be told. Counts start at 1 except `epoch`.

    `on_check` gets what is odd about the cohort, before the first epoch; `on_network` a network of
    the study's own, before scans are decoded, and may refuse it; `on_features` counts scans that
    frozen layers have run on; `on_run` gets the folder, as soon as the run has one. Of
    members in other processes only epochs are told.
    """

    on_scan: Callable[[int, int], None] | None = None
    on_check: Callable[[Check], None] | None = None
    on_epoch: Callable[[int, int, dict[str, Any]], None] | None = None
    on_network: OnNetwork | None = None
    on_features: Callable[[int, int], None] | None = None
    on_run: Callable[[Path], None] | None = None


def choose_device(name: str | None = None) -> torch.device:
    """`name`, or CUDA where there is one, or the CPU.

    Raises:
        ConfigError: no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"device {name!r} is unknown: cpu, cuda or cuda:N", code="device-unavailable"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"device {name!r}: this machine (or this torch) has no CUDA", code="device-unavailable"
        )
    return device


def device_here(options: WhereOptions) -> torch.device:
    """The device of this machine that a run is finished on; a cluster's machines have their own.

    Raises:
        ConfigError: as `choose_device`.
    """
    return choose_device(None if options.executor == "ray" else options.device)


def device_of(options: TrainOptions, place: Place | None) -> torch.device:
    """The device of this process, of those that train together.

    Raises:
        ConfigError: there is none for it, or not as many processes as asked for.
    """
    found = choose_device(options.device)
    if place is None:
        return found
    asked = options.devices is not None or options.nodes > 1
    if asked and options.processes != place.size:
        raise ConfigError(
            f"the launcher started {place.size} processes, but `devices` and `nodes` say "
            f"{options.processes}: leave them out, or start as many",
            code="option-conflict",
        )
    if found.type != "cuda" or place.size == 1:
        return found
    if ":" in (options.device or ""):
        raise ConfigError(
            f"`device` {found}: several processes have a GPU each; say cuda", code="option-conflict"
        )
    if place.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"{place.local_size} processes on this machine need a GPU each, and it has "
            f"{torch.cuda.device_count()}: use fewer (`devices`), or `device` cpu",
            code="device-unavailable",
        )
    torch.cuda.set_device(place.local_rank)
    return torch.device("cuda", place.local_rank)


def train(
    config: Config,
    root: Path,
    *,
    name: str | None = None,
    parent: Path | None = None,
    resume: Run | None = None,
    like: Path | None = None,
    network: Path | None = None,
    options: TrainOptions | None = None,
    callbacks: Callbacks | None = None,
) -> Run:
    """Train every member of `config` on the cohort under `root` and write `parent/NAME`.

    `parent`: default `root/runs`. With `resume`, continue that run where it stopped; `config` must
    be the run's own. `like`: a run that must have the same cases in the same parts. `network`: a
    folder that keeps a network of the study's own (`keep_network`), which has been looked at; by
    default it is the study's, and is looked at first.

    Raises:
        HyperFusionError: what is wrong with the cohort, the configuration, or the disk.
    """
    calls, options = callbacks or Callbacks(), options or TrainOptions()
    how: dict[str, Any] = {
        "name": name, "parent": parent, "resume": resume, "like": like, "network": network,
    }  # fmt: skip
    place = place_given()
    if place is None and options.processes > 1:
        _refuse_many(options.processes, config)
        if resume is None and network is None:
            check_network(config, root, calls.on_network)
            how["network"] = root
        given = {"config": config, "root": root, "options": options, **how}
        return Run.open(launch(given, options, calls, resume.folder if resume else None))
    if options.elsewhere:
        return _elsewhere(config, root, how, options, calls)
    where = device_of(options, place)
    began = time.perf_counter()
    with joined(place, where) as group:
        run, dataset = prepare(config, root, **how, options=options, callbacks=calls, group=group)
        again = resume is not None
        for index in range(config.training.members):
            train_member(
                run,
                dataset,
                index,
                where,
                resume=again,
                options=options,
                callbacks=calls,
                group=group,
            )
        finish(run, dataset, where, group)
        _write_resources(run, group, where, time.perf_counter() - began)
        return run


def _write_resources(run: Run, group: Group, device: torch.device, seconds: float) -> None:
    """`resources.json`: what the training took, and of which machine."""
    peaks = group.all(peak_memory())
    if not group.writes:
        return
    found = {
        "processes": group.size,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
        "peak_memory_mib": [round(peak / 2**20) for peak in peaks],
        "machine": describe_machine(),
    }
    write_text(run.folder / "resources.json", json.dumps(found, indent=1) + "\n")


def _elsewhere(
    config: Config, root: Path, how: dict[str, Any], options: TrainOptions, calls: Callbacks
) -> Run:
    """As `train`, each member in a process of its own."""
    where = device_here(options)
    run, dataset = prepare(config, root, **how, options=options, callbacks=calls)
    told = calls.on_epoch
    train_members(
        [run],
        options,
        lambda run: finish(run, dataset, where),
        None if told is None else lambda _, *epoch: told(*epoch),
    )
    return run


def prepare(
    config: Config,
    root: Path,
    *,
    name: str | None = None,
    parent: Path | None = None,
    resume: Run | None = None,
    like: Path | None = None,
    network: Path | None = None,
    options: TrainOptions | None = None,
    callbacks: Callbacks | None = None,
    group: Group | None = None,
) -> tuple[Run, Dataset]:
    """The folder of a run and its cohort, before the first epoch; arguments as of `train`.

    Raises:
        HyperFusionError: what is wrong with the cohort, the configuration, or the disk.
    """
    calls, root, group = callbacks or Callbacks(), root.resolve(), group or Group()
    options = options or TrainOptions()
    if resume is not None:
        if group.writes:
            keep_network(resume.network, config, network or root)
    elif network is None:
        check_network(config, root, calls.on_network)
    place = group.place
    share = Share(place.rank, place.size, place.local_rank, place.local_size, group.wait)
    dataset = gather(
        config,
        root,
        calls.on_scan,
        cache=options.cache,
        cache_limit=options.cache_limit,
        share=share,
    )
    if calls.on_check is not None:
        calls.on_check(dataset.check)
    if like is not None:
        _refuse_another_cohort(like, dataset, config, root)
    _refuse_unlike(group, dataset, config, root)
    run = resume
    if group.writes:
        run = resume or Run.create(parent or root / "runs", config, name)
        run.write_study(root, options.cache, options.cache_limit)
        keep_network(run.network, config, network or root)
        _write_cohort(run, dataset, root)
    run = group.first(run)
    assert run is not None
    if calls.on_run is not None:
        calls.on_run(run.folder)
    return run, dataset


def train_member(
    run: Run,
    dataset: Dataset,
    index: int,
    device: torch.device,
    *,
    resume: bool,
    options: TrainOptions | None = None,
    callbacks: Callbacks | None = None,
    group: Group | None = None,
) -> None:
    """Run the epochs of member `index` that are left; with `resume`, after its checkpoint.

    Raises:
        HyperFusionError: it came to nothing, or its checkpoint cannot be read.
    """
    calls, options = callbacks or Callbacks(), options or TrainOptions()
    trainer = Trainer(run.config, dataset, run.member(index), index, device, group)

    def on_epoch(epoch: int, row: dict[str, Any]) -> None:
        if calls.on_epoch is not None:
            calls.on_epoch(index, epoch, row)

    trainer.train(
        on_epoch,
        resume=resume,
        on_features=calls.on_features,
        trackers=options.trackers,
        max_memory=options.max_memory,
    )


def finish(run: Run, dataset: Dataset, device: torch.device, group: Group | None = None) -> None:
    """What is made of a run whose members are trained: figures, predictions, curve, references.

    Raises:
        HyperFusionError: a member's answer is not finite.
    """
    outputs = answers_of(run, dataset, device, group)
    if group is not None and not group.writes:
        return
    # Without the test part: it stays as new to the network as any scan to come.
    seen = split_of(dataset, run.config, 0)
    scans = [dataset.cases[i].files for i in (*seen.train, *seen.validation)]
    landmarks = dataset.cache.landmarks or template_landmarks()
    keep_reference(run.folder, reference_of(dataset.cache, scans, landmarks))
    keep_training_cases(run.folder, dataset, run.config)
    metrics = evaluate(run, dataset, outputs)
    learning_curve(run, metrics)
    run.write_metrics(metrics)


def dataset_again(run: Run, on_scan: Callable[[int, int], None] | None = None) -> Dataset:
    """The cases that `run` was trained on, in their parts, from its study's folder.

    Boxes come from the run's cache, as far as it still has them.

    Raises:
        HyperFusionError: the study is not where it was, or its cases are other ones now.
    """
    root = run.study
    cache, limit = run.cache
    dataset = gather(run.config, root, on_scan, cache=cache, cache_limit=limit)
    _refuse_another_cohort(run.folder, dataset, run.config, root)
    return dataset


def _refuse_many(processes: int, config: Config, cases: int | None = None) -> None:
    """Refuse more processes than a step, or the training part, has samples.

    Raises:
        ConfigError: there are more.
    """
    batch = config.training.batch_size
    if processes > min(batch, batch if cases is None else cases):
        part = "" if cases is None else f", and the training part {cases}"
        raise ConfigError(
            f"{processes} processes train together, but a step has {batch} samples{part}: use "
            "fewer (`devices`, `nodes`), or a larger training.batch_size",
            code="training-too-many-processes",
        )


def _refuse_unlike(group: Group, dataset: Dataset, config: Config, root: Path) -> None:
    """Refuse processes that do not see one cohort, or do not run one program.

    Raises:
        ConfigError: what is different.
    """
    if group.alone:
        return
    _refuse_many(group.size, config, len(split_of(dataset, config, 0).train))
    facts = {
        "program": f"{hyperfusion_rt.__version__} {torch.__version__}",
        "configuration": config.model_dump_json(),
        "cohort or split": splits_csv(dataset, config, root),
        "scan or row": json.dumps(inputs_of(dataset, config)),
    }
    hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in facts.items()}
    seen = group.all(hashes)
    for rank, other in enumerate(seen):
        names = [name for name in hashes if other[name] != seen[0][name]]
        if names:
            raise ConfigError(
                f"process {rank} of {group.size} has another {' and another '.join(names)} than "
                f"process 0 (its {root}): give all machines the same files and the same version "
                "of hyperfusion_rt and torch",
                code="training-processes-differ",
            )


def _write_cohort(run: Run, dataset: Dataset, root: Path) -> None:
    """Keep what the run is trained on; a run that is resumed must find the same."""
    splits, inputs = run.folder / SPLITS, run.folder / INPUTS
    text, content = splits_csv(dataset, run.config, root), inputs_of(dataset, run.config)
    if splits.exists() and splits.read_text(encoding="utf-8") != text:
        _refuse_resume(splits, "the cohort has changed")
    changed = _changed(_kept_inputs(inputs), content)
    if changed:
        _refuse_resume(inputs, f"{changed} changed")
    write_text(splits, text, private=True)
    write_text(inputs, inputs_text(content), private=True)
    check = json.dumps(asdict(dataset.check), indent=2) + "\n"
    write_text(run.folder / "check.json", check, private=True)
    left = [astuple(item) for item in dataset.left_out]
    write_text(run.folder / "left_out.json", json.dumps(left, indent=2) + "\n", private=True)


def _refuse_another_cohort(like: Path, dataset: Dataset, config: Config, root: Path) -> None:
    """Refuse to train on other cases, or other parts, than the run `like` was trained on.

    Raises:
        ConfigError: what is different.
    """
    splits = (like / SPLITS, splits_csv(dataset, config, root))
    if _parts_in(splits[0].read_text(encoding="utf-8")) != _parts_in(splits[1]):
        _refuse_resume(splits[0], "the cohort has changed")
    changed = _changed(_kept_inputs(like / INPUTS), inputs_of(dataset, config))
    if changed:
        _refuse_resume(like / INPUTS, f"{changed} changed")


def _parts_in(text: str) -> list[list[str]]:
    """Subject, session, scan and part of each case, whatever each member's split is."""
    return [line[:4] for line in csv.reader(io.StringIO(text))]


def _kept_inputs(path: Path) -> list[dict[str, str]]:
    """What `inputs.json` holds; nothing in a new run and in those of older versions."""
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return [{str(name): str(value) for name, value in item.items()} for item in found]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}", code="run-unreadable") from None


def _changed(old: list[dict[str, str]], new: list[dict[str, str]]) -> str:
    """Which scan or row is another one than when the run began; "" if none is."""
    found = [
        f"the {what} of {b['subject']}"
        for a, b in zip(old, new, strict=False)
        for what in ("scan", "row")
        if a.get(what) != b[what]
    ]
    more = (
        f" and {len(found) - 3} more have" if len(found) > 3 else " have" if found[1:] else " has"
    )
    return ", ".join(found[:3]) + more if found else ""


def _refuse_resume(path: Path, what: str) -> None:
    raise ConfigError(
        f"{path}: {what} since this run began, so it cannot be resumed; "
        "train anew without `resume`",
        code="run-cohort-changed",
    )

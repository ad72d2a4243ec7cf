"""The cases that training sees: joined, decoded once into the cache, with their targets."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.config import Config, TableSpec
from hyperfusion_rt.data.bids_filter import read_filter
from hyperfusion_rt.data.channels import find_cases
from hyperfusion_rt.data.cohort import Case, join
from hyperfusion_rt.data.column_check import Column
from hyperfusion_rt.data.column_map import columns_of_spec, own_readings, read_through
from hyperfusion_rt.data.encoder import read_target
from hyperfusion_rt.data.finding import SHOWN, Finding, more
from hyperfusion_rt.data.number_check import impossible_age
from hyperfusion_rt.data.raw.landmarks import template_landmarks
from hyperfusion_rt.data.table_columns import read_table_for
from hyperfusion_rt.data.table_file import Row, read_category, read_number, where
from hyperfusion_rt.data.volume_cache import Figures, Images, VolumeCache
from hyperfusion_rt.errors import CohortError, ConfigError, HyperFusionError, ScanError, TableError
from hyperfusion_rt.training.check import (
    Check,
    Left,
    Part,
    check_columns,
    check_leaks,
    check_parts,
    left_lines,
    missing_columns,
    wrong_features,
    wrong_weights,
)
from hyperfusion_rt.training.decode import ALONE, OnScan, Share, decode
from hyperfusion_rt.training.parts import Given, given_parts, parts_of
from hyperfusion_rt.training.splits import Parts

_FIGURES = re.compile(r"\b\d+(\.\d+)?%?")
# Where decoded scans lie in a study's folder.
CACHE = ".hfrt_cache"
# Kinds of reason that an error without any case gives.
_REASONS = 3
# Places of one image that a finding names.
_SAME = 10


@dataclass(frozen=True)
class Dataset:
    """N usable cases. `targets [N]`: class indices or numbers.

    `features`: what a network reads of a case's images instead of them, `float32 [N boxes, F]`.
    """

    cases: list[Case]
    targets: NDArray[np.float64]
    parts: Parts
    cache: VolumeCache
    check: Check
    features: Callable[[Images], NDArray[np.float32]] | None = None

    @property
    def left_out(self) -> tuple[Left, ...]:
        """The cases that cannot be used."""
        return self.check.left_out

    @property
    def rows(self) -> list[Row]:
        """The table's row of every case."""
        return [case.row for case in self.cases]

    def only(self, chosen: Sequence[int]) -> Dataset:
        """The cases at these indices alone."""
        return replace(
            self,
            cases=[self.cases[i] for i in chosen],
            targets=self.targets[list(chosen)],
            parts=replace(self.parts, of=self.parts.of[list(chosen)]),
        )

    def images(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """The boxes of some cases, `float32 [len(indices), N boxes, C channels, D, H, W]`.

        Where there are `features`, `[len(indices), N boxes, F]`.
        """
        read = self.features or self.cache.get
        return np.stack([read(self.cases[int(i)].files) for i in indices])


@dataclass
class _Study:
    """What the table and the names of the scans say. `columns` is empty where one is missing."""

    cases: list[Case]
    targets: list[float]
    left: list[Left]
    columns: list[Column]
    findings: list[Finding]
    notes: tuple[str, ...] = ()
    given: Given | None = None

    def known(self) -> tuple[list[Case], NDArray[np.float64], Given | None]:
        """What the parts are made of."""
        return self.cases, np.array(self.targets), self.given

    def keep(self, chosen: Sequence[int]) -> None:
        """Only the cases at these indices."""
        self.cases = [self.cases[i] for i in chosen]
        self.targets = [self.targets[i] for i in chosen]
        if self.given is not None:
            self.given = replace(self.given, texts=tuple(self.given.texts[i] for i in chosen))

    def check(self, config: Config, *, parts: Parts | None = None) -> Check:
        """All that is known of the cases that are left; with `parts`, what each holds."""
        findings = [*self.findings, *(f for column in self.columns for f in column.findings)]
        found: list[Part] = []
        if parts is not None:
            targets, rows = np.array(self.targets), [case.row for case in self.cases]
            subjects = [case.subject for case in self.cases]
            found, of_parts = check_parts(config, rows, targets, parts, subjects)
            findings += of_parts
        distinct = tuple(dict.fromkeys(findings))
        return Check(
            len(self.cases),
            tuple(self.columns),
            tuple(found),
            distinct,
            tuple(self.left),
            self.notes,
        )


def gather(
    config: Config,
    root: Path,
    on_scan: OnScan | None = None,
    *,
    cache: Path | None = None,
    cache_limit: int | None = None,
    share: Share = ALONE,
) -> Dataset:
    """Find, check, join, decode and split the cohort that `config` names, under the folder `root`.

    A case that cannot be used is listed in `left_out`. `on_scan(done, total)` tells the progress.
    What can only be a mistake ends it, before any scan is decoded where the table shows it.

    Args:
        cache: the folder of decoded scans; default: `.hfrt_cache` in `root`.
        cache_limit: bytes that they may take there; what does not fit is decoded each time.
        share: which of several processes this is, which all must call this.

    Raises:
        CohortError: no case is left, or a class has none.
        TableError: the table as a whole cannot be used.
        ConfigError: the configuration does not go with the table.
        HyperFusionError: the cache cannot be written, or the disk has no room.
    """
    study = _read_study(config, root)
    _refuse(study.check(config), root)
    _some_case(study, root)
    parts_of(config, *study.known())  # for what it refuses: decoding may take long
    boxes = _cache(config, root, cache, cache_limit)
    _look_at_scans(study, boxes, on_scan, share)
    _some_case(study, root)
    parts = parts_of(config, *study.known())
    check = study.check(config, parts=parts)
    _refuse(check, root)
    return Dataset(study.cases, np.array(study.targets), parts, boxes, check)


def check_study(
    config: Config, root: Path, *, scans: bool = False, on_scan: OnScan | None = None
) -> Check:
    """What is odd about the cohort that `config` names, without training.

    With `scans` all scans are decoded, as training does it; else the parts are those that
    training makes if every scan can be used.

    Raises:
        HyperFusionError: the table or the folder of scans cannot be read. What the check refuses
            is in its `refused`.
    """
    study = _read_study(config, root)
    if any(finding.code for finding in study.check(config).findings):
        return study.check(config)
    if scans:
        _look_at_scans(study, _cache(config, root), on_scan)
    try:
        _some_case(study, root)
        parts = parts_of(config, *study.known())
    except HyperFusionError as error:
        study.findings.append(Finding(str(error), error.code))
        return study.check(config)
    return study.check(config, parts=parts)


def check_parts_rotate(config: Config, root: Path) -> tuple[int, ...]:
    """The numbers of the parts, each of which can be the test set.

    Raises:
        HyperFusionError: as `gather`, of what the table shows; or the parts have names.
    """
    study = _read_study(config, root)
    _refuse(study.check(config), root)
    _some_case(study, root)
    parts = parts_of(config, *study.known())
    numbers = tuple(sorted({int(part) for part in parts.of}))
    if parts.named:
        raise ConfigError(
            f"{root}: cross-validation takes every part as test set in turn, and the study names "
            "its test part: number the parts, or leave out the split",
            code="split-invalid",
        )
    return numbers


def gather_external(
    config: Config, scans: Path, table: Path, root: Path, on_scan: OnScan | None = None
) -> Dataset:
    """An external test set for networks of `config`: every case is in its test part.

    Boxes are kept in the cache under `root`. What is odd about the cohort is in its `check`; it
    may lack a class, which is no mistake of a test set.

    Raises:
        CohortError: no case is left.
        TableError: the table as a whole cannot be used.
    """
    training = config.training.model_copy(update={"split_column": None, "split_file": None})
    place = {"scans": str(scans.resolve()), "table": str(table.resolve()), "bids_filter": None}
    study = _read_study(config.model_copy(update={**place, "training": training}), root)
    lacks = [f for f in study.findings if f.code == "table-missing-column"]
    _refuse(Check(0, (), (), tuple(lacks), ()), table)
    _some_case(study, scans)
    cache = _cache(config, root)
    _look_at_scans(study, cache, on_scan)
    _some_case(study, scans)
    parts = Parts(np.zeros(len(study.cases), np.int64), 0, (1,), named=True)
    return Dataset(study.cases, np.array(study.targets), parts, cache, study.check(config))


def _cache(
    config: Config, root: Path, folder: Path | None = None, limit: int | None = None
) -> VolumeCache:
    folder = root / CACHE if folder is None else folder
    landmarks = template_landmarks()
    return VolumeCache(folder, config.preprocessing, landmarks, config.scan_checks, limit)


def _refuse(check: Check, root: Path) -> None:
    error = check.error(root)
    if error is not None:
        raise error


def _some_case(study: _Study, root: Path) -> None:
    if not study.cases:
        why = "".join(f"; {line}" for line in left_lines(study.left)[:_REASONS])
        raise CohortError(
            f"{root}: no case can be used for training{why}", code="cohort-no-usable-case"
        )


def _read_study(config: Config, root: Path) -> _Study:
    spec = config.tabular
    choose = read_filter(root / config.bids_filter if config.bids_filter else None)
    scans = find_cases([root / config.scans], config.preprocessing.channels, choose)
    table = read_table_for(
        scans,
        root / config.table,
        id_column=spec.id_column,
        session_column=spec.session_column,
    )
    columns = columns_of_spec(spec)
    table = read_through(table, own_readings(table, columns, spec.map, "as tabular.map says"))
    cohort = join(scans, table, [*(feature.name for feature in spec.features), spec.target])
    left = [Left(p.subject, p.session, f"{p.where}: {p.reason}", p.code) for p in cohort.problems]
    findings = [
        *missing_columns(config, table), *wrong_features(config, table), *wrong_weights(config)
    ]  # fmt: skip
    study = _Study([], [], left, [], findings, cohort.notes)
    if any(finding.code == "table-missing-column" for finding in findings):
        return study
    if cohort.cases:
        study.columns += check_columns(config, table, [case.row for case in cohort.cases])
    years = [column.name for column in study.columns if column.years]
    for case in cohort.cases:
        try:
            target = read_target(case.row, spec)
            _check_features(case.row, spec)
            _check_ages(case.row, years)
        except TableError as error:
            left.append(Left(case.subject, case.session, f"{table.path}: {error}", error.code))
            continue
        if target is None:
            reason = f"no value of {spec.target}"
            left.append(Left(case.subject, case.session, reason, "table-missing-value"))
        else:
            study.cases.append(case)
            study.targets.append(float(target))
    _read_parts(config, root, study)
    rows = [case.row for case in study.cases]
    findings += _grouped([(text, case.subject) for case in study.cases for text in case.warnings])
    findings += check_leaks(spec, rows, np.array(study.targets))
    return study


def _read_parts(config: Config, root: Path, study: _Study) -> None:
    """What the study says of its parts; a case of which it says nothing is left out."""
    given = study.given = given_parts(config, root, study.cases)
    if given is None:
        return
    study.findings += given.findings
    kept = []
    for index, (case, text) in enumerate(zip(study.cases, given.texts, strict=True)):
        if text:
            kept.append(index)
        else:
            reason = f"{given.where} says nothing of it"
            study.left.append(Left(case.subject, case.session, reason, "split-missing"))
    study.keep(kept)


def _look_at_scans(
    study: _Study, cache: VolumeCache, on_scan: OnScan | None, share: Share = ALONE
) -> None:
    """Decode every scan; cases whose scan cannot be used are left out, warnings are kept."""
    cases, scans = study.cases, [case.files for case in study.cases]
    found = decode(cache, scans, share, on_scan)
    kept, figures = [], []
    said: list[tuple[str, str]] = []
    for index, (case, known) in enumerate(zip(cases, found, strict=True)):
        if isinstance(known, ScanError):
            study.left.append(Left(case.subject, case.session, str(known), known.code))
            continue
        kept.append(index)
        figures.append(known)
        said += [(text, case.subject) for text in known.warnings]
    study.keep(kept)
    channels = [channel.name for channel in cache.preprocessing.channels]
    study.findings += [*_grouped(said), *_same_images(study.cases, figures, channels)]
    study.notes += tuple(cache.notes(scans))


def _same_images(
    cases: Sequence[Case], figures: Sequence[Figures], channels: Sequence[str]
) -> list[Finding]:
    """Files that show one image: a file in the wrong place, or a subject with two ids."""
    places: dict[str, list[str]] = {}
    for case, known in zip(cases, figures, strict=True):
        for channel, content in zip(channels, known.content, strict=True):
            name = case.subject + (f" {case.session}" if case.session else "")
            place = f"{name} ({channel})" if len(channels) > 1 else name
            places.setdefault(content, []).append(place)
    places.pop("", None)  # images that tell nothing, such as masks of small lesions
    found = [
        " = ".join(same[:_SAME]) + (f" and {len(same) - _SAME} more" if len(same) > _SAME else "")
        for same in places.values()
        if len(same) > 1
    ]
    if not found:
        return []
    text = f"the same image stands in several places: {'; '.join(found[:SHOWN])}{more(len(found))}"
    return [Finding(f"{text}. Is a file misplaced, or does a person have two ids?")]


def _grouped(said: Sequence[tuple[str, str]]) -> list[Finding]:
    """What is said of cases, (text, subject) each, as one finding for each text."""
    groups: dict[str, tuple[str, list[str]]] = {}
    for text, subject in said:
        # Texts that differ in their figures only are one.
        key = _FIGURES.sub("#", text)
        groups.setdefault(key, (text, []))[1].append(subject)
    return [
        Finding(f"{text}: {', '.join(ids[:SHOWN])}{more(len(ids))}")
        for text, ids in groups.values()
    ]


def _check_features(row: Row, spec: TableSpec) -> None:
    """Raise a TableError if a cell cannot be read."""
    for feature in spec.features:
        if feature.kind == "categorical":
            if feature.categories:
                read_category(row, feature.name, feature.categories)
        else:
            read_number(row, feature.name, censored=feature.kind == "censored")


def _check_ages(row: Row, columns: Iterable[str]) -> None:
    """Raise a TableError where a column of ages holds none that a person can have."""
    for name in columns:
        age = read_number(row, name, censored=True)
        if age is not None and impossible_age(age):
            raise TableError(
                f"{where(row, name)}: {row.values[name]!r} is no age in years; leave the cell "
                "empty where it is not known",
                code="table-impossible-value",
            )


def splits_csv(dataset: Dataset, config: Config, root: Path) -> str:
    """The text of `splits.csv`: every case with its part and its split in each member."""
    training = config.training
    names = [dataset.parts.names(m) for m in range(training.members)]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["subject", "session", "scan", "part", *[f"member_{m}" for m in range(training.members)]]
    )
    for i, case in enumerate(dataset.cases):
        scan = case.scan.relative_to(root) if case.scan.is_relative_to(root) else case.scan
        writer.writerow(
            [case.subject, case.session or "", scan, dataset.parts.of[i], *[n[i] for n in names]]
        )
    return stream.getvalue()


def inputs_of(dataset: Dataset, config: Config) -> list[dict[str, str]]:
    """What `inputs.json` keeps of each case: keys of its scan's content and of its row.

    A run that is resumed compares them. They do not depend on where the cohort lies.
    """
    spec = config.tabular
    names = [*(feature.name for feature in spec.features), spec.target, *spec.stratify]
    found = []
    for case in dataset.cases:
        row = "\0".join(case.row.values[name] for name in names)
        key = hashlib.sha256(row.encode()).hexdigest()[:16]
        scan = "".join(key[:16] for key in dataset.cache.content(case.files))
        found.append({"subject": case.subject, "scan": scan, "row": key})
    return found


def inputs_text(inputs: list[dict[str, str]]) -> str:
    """`inputs.json`, of what `inputs_of` gives."""
    return json.dumps(inputs, indent=1) + "\n"

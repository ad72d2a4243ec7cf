"""The cases that training sees: joined, decoded once into the cache, with their targets."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.config import Config, TableSpec
from hyperfusion_rt.data.cohort import Case, join
from hyperfusion_rt.data.encoder import read_target
from hyperfusion_rt.data.scan_search import find_scans
from hyperfusion_rt.data.table_columns import read_table_for
from hyperfusion_rt.data.table_file import Row, read_category, read_number
from hyperfusion_rt.data.volume_cache import VolumeCache
from hyperfusion_rt.errors import CohortError, ScanError, TableError
from hyperfusion_rt.training.splits import age_bins, split_names, stratified_parts


@dataclass(frozen=True)
class Left:
    """A case that is left out of training, and why; `code`: one of `CODES`."""

    subject: str
    session: str | None
    reason: str
    code: str


@dataclass(frozen=True)
class Dataset:
    """N usable cases. `targets [N]`: class indices or years; `parts [N]`: 0 to parts - 1.

    `notes`: which columns were taken for what, how many scans have a row, what is odd about a case.
    """

    cases: list[Case]
    targets: NDArray[np.float64]
    parts: NDArray[np.int64]
    cache: VolumeCache
    left_out: list[Left]
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> list[Row]:
        """The table's row of every case."""
        return [case.row for case in self.cases]

    def images(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """The boxes of some cases, `float32 [len(indices), N boxes, 1, D, H, W]`."""
        return np.stack([self.cache.get(self.cases[int(i)].scan) for i in indices])


def gather(
    config: Config, root: Path, on_scan: Callable[[int, int], None] | None = None
) -> Dataset:
    """Find, join, decode and split the cohort that `config` names, under the folder `root`.

    A case that cannot be used is listed in `left_out`. `on_scan(done, total)` tells the progress.

    Raises:
        CohortError: no case is left, or a class has none.
        TableError: the table as a whole cannot be used.
    """
    spec = config.tabular
    scans = find_scans(root / config.scans)
    table = read_table_for(
        scans,
        root / config.table,
        id_column=spec.id_column,
        session_column=spec.session_column,
    )
    cohort = join(scans, table, [*(feature.name for feature in spec.features), spec.target])
    left = [Left(p.subject, p.session, f"{p.where}: {p.reason}", p.code) for p in cohort.problems]
    labelled: list[tuple[Case, float]] = []
    for case in cohort.cases:
        try:
            target = read_target(case.row, spec)
            _check_features(case.row, spec)
        except TableError as error:
            left.append(Left(case.subject, case.session, f"{table.path}: {error}", error.code))
            continue
        if target is None:
            reason = f"no value of {spec.target}"
            left.append(Left(case.subject, case.session, reason, "table-missing-value"))
        else:
            labelled.append((case, float(target)))

    cache = VolumeCache(root / ".hfrt_cache", config.preprocessing)
    faults = _decode(cache, [case.scan for case, _ in labelled], on_scan)
    usable: list[tuple[Case, float]] = []
    for item, fault in zip(labelled, faults, strict=True):
        if fault is None:
            usable.append(item)
        else:
            left.append(Left(item[0].subject, item[0].session, str(fault), fault.code))
    if not usable:
        first = f"; the first: {left[0].subject}: {left[0].reason}" if left else ""
        raise CohortError(
            f"{root}: no case can be used for training{first}", code="cohort-no-usable-case"
        )

    cases = [case for case, _ in usable]
    targets = np.array([target for _, target in usable])
    odd = [f"{case.subject}: {warning}" for case in cases for warning in case.warnings]
    notes = (*cohort.notes, *odd)
    return Dataset(cases, targets, _parts(config, cases, targets), cache, left, notes)


def _decode(
    cache: VolumeCache, scans: Sequence[Path], on_scan: Callable[[int, int], None] | None
) -> list[ScanError | None]:
    """Fill the cache; what is wrong with each scan, or None."""

    def decode(scan: Path) -> ScanError | None:
        try:
            cache.get(scan)
        except ScanError as error:
            return error
        return None

    found = []
    with ThreadPoolExecutor() as pool:
        for error in pool.map(decode, scans):
            found.append(error)
            if on_scan is not None:
                on_scan(len(found), len(scans))
    return found


def _parts(config: Config, cases: list[Case], targets: NDArray[np.float64]) -> NDArray[np.int64]:
    if config.task == "ad":
        names = list(config.tabular.classes)
        absent = [name for i, name in enumerate(names) if not np.any(targets == i)]
        if absent:
            raise CohortError(
                f"no case of class {', '.join(absent)}: nothing to learn it from",
                code="cohort-class-missing",
            )
        labels: list[object] = [int(t) for t in targets]
    else:
        labels = [int(b) for b in age_bins(targets)]
    kinds = {feature.name: feature.kind for feature in config.tabular.features}
    columns: list[list[object]] = [labels]
    for name in config.tabular.stratify:
        values = [case.row.values.get(name, "") for case in cases]
        if kinds.get(name) == "categorical":
            columns.append([value.strip().lower() for value in values])
        else:
            columns.append([int(b) for b in age_bins(np.array([_number(v) for v in values]))])
    return stratified_parts(
        [case.subject for case in cases],
        list(zip(*columns, strict=True)),
        config.training.parts,
        config.training.seed,
    )


def _check_features(row: Row, spec: TableSpec) -> None:
    """Raise a TableError if a cell cannot be read."""
    for feature in spec.features:
        if feature.kind == "categorical":
            if feature.categories:
                read_category(row, feature.name, feature.categories)
        else:
            read_number(row, feature.name, censored=feature.kind == "censored")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def splits_csv(dataset: Dataset, config: Config, root: Path) -> str:
    """The text of `splits.csv`: every case with its part and its split in each member."""
    training = config.training
    names = [split_names(dataset.parts, training.parts, m) for m in range(training.members)]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["subject", "session", "scan", "part", *[f"member_{m}" for m in range(training.members)]]
    )
    for i, case in enumerate(dataset.cases):
        scan = case.scan.relative_to(root) if case.scan.is_relative_to(root) else case.scan
        writer.writerow(
            [case.subject, case.session or "", scan, dataset.parts[i], *[n[i] for n in names]]
        )
    return stream.getvalue()

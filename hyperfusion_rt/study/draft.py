"""The decisions of a draft: from scans and a table to a configuration, each with its reason."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hyperfusion_rt.config import PRESETS, Channel, Config, TableSpec, preset
from hyperfusion_rt.data.encoder import read_target
from hyperfusion_rt.data.finding import counted
from hyperfusion_rt.data.number_check import means_age, missing_codes, mixed_points
from hyperfusion_rt.data.table_file import (
    Row,
    Table,
    is_missing,
    read_cell,
    read_number,
)
from hyperfusion_rt.errors import TableError
from hyperfusion_rt.study.cases import Matched, match
from hyperfusion_rt.study.channels import Images
from hyperfusion_rt.study.columns import Unused, Used, candidates, echoes, is_sex, judge, twins
from hyperfusion_rt.study.options import Boxes, DraftOptions
from hyperfusion_rt.study.target import Target, choose, describe, sidecar
from hyperfusion_rt.training.leakage import leak

# Fewer subjects in a part: its figures say little.
_PART = 8
_USUAL_PARTS, _LARGE_PART = 5, 24
_FEWEST_PARTS = 3
# More features than that are rarely meant.
_WIDE = 30
# From here on gaps are worth a regression on the other columns.
_GAPS = 0.05
_MANY = 50
_SMALL: dict[Boxes, str] = {"hippocampi": "ad-small", "whole-brain": "brain-age-small"}


@dataclass(frozen=True)
class Draft:
    """A configuration and where every part of it comes from.

    `scans` and `table` are seen from the configuration's folder. `missing`: what was read as "not
    known" in the columns that are read, each with its count; `codes`: numbers that may do so, too.
    """

    scans: str
    table: str
    matched: Matched
    target: Target
    used: tuple[Used, ...]
    unused: tuple[Unused, ...]
    stratify: tuple[str, ...]
    imputer: str
    gaps: float
    boxes: Boxes
    boxes_why: str
    preset: str
    images: Images
    parts: int
    missing: dict[str, int]
    codes: dict[str, str]
    warnings: tuple[str, ...]

    @property
    def boxes_of_preset(self) -> bool:
        """Whether the preset has these boxes already."""
        return _boxes_of(self.preset) == self.boxes

    @property
    def change(self) -> dict[str, Any]:
        """What the draft says beside the preset, as `load_config` merges it."""
        target, matched = self.target, self.matched
        table: dict[str, Any] = {"id_column": matched.id_column}
        table["target"] = target.name
        if target.task == "classification":
            table["classes"] = target.classes
        else:
            table["unit"] = target.unit
        features = [one.feature.model_dump(exclude_defaults=True) for one in self.used]
        table |= {"features": features, "stratify": self.stratify, "imputer": self.imputer}
        found: dict[str, Any] = {"preset": self.preset, "task": target.task}
        found |= {"scans": self.scans, "table": self.table, "tabular": table}
        preprocessing: dict[str, Any] = {}
        if not self.boxes_of_preset:
            # The size of the network and of its boxes go together.
            size = "-small" if self.preset.endswith("-small") else ""
            other = PRESETS[_SMALL[self.boxes].removesuffix("-small") + size]
            preprocessing |= {k: other["preprocessing"][k] for k in ("boxes", "shape", "spacing")}
            found["network"] = {"architecture": other["network"]["architecture"]}
        if self.images.channels:
            preprocessing["channels"] = [_written(one) for one in self.images.channels]
        if preprocessing:
            found["preprocessing"] = preprocessing
        if not self.used:
            found.setdefault("network", {})["fusion"] = "image"
        return {**found, "training": {"parts": self.parts}}

    @property
    def config(self) -> Config:
        """The configuration that was decided on."""
        return preset(self.preset, self.change)


def draft(scans: Path, table: Path, folder: Path, options: DraftOptions | None = None) -> Draft:
    """Look at the scans and the table, and draft the configuration that lies in `folder`.

    Raises:
        CohortError: no scan, no scan with a row, nothing to learn.
        TableError: the table cannot be read, its column of subjects is unclear, or there is no
            such column.
        ConfigError: it is unclear what is to be predicted, or there is no such preset.
    """
    options = options or DraftOptions()
    about = sidecar(table)
    if options.preset_name is not None:
        preset(options.preset_name)
    data, images, cohort, matched = match(scans, table, options.id_column)
    rows = [case.row for case in cohort.cases]
    name, why = choose(data, rows, options.target)
    if name in (data.id_column, data.session_column):
        raise TableError(
            f"{data.path}: `target` {name} is the column of subjects or sessions; choose another",
            code="config-invalid",
        )
    said = about.get(name)
    target = describe(
        rows, name, why=why, task=options.task, unit=options.unit,
        about=said if isinstance(said, dict) else {},
    )  # fmt: skip
    targets = _targets(rows, target)
    used, unused = _columns(data, rows, target, targets)
    boxes, boxes_why = _boxes(options, target)
    chosen = options.preset_name or _SMALL[boxes]
    imputer, gaps = _imputer(used, len(rows))
    missing, codes = _missing(rows, [name, *(one.feature.name for one in used)])
    warnings = [*target.warnings, *(text for one in used for text in one.remarks)]
    if not used:
        warnings.append("no column can be a feature: the network reads the image alone")
    if len(used) > _WIDE:
        warnings.append(
            f"{len(used)} columns are features: take out those that should not count, since a "
            "network can learn so many by heart"
        )
    usable = len(
        {
            case.subject
            for case, value in zip(cohort.cases, targets, strict=True)
            if value is not None
        }
    )
    if usable < _FEWEST_PARTS * _FEWEST_PARTS:
        warnings.append(
            f"{usable} subjects can be used, which is too few to train on: a trial run at best"
        )
    return Draft(
        scans=_seen_from(folder, scans),
        table=_seen_from(folder, table),
        matched=matched,
        target=target,
        used=tuple(used),
        unused=tuple(unused),
        stratify=tuple(
            one.feature.name
            for one in sorted(used, key=lambda one: not is_sex(one.feature.name))
            if is_sex(one.feature.name) or means_age(one.feature.name)
        ),
        imputer=imputer,
        gaps=gaps,
        boxes=boxes,
        boxes_why=boxes_why,
        preset=chosen,
        images=images,
        parts=_parts(chosen, target, usable),
        missing=missing,
        codes=codes,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _seen_from(folder: Path, path: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _written(channel: Channel) -> dict[str, Any]:
    return channel.model_dump(exclude_defaults=True)


# ---- columns


def _columns(
    table: Table, rows: Sequence[Row], target: Target, targets: Sequence[float | None]
) -> tuple[list[Used], list[Unused]]:
    """The features, and the columns that are left out, in the table's order.

    `targets`: of each row, as `_targets` reads them.
    """
    judged = [judge(rows, name) for name in candidates(table) if name != target.name]
    unclear = mixed_points(table, [one.feature.name for one in judged if isinstance(one, Used)])
    used: list[Used] = []
    unused = [one for one in judged if isinstance(one, Unused)]
    for one in judged:
        if not isinstance(one, Used):
            continue
        name = one.feature.name
        finding = unclear.get(name)
        reason = finding.text if finding and finding.code else None
        reason = echoes(name, target.name) or reason or _tells(one, rows, target, targets)
        if reason:
            unused.append(Unused(name, reason, one.feature))
        else:
            used.append(one)
    again = twins(used, rows)
    unused += [
        Unused(one.feature.name, f"the same as {again[one.feature.name]!r}", one.feature)
        for one in used
        if one.feature.name in again
    ]
    place = {name: n for n, name in enumerate(table.columns)}
    unused.sort(key=lambda one: place[one.name])
    return [one for one in used if one.feature.name not in again], unused


def _tells(
    one: Used, rows: Sequence[Row], target: Target, targets: Sequence[float | None]
) -> str | None:
    """That a feature tells the target, as a check before training sees it."""
    kept, values = [], []
    for row, value in zip(rows, targets, strict=True):
        try:
            if one.feature.kind != "categorical":
                read_number(row, one.feature.name, censored=one.feature.kind == "censored")
        except TableError:
            continue
        if value is not None:
            kept.append(row)
            values.append(value)
    finding = leak(one.feature, kept, target.name, np.array(values), bool(target.classes))
    return finding.text if finding else None


def _targets(rows: Sequence[Row], target: Target) -> list[float | None]:
    """The class index or the number of each row; None where it has none that can be used."""
    spec = TableSpec(features=(), target=target.name, classes=target.classes)
    found: list[float | None] = []
    for row in rows:
        try:
            found.append(read_target(row, spec))
        except TableError:
            found.append(None)
    return found


def _missing(rows: Sequence[Row], names: Sequence[str]) -> tuple[dict[str, int], dict[str, str]]:
    """What stands for "not known" in these columns, and numbers of each that may."""
    markers: Counter[str] = Counter()
    codes = {}
    for name in names:
        numbers = []
        for row in rows:
            cell = read_cell(row, name)
            if is_missing(cell):
                markers[cell or "an empty cell"] += 1
                continue
            try:
                number = read_number(row, name, censored=True)
            except TableError:
                continue
            if number is not None:
                numbers.append(number)
        found = missing_codes(np.array(numbers, np.float64)) if numbers else {}
        if found:
            codes[name] = counted(found)
    return dict(markers.most_common()), codes


# ---- what follows from them


def _boxes_of(name: str) -> Boxes:
    return "whole-brain" if name.startswith("brain-age") else "hippocampi"


def _boxes(options: DraftOptions, target: Target) -> tuple[Boxes, str]:
    if options.boxes is not None:
        return options.boxes, "as asked for"
    if options.preset_name is not None:
        return _boxes_of(options.preset_name), "those of the preset"
    if target.is_age:
        return "whole-brain", "an age is read from the whole brain"
    return "hippocampi", "the usual place to look; an age would be read from the whole brain"


def _imputer(used: Sequence[Used], rows: int) -> tuple[str, float]:
    """The imputer, and the largest part of a number's cells that is missing."""
    numbers = [one.column for one in used if one.feature.kind != "categorical"]
    gaps = max((column.missing / rows for column in numbers), default=0.0)
    iterative = len(numbers) > 1 and rows >= _MANY and gaps > _GAPS
    return "iterative" if iterative else "median", gaps


def _parts(name: str, target: Target, subjects: int) -> int:
    """Parts of which each has enough subjects to say something, and a case of every class.

    A class with too few cases for that is not waited for.
    """
    # Many parts leave more to train with, and few to test: that is for many subjects.
    most = min(preset(name).training.parts, max(_USUAL_PARTS, subjects // _LARGE_PART))
    rarest = min((n for n in target.counts.values() if n >= _FEWEST_PARTS), default=subjects)
    return max(_FEWEST_PARTS, min(most, subjects // _PART, rarest))

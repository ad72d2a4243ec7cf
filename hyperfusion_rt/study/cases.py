"""Which scans and rows make cases, and which column names the subjects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hyperfusion_rt.data.channels import find_cases
from hyperfusion_rt.data.cohort import Cohort, Problem, join
from hyperfusion_rt.data.finding import SHOWN
from hyperfusion_rt.data.id_match import split
from hyperfusion_rt.data.scan import Scan
from hyperfusion_rt.data.scan_file import stem
from hyperfusion_rt.data.scan_search import find_scans
from hyperfusion_rt.data.scan_space import PASSED_OVER
from hyperfusion_rt.data.table_columns import read_table_for, scans_by_column
from hyperfusion_rt.data.table_file import Table, normalise_id
from hyperfusion_rt.errors import CohortError, TableError
from hyperfusion_rt.study.channels import Images, find_images

# If one of so many scans has its id in the usual column, no other column is tried.
_LOOKED_AT = 50


@dataclass(frozen=True)
class Matched:
    """How scans and rows were matched. `subjects` have a scan and a row."""

    scans: int
    rows: int
    cases: int
    subjects: int
    id_column: str
    session_column: str | None
    notes: tuple[str, ...]
    problems: tuple[Problem, ...]

    @property
    def with_row(self) -> str:
        """`118 of 120 scans have a row`."""
        return self.notes[-1]


def match(scans: Path, path: Path, id_column: str | None) -> tuple[Table, Images, Cohort, Matched]:
    """The table, the kinds of image, the cases, and how they were matched, as training does it.

    Raises:
        CohortError: no scan, or none that can be used with a row.
        TableError: the table cannot be read, or its column of subjects is unclear.
    """
    found, table, images = _read(scans, path, id_column)
    cohort = join(found, table)
    if not cohort.cases:
        raise _nobody(found, table, cohort)
    matched = Matched(
        scans=sum(scan.code != PASSED_OVER for scan in found),
        rows=len(table.rows),
        cases=len(cohort.cases),
        subjects=len({case.subject for case in cohort.cases}),
        id_column=table.id_column,
        session_column=table.session_column,
        notes=cohort.notes,
        problems=tuple(cohort.problems),
    )
    return table, images, cohort, matched


def _read(scans: Path, path: Path, id_column: str | None) -> tuple[list[Scan], Table, Images]:
    """The cases' scans, the table, and the kinds of image."""
    found, are_t1 = _look(scans)
    column = id_column or _column(path, found)
    table = read_table_for(found, path, id_column=column)
    images = find_images(scans, {row.subject for row in table.rows}, alone=not are_t1)
    if images.channels:
        found = find_cases([scans], images.channels)
        table = read_table_for(found, path, id_column=table.id_column)
    elif not are_t1:
        find_scans(scans)  # says that there is none
    return found, table, images


def _look(scans: Path) -> tuple[list[Scan], bool]:
    """The scans as they are found without channels; else all images, and that these are others."""
    try:
        return find_scans(scans), True
    except CohortError as error:
        if error.code != "cohort-no-scan" or not scans.is_dir():
            raise
        images = find_scans(scans, matches=lambda _: True)
        if not images:
            raise
        return images, False


def _column(path: Path, scans: Sequence[Scan]) -> str | None:
    """The column of subjects; None if it is the one that is found by its name.

    Raises:
        TableError: no column has a usual name or holds ids of scans, or two hold equally many.
    """
    usual, unnamed = None, None
    try:
        table = read_table_for(scans, path)
    except TableError as error:
        if error.code != "table-no-subject-column":
            raise
        unnamed = error
    else:
        usual, ids = table.id_column, {row.subject for row in table.rows}
        if any(split(scan, ids)[0] in ids for scan in scans[:_LOOKED_AT]):
            return None
    counts = scans_by_column(path, scans)
    if not counts:
        # The folders may be called as kinds of image are, and the files as subjects.
        named = [replace(scan, subject=normalise_id(stem(scan.path))) for scan in scans]
        counts = scans_by_column(path, named)
    if usual in counts or not counts:
        if unnamed is not None:
            raise unnamed
        return usual
    best = max(counts, key=counts.__getitem__)
    rivals = [name for name, count in counts.items() if count == counts[best]]
    if len(rivals) > 1:
        raise TableError(
            f"{path}: columns {' and '.join(map(repr, rivals))} both hold the ids of "
            f"{counts[best]} of {len(scans)} scans; name the right one with `id_column`",
            code="table-ambiguous-column",
        )
    return best


def _nobody(scans: Sequence[Scan], table: Table, cohort: Cohort) -> CohortError:
    """That no scan has a row; three ids of each side show why."""
    theirs = list(dict.fromkeys(row.subject for row in table.rows))
    ours = list(dict.fromkeys(scan.subject for scan in scans))
    first = next((p.reason for p in cohort.problems if p.source == "scan"), "")
    return CohortError(
        f"none of {len(scans)} scans can be used with a row of {table.path}: the scans' ids are "
        f"{_some(ours)}, those of column {table.id_column!r} {_some(theirs)}"
        + (f"; the first scan: {first}" if first else "")
        + "; another column is named with `id_column`",
        code="cohort-no-usable-case",
    )


def _some(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, ids[:SHOWN])) + (", ..." if len(ids) > SHOWN else "") or "none"

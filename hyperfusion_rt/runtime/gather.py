"""A cohort for an artifact: scans are found, the table is read as it says, both are joined."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hyperfusion_rt.artifact.manifest import Manifest
from hyperfusion_rt.data.bids_columns import bids_readings, suggestions
from hyperfusion_rt.data.bids_dataset import session_rows
from hyperfusion_rt.data.bids_filter import read_filter
from hyperfusion_rt.data.channels import find_cases
from hyperfusion_rt.data.cohort import Cohort, join
from hyperfusion_rt.data.column_map import (
    asked_readings,
    columns_of_members,
    own_readings,
    parse_map,
    read_through,
)
from hyperfusion_rt.data.scan import Scan
from hyperfusion_rt.data.scan_search import find_chosen
from hyperfusion_rt.data.table_columns import read_table_for
from hyperfusion_rt.data.table_file import Duplicates, Row, Table
from hyperfusion_rt.errors import ConfigError, TableError
from hyperfusion_rt.runtime.options import PredictOptions

PathLike = str | os.PathLike[str]


def gather(
    manifest: Manifest,
    options: PredictOptions,
    paths: PathLike | Sequence[PathLike],
    table: PathLike | None,
    *,
    id_column: str | None = None,
    on_duplicate: Duplicates = "refuse",
) -> Cohort:
    """Find the scans, read the table, join both; without a table every scan is a case.

    Raises:
        HyperFusionError: no scan, or the table as a whole, or the filter, cannot be used; or there
            is no table, and the network reads one.
    """
    spec = manifest.table
    read = [column.name for column in manifest.members[0].columns]
    if table is None and read:
        raise TableError(
            f"no table, but the network reads {', '.join(read)}: give one with `tabular`",
            code="table-missing",
        )
    channels = manifest.preprocessing.channels
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    choose = read_filter(options.bids_filter)
    if options.source == "raw":
        from hyperfusion_rt.data.raw.search import find_raw_scans

        if len(channels) > 1 or not channels[0].t1_weighted:
            names = ", ".join(channel.name for channel in channels)
            raise ConfigError(
                f"`source` raw registers one T1-weighted image, and this artifact reads "
                f"{names}: register its images to MNI space, and predict those",
                code="option-conflict",
            )
        # A scan that is named twice, by itself and with its folder, is one scan.
        scans = find_chosen(map(Path, given), find_raw_scans, choose)
    else:
        scans = find_cases([Path(path) for path in given], channels, choose)
    if table is None:
        return replace(join(scans, _of_scans(scans)), notes=())
    path = Path(table)
    in_bids = path.name == "participants.tsv"
    # BIDS says how its columns are called, whatever the training's table had; what differs
    # from session to session stands in the participants' folders.
    rows = read_table_for(
        scans,
        path,
        id_column=id_column or ("participant_id" if in_bids else spec.id_column),
        session_column=None if in_bids else spec.session_column,
        on_duplicate=on_duplicate,
    )
    if in_bids:
        rows = session_rows(path.parent, rows)
    rows = _mapped(manifest, options, rows, in_bids)
    return join(scans, rows, read)


def _of_scans(scans: Sequence[Scan]) -> Table:
    """A table with an empty row for every scan."""
    ids = dict.fromkeys((scan.subject, scan.session) for scan in scans)
    rows = [Row(subject, session, line, {}) for line, (subject, session) in enumerate(ids, 1)]
    return Table(Path(), (), rows, ",", "")


def _mapped(manifest: Manifest, options: PredictOptions, table: Table, in_bids: bool) -> Table:
    """`table` with the model's columns, read as `map`, the artifact or BIDS say.

    Raises:
        HyperFusionError: a map does not fit model or table, or a column is missing.
    """
    spec, members = manifest.table, manifest.members
    columns = columns_of_members([member.columns for member in members], spec)
    readings = own_readings(table, columns, spec.map, "as the artifact says")
    readings |= asked_readings(table, columns, parse_map(options.map))
    doubts: dict[str, str] = {}
    if in_bids:
        more, doubts = bids_readings(table, columns, readings)
        readings |= more
    found = read_through(table, readings)
    instead = suggestions(found, columns, doubts)
    for encoder in members:
        encoder.check_columns(found, instead)
    return found

"""Predictions as a BIDS derivatives dataset.

    dataset_description.json, README.md, .bidsignore
    sub-XX/sub-XX_sessions.tsv + .json      one row per session; its id is n/a where there is none
    participants.tsv + .json                how many sessions were predicted
    group_predictions.tsv + .json           all rows in one table; not BIDS, so in .bidsignore

BIDS has no table of all sessions of all participants: a phenotype table and `participants.tsv` may
hold each participant once.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import hyperfusion_rt
from hyperfusion_rt.artifact.manifest import Manifest
from hyperfusion_rt.data.bids_dataset import DESCRIPTION
from hyperfusion_rt.data.bids_name import label_of
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.files import write_text
from hyperfusion_rt.runtime.outputs.table import TRUTH, columns_of, record
from hyperfusion_rt.runtime.prediction import Prediction, by_case

BIDS_VERSION = "1.10.0"
NAME = "hyperfusion_rt"
TABLE = "group_predictions.tsv"
REPORT = "group_report.html"
RECORDS = "logs"

_MISSING = "n/a"
_BEST_FIRST = ("ok", "error", "not-tried", "skipped")
# What a derivative owes to its source, as `dataset_description.json` names it.
_INHERITED = ("Authors", "License", "Acknowledgements", "HowToAcknowledge", "EthicsApprovals")
_RELEASE = re.compile(r"^\s*v?(\d[\w.+-]*)\s+(?:-\s*)?\d{4}-\d{2}-\d{2}", re.MULTILINE)
# participant → session → its one prediction
Sessions = dict[str, dict[str | None, Prediction]]


def write_derivative(
    out: Path, manifest: Manifest, predictions: Sequence[Prediction], source: Path
) -> None:
    """Write `predictions` as the BIDS derivatives dataset `out`; see the head of this module.

    Each file is written whole or not at all. Of several predictions for one session the best is
    its row, with the reasons of all. Labels are ids without what BIDS forbids in them (`_`, `-`,
    ...); `participants.tsv` keeps the ids. Predictions without a subject stand in the group table
    only.

    Args:
        out: a new folder, or one that this function wrote for the same artifact: sessions that are
            not among `predictions` any more are removed.
        source: the dataset that holds the scans.

    Raises:
        ConfigError: `out` holds another dataset or another artifact's predictions, or two ids
            become the same label.
        HyperFusionError: the folder cannot be written, or the disk is full.
    """
    open_derivative(out, manifest, source)
    sessions = one_each(predictions)
    check_labels(sessions)
    for subject, found in sessions.items():
        if subject:
            write_sessions(out, manifest, subject, found, source)
    _write_participants(out, sessions)
    rows = [
        {"participant_id": f"sub-{label_of(subject)}" if subject else None, **row}
        for subject, found in sessions.items()
        for row in _rows(manifest, found, source)
    ]
    about = f"Predictions of {manifest.name} for all sessions of all participants."
    _write_table(out / TABLE, rows, about, _columns(manifest, predictions))
    # Last: should writing fail, nothing is lost.
    labels = {label_of(subject) for subject in sessions if subject}
    for folder in sorted(out.glob("sub-*")):
        if folder.name[4:] not in labels:
            for old in (*folder.glob("sub-*_sessions.*"), *folder.rglob("sub-*_dseg.nii.gz")):
                old.unlink()
            for empty in sorted((folder, *folder.rglob("*/")), reverse=True):
                if empty.is_dir() and not any(empty.iterdir()):
                    empty.rmdir()


def below(scan: Path, dataset: Path) -> Path | None:
    """The scan's path in the dataset, if it lies there."""
    scan, dataset = scan.absolute(), dataset.absolute()
    return scan.relative_to(dataset) if scan.is_relative_to(dataset) else None


def open_derivative(out: Path, manifest: Manifest, source: Path) -> None:
    """Make `out` a derivatives dataset of `source`, or check that it is one of this artifact."""
    place, of = out.resolve(), source.resolve()
    if place == of or place in of.parents:
        raise ConfigError(
            f"{out}: is or holds the source dataset; choose another folder",
            code="bids-other-dataset",
        )
    content = _description(out, manifest, source)
    path = out / DESCRIPTION
    if path.exists():
        there = _generated_by(_json(path))
        if there.get("Name") != NAME:
            raise ConfigError(
                f"{out}: holds another dataset; choose another folder", code="bids-other-dataset"
            )
        # The rest of the text may be of another version of this program.
        if not str(there.get("Description")).endswith(manifest.checksum):
            raise ConfigError(
                f"{out}: holds predictions of another artifact ({there.get('Description')}); "
                "choose another folder, or delete this one",
                code="bids-other-dataset",
            )
    _write_if_new(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    _write_if_new(out / ".bidsignore", f"group_*\n{RECORDS}/\n")
    _write_if_new(out / "README.md", _readme(manifest))


def _generated_by(description: Mapping[str, Any]) -> dict[str, Any]:
    """The program that made a dataset, the first of several; empty if that is not said."""
    made_by = description.get("GeneratedBy")
    first = made_by[0] if isinstance(made_by, list) and made_by else None
    return first if isinstance(first, dict) else {}


def _write_if_new(path: Path, text: str) -> None:
    """Processes that share the folder write the same; each replaces the file as a whole."""
    if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text:
        write_text(path, text)


def _description(out: Path, manifest: Manifest, source: Path) -> dict[str, Any]:
    about = _json(source / DESCRIPTION)
    link = _link(out, source)
    origin = {"URL": link}
    if isinstance(about.get("DatasetDOI"), str):
        origin["DOI"] = about["DatasetDOI"]
    changes = source / "CHANGES"
    if changes.is_file():
        release = _RELEASE.search(changes.read_text(encoding="utf-8", errors="replace"))
        if release:
            origin["Version"] = release[1]
    of = about.get("Name") or source.resolve().name
    return {
        "Name": f"{manifest.name} predictions of {of}",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        **{name: about[name] for name in _INHERITED if about.get(name)},
        "GeneratedBy": [
            {
                "Name": NAME,
                "Version": hyperfusion_rt.__version__,
                "Description": f"{manifest.table.target} with the artifact {manifest.name}, "
                f"manifest checksum {manifest.checksum}",
            }
        ],
        "SourceDatasets": [origin],
        "DatasetLinks": {"source": link},
    }


def _link(out: Path, source: Path) -> str:
    """Where `source` is, as seen from `out`."""
    try:
        return quote(Path(os.path.relpath(source.resolve(), out.resolve())).as_posix())
    except ValueError:  # on another drive
        return source.resolve().as_uri()


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; nothing where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _readme(manifest: Manifest) -> str:
    what = " / ".join(manifest.classes or manifest.labels) or " in ".join(
        filter(None, (manifest.table.target, manifest.unit))
    )
    maps = (
        "- `sub-*/**/anat/*_dseg.nii.gz`: the label of every voxel, on the scan's own grid; "
        "`dseg.tsv` names them.\n"
        if manifest.labels
        else ""
    )
    return (
        f"# {manifest.name}: predictions\n\n"
        f"Predictions ({what}) of the artifact {manifest.name}, made by "
        f"{NAME}. For research. Not a medical device; not for diagnosis.\n\n"
        "- `sub-*/sub-*_sessions.tsv`: one row per session; `session_id` is n/a where the scan has "
        "none. The `.json` beside each table describes its columns.\n"
        "- `participants.tsv`: how many sessions of each participant were predicted.\n"
        f"- `{TABLE}`: all rows in one table; `{REPORT}`: to look at.\n"
        f"{maps}- `{RECORDS}/`: what the group level collects.\n"
    )


def write_sessions(
    out: Path,
    manifest: Manifest,
    subject: str,
    found: Mapping[str | None, Prediction],
    source: Path,
) -> None:
    """Write one participant's table, a row per session."""
    label = f"sub-{label_of(subject)}"
    about = f"Predictions of {manifest.name} for each session of {label}."
    path = out / label / f"{label}_sessions.tsv"
    columns = _columns(manifest, list(found.values()))
    _write_table(path, _rows(manifest, found, source), about, columns)


def _write_participants(out: Path, sessions: Sessions) -> None:
    counted = {
        "predicted": "ok",
        "failed": "error",
        "not_tried": "not-tried",
        "skipped": "skipped",
    }
    rows = []
    for subject, found in sessions.items():
        if subject:
            status = [item.status for item in found.values()]
            counts = {name: status.count(kind) for name, kind in counted.items()}  # type: ignore[arg-type]
            rows.append(
                {"participant_id": f"sub-{label_of(subject)}", "source_id": subject, **counts}
            )
    about = "The participants, and how many of their sessions were predicted."
    columns = {
        "source_id": {"Description": "The participant's id in the source dataset"},
        "predicted": {"Description": "Number of sessions with a prediction"},
        "failed": {"Description": "Number of sessions whose prediction failed"},
        "not_tried": {"Description": "Number of sessions that the run did not come to"},
        "skipped": {"Description": "Number of sessions without a scan"},
    }
    _write_table(out / "participants.tsv", rows, about, columns)


def _rows(
    manifest: Manifest, found: Mapping[str | None, Prediction], source: Path
) -> list[dict[str, Any]]:
    """A row per session: what `record` says of it, and its scan as a BIDS URI."""
    rows = []
    for session, item in sorted(found.items(), key=lambda pair: pair[0] or ""):
        cells = record(manifest, item)
        cells.pop("subject"), cells.pop("session")
        uri = None
        if item.scan is not None:
            path = below(item.scan, source)
            uri = f"bids:source:{quote(path.as_posix())}" if path else item.scan.name
        session_id = f"ses-{label_of(session)}" if session else None
        rows.append({"session_id": session_id, **cells, "scan": uri})
    return rows


def _columns(manifest: Manifest, predictions: Sequence[Prediction]) -> dict[str, dict[str, Any]]:
    """The columns' descriptions, as a BIDS sidecar has them."""
    columns: dict[str, dict[str, Any]] = {
        "session_id": {"Description": "Session of the scan; n/a where the dataset has none"},
        "scan": {"Description": "The scan, as a BIDS URI; DatasetLinks names its dataset"},
    }
    for column in [*columns_of(manifest, predictions), TRUTH]:
        about: dict[str, Any] = {"Description": column.meaning}
        if column.unit:
            about["Units"] = column.unit
        if column.levels:
            about["Levels"] = dict(column.levels)
        columns[column.name] = about
    return columns


def _write_table(
    path: Path, rows: Sequence[Mapping[str, Any]], about: str, known: Mapping[str, Any]
) -> None:
    """A BIDS table with its sidecar; the columns are those of all rows."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["\t".join(_cell(name) for name in names)]
    lines += ["\t".join(_cell(row.get(name)) for name in names) for row in rows]
    other = {"participant_id": {"Description": "Participant, as its folder is called"}}
    sidecar: dict[str, Any] = {"Description": about}
    for name in names:
        plain = {"Description": f"Figure of the scan's quality: {_cell(name)}"}
        sidecar[_cell(name)] = known.get(name) or other.get(name) or plain
    text = json.dumps(sidecar, indent=2, ensure_ascii=False) + "\n"
    write_text(path.with_suffix(".json"), text, private=True)
    write_text(path, "\n".join(lines) + "\n", private=True)


def _cell(value: Any) -> str:
    """A cell's text. BIDS tables have no quoting, so that tabs, line ends and quotes must go."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < float("inf") else _MISSING
    if isinstance(value, (list, tuple, set, frozenset)):
        value = "; ".join(str(part) for part in value)
    text = "" if value is None else " ".join(str(value).split()).replace('"', "'")
    return "".join(c for c in text if c.isprintable()) or _MISSING


def one_each(predictions: Iterable[Prediction]) -> Sessions:
    """One prediction per participant and session: the best, with the reasons of all."""
    groups: dict[tuple[str, str | None], list[Prediction]] = {}
    for item in sorted(predictions, key=by_case):
        groups.setdefault((item.subject, item.session), []).append(item)
    sessions: Sessions = {}
    for (subject, session), group in groups.items():
        group.sort(key=lambda item: _BEST_FIRST.index(item.status))
        reasons = dict.fromkeys(item.reason for item in group if item.reason)
        if group[0].status == "ok":  # why another scan was not used
            best = replace(group[0], reason="", warnings=(*group[0].warnings, *reasons))
        else:
            best = replace(group[0], reason="; ".join(reasons))
        sessions.setdefault(subject, {})[session] = best
    return sessions


def check_labels(sessions: Mapping[str, Mapping[str | None, Any]]) -> None:
    """Raise a ConfigError where two ids become one BIDS label, or one has nothing left."""
    for names, what in (
        ([subject for subject in sessions if subject], "participants"),
        *(([s for s in found if s], f"sessions of {name}") for name, found in sessions.items()),
    ):
        seen: dict[str, str] = {}
        for name in names:
            label = label_of(name)
            other = seen.setdefault(label, name)
            if other != name:
                raise ConfigError(
                    f"{what} {other!r} and {name!r} have the same BIDS label {label!r}; rename one",
                    code="bids-label",
                )
            if not label:
                raise ConfigError(
                    f"{what} {name!r}: no letter or digit for a BIDS label; rename it",
                    code="bids-label",
                )

"""What `hfrt preprocess` does: raw scans in, registered scans and a table of their quality out."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hyperfusion_rt.config import Preprocessing
from hyperfusion_rt.data.cohort import EXTENSIONS, Scan
from hyperfusion_rt.data.dicom import find_raw_scans
from hyperfusion_rt.data.raw import register, write_registered
from hyperfusion_rt.errors import ConfigError, HyperFusionError
from hyperfusion_rt.files import write_text
from hyperfusion_rt.machine import usable_cores
from hyperfusion_rt.runtime.pipeline import run

TABLE = "quality.csv"


@dataclass(frozen=True)
class Preprocessed:
    """One raw scan: where its registered copy lies, its figures, or why there is none.

    `status`: `ok`; `error`; `kept`: the copy was there already.
    """

    scan: Path
    out: Path
    status: str
    reason: str
    figures: dict[str, float]


def preprocess(
    scans: Sequence[Path],
    out: Path,
    *,
    preprocessing: Preprocessing | None = None,
    threads: int | None = None,
    force: bool = False,
    on_scan: Callable[[int, int], None] | None = None,
) -> list[Preprocessed]:
    """Register every scan under `scans` into the folder `out`, and write `out/quality.csv`.

    The copies lie as the originals do below each given folder, as `.nii.gz` with a JSON sidecar.
    A copy that is there is kept unless `force`, so that a run that was interrupted goes on.
    `preprocessing`: of the boxes whose coverage is measured.

    Raises:
        HyperFusionError: no scan; two scans with one name; the folder cannot be written.
    """
    places: dict[Path, Path] = {}
    for given in scans:
        for scan in find_raw_scans(given):
            place = out / _relative(given, scan)
            if place in places:
                raise ConfigError(
                    f"{scan.path} and {places[place]}: both would become {place}; preprocess their "
                    "folders one by one, into different ones"
                )
            if place.resolve() == scan.path.resolve():
                raise ConfigError(f"{out}: the scan {scan.path} lies there; choose another folder")
            places[place] = scan.path
    found: list[Preprocessed] = []

    def one(place: Path) -> Preprocessed:
        if place.exists() and not force:
            return Preprocessed(places[place], place, "kept", "", {})
        try:
            registered = register(places[place], preprocessing)
            write_registered(registered, place)
        except HyperFusionError as error:
            return Preprocessed(places[place], place, "error", str(error), {})
        except Exception as error:  # one odd scan must not end the night's run
            reason = f"{places[place]}: unexpected {type(error).__name__}: {error}"
            return Preprocessed(places[place], place, "error", reason, {})
        figures = registered.quality.figures()
        return Preprocessed(places[place], place, "ok", "; ".join(registered.warnings), figures)

    try:
        for item in run(places, one, list, workers=threads or usable_cores()):
            found.append(item)
            if on_scan is not None:
                on_scan(len(found), len(places))
    finally:
        found.sort(key=lambda item: item.out)
        _write_table(out / TABLE, found)
    return found


def _relative(given: Path, scan: Scan) -> Path:
    below = scan.path.relative_to(given) if given != scan.path else Path(scan.path.name)
    name = below.name
    for extension in EXTENSIONS:
        if name.lower().endswith(extension):
            name = name[: len(name) - len(extension)]
            break
    return below.with_name(f"{name or scan.subject}.nii.gz")


def _write_table(path: Path, found: Sequence[Preprocessed]) -> None:
    """Figures of scans that were kept are taken from the table that is there."""
    known: dict[str, dict[str, str]] = {}
    if path.exists():
        with open(path, encoding="utf-8", newline="") as file:
            known = {row.get("out", ""): row for row in csv.DictReader(file)}
    rows: list[dict[str, object]] = []
    for item in found:
        if item.status == "kept" and str(item.out) in known:
            rows.append(dict(known[str(item.out)]))
            continue
        figures = {name: f"{value:.4g}" for name, value in item.figures.items()}
        last = {"status": item.status, "reason": item.reason}
        rows.append({"scan": str(item.scan), "out": str(item.out), **figures, **last})
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in names if name not in ("status", "reason")] + ["status", "reason"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, stream.getvalue())

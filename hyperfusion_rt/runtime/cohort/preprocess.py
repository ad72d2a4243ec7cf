"""What `hfrt preprocess` does: raw scans in, registered scans and a table of their quality out."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hyperfusion_rt.config import Preprocessing
from hyperfusion_rt.data.bids_dataset import without_dots
from hyperfusion_rt.data.bids_filter import read_filter
from hyperfusion_rt.data.mni_template import SPACE
from hyperfusion_rt.data.raw.register import register, source_hash, write_registered
from hyperfusion_rt.data.raw.search import find_raw_scans
from hyperfusion_rt.data.raw.sidecar import agent_warnings, picture_of, read_sidecar
from hyperfusion_rt.data.scan import Scan
from hyperfusion_rt.data.scan_file import EXTENSIONS, stem
from hyperfusion_rt.data.scan_space import PASSED_OVER, named_in
from hyperfusion_rt.errors import CohortError, ConfigError, ScanError, reason_of
from hyperfusion_rt.files import sha256, write_text
from hyperfusion_rt.machine import usable_cores
from hyperfusion_rt.runtime.outputs.quality_page import Looked, quality_page
from hyperfusion_rt.runtime.pipeline import run

TABLE = "quality.csv"
PAGE = "quality.html"


@dataclass(frozen=True)
class Preprocessed:
    """One raw scan: where its registered copy lies, its figures, or why there is none.

    `status`: `ok`; `error`, with its `code`; `kept`: the copy was there already; `skipped`: another
    run or copy of the scan is used.
    """

    scan: Path
    out: Path
    status: str
    reason: str
    figures: dict[str, float]
    code: str = ""


def preprocess(
    scans: Sequence[Path],
    out: Path,
    *,
    preprocessing: Preprocessing | None = None,
    threads: int | None = None,
    force: bool = False,
    mask_suffix: str | None = None,
    bids_filter: Path | None = None,
    on_scan: Callable[[int, int], None] | None = None,
) -> list[Preprocessed]:
    """Register every scan under `scans` into the folder `out`, and write its table and page.

    The copies lie as the originals do below each given folder, as `.nii.gz` with a JSON sidecar and
    a picture; `out/quality.csv` and `out/quality.html` are of all that `out` holds. A
    link's copy has the link's name; a name that says another space says MNI space then.
    A copy of the same content that is there is kept unless `force`, so that a run that was
    interrupted goes on; scans below `out` are not searched.
    `preprocessing`: of the boxes whose coverage is measured. `mask_suffix`: `_mask`, say, for the
    brain mask `S01_mask.nii.gz` of the scan `S01.nii.gz`, which is no scan then. `bids_filter`: the
    file of a filter of scans (`data.bids_filter`).

    Raises:
        HyperFusionError: no scan; a filter that cannot be used or chooses none; two scans with one
            name; the folder cannot be written.
    """
    choose = read_filter(bids_filter)
    looked_at: list[Scan] = []
    places: dict[Path, Scan] = {}
    left: dict[Path, Preprocessed] = {}
    masks: set[Path] = set()
    named: set[Path] = set()
    for given in scans:
        for scan in find_raw_scans(given, choose):
            # Links count as what they are called, so that only their folder is resolved.
            if (scan.path.parent.resolve() / scan.path.name).is_relative_to(out.resolve()):
                continue  # made by an earlier run
            if mask_suffix and stem(scan.path).endswith(mask_suffix):
                masks.add(scan.path)
                continue
            named |= {path.with_name(_name(path)) for path in (scan.path, *scan.others)}
            looked_at.append(scan)
            for item in _left(scan, out):
                left[without_dots(item.scan)] = item
            if scan.defect:
                continue
            place = out / _relative(given, scan)
            if place in places:
                other = places[place].path
                if without_dots(other) == without_dots(scan.path):
                    continue  # named twice, by itself and with its folder
                raise ConfigError(
                    f"{scan.path} and {other}: both would become {place}; preprocess their "
                    "folders one by one, into different ones",
                    code="output-wrong-name",
                )
            places[place] = scan
    if choose is not None:
        choose.require(looked_at, scans)
    for mask in masks:
        whose = mask.with_name(stem(mask).removesuffix(mask_suffix or ""))
        if whose not in named:
            reason = f"{mask}: is the brain mask of no scan; {whose.name}.nii.gz is not beside it"
            left[without_dots(mask)] = Preprocessed(
                mask, out, "error", reason, {}, "scan-mask-alone"
            )
    if not places and not left:
        raise CohortError(f"no raw scan outside of {out}", code="cohort-no-scan")
    done = {without_dots(scan.path) for scan in places.values()}
    found = [item for path, item in left.items() if path not in done]
    before = len(found)

    def one(place: Path) -> Preprocessed:
        scan = places[place]
        try:
            mask = _mask_of(scan.path, mask_suffix)
            if not force and _is_made(place, scan.path, mask):
                return Preprocessed(scan.path, place, "kept", "", {})
            registered = register(scan.path, preprocessing, with_picture=True, mask=mask)
            said = (*scan.warnings, *agent_warnings(scan.path), *registered.warnings)
            write_registered(replace(registered, warnings=said), place)
        except Exception as error:  # one odd scan must not end the night's run
            code, reason = reason_of(error, scan.path)
            return Preprocessed(scan.path, place, "error", reason, {}, code)
        figures = registered.quality.figures()
        return Preprocessed(scan.path, place, "ok", "; ".join(said), figures)

    try:
        for item in run(places, one, list, workers=threads or usable_cores()):
            found.append(item)
            if on_scan is not None:
                on_scan(len(found), len(places) + before)
    finally:
        found.sort(key=lambda item: (item.out, item.scan))
        _write_overview(out, found)
    return found


def _name(scan: Path) -> str:
    """Of a file without what it ends in, or of a DICOM folder."""
    return scan.name if scan.is_dir() else stem(scan)


def _mask_of(scan: Path, suffix: str | None) -> Path | None:
    """The brain mask beside a scan.

    Raises:
        ScanError: there is none.
    """
    if not suffix:
        return None
    name = _name(scan) + suffix
    for extension in EXTENSIONS:
        if (scan.parent / (name + extension)).exists():
            return scan.parent / (name + extension)
    raise ScanError(
        f"{scan}: there is no brain mask {name}.nii.gz beside it; make one, or leave out the "
        "masks' suffix",
        code="scan-mask-missing",
    )


def _is_made(place: Path, scan: Path, mask: Path | None) -> bool:
    """Whether `place` was made of this very content, and of this mask."""
    made = read_sidecar(place)
    if not place.exists() or made.get("sha256") != source_hash(scan):
        return False
    return made.get("mask_sha256") == (sha256(mask) if mask else None)


def _left(scan: Scan, out: Path) -> list[Preprocessed]:
    """What of a scan is not registered, and why: defects, further runs, what was not chosen."""
    found = []
    if scan.defect:
        status = "skipped" if scan.code == PASSED_OVER else "error"
        reason = f"{scan.path}: {scan.defect}"
        found.append(Preprocessed(scan.path, out, status, reason, {}, scan.code))
    for other in scan.others:
        reason = f"{other}: another run of the same scan: {scan.path.name} is used"
        found.append(Preprocessed(other, out, "skipped", reason, {}, PASSED_OVER))
    return found


def _relative(given: Path, scan: Scan) -> Path:
    here = given == scan.path
    below = Path(without_dots(scan.path).name) if here else scan.path.relative_to(given)
    return below.with_name(f"{named_in(SPACE, stem(below) or scan.subject)}.nii.gz")


def _write_overview(out: Path, found: Sequence[Preprocessed]) -> None:
    """From the sidecars of all scans in `out`, whoever wrote them, and what failed now."""
    rows: list[dict[str, object]] = []
    looked: list[Looked] = []
    for place in sorted(out.rglob("*.nii.gz")):
        content = read_sidecar(place)
        if content:
            figures = {name: f"{value:.4g}" for name, value in content["figures"].items()}
            where = {"scan": content["source"], "out": str(place.relative_to(out))}
            reason = "; ".join(content["warnings"])
            rows.append({**where, **figures, "status": "ok", "reason": reason})
            drawn = picture_of(place)
            file = drawn.relative_to(out).as_posix() if drawn.exists() else ""
            name = place.relative_to(out).as_posix().removesuffix(".nii.gz")
            looked.append(Looked(name, file, content["figures"], tuple(content["warnings"])))
    for item in found:
        if item.status in ("error", "skipped"):
            where = {"scan": str(item.scan), "out": ""}
            rows.append({**where, "status": item.status, "reason": item.reason})
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in names if name not in ("status", "reason")] + ["status", "reason"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / TABLE, stream.getvalue(), private=True)
    failed = [(str(item.scan), item.reason) for item in found if item.status == "error"]
    quality_page(looked, failed).write(out / PAGE)

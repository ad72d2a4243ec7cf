"""DICOM folders: finding them, checking that a series is one even volume, reading it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np

from hyperfusion_rt.data.bids_dataset import not_searched, without_dots
from hyperfusion_rt.data.raw.alignment import Float, Matrix, require_sitk
from hyperfusion_rt.data.scan import Scan
from hyperfusion_rt.data.scan_file import foreign, is_scan
from hyperfusion_rt.data.scan_search import UNREADABLE, find_scans, walk
from hyperfusion_rt.data.table_file import normalise_id
from hyperfusion_rt.errors import ScanError


def is_dicom_folder(path: Path) -> bool:
    """Whether `path` is a folder with DICOM files, from the first bytes of at most eight of them.

    A DICOM file has `DICM` at byte 128.
    """
    path = Path(path)
    if not path.is_dir():
        return False
    files = (p for p in sorted(path.iterdir()) if p.is_file() and not p.name.startswith("."))
    for file in itertools.islice(files, 8):
        try:
            with open(file, "rb") as stream:
                if stream.read(132)[128:] == b"DICM":
                    return True
        except OSError:
            continue
    return False


def find_raw_scans(path: str | Path) -> list[Scan]:
    """As `find_scans`, and every folder of DICOM files below `path` as one scan.

    A DICOM folder's subject is the folder `sub-*`, the first folder below `path`, or its own name.

    Raises:
        CohortError: no such path, no permission to read it, or no scan found.
    """
    root = Path(path)
    if not root.is_dir():
        return find_scans(root, "raw")
    found: list[Scan] = []
    others = False
    try:
        for folder, files, defect in walk(root, not_searched(root)):
            others |= any(is_scan(file) or foreign(file) for file in files)
            if defect is not None:
                found.append(replace(_as_scan(root, folder), defect=defect, code=UNREADABLE))
            elif is_dicom_folder(folder):
                found.append(_as_scan(root, folder))
    except OSError:
        return find_scans(root, "raw")  # says what is wrong
    if others or not found:
        found = [scan for scan in found if not scan.defect]
        series = {scan.path for scan in found}
        found += [scan for scan in find_scans(root, "raw") if scan.path not in series]
    return sorted(found, key=lambda scan: scan.path)


def _as_scan(root: Path, folder: Path) -> Scan:
    """Its subject: the folder `sub-*`, else the first below `root`, else its own name."""
    parts = (without_dots(root).name, *folder.relative_to(root).parts)
    labelled = [part for part in parts if part.lower().startswith("sub-")]
    subject = (labelled or [*parts[1:2], parts[0]])[0]
    session = next((normalise_id(p) for p in parts if p.lower().startswith("ses-")), None)
    return Scan(folder, normalise_id(subject), session)


def dicom_series(folder: Path) -> list[tuple[Path, ...]]:
    """The files of each DICOM series in `folder` (not in folders below), in order of position.

    Raises:
        ScanError: the folder cannot be read.
        MissingExtraError: the raw extra is not installed.
    """
    sitk = require_sitk()
    if not Path(folder).is_dir():
        raise ScanError(f"{folder}: no such folder", code="scan-unreadable")
    reader = sitk.ImageSeriesReader
    return [
        tuple(Path(name) for name in reader.GetGDCMSeriesFileNames(str(folder), series))
        for series in sorted(reader.GetGDCMSeriesIDs(str(folder)))
    ]


def _tags(path: Path) -> dict[str, str]:
    """The DICOM tags `gggg|eeee` of a file."""
    reader = require_sitk().ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise ScanError(
            f"{path}: cannot be read as DICOM; copy it again from its source",
            code="dicom-unreadable",
        ) from None
    return {key: str(reader.GetMetaData(key)).strip() for key in reader.GetMetaDataKeys()}


def _one_series(folder: Path) -> tuple[Path, ...]:
    found = dicom_series(folder)
    if not found:
        raise ScanError(
            f"{folder}: no DICOM series of images in this folder", code="dicom-no-series"
        )
    if len(found) > 1:
        names = []
        for files in found:
            tags = _tags(files[0])
            title = tags.get("0008|103e") or "without description"
            names.append(f"{title!r} ({len(files)} files, {files[0].name} ...)")
        raise ScanError(
            f"{folder}: {len(found)} DICOM series: {'; '.join(names)}; "
            "put the T1 series into a folder of its own",
            code="dicom-several-series",
        )
    return found[0]


def _numbers(text: str) -> Matrix:
    return np.array([float(part) for part in text.split("\\")], np.float64)


def _check_series(folder: Path, files: tuple[Path, ...]) -> None:
    """One MR volume, in parallel slices at even distances.

    Raises:
        ScanError: it is not.
    """
    tags = [_tags(file) for file in files]
    modality = tags[0].get("0008|0060", "")
    if modality != "MR":
        raise ScanError(
            f"{folder}: modality {modality or 'unknown'}, but a T1 MR scan is needed",
            code="dicom-not-mr",
        )
    if len(files) == 1:
        frames = int(tags[0].get("0028|0008") or 1)
        if frames < 8:
            raise ScanError(
                f"{folder}: one DICOM image, but a whole volume is needed",
                code="dicom-not-one-volume",
            )
        return
    try:
        positions = np.stack([_numbers(tag["0020|0032"]) for tag in tags])
        axes = np.stack([_numbers(tag["0020|0037"]).reshape(2, 3) for tag in tags])
    except (KeyError, ValueError):
        raise ScanError(
            f"{folder}: a slice says nothing of its position or orientation (tags 0020,0032 and "
            "0020,0037); export the series again",
            code="dicom-no-position",
        ) from None
    if np.abs(axes - axes[0]).max() > 1e-3:
        raise ScanError(
            f"{folder}: slices of different orientation; take the localiser out",
            code="dicom-not-one-volume",
        )
    sizes = {(tag.get("0028|0010"), tag.get("0028|0011")) for tag in tags}
    if len(sizes) > 1:
        raise ScanError(
            f"{folder}: slices of different size; put one volume into the folder",
            code="dicom-not-one-volume",
        )
    along = positions @ np.cross(axes[0, 0], axes[0, 1])
    order = np.argsort(along)
    steps = np.diff(along[order])
    usual = float(np.median(steps))
    if steps.min() < 0.02 * usual or usual < 1e-3:
        raise ScanError(
            f"{folder}: several slices at one position (echoes or time points); "
            "put one volume into the folder",
            code="dicom-not-one-volume",
        )
    worst = int(np.argmax(np.abs(steps - usual)))
    if abs(steps[worst] - usual) > max(0.05 * usual, 0.02):
        before, after = (files[order[worst + k]].name for k in (0, 1))
        raise ScanError(
            f"{folder}: slices lie {usual:.2f} mm apart, but {steps[worst]:.2f} mm between "
            f"{before} and {after}: slices are missing or uneven; export the whole series again",
            code="dicom-slices-uneven",
        )
    shift = np.diff(positions[order], axis=0)
    if np.abs(shift - shift.mean(0)).max() > 0.1 or (
        np.linalg.norm(np.cross(shift.mean(0), np.cross(axes[0, 0], axes[0, 1]))) > 0.02 * usual
    ):
        raise ScanError(
            f"{folder}: slices are shifted against each other; convert it to NIfTI",
            code="dicom-slices-uneven",
        )


def read_dicom(folder: Path) -> tuple[Float, Matrix]:
    """The one series of a folder: voxels float32 [X, Y, Z], affine [4, 4] to mm (RAS).

    Raises:
        ScanError: there is not one even MR series, or it cannot be read.
    """
    sitk = require_sitk()
    files = _one_series(folder)
    _check_series(folder, files)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    try:
        image = reader.Execute() if len(files) > 1 else sitk.ReadImage(str(files[0]))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ScanError(
            f"{folder}: the DICOM series cannot be read: {reason}", code="dicom-unreadable"
        ) from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ScanError(f"{folder}: not one 3D volume of real numbers", code="dicom-not-one-volume")
    affine = np.eye(4)
    direction = np.asarray(image.GetDirection(), np.float64).reshape(3, 3)
    affine[:3, :3] = direction * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    # DICOM's axes point to left and posterior.
    affine[:2] *= -1
    voxels = sitk.GetArrayViewFromImage(image).astype(np.float32)
    return np.ascontiguousarray(voxels.transpose(2, 1, 0)), affine

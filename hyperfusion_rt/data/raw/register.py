"""From a raw T1 scan to a brain in MNI space: `hfrt preprocess`, `hfrt infer --from raw`.

    out(x) = scan(A^-1 · T · x) / b(x) · m(x)

`x` is a point of the template's 1 mm grid in mm (RAS), `T [4, 4]` the affine registration
(template mm to scan mm), `A` the scan's affine, `b` the bias field and `m` the brain mask. The
scan is interpolated once, with cubic splines.

`T` has 12 degrees of freedom and is found by local correlation (`data.raw.pose`), which a bias
field hardly disturbs; then the field is found where the brain lies (`data.raw.field`), and the pose
once more without it. Only voxels in and just around the template's brain count, so that skull, face
and neck do not matter. Nothing is drawn at random and all sums are taken by one thread: same scan,
same bits.

The template is the MNI152 2009a T1 of the nilearn package, whose skull is stripped (Fonov et al.,
NeuroImage 2011). A scan whose header swaps left and right cannot be told from a good one.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hyperfusion_rt.clock import Clock
from hyperfusion_rt.config import Preprocessing
from hyperfusion_rt.data import scan_check
from hyperfusion_rt.data.imports import import_nibabel
from hyperfusion_rt.data.raw import brain_mask
from hyperfusion_rt.data.raw.field import Field, find_field
from hyperfusion_rt.data.raw.image import Float, Image, Mask, Matrix, read_raw, sample
from hyperfusion_rt.data.raw.judge import (
    THRESHOLDS,
    Quality,
    Thresholds,
    is_no_t1,
    judge,
    measure,
)
from hyperfusion_rt.data.raw.landmarks import template_landmarks
from hyperfusion_rt.data.raw.picture import picture
from hyperfusion_rt.data.raw.pose import Fit, at_level, find_pose, refine
from hyperfusion_rt.data.raw.sidecar import picture_of, sidecar_of
from hyperfusion_rt.data.raw.template import Template, load_template
from hyperfusion_rt.data.volumes import Volume, VoxelGrid, find_support
from hyperfusion_rt.errors import HyperFusionError, ScanError
from hyperfusion_rt.files import replacing, sha256, write_text
from hyperfusion_rt.machine import installed

_NEAR_MM = 6  # around the brain: where the scan without its field is wanted


@dataclass(frozen=True)
class Registered:
    """A scan in template space.

    volume: int16 voxels [197, 233, 189] on the template's 1 mm grid (value = slope · voxel), 0
        outside the brain; its path is the raw scan's. warnings: what a reader should know.
    transform: float64 [4, 4], from template mm to scan mm (RAS). seconds: of each step.
    grid: of the scan as it was read.
    picture: an SVG of the head with the template's outline (`data.raw.picture`), if asked for.
    mask: the file of the brain mask that was given, if one was.
    """

    volume: Volume
    quality: Quality
    warnings: tuple[str, ...]
    transform: Matrix
    grid: VoxelGrid
    seconds: dict[str, float]
    picture: str = ""
    mask: Path | None = None


class Place(NamedTuple):
    """Where a scan lies: in wide windows, in narrow ones (the answer), and its bias field."""

    wide: Fit
    fit: Fit
    field: Field


def locate(coarse: Image, thresholds: Thresholds = THRESHOLDS) -> Place:
    """The place of a scan in voxels of about 2 mm.

    The field is found where the brain was first found, and the pose again without the field: an
    edge of the brain has the local contrast of the field that it lies in. A scan that is refused
    for its contrast is left where it was found first.
    """
    template = load_template()
    wide, first, smoothed = find_pose(coarse)
    field = find_field(template, smoothed, first.transform)
    if is_no_t1(field, thresholds):
        return Place(wide, first, field)
    flat = field.flattened(coarse, first.transform, template)
    return Place(wide, refine(at_level(flat, template.levels[4]), first.transform), field)


def _even(coarse: Image, transform: Matrix, field: Field, template: Template) -> Float:
    """The scan without its field on the template's 2 mm grid, in and around the brain."""
    level = template.levels[2]
    near = level.away < _NEAR_MM
    matrix = np.linalg.inv(coarse.affine) @ transform @ level.affine
    found = sample(coarse.voxels, matrix, level.image.shape, mask=near)
    found[near] /= field.on(level.affine, near, template)
    return found


def _resample(
    scan: Image, template: Template, transform: Matrix, field: Field, mask: Mask
) -> Volume:
    """The scan on the template's 1 mm grid, once interpolated, int16."""
    shape = template.mask.shape
    matrix = np.linalg.inv(scan.affine) @ transform @ template.affine
    inside = sample(scan.voxels, matrix, shape, cubic=True, mask=mask)[mask]
    inside = np.maximum(inside / field.on(template.affine, mask, template), 0)
    slope = np.float32(max(float(inside.max(initial=0)), 1e-30) / 32000)
    # What is brain stays different from the background.
    stored = np.zeros(shape, np.int16)
    stored[mask] = np.maximum(np.rint(inside / slope), 1)
    return Volume(scan.path, stored, template.affine.copy(), float(slope), 0.0)


def _odd_contrast(path: Path, volume: Volume) -> list[str]:
    """What is odd about the brightness of a registered brain: maps of FA lie well, too."""
    found = scan_check.measure(volume, find_support(volume), template_landmarks()).contrast
    odd = scan_check.judge_contrast(path, found, "warn")
    least, most = scan_check.CONTRAST["refuse"]
    if found is not None and not least <= found <= most:
        raise ScanError(f"{path}: {odd[0]}", code="scan-contrast")
    return odd


def register(
    path: Path,
    preprocessing: Preprocessing | None = None,
    *,
    thresholds: Thresholds = THRESHOLDS,
    with_picture: bool = False,
    mask: Path | None = None,
) -> Registered:
    """Register a raw T1 scan to MNI space, correct its bias field and take the skull off.

    `path`: a NIfTI or MGH file, or a folder with the files of one DICOM series; any orientation,
    spacing and scaling, with or without skull. NaN and infinity become background. `preprocessing`
    names the boxes whose coverage is measured.

    A scan with its skull is cut out with `mask`, a brain mask in the scan's own space (any grid;
    not 0 is brain), else with the template's, moved to the scan's own edges
    (`data.raw.brain_mask`); one whose skull was removed keeps its own outline. `with_picture`: draw
    it, see `Registered`. One thread; run several scans at a time in processes or threads.

    Raises:
        ScanError: scan or mask unreadable (see `read_volume`), no single even DICOM series, a
            constant, a figure of `Quality` beyond its refuse level, or another scan's mask.
        MissingExtraError: the raw extra is not installed.
    """
    clock = Clock()
    with clock.step("template"):
        load_template()
    with clock.step("read"):
        scan = read_raw(Path(path))
    return register_image(
        scan,
        preprocessing,
        thresholds=thresholds,
        with_picture=with_picture,
        mask=mask,
        clock=clock,
    )


def register_image(
    scan: Image,
    preprocessing: Preprocessing | None = None,
    *,
    thresholds: Thresholds = THRESHOLDS,
    with_picture: bool = False,
    mask: Path | None = None,
    clock: Clock | None = None,
) -> Registered:
    """As `register`, a scan that has been read. `clock`: of what was done before.

    Raises:
        ScanError: a figure of `Quality` beyond its refuse level, or a wrong mask.
        MissingExtraError: the raw extra is not installed.
    """
    clock = clock or Clock()
    template, path = load_template(), scan.path
    with clock.step("register"):
        coarse = scan.shrunk(2)
        wide, fit, field = locate(coarse, thresholds)
        transform = fit.transform
    with clock.step("quality"):
        stripped = brain_mask.is_stripped(template, coarse, transform)
        even = _even(coarse, transform, field, template)
        quality = measure(scan, even, template, wide, fit, field, preprocessing, stripped)
        warnings = [*scan.warnings, *judge(path, quality, preprocessing, thresholds)]
    with clock.step("resample"):
        # Finer voxels are averaged first, or their noise would come through as it is.
        fine = scan.shrunk(1)
        if mask is not None:
            inside = brain_mask.given(mask, template, transform)
        elif stripped:
            inside = brain_mask.own_outline(template, fine, coarse, transform)
        else:
            inside = brain_mask.by_edges(template, even, field)
        volume = _resample(fine, template, transform, field, inside)
        warnings += _odd_contrast(path, volume)
    drawn = ""
    if with_picture:
        with clock.step("picture"):
            drawn = picture(fine, template, transform, field, inside)
    return Registered(
        volume,
        quality,
        tuple(warnings),
        transform,
        VoxelGrid.of(scan.voxels, scan.affine),
        clock.steps,
        drawn,
        mask,
    )


def write_registered(registered: Registered, out: Path) -> None:
    """Write `out` (.nii.gz: int16 with a slope, sform and qform of code 4, MNI) and its sidecar.

    The sidecar `NAME.json` beside it holds quality, warnings, transform, the source's SHA-256 (of
    a DICOM folder: of its files' hashes in order of their names) and versions; `NAME.svg` is its
    picture, if it has one. Each file is written whole or not at all, the scan last. The same
    registration gives the same bytes.

    Raises:
        HyperFusionError: the folder cannot be written, `out` does not end in .nii.gz, or the
            source has gone.
    """
    from isal import igzip

    nib = import_nibabel()
    out, volume = Path(out), registered.volume
    if not out.name.endswith(".nii.gz"):
        raise HyperFusionError(
            f"{out}: registered scans are written as .nii.gz; rename it", code="output-wrong-name"
        )
    image = nib.Nifti1Image(volume.voxels, volume.affine)
    image.header.set_data_dtype(np.int16)
    image.header.set_xyzt_units("mm")
    for kind in ("qform", "sform"):
        getattr(image, f"set_{kind}")(volume.affine, code=4)  # 4: MNI space
    source = volume.path
    content = {
        "source": str(source),
        "sha256": source_hash(source),
        "mask_sha256": sha256(registered.mask) if registered.mask else None,
        "quality": asdict(registered.quality),
        "figures": registered.quality.figures(),
        "warnings": list(registered.warnings),
        "transform": registered.transform.tolist(),
        "transform_maps": "template mm to scan mm (RAS)",
        "versions": {
            name: installed(name) for name in ("hyperfusion_rt", "nilearn", "scipy", "numpy")
        },
    }
    # nibabel scales what it is given: the stored numbers are to stay as they are.
    stored = io.BytesIO()
    header = image.header.copy()
    header.set_slope_inter(volume.slope, volume.inter)
    header["vox_offset"] = 352
    header.write_to(stored)
    stored.write(b"\0" * (352 - stored.tell()))
    stored.write(volume.voxels.astype(header.get_data_dtype()).tobytes(order="F"))
    write_text(
        sidecar_of(out),
        json.dumps(content, indent=2) + "\n",
        private=True,
    )
    if registered.picture:
        write_text(picture_of(out), registered.picture, private=True)
    with replacing(out, private=True) as temporary:
        temporary.write_bytes(igzip.compress(stored.getvalue(), compresslevel=1, mtime=0))


def source_hash(source: Path) -> str:
    """The SHA-256 of a file; of a DICOM folder, of its files' hashes in order of their names.

    Raises:
        HyperFusionError: it cannot be read.
    """
    try:
        if not source.is_dir():
            return sha256(source)
        digest = hashlib.sha256()
        for file in sorted(p for p in source.iterdir() if p.is_file()):
            digest.update(sha256(file).encode())
        return digest.hexdigest()
    except OSError as error:
        raise HyperFusionError(
            f"{source}: cannot be read: {error.strerror or error}", code="scan-unreadable"
        ) from None

"""From a raw T1 scan to a brain in MNI space: `hfrt preprocess`, `hfrt infer --from raw`.

    out(x) = scan(A^-1 · T · x) / b(x) · m(x)

`x` is a point of the template's 1 mm grid in mm (RAS), `T [4, 4]` the affine registration
(template mm to scan mm), `A` the scan's affine, `b` the bias field and `m` the brain mask. The
scan is interpolated once, with cubic splines.

`T` has 12 degrees of freedom and is found by local correlation (`data.raw.pose`), which a bias
field hardly disturbs; then the field is found where the brain lies (`data.raw.field`). Only voxels
in and just around the template's brain count, so that skull, face and neck do not matter. Nothing
is drawn at random and all sums are taken by one thread: same scan, same bits.

The template is the MNI152 2009a T1 of the nilearn package, whose skull is stripped (Fonov et al.,
NeuroImage 2011). A scan whose header swaps left and right cannot be told from a good one.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hyperfusion_rt.clock import Clock
from hyperfusion_rt.config import Preprocessing
from hyperfusion_rt.data import scan_check
from hyperfusion_rt.data.imports import import_nibabel
from hyperfusion_rt.data.raw.field import Field, find_field
from hyperfusion_rt.data.raw.image import Image, Mask, Matrix, read_raw, sample
from hyperfusion_rt.data.raw.judge import THRESHOLDS, Quality, Thresholds, judge, measure
from hyperfusion_rt.data.raw.landmarks import template_landmarks
from hyperfusion_rt.data.raw.picture import picture
from hyperfusion_rt.data.raw.pose import at_level, find_pose, refine
from hyperfusion_rt.data.raw.sidecar import picture_of, sidecar_of
from hyperfusion_rt.data.raw.template import Template, load_template
from hyperfusion_rt.data.volumes import Volume, find_support, read_volume
from hyperfusion_rt.errors import HyperFusionError, ScanError
from hyperfusion_rt.files import replacing, sha256, write_text
from hyperfusion_rt.machine import installed

# A voxel brighter than this part of the median is brain, where the skull was removed before.
_SUPPORT = 0.1
_MASK_OVERLAP = 0.7  # Dice, of a given mask and the template's
_SHELL_MM = (5, 12)  # around the brain: skull and scalp


@dataclass(frozen=True)
class Registered:
    """A scan in template space.

    volume: int16 voxels [197, 233, 189] on the template's 1 mm grid (value = slope · voxel), 0
        outside the brain; its path is the raw scan's. warnings: what a reader should know.
    transform: float64 [4, 4], from template mm to scan mm (RAS). seconds: of each step.
    picture: an SVG of the head with the template's outline (`data.raw.picture`), if asked for.
    mask: the file of the brain mask that was given, if one was.
    """

    volume: Volume
    quality: Quality
    warnings: tuple[str, ...]
    transform: Matrix
    seconds: dict[str, float]
    picture: str = ""
    mask: Path | None = None


def _is_stripped(template: Template, coarse: Image, transform: Matrix) -> bool:
    """Whether next to nothing is bright 5 to 12 mm outside the brain."""
    level = template.levels[4]
    matrix = np.linalg.inv(coarse.affine) @ transform @ level.affine
    image = sample(coarse.voxels, matrix, level.image.shape, mask=level.away < _SHELL_MM[1])
    shell = (level.away > _SHELL_MM[0]) & (level.away < _SHELL_MM[1])
    bright = image[shell] > _SUPPORT * np.median(image[level.away == 0])
    return bool(bright.mean() < 0.1)


def _own_outline(template: Template, scan: Image, coarse: Image, transform: Matrix) -> Mask:
    """The brain as it was cut out, without holes, on the template's 1 mm grid."""
    from scipy import ndimage

    level = _SUPPORT * float(np.median(coarse.voxels[coarse.voxels > 0]))
    filled = ndimage.binary_fill_holes(coarse.voxels > level)
    holes = filled & (coarse.voxels <= level)
    found = np.zeros(template.mask.shape, np.bool_)
    for image, part in ((scan, scan.voxels > level), (coarse, holes)):
        matrix = np.linalg.inv(image.affine) @ transform @ template.affine
        values = part.astype(np.float32)
        found |= sample(values, matrix, found.shape, mask=template.around) >= 0.5
    return found


def _given_mask(path: Path, template: Template, transform: Matrix) -> Mask:
    """A user's brain mask, on the template's 1 mm grid.

    Raises:
        ScanError: it cannot be read, or is no mask of the brain that was found.
    """
    volume = read_volume(path)
    matrix = np.linalg.inv(volume.affine) @ transform @ template.affine
    values = (np.asarray(volume.voxels) > 0).astype(np.float32)
    found: Mask = sample(values, matrix, template.mask.shape) >= 0.5
    common = np.count_nonzero(found & template.mask)
    overlap = 2 * common / (np.count_nonzero(found) + np.count_nonzero(template.mask))
    if overlap < _MASK_OVERLAP:
        raise ScanError(
            f"{path}: this mask and the brain that was found overlap by {overlap:.2f} (Dice), at "
            f"least {_MASK_OVERLAP} is needed; is it the brain mask of this scan?",
            code="scan-mask-wrong",
        )
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
    not 0 is brain), else with the template's; one whose skull was removed keeps its own outline.
    `with_picture`: draw it, see `Registered`. One thread; run several scans at a time in processes
    or threads.

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
        wide, fit, smoothed = find_pose(coarse)
        stripped = _is_stripped(template, coarse, fit.transform)
    with clock.step("bias"):
        field = find_field(template, smoothed, fit.transform)
        if stripped:
            # A brain that ends in nothing: there the local contrast goes with the field.
            even = field.taken_off(coarse, fit.transform, template)
            fit = refine(at_level(even, template.levels[4]), fit.transform)
        transform = fit.transform
    with clock.step("quality"):
        quality = measure(scan, coarse, template, wide, fit, field, preprocessing, stripped)
        warnings = [*scan.warnings, *judge(path, quality, preprocessing, thresholds)]
    with clock.step("resample"):
        # Finer voxels are averaged first, or their noise would come through as it is.
        fine = scan.shrunk(1)
        inside = template.mask
        if mask is not None:
            inside = _given_mask(mask, template, transform)
        elif stripped:
            inside = _own_outline(template, fine, coarse, transform)
        volume = _resample(fine, template, transform, field, inside)
        warnings += _odd_contrast(path, volume)
    drawn = ""
    if with_picture:
        with clock.step("picture"):
            drawn = picture(fine, template, transform, field)
    return Registered(volume, quality, tuple(warnings), transform, clock.steps, drawn, mask)


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

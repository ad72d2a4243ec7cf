"""From a raw T1 scan to a brain in MNI space: `hfrt preprocess`, `hfrt infer --from raw`.

    out(x) = scan(A^-1 · T · x) / b(x) · m(x)

`x` is a point of the template's 1 mm grid in mm (RAS), `T [4, 4]` the affine registration
(template mm to scan mm), `A` the scan's affine, `b` the bias field and `m` the brain mask. The
scan is interpolated once, with cubic splines.

`T` maximises the correlation with the template over 12 degrees of freedom, with SimpleITK's
registration (Lowekamp et al., Front. Neuroinform. 2013), at 8, 4 and 2 mm. It starts from several
centres and rotations. Only voxels in and just around the template's brain count, so that skull,
face and neck do not matter. The bias field (N4: Tustison et al., IEEE TMI 2010) is estimated in
template space, between the levels: where the scan's grid lies in space then makes no difference to
it. Nothing is drawn at random and all sums are taken by one thread: same scan, same bits.

The template is the MNI152 2009a T1 of the nilearn package, whose skull is stripped (Fonov et al.,
NeuroImage 2011). A scan whose header swaps left and right cannot be told from a good one.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from hyperfusion_rt.clock import Clock
from hyperfusion_rt.config import Preprocessing
from hyperfusion_rt.data import scan_check
from hyperfusion_rt.data.dicom import read_dicom
from hyperfusion_rt.data.raw.alignment import (
    INNER_MM,
    Fit,
    Float,
    Image,
    Matrix,
    Template,
    bias_field,
    block_means,
    find_start,
    grow,
    load_template,
    require_sitk,
    sample,
    strip_skull,
    without_bias,
)
from hyperfusion_rt.data.raw.judge import THRESHOLDS, Quality, Thresholds, judge, measure
from hyperfusion_rt.data.raw.landmarks import template_landmarks
from hyperfusion_rt.data.raw.sidecar import sidecar_of
from hyperfusion_rt.data.volumes import Volume, find_support, read_volume
from hyperfusion_rt.errors import HyperFusionError, ScanError
from hyperfusion_rt.files import replacing, sha256, write_text
from hyperfusion_rt.machine import installed

# A voxel brighter than this part of the median is brain, where the skull was removed before.
_SUPPORT = 0.1


@dataclass(frozen=True)
class Registered:
    """A scan in template space.

    volume: int16 voxels [197, 233, 189] on the template's 1 mm grid (value = slope · voxel), 0
        outside the brain; its path is the raw scan's. warnings: what a reader should know.
    transform: float64 [4, 4], from template mm to scan mm (RAS). seconds: of each step.
    """

    volume: Volume
    quality: Quality
    warnings: tuple[str, ...]
    transform: Matrix
    seconds: dict[str, float]


def _border(voxels: Float) -> Float:
    """The values on the six faces."""
    faces = [np.take(voxels, (0, -1), axis).ravel() for axis in range(3)]
    return np.concatenate(faces)


def _read(path: Path) -> Image:
    """The scan's values with a background of 0 and none below.

    Raises:
        ScanError: as `read_volume`; a DICOM folder that holds no single even MR series; fewer than
            16 slices; all voxels alike.
    """
    warnings: list[str] = []
    if path.is_dir():
        voxels, affine = read_dicom(path)
    else:
        volume = read_volume(path)
        voxels = np.asarray(volume.voxels, np.float32, order="C")
        if (volume.slope, volume.inter) != (1.0, 0.0):
            voxels = voxels * np.float32(volume.slope) + np.float32(volume.inter)
        affine = volume.affine
        warnings += volume.warnings
    if min(voxels.shape) < 16:
        raise ScanError(
            f"{path}: {'x'.join(map(str, voxels.shape))} voxels: a brain needs at least 16 slices",
            code="scan-too-thin",
        )
    finite = np.isfinite(voxels)
    if not finite.all():
        count = int(finite.size - np.count_nonzero(finite))
        warnings.append(f"{count} voxels are NaN or infinite; taken as background")
        voxels = np.where(finite, voxels, np.float32(0))
    values, counts = np.unique(_border(voxels), return_counts=True)
    most = float(values[counts.argmax()])
    # A value that most of the border has is background, whatever it is (z-scores, -1024).
    known = counts.max() > 0.5 * counts.sum()
    inside = voxels[voxels != np.float32(most)] if known else voxels.ravel()
    if not inside.size or inside.min() == inside.max():
        raise ScanError(
            f"{path}: every voxel has the same value; is the file empty?", code="scan-constant"
        )
    low = float(np.percentile(inside[:: max(1, inside.size // 1_000_000)], 2))
    floor = min(low, most) if known else low
    if floor != 0 or float(voxels.min()) < 0:
        background = voxels == np.float32(most)
        voxels = np.maximum(voxels - np.float32(floor), 0)
        if known:
            voxels[background] = 0
    return Image(path, voxels, affine, tuple(warnings))


def _resample(
    scan: Image, template: Template, transform: Matrix, bias: Float, stripped: bool
) -> Volume:
    """The scan on the template's 1 mm grid, once interpolated, int16."""
    from scipy import ndimage

    shape = template.mask.shape
    # Finer voxels are averaged first, or their noise would come through as it is.
    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    step = tuple(max(1, round(1 / s)) for s in spacing)
    voxels, affine = block_means(scan.voxels, scan.affine, step)
    matrix = np.linalg.inv(affine) @ transform @ template.affine
    values = sample(voxels, matrix, shape, order=3)
    if stripped:
        # The brain as it was cut out, not the template's.
        own = (voxels > _SUPPORT * np.median(voxels[voxels > 0])).astype(np.float32)
        mask = sample(own, matrix, shape) >= 0.5
        mask &= ndimage.binary_dilation(template.mask, iterations=6)
        mask = ndimage.binary_fill_holes(mask)
    else:
        mask = template.mask
    values /= grow(bias, template, template.affine, shape)
    values = np.where(mask, np.maximum(values, 0), 0)
    slope = np.float32(max(float(values.max()), 1e-30) / 32000)
    # What is brain stays different from the background.
    stored = np.maximum(np.rint(values / slope), mask).astype(np.int16)
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
) -> Registered:
    """Register a raw T1 scan to MNI space, correct its bias field and take the skull off.

    `path`: a NIfTI or MGH file, or a folder with the files of one DICOM series; any orientation,
    spacing and scaling, with or without skull. NaN and infinity become background. `preprocessing`
    names the boxes whose coverage is measured.

    A scan with its skull is cut out with the template's brain mask; one whose skull was removed
    keeps its own outline. One thread; run several scans at a time in processes or threads.

    Raises:
        ScanError: unreadable (see `read_volume`), no single even DICOM series, a constant, or a
            figure of `Quality` beyond its refuse level.
        MissingExtraError: the raw extra is not installed.
    """
    path = Path(path)
    require_sitk()
    clock = Clock()
    with clock.step("template"):
        template = load_template()
    with clock.step("read"):
        scan = _read(path)
        spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
        step = tuple(max(1, round(2 / s)) for s in spacing)
        voxels, affine = block_means(scan.voxels, scan.affine, step)
        coarse = replace(scan, voxels=voxels, affine=affine)
    try:
        with clock.step("register"):
            transform = find_start(template, coarse)
            inner = Fit(template.levels[4], coarse, ring=INNER_MM)
            _, transform = inner.run(transform, "similarity", 1.0, 0.05)
            brain, stripped = strip_skull(template, coarse, transform)
            _, transform = Fit(template.levels[4], brain).run(transform, "affine", 1.0, 0.05)
            if not stripped:
                # Once more, with the brain found from a better place.
                brain, _ = strip_skull(template, coarse, transform)
                _, transform = Fit(template.levels[4], brain).run(transform, "affine", 1.0, 0.05)
        with clock.step("bias"):
            bias = bias_field(template, brain, transform)
            even = without_bias(brain, template, bias, transform)
        with clock.step("refine"):
            _, transform = Fit(template.levels[4], even).run(transform, "affine", 0.5, 0.02)
            fit = Fit(template.levels[2], even)
            _, transform = fit.run(transform, "affine", 0.2, 0.002)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ScanError(
            f"{path}: cannot be registered: {reason}; is it a T1 scan of a whole head?",
            code="scan-not-registered",
        ) from None
    with clock.step("quality"):
        quality = measure(scan, template, fit, transform, preprocessing, stripped)
        warnings = [*scan.warnings, *judge(path, quality, preprocessing, thresholds)]
    with clock.step("resample"):
        volume = _resample(scan, template, transform, bias, stripped)
        warnings += _odd_contrast(path, volume)
    return Registered(volume, quality, tuple(warnings), transform, clock.steps)


def write_registered(registered: Registered, out: Path) -> None:
    """Write `out` (.nii.gz: int16 with a slope, sform and qform of code 4, MNI) and its sidecar.

    The sidecar `NAME.json` beside it holds quality, warnings, transform, the source's SHA-256 (of
    a DICOM folder: of its files' hashes in order of their names) and versions. Each file is written
    whole or not at all, the scan last. The same registration gives the same bytes.

    Raises:
        HyperFusionError: the folder cannot be written, `out` does not end in .nii.gz, or the
            source has gone.
    """
    import nibabel as nib
    from isal import igzip

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
        "quality": asdict(registered.quality),
        "figures": registered.quality.figures(),
        "warnings": list(registered.warnings),
        "transform": registered.transform.tolist(),
        "transform_maps": "template mm to scan mm (RAS)",
        "versions": {
            name: installed(name)
            for name in ("hyperfusion_rt", "SimpleITK", "nilearn", "scipy", "numpy")
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

"""From the boxes' grids to the scan's own, and from there to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.config import Preprocessing
from hyperfusion_rt.data.imports import import_nibabel
from hyperfusion_rt.data.volumes import sampling_matrix
from hyperfusion_rt.files import replacing

# What a voxel has that lies in several boxes: the mean, the sum, or the largest.
Overlap = Literal["mean", "sum", "largest"]


def to_scan(
    maps: NDArray[Any],
    preprocessing: Preprocessing,
    to_mni: NDArray[np.float64],
    shape: tuple[int, int, int],
    overlap: Overlap = "mean",
) -> NDArray[Any]:
    """`maps [N, D, H, W]` of the boxes, on a scan's grid `[X, Y, Z]`; the type stays.

    `to_mni [4, 4]`: from the scan's voxels to mm of MNI space. A voxel has the value of the box's
    voxel in which its centre lies, 0 outside all boxes; where several hold it, what `overlap` says.
    """
    total = np.zeros(shape, maps.dtype)
    count = np.zeros(shape, np.uint8)
    size = np.asarray(preprocessing.shape)
    for box, values in zip(preprocessing.boxes, maps, strict=True):
        from_box = np.vstack([sampling_matrix(to_mni, box, preprocessing), [0, 0, 0, 1]])
        corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in size])).reshape(3, -1)
        found = from_box[:3, :3] @ corners + from_box[:3, 3:]
        low = np.clip(np.floor(found.min(1)), 0, shape).astype(int)
        high = np.clip(np.ceil(found.max(1)) + 1, 0, shape).astype(int)
        to_box = np.linalg.inv(from_box)
        y, z = np.meshgrid(np.arange(low[1], high[1]), np.arange(low[2], high[2]), indexing="ij")
        for x in range(low[0], high[0]):  # a plane at a time: memory stays small
            at = [r[0] * x + r[1] * y + r[2] * z + r[3] for r in to_box[:3]]
            # A tie falls to the lower voxel, whatever the last bits say.
            index = np.stack([np.ceil(a - 0.5 - 1e-6) for a in at]).astype(np.int64)
            inside = ((index >= 0) & (index < size[:, None, None])).all(0)
            d, h, w = (i[inside] for i in index)
            plane = x, slice(low[1], high[1]), slice(low[2], high[2])
            if overlap == "largest":
                total[plane][inside] = np.maximum(total[plane][inside], values[d, h, w])
            else:
                total[plane][inside] += values[d, h, w]
                count[plane][inside] += 1
    if overlap == "mean":
        np.divide(total, count, out=total, where=count > 1)
    return total


def write_voxels(path: Path, voxels: NDArray[Any], affine: NDArray[np.float64], scan: Path) -> None:
    """Write `voxels [X, Y, Z]` as `.nii.gz`, in their type, where the header of `scan` says that
    the scan lies.

    A NIfTI scan gives the file its qform and sform with their codes, and its unit of length; for
    others it is mm and `affine`. Nothing else of the scan's header is kept.

    Raises:
        HyperFusionError: the folder cannot be written.
    """
    from isal import igzip

    nib = import_nibabel()
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    header = None if scan.is_dir() else nib.load(scan).header
    if isinstance(header, nib.Nifti1Header):  # NIfTI-2 too
        length, _ = header.get_xyzt_units()
        image.header.set_xyzt_units(None if length == "unknown" else length)
        own = header.get_best_affine()
        for kind in ("qform", "sform"):
            code = int(header[f"{kind}_code"])
            place = getattr(header, f"get_{kind}")() if code else own
            getattr(image, f"set_{kind}")(place, code=code)
    with replacing(path, private=True) as temporary:
        temporary.write_bytes(igzip.compress(image.to_bytes(), compresslevel=1, mtime=0))

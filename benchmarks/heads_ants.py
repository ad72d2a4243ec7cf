"""What ANTs finds; run by `heads.py` in an environment of its own, with one thread.

    python heads_ants.py truth TEMPLATE BRAIN OUT     # SyN; the affine nearest to its map
    python heads_ants.py correlation TEMPLATE BRAIN OUT    # the same, by local correlation
    python heads_ants.py affine TEMPLATE MASK HEAD OUT    # the affine alone, in the brain's mask

Writes `transform [4, 4]`, template mm to scan mm (RAS), and the seconds of CPU.
"""

import json
import sys
import time
from pathlib import Path

import ants
import nibabel as nib
import numpy as np
import pandas as pd

FLIP = np.diag([-1.0, -1.0, 1.0])  # RAS to ITK's LPS, and back
SYN = (40, 20, 0)  # iterations at 4, 2 and 1 mm


def moved(points: np.ndarray, transforms: list[str]) -> np.ndarray:
    """Points `[3, N]` of the template, mm (RAS), in the scan."""
    table = pd.DataFrame((FLIP @ points).T, columns=["x", "y", "z"])
    found = ants.apply_transforms_to_points(3, table, transforms)
    return FLIP @ found[["x", "y", "z"]].to_numpy().T


def nearest(points: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The affine of least squares, of the nine tenths that it fits best."""
    known = np.vstack([points, np.ones(points.shape[1])])
    kept = np.ones(points.shape[1], bool)
    for _ in range(4):
        found = images[:, kept] @ np.linalg.pinv(known[:, kept])
        error = np.linalg.norm(found @ known - images, axis=0)
        kept = error < np.percentile(error, 90)
    return np.vstack([found, [0, 0, 0, 1]])


def main() -> None:
    """One registration."""
    what, template, *paths, out = sys.argv[1:]
    image = nib.load(template)
    index = np.stack(np.nonzero(np.asarray(image.dataobj)))[:, ::997]
    points = image.affine[:3, :3] @ index + image.affine[:3, 3:]
    fixed, scan = ants.image_read(template), ants.image_read(paths[-1])
    start = time.process_time()
    if what == "affine":
        mask = ants.image_read(paths[0])
        found = ants.registration(fixed, scan, "Affine", mask=mask, random_seed=1)
    else:
        brain, even = scan > 0, scan
        for _ in range(2):  # a strong field is not found at once
            even = ants.n4_bias_field_correction(even, mask=brain)
        cost = {"syn_metric": "CC", "syn_sampling": 3} if what == "correlation" else {}
        found = ants.registration(fixed, even, "SyN", reg_iterations=SYN, random_seed=1, **cost)
    seconds = time.process_time() - start
    transform = nearest(points, moved(points, found["fwdtransforms"]))
    content = {"transform": transform.tolist(), "seconds": seconds}
    Path(out).write_text(json.dumps(content) + "\n", encoding="utf-8")


main()

"""What a network that segments says of a scan: a label for each of the scan's own voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.manifest import Manifest
from hyperfusion_rt.data.bids_name import label_of
from hyperfusion_rt.data.volumes import VoxelGrid
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.files import write_text
from hyperfusion_rt.runtime.case_input import CaseInput
from hyperfusion_rt.runtime.prediction import Prediction
from hyperfusion_rt.runtime.space import to_scan, write_voxels

NAMES = "dseg.tsv"


@dataclass(frozen=True)
class Segmentation:
    """`labels uint8 [X, Y, Z]` on the scan's own grid: places in `names`, of which 0 is the
    background and all that no box holds."""

    labels: NDArray[np.uint8]
    grid: VoxelGrid
    names: tuple[str, ...]

    @classmethod
    def of(cls, manifest: Manifest, scores: NDArray[np.float32], scan: CaseInput) -> Segmentation:
        """From the network's `scores [N·L, D, H, W]` of one case: of N boxes L labels each.

        The label of the largest score, the first of equals; where boxes overlap the later label.
        """
        assert scan.grid is not None
        boxes = scores.reshape(-1, len(manifest.labels), *scores.shape[1:])
        labels = boxes.argmax(1).astype(np.uint8)
        found = to_scan(labels, manifest.preprocessing, scan.to_mni, scan.grid.shape, "largest")
        return cls(found, scan.grid, manifest.labels)

    @property
    def volumes(self) -> NDArray[np.float64]:
        """`[L - 1]`: of each label but the background in ml, where the scan lies."""
        voxel = abs(float(np.linalg.det(self.grid.affine[:3, :3]))) / 1000
        counts = np.bincount(self.labels.ravel(), minlength=len(self.names))
        return counts[1:].astype(np.float64) * voxel

    def write(self, path: Path, scan: Path) -> None:
        """Write the labels as `.nii.gz`, where the header of `scan` says that it lies.

        Raises:
            HyperFusionError: the folder cannot be written.
        """
        write_voxels(path, self.labels, self.grid.affine, scan)


@dataclass(frozen=True)
class LabelMaps:
    """A folder of label maps, named as BIDS derivatives are.

    dseg.tsv                                          what the numbers mean
    sub-XX[/ses-YY]/anat/sub-XX[_ses-YY]_dseg.nii.gz
    """

    folder: Path

    @classmethod
    def beside(cls, table: Path) -> LabelMaps:
        """Those of a table: `predictions_labels` of `predictions.csv`."""
        return cls(table.with_name(f"{table.stem}_labels"))

    def path(self, subject: str, session: str | None) -> Path:
        """Where a case's label map stands."""
        entities = [f"sub-{label_of(subject)}"]
        entities += [f"ses-{label_of(session)}"] if session else []
        return self.folder.joinpath(*entities, "anat", "_".join([*entities, "dseg.nii.gz"]))

    def has(self, prediction: Prediction) -> bool:
        """Whether the label map of a prediction is there; of a failure there is none."""
        place = self.path(prediction.subject, prediction.session)
        return prediction.status != "ok" or place.is_file()

    def open(self, names: Sequence[str]) -> None:
        """Write down what the numbers mean; nothing without `names`.

        Raises:
            HyperFusionError: the folder cannot be written.
        """
        if not names:
            return
        lines = ["index\tname", *(f"{index}\t{name}" for index, name in enumerate(names))]
        write_text(self.folder / NAMES, "\n".join(lines) + "\n")


def refuse_labels(manifest: Manifest, what: str) -> None:
    """That `what` needs an answer that is a class or a number.

    Raises:
        ConfigError: the network segments.
    """
    if manifest.labels:
        raise ConfigError(
            f"{manifest.name}: labels voxels ({', '.join(manifest.labels)}); {what} an answer that "
            "is a class or a number",
            code="artifact-segments",
        )

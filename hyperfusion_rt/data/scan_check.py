"""Whether a scan is what it must be: a T1-weighted brain without its skull, in template space.

Two levels. The whole scan, at the pose that its header claims, against the template: at points of
its brain and of a shell of 5 to 12 mm around it. Each box, against what training saw. A figure
beyond its refuse level is an error, one beyond its warn level a warning; the levels' false alarms
are measured in benchmarks/scan_checks.md. Both levels need what an artifact carries, and no
template: `Reference`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt import _native
from hyperfusion_rt.config import Frozen, Preprocessing, ScanChecks
from hyperfusion_rt.data.volumes import Boxes, Volume, extract, find_support, join_channels
from hyperfusion_rt.errors import ScanError

Floats = NDArray[np.float32]

SHELL_MM = (5.0, 12.0)
# The means are taken over cubes of about this half edge, in mm.
_REACH_MM = 1.5
# A voxel of the shell is bright beyond this part of the brain's median.
_BRIGHT = 0.1

# Pearson's r of the scan and the template, at least.
CORRELATION = {"refuse": 0.5, "warn": 0.6}
# Bright part of the shell, at most.
SHELL = {"refuse": 0.3, "warn": 0.15}
# Standard deviation over mean of the brain, from and to: masks are even, maps of a tissue are not.
CONTRAST = {"refuse": (0.06, 0.65), "warn": (0.12, 0.5)}
# Pearson's r of a box and training's mean box, at least.
BOX_REFUSE = 0.1
# Spreads of training's scans beyond which a box's figure is unusual, and the least spread of each.
BOX_WARN = 5.0
_LEAST = {"fill": 0.02, "contrast": 0.02, "correlation": 0.05}

_ADVICE = (
    "register it to MNI space and take its skull off: hfrt preprocess, or predict it with `source` "
    "raw"
)
_ANYWAY = "If it is right as it is, set `scan_checks` to warn"


@dataclass(frozen=True)
class Landmarks:
    """The template's summary: `points float32 [P + S, 3]` in mm, the brain's P before the shell's
    S, and the template's `values float32 [P]`."""

    points: Floats
    values: Floats


class Usual(Frozen):
    """Where a figure lies in training's scans: the median, and a robust standard deviation."""

    median: float
    spread: float

    @classmethod
    def of(cls, name: str, values: Sequence[float]) -> Usual:
        """Of the figure `name` of training's scans."""
        found = np.asarray(values, np.float64)
        median = float(np.median(found))
        low, high = np.quantile(found, (0.01, 0.99))
        deviation = 1.4826 * float(np.median(np.abs(found - median)))
        spread = max(deviation, float(high - low) / 4.65, _LEAST[name])
        return cls(median=median, spread=spread)

    def away(self, value: float) -> float:
        """How many spreads `value` lies away from the median."""
        return (value - self.median) / self.spread


class BoxUsual(Frozen):
    """Of one box: `Boxes.fill` and `Boxes.contrast`, and atanh of r with the mean box."""

    fill: Usual
    contrast: Usual
    correlation: Usual


@dataclass(frozen=True)
class Reference:
    """What scans are compared with.

    `means float32 [N·C, ...]`: training's mean boxes, of each its C channels, every `stride`-th
    voxel; None and no `boxes`
    where training's scans are not known (an imported network). `checks`: how training was told to
    take a scan that looks wrong.
    """

    landmarks: Landmarks
    boxes: tuple[BoxUsual, ...] = ()
    means: Floats | None = None
    stride: int = 1
    checks: ScanChecks = "refuse"


@dataclass(frozen=True)
class Figures:
    """Of a whole scan; `contrast` is None where its values lie on both sides of the background."""

    correlation: float
    shell: float
    contrast: float | None


def pearson(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Pearson's r; -1 where one of them is constant."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    x, y = x - x.mean(), y - y.mean()
    product = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / product if product > 0 else -1.0


def measure(volume: Volume, support: _native.Support, landmarks: Landmarks) -> Figures:
    """The figures of a scan, at the pose that its header claims."""
    points, count = landmarks.points, len(landmarks.values)
    found = np.empty(len(points), np.float32)
    inverse = np.ascontiguousarray(np.linalg.inv(volume.affine)[:3])
    reach = _REACH_MM / np.linalg.norm(volume.affine[:3, :3], axis=0)
    _native.sample_means(
        volume.voxels, volume.slope, volume.inter, support, inverse, reach, points, found
    )
    brain, shell = found[:count], np.abs(found[count:])
    bright = _BRIGHT * float(np.median(np.abs(brain)))
    mean = float(brain.mean())
    two_sided = support.found and support.side == 0
    return Figures(
        correlation=pearson(landmarks.values, brain),
        shell=float((shell > bright).mean()),
        contrast=None if two_sided else float(brain.std()) / abs(mean) if mean else math.inf,
    )


def judge(path: Path, figures: Figures, checks: ScanChecks = "refuse") -> list[str]:
    """What is odd about a scan. With `checks` "warn", nothing is refused.

    Raises:
        ScanError: a figure is beyond its refuse level.
    """
    r, shell, contrast = figures.correlation, figures.shell, figures.contrast
    refusing = checks == "refuse"
    odd: list[str] = []
    if r < CORRELATION["warn"]:
        odd.append(
            "does not look like a T1-weighted brain in MNI space, at the place that its header "
            f"says: its correlation with the template is {r:.2f} "
            f"(usual: more than {CORRELATION['warn']:g}); {_ADVICE}"
        )
        if refusing and r < CORRELATION["refuse"]:
            raise ScanError(f"{path}: {odd[-1]}. {_ANYWAY}", code="scan-not-in-template-space")
    if shell > SHELL["warn"]:
        odd.append(
            f"is bright outside the brain: {shell:.0%} of a shell 5 to 12 mm around it "
            f"(usual: less than {SHELL['warn']:.0%}). Is the skull still there? If so, {_ADVICE}"
        )
        if refusing and shell > SHELL["refuse"]:
            raise ScanError(f"{path}: {odd[-1]}. {_ANYWAY}", code="scan-not-stripped")
    return odd + judge_contrast(path, contrast, checks)


def judge_contrast(path: Path, contrast: float | None, checks: ScanChecks = "refuse") -> list[str]:
    """What is odd about `Figures.contrast`, which registration cannot mend.

    Raises:
        ScanError: it is beyond its refuse level.
    """
    low, high = CONTRAST["warn"]
    if contrast is None or low <= contrast <= high:
        return []
    text = (
        "has no contrast of a T1-weighted brain: the standard deviation of its brightness is "
        f"{contrast:.2f} of the mean (usual: {low:g} to {high:g}). Is it a mask, or a map of one "
        "tissue?"
    )
    least, most = CONTRAST["refuse"]
    if checks == "refuse" and not least <= contrast <= most:
        raise ScanError(f"{path}: {text} {_ANYWAY}", code="scan-contrast")
    return [text]


def box_correlation(image: Floats, mean: Floats, stride: int) -> float:
    """Pearson's r of a channel of a box `[D, H, W]` and training's mean box."""
    return pearson(image[::stride, ::stride, ::stride], mean)


def fisher(r: float) -> float:
    """atanh of r, whose spread does not depend on r; finite for every r."""
    return math.atanh(min(max(r, -0.999), 0.999))


def box_names(preprocessing: Preprocessing) -> list[str]:
    """What each channel of each box is called, a box's channels together."""
    several = len(preprocessing.channels) > 1
    return [
        f"{box.name} box" + (f" ({channel.name})" if several else "")
        for box in preprocessing.boxes
        for channel in preprocessing.channels
    ]


def judge_boxes(
    paths: Sequence[Path],
    boxes: Boxes,
    preprocessing: Preprocessing,
    reference: Reference,
    checks: ScanChecks = "refuse",
) -> list[str]:
    """What is odd about the boxes of a case, against those that training saw.

    `paths`: of its channels. A channel that is not T1-weighted is only warned of: maps of lesions
    have little in common.

    Raises:
        ScanError: a box has nothing of training's mean box.
    """
    warnings: list[str] = []
    if reference.means is None:
        return warnings
    names = box_names(preprocessing)
    images = boxes.images.reshape(-1, *boxes.images.shape[2:])
    for index, usual in enumerate(reference.boxes):
        name, mean = names[index], reference.means[index]
        channel = index % len(paths)
        r = box_correlation(images[index], mean, reference.stride)
        refusing = checks == "refuse" and preprocessing.channels[channel].t1_weighted
        if r < BOX_REFUSE and refusing:
            raise ScanError(
                f"{paths[channel]}: its {name} does not look like those of the training: "
                f"correlation with their mean {r:.2f}, at least {BOX_REFUSE:g} is needed; "
                f"{_ADVICE}. {_ANYWAY}",
                code="scan-unlike-training",
            )
        fill, contrast = boxes.fill[index], boxes.contrast[index]
        odd = []
        if usual.correlation.away(fisher(r)) < -BOX_WARN:
            odd.append(f"correlation with the mean box {r:.2f}")
        if abs(usual.fill.away(fill)) > BOX_WARN:
            odd.append(f"{fill:.0%} of it is brain, usual: {usual.fill.median:.0%}")
        if abs(usual.contrast.away(contrast)) > BOX_WARN:
            odd.append(
                f"its contrast (standard deviation over mean) is {contrast:.2f}, usual: "
                f"{usual.contrast.median:.2f}"
            )
        if odd:
            warnings.append(f"{name} is unlike those of the training: {'; '.join(odd)}")
    return warnings


def checked_boxes(
    volumes: Sequence[Volume],
    preprocessing: Preprocessing,
    reference: Reference | None,
    checks: ScanChecks,
) -> Boxes:
    """The boxes of a case's channels, if they look right; with what is odd among their warnings.

    Without `reference`, or with `checks` "off", nothing is looked at. A channel that is not
    T1-weighted is not compared with the template, but with training's boxes.

    Raises:
        ScanError: as `judge`, `extract` and `judge_boxes`.
    """
    looked = None if checks == "off" else reference
    odd: list[str] = []
    found = []
    for volume, channel in zip(volumes, preprocessing.channels, strict=True):
        support = None
        if looked is not None and channel.t1_weighted:
            support = find_support(volume)
            figures = measure(volume, support, looked.landmarks)
            if not figures.correlation > -1:
                # It has one value around the brain, or holds NaN: extraction says which.
                extract(volume, preprocessing, support, channel)
            odd += judge(volume.path, figures, checks)
        found.append(extract(volume, preprocessing, support, channel))
    boxes = join_channels(found)
    if looked is not None:
        paths = [volume.path for volume in volumes]
        odd += judge_boxes(paths, boxes, preprocessing, looked, checks)
    return replace(boxes, warnings=(*boxes.warnings, *odd))

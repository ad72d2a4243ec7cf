"""One subject as the report draws it: the types, and what is said of it in words."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass

from hyperfusion_rt.runtime.explain.answers import Reasons, Region, WhatIf
from hyperfusion_rt.runtime.prediction import Prediction

# Two classes whose probabilities differ by no more than this are not told apart.
CLOSE = 0.05


@dataclass(frozen=True)
class RowCell:
    """A cell of the subject's row that the model reads.

    `text`: as the table has it, empty where it has a gap; `stand_in`: what the model reads then.
    """

    column: str
    text: str
    stand_in: str = ""


@dataclass(frozen=True)
class PlanePicture:
    """A plane of a scan, `picture` (a grey PNG), and the map over it (a PNG with alpha), if any."""

    picture: bytes
    overlay: bytes | None = None

    @property
    def data(self) -> str:
        """The picture as base64."""
        return base64.b64encode(self.picture).decode()

    @property
    def overlay_data(self) -> str:
        """The map as base64; empty where there is none."""
        return base64.b64encode(self.overlay or b"").decode()


@dataclass(frozen=True)
class MapLegend:
    """What the colours of a map say: strongest colour at ± `largest`, of the answer `of`."""

    of: str
    method: str
    largest: float
    regions: tuple[Region, ...] = ()
    atlas: str = ""


@dataclass(frozen=True)
class SubjectView:
    """A subject with everything that is known of it; what is not there is not drawn.

    `number`: its row on the page, from 1. `planes`: in the order of the page's, empty where
    `no_planes` says why. `volume`: a small copy of the scan for the 3D viewer, a packed NIfTI file
    without a name in it. `labels`: of label maps over the planes, name and colour. `no_answers`:
    why other rows have no answers, where that is a fault.
    """

    number: int
    prediction: Prediction
    cells: tuple[RowCell, ...] = ()
    planes: tuple[PlanePicture, ...] = ()
    no_planes: str = ""
    what_if: tuple[WhatIf, ...] = ()
    reasons: Reasons | None = None
    map: MapLegend | None = None
    labels: tuple[tuple[str, str], ...] = ()
    volume: bytes = b""
    no_answers: str = ""

    @property
    def imputed(self) -> int:
        """How many cells have a stand-in."""
        return sum(bool(cell.stand_in) for cell in self.cells)

    @property
    def volume_data(self) -> str:
        """The volume as base64."""
        return base64.b64encode(self.volume).decode()


def candidates(values: Iterable[float]) -> list[int]:
    """The most probable class, and those that are within `CLOSE` of it, the likeliest first."""
    values = list(values)
    order = sorted(range(len(values)), key=lambda c: -values[c])
    # Float noise must not decide about a difference of exactly 0.05.
    return [c for c in order if values[order[0]] - values[c] <= CLOSE + 1e-9]


def answer_text(classes: tuple[str, ...], unit: str, prediction: Prediction) -> str:
    """`AD`, or `CN or MCI (close)` where the largest probabilities differ by no more than 0.05.

    A number, or several, with the unit; empty without a prediction.
    """
    if not prediction.values:
        return ""
    if not classes:
        numbers = " / ".join(f"{value:.4g}" for value in prediction.values)
        return f"{numbers} {unit}".rstrip()
    names = [classes[c] for c in candidates(prediction.values)]
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} or {names[-1]} (close)"


def is_close(classes: tuple[str, ...], prediction: Prediction) -> bool:
    """Whether the model does not tell its first classes apart."""
    return bool(classes and prediction.values) and len(candidates(prediction.values)) > 1


def certain_text(unit: str, prediction: Prediction) -> str:
    """The prediction set or the interval, as far as the artifact says it; else empty."""
    sure = prediction.certainty
    if sure is None:
        return ""
    if sure.classes is not None:
        return ", ".join(sure.classes) or "none of the classes"
    if sure.low is not None and sure.high is not None:
        return f"{sure.low:.3g} to {sure.high:.3g} {unit}".rstrip()
    return ""


@dataclass(frozen=True)
class Flag:
    """What a reader of a prediction should look at: a short `name` to filter by, and a sentence."""

    name: str
    text: str


def flags(classes: tuple[str, ...], prediction: Prediction) -> list[Flag]:
    """Of one prediction; in the order of weight."""
    found = []
    sure = prediction.certainty
    if sure is not None and sure.distance is not None and sure.distance > 1:
        found.append(
            Flag(
                "unlike training",
                f"The scan is unlike those of the training: {sure.distance:.2f} times the "
                "threshold.",
            )
        )
    if is_close(classes, prediction):
        names = " and ".join(classes[c] for c in candidates(prediction.values))
        found.append(Flag("close", f"The probabilities of {names} differ by {CLOSE:g} or less."))
    if sure is not None and sure.classes is not None and len(sure.classes) != 1:
        several = f"{len(sure.classes)} classes" if sure.classes else "no class"
        level = "" if sure.level is None else f" at {sure.level:.0%}"
        found.append(Flag("not one class", f"The prediction set{level} holds {several}."))
    if prediction.seen:
        found.append(
            Flag("in the training", "The case stood in the training: it says nothing of new ones.")
        )
    found += [Flag("warning", text) for text in prediction.warnings]
    return found

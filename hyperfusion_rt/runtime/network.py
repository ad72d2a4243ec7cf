"""An artifact's network on one engine: boxes and encoded rows to answers, in one step or two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.manifest import Artifact, Manifest
from hyperfusion_rt.errors import EngineError
from hyperfusion_rt.rules import mixture, spread
from hyperfusion_rt.runtime.engines.choose import TrunkAndHead, open_engine, open_parts

Floats = NDArray[np.float32]
Features = dict[str, Floats]  # by name, [B, ...] each


@dataclass(frozen=True)
class Answer:
    """Of one case.

    `values [C]`: calibrated probabilities, or a number; `sd`: that number's standard deviation,
    where the network answers one; `spread`: over the members, None for one member.
    """

    values: NDArray[np.float64]
    sd: float | None
    spread: float | None


class Network:
    """See the module.

    Args:
        engine: `auto`, or an engine's name.
        split: in two steps, so that features of a scan can be kept and used again.

    Raises:
        EngineError, MissingExtraError, ArtifactError: the engine cannot be opened, or not split.
    """

    def __init__(
        self, artifact: Artifact, engine: str, threads: int | None, *, split: bool = False
    ) -> None:
        self.artifact, self._threads = artifact, threads
        self._opened = open_engine(artifact, engine, threads)
        self.engine, self.notes = self._opened.name, self._opened.notes
        self._parts: TrunkAndHead | None = None
        if split:
            self.parts()

    @property
    def manifest(self) -> Manifest:
        """What the artifact says of itself."""
        return self.artifact.manifest

    def parts(self) -> TrunkAndHead:
        """The network in two steps, opened when it is first asked for.

        Raises:
            EngineError: this engine has one step only.
        """
        if self._parts is None:
            self._parts = open_parts(self.artifact, self._opened, self._threads)
        return self._parts

    @property
    def splits(self) -> bool:
        """Whether the engine has two steps."""
        try:
            self.parts()
        except EngineError:
            return False
        return True

    def run(self, images: Floats, rows: Floats) -> dict[str, Floats]:
        """`images [B, N·C, D, H, W]`, `rows [B, ΣT]` → `output [B, C]` and `members [B, M·N·C]`."""
        if self._parts is None:
            return self._opened.engine.run(images, rows)
        return self._parts.finish(self._parts.features(images), rows)

    def features(self, images: Floats) -> Features:
        """What the head reads of `images [B, N·C, D, H, W]`."""
        return self.parts().features(images)

    def finish(self, features: Features, rows: Floats) -> dict[str, Floats]:
        """As `run`, of features."""
        return self.parts().finish(features, rows)

    def answer(self, found: dict[str, Floats], index: int) -> Answer:
        """What was found of one case of a batch.

        Raises:
            EngineError: it is not finite.
        """
        one = {name: array[index : index + 1] for name, array in found.items()}
        values, deviation = self.values(one)
        raw = found["members"][index]
        manifest = self.manifest
        members = raw.reshape(len(manifest.members), len(manifest.preprocessing.boxes), -1)
        top = int(values[0].argmax()) if manifest.classes else 0
        return Answer(
            values[0],
            None if deviation is None else float(deviation[0]),
            spread(members, bool(manifest.classes), top),
        )

    def scores(self, found: dict[str, Floats], index: int) -> Floats:
        """`[N·L, D, H, W]`: what a network that segments found of one case of a batch.

        Raises:
            EngineError: it is not finite.
        """
        scores: Floats = found["output"][index]
        if not np.isfinite(scores).all():
            raise not_finite()
        return scores

    def values(
        self, found: dict[str, Floats]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """`[B, C]`, calibrated probabilities or a number; `[B]`, its sd where there is one.

        Raises:
            EngineError: an output is not finite.
        """
        values, raw = finite_output(found), found["members"]
        manifest = self.manifest
        if manifest.calibration is not None and manifest.classes:
            values = manifest.calibration.probabilities(values)
        if not manifest.answers_sd:
            return values, None
        shape = len(manifest.members), len(manifest.preprocessing.boxes), -1
        deviation = np.array([mixture(one.reshape(shape))[1] for one in raw])
        return values[:, :1], deviation


def finite_output(found: dict[str, Floats]) -> NDArray[np.float64]:
    """The `output [B, C]` of a network.

    Raises:
        EngineError: it, or what a member said, is not finite.
    """
    values = found["output"].astype(np.float64)
    if not (np.isfinite(values).all() and np.isfinite(found["members"]).all()):
        raise not_finite()
    return values


def not_finite() -> EngineError:
    """That an output is NaN or infinite."""
    return EngineError(
        "the network's output is not finite; are the inputs plausible?",
        code="engine-output-not-finite",
    )


def repeated(features: Features, count: int) -> Features:
    """The features of one scan, as those of `count` cases."""
    return {name: np.repeat(array, count, 0) for name, array in features.items()}


def joined(features: Sequence[Features]) -> Features:
    """Those of several scans as one batch."""
    names = features[0]
    return {name: np.concatenate([one[name] for one in features]) for name in names}

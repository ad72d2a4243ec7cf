"""From what the network says of a case to its prediction: how sure it is, whether it is usual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.manifest import Manifest
from hyperfusion_rt.artifact.typical_scans import Typical, vectors
from hyperfusion_rt.data.acquisition import scanner_of, unlike_edges, unlike_scanner
from hyperfusion_rt.data.cohort import Case
from hyperfusion_rt.data.fingerprint import Seen
from hyperfusion_rt.errors import ConfigError, ScanError, reason_of
from hyperfusion_rt.runtime.case_input import CaseInput
from hyperfusion_rt.runtime.certainty import certainty, check_level
from hyperfusion_rt.runtime.network import Answer, Features, Network
from hyperfusion_rt.runtime.options import PredictOptions
from hyperfusion_rt.runtime.prediction import Prediction, Seconds
from hyperfusion_rt.runtime.scan_features import no_features

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Prepared:
    """A case that is ready for the engine.

    `tabular [ΣT]`: one encoded row per member. `memory`: bytes that it holds. `stamp`: of its
    files, before they were read.
    """

    case: Case
    scan: CaseInput
    tabular: Floats
    warnings: tuple[str, ...]
    seconds: Seconds
    memory: int
    stamp: str | None


class Verdict:
    """See the module.

    Attributes:
        level: of sets and intervals.
        typical: what scans are usual; None where that is not looked at, and `notes` say why.

    Raises:
        ConfigError: the artifact cannot give the level, or not say what scans are usual though
            others shall be refused.
    """

    def __init__(self, network: Network, options: PredictOptions) -> None:
        self.manifest: Manifest = network.manifest
        self.level = check_level(self.manifest, options.level)
        self._refuse = options.refuse_ood
        self.notes: tuple[str, ...] = ()
        self.typical = self._typical_of(network)

    def _typical_of(self, network: Network) -> Typical | None:
        found, why = network.artifact.typical(), ""
        if found is None:
            why = f"{network.artifact.folder}: does not say what scans are usual; export it again"
        elif not network.splits:
            found = None
            why = (
                f"the {network.engine} engine does not give a scan's features: whether a scan is "
                "unlike the training's is not looked at; use `engine` native or onnx"
            )
            self.notes = (why,)
        if why and self._refuse:
            raise ConfigError(f"`refuse_ood`: {why}", code="option-conflict")
        return found

    def distances(
        self, features: Features, scans: Sequence[CaseInput]
    ) -> NDArray[np.float64] | None:
        """`[B]`: of each scan, in multiples of the threshold; None where that is not looked at."""
        stored = self.manifest.typical_scans
        if self.typical is None or stored is None:
            return None
        figures = [np.asarray(scan.figures, np.float64) for scan in scans]
        found: NDArray[np.float64] = self.typical.distances(vectors(features, figures))
        return found / stored.threshold

    def predicted(
        self, item: Prepared, answer: Answer, distance: float | None, seconds: float
    ) -> Prediction:
        """What becomes of an answer; `distance`: of the scan, in multiples of the threshold.

        Raises:
            ScanError: the scan is unlike the training's, and such scans are refused.
            EngineError: the distance is not finite.
        """
        case = item.case
        if distance is not None and not np.isfinite(distance):
            raise no_features()
        unlike = [*self._unlike(case, distance), *self._acquisition(case, item.scan)]
        values = tuple(float(v) for v in answer.values)
        return Prediction(
            case.subject,
            case.session,
            "ok",
            values=values,
            sd=answer.sd,
            spread=answer.spread,
            seconds=replace(item.seconds, infer=seconds),
            quality=item.scan.quality,
            scan=case.scan,
            stamp=item.stamp,
            warnings=(*item.scan.warnings, *item.warnings, *unlike),
            truth=self._truth(case),
            seen=self._seen(case, item.scan.content),
            certainty=certainty(self.manifest, values, answer.sd, case.row, self.level, distance),
        )

    def _unlike(self, case: Case, distance: float | None) -> list[str]:
        """Whether a scan is unlike those of the training, as a warning.

        Raises:
            ScanError: it is, and `refuse_ood` is set.
        """
        stored = self.manifest.typical_scans
        if distance is None or stored is None or not distance > 1:
            return []
        text = (
            f"the scan is unlike the training's: its features lie {distance:.2f} times as far from "
            f"theirs as the threshold, which {stored.false_alarms:.1%} of usual scans exceed"
        )
        if self._refuse:
            raise ScanError(f"{case.scan}: {text}", code="scan-unlike-training")
        return [text]

    def _acquisition(self, case: Case, scan: CaseInput) -> list[str]:
        """That the scan was made as no training scan was, as warnings."""
        population = self.manifest.population
        if population is None:
            return []
        odd = []
        if population.scanners:  # else nothing beside the scan needs to be read
            odd.append(unlike_scanner(scanner_of(case.files[0]), population.scanners))
        for edges, channel in zip(scan.edges, self.manifest.preprocessing.channels, strict=False):
            if usual := population.spacing.get(channel.name):
                odd.append(unlike_edges(edges, (usual[0], usual[2])))
        return [text for text in odd if text]

    def _truth(self, case: Case) -> str | None:
        # A cell cannot say where what lies.
        return None if self.manifest.labels else case.row.values.get(self.manifest.table.target)

    def _seen(self, case: Case, content: Sequence[str] = ()) -> Seen:
        known = self.manifest.training_cases
        return "" if known is None else known.seen(case.subject, content)

    def failed(self, case: Case, error: Exception, before: str | None) -> Prediction:
        """One odd case must not end the night's run."""
        code, reason = reason_of(error, case.scan)
        return Prediction(
            case.subject,
            case.session,
            "error",
            reason,
            scan=case.scan,
            stamp=before,
            code=code,
            truth=self._truth(case),
            seen=self._seen(case),
        )

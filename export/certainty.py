"""What an artifact says of new cases besides its answers: how sure they are, what is usual.

All of it is measured with an engine of the artifact itself, on the study that its run was trained
on, or on cases given for that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hyperfusion_rt.artifact.calibration import LEVEL, Calibration
from hyperfusion_rt.artifact.manifest import Artifact, Manifest
from hyperfusion_rt.artifact.table_summary import TableSummary
from hyperfusion_rt.data.cohort import Case
from hyperfusion_rt.errors import CohortError
from hyperfusion_rt.export.calibration import FEWEST, calibrate, known_of
from hyperfusion_rt.export.options import ExportOptions
from hyperfusion_rt.export.typical_scans import typical_scans
from hyperfusion_rt.runtime.network import Network
from hyperfusion_rt.training.check import left_lines
from hyperfusion_rt.training.dataset import Dataset, gather_external
from hyperfusion_rt.training.run_folder import Run
from hyperfusion_rt.training.training_cases import kept_training_cases

# Of the error on the true age: below it, more than half of a corrected age is the true one.
_STEEP = -0.5
_ENGINES = ("native", "onnx")  # that give a scan's features


def table_summary_of(run: Run, dataset: Dataset) -> TableSummary:
    """Of the rows that some member learned from."""
    members = run.members
    names = np.stack([dataset.parts.names(m) for m in range(len(members))])
    rows = [dataset.rows[i] for i in np.flatnonzero((names == "train").any(0))]
    encoder = members[0].encoder
    return TableSummary.fit(np.stack([encoder.cells(row) for row in rows]), encoder.columns)


def certainty_of(
    artifact: Artifact, run: Run, dataset: Dataset | None, options: ExportOptions
) -> tuple[dict[str, Any], list[str]]:
    """What changes in the manifest: `calibration`, `typical_scans`; and what is missing and why.

    Writes the file of typical scans into the artifact's folder.

    Raises:
        CohortError: none of the given cases can be used.
        HyperFusionError: the given scans or their table cannot be read.
    """
    lacks = "the artifact does not say how sure its answers are"
    engine = next((name for name in _ENGINES if name in artifact.engines), None)
    if engine is None:
        return {}, [f"{lacks}: that needs its native or onnx engine"]
    given = options.calibration is not None
    if dataset is None and not given:
        return {}, []  # `export.build` says why the study is not there
    network = Network(artifact, engine, None, split=True)
    change: dict[str, Any] = {}
    notes = []
    with _calibration_cases(artifact, run, dataset, options) as (cases, left):
        notes += left
        reference = artifact.reference()
        if reference is not None and reference.means is None:
            reference = None
        known = known_of(network, cases, reference, given=given)
        if known is None and given:
            raise CohortError(
                f"`calibration` {options.calibration}: no case can be used", code="calibration-none"
            )
        if known is None:
            notes.append(f"{lacks}: no validation case can be used")
        else:
            if given and (lost := len(cases.cases) - len(known.cases)):
                notes.append(
                    f"calibration: {lost} cases are not used: more scans of a person, or a row "
                    "that a member cannot read"
                )
            made = calibrate(artifact.manifest, cases, known, given=given)
            change["calibration"] = made
            notes += _doubts(made, artifact.manifest)
        if dataset is None or known is None or reference is None:
            why = "its study is not at hand" if dataset is None else "no case can be compared"
            notes.append(f"the artifact does not say what scans are usual: {why}")
        else:
            found = typical_scans(network, dataset, known.vectors, artifact.folder, reference)
            if found is None:
                notes.append("too few scans to say which are usual: new ones are not compared")
            else:
                change["typical_scans"] = found
    return change, notes


def _doubts(made: Calibration, manifest: Manifest) -> list[str]:
    """What so few cases, or such predictions, cannot say."""
    count = f"{made.cases} {'calibration' if made.source == 'given' else 'validation'} case"
    count += "s" if made.cases != 1 else ""
    more = "give more as `calibration`"
    notes = []
    if made.highest_level < LEVEL:
        notes.append(
            f"{count} give sets and intervals of at most {made.highest_level:.3g}, and predictions "
            f"have none unless a `level` that low is asked for; {more}"
        )
    if made.age_bias is not None and made.age_bias.slope < _STEEP:
        follows = round(1 + made.age_bias.slope, 2) + 0.0  # no -0.00
        notes.append(
            f"predicted ages follow the true ones by {follows:.2f} years a year: "
            "corrected ages are mostly the true age that they were given, and a gap says little"
        )
    what = "to scale probabilities" if manifest.classes else "to correct ages by"
    if made.cases < FEWEST and (manifest.classes or manifest.unit == "years"):
        notes.append(f"{count}: fewer than {FEWEST} are too few {what}; {more}")
    return notes


@contextmanager
def _calibration_cases(
    artifact: Artifact, run: Run, dataset: Dataset | None, options: ExportOptions
) -> Iterator[tuple[Dataset, list[str]]]:
    """The study, or the cases given, without those that stood in the training; what was left."""
    if options.calibration is None or options.calibration_table is None:
        assert dataset is not None
        yield dataset, []
        return
    with tempfile.TemporaryDirectory(prefix="hfrt-calibration-") as scratch:
        found = gather_external(
            run.config, options.calibration, options.calibration_table, Path(scratch)
        )
        # Those of the run: the artifact may leave them out.
        hashes = kept_training_cases(run.folder)

        def seen(case: Case) -> bool:
            content = found.cache.figures(case.files).content
            return hashes is not None and bool(hashes.seen(case.subject, content))

        new = [i for i, case in enumerate(found.cases) if not seen(case)]
        if not new:
            raise CohortError(
                f"`calibration` {options.calibration}: all of its {len(found.cases)} cases stood "
                "in the training; give others",
                code="calibration-none",
            )
        left = [f"calibration: {line}" for line in left_lines(found.left_out)]
        if known := len(found.cases) - len(new):
            left.append(f"calibration: {known} cases stood in the training: left out")
        yield found.only(new), left

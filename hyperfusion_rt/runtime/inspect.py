"""An artifact in words: what `hfrt inspect` prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperfusion_rt.runtime.artifact import Artifact
from hyperfusion_rt.runtime.report import figures

Rows = list[tuple[str, object]]


@dataclass(frozen=True)
class Description:
    """The manifest as it is, and as sections of (name, value)."""

    raw: dict[str, Any]
    sections: dict[str, Rows]


def describe(folder: Path) -> Description:
    """Read the artifact `folder` and check the hash of every file.

    Raises:
        ArtifactError: it is damaged or incomplete.
    """
    artifact = Artifact.open(folder)
    for engine in artifact.engines:
        artifact.files(engine)
    m = artifact.manifest
    source = m.provenance
    prep = m.preprocessing
    shape = " x ".join(str(n) for n in prep.shape)
    sections: dict[str, Rows] = {}
    sections[f"{folder}"] = [
        ("task", m.task),
        ("output", f"probabilities of {', '.join(m.classes)}" if m.classes else m.unit),
        ("network", ", ".join(f"{k} {v}" for k, v in source.network.items())),
        ("size", f"{source.parameters:,} parameters, {source.gflop:.2f} GFLOP per box"),
        ("members", f"{len(m.members)}, combined by {m.combine}"),
        ("run", f"{source.run}, exported {source.created}"),
        ("versions", ", ".join(f"{k} {v}" for k, v in source.versions.items())),
        ("cases", ", ".join(f"{v} {k}" for k, v in source.cases.items()) or "unknown"),
        *[(caption, value) for value, caption in figures(source.metrics)],
    ]
    sections["preprocessing"] = [
        ("orientation", prep.orientation),
        ("box", f"{shape} voxels at {prep.spacing:g} mm"),
        *[
            (f"{box.name} box", f"centre {box.center} mm{', mirrored' if box.mirror else ''}")
            for box in prep.boxes
        ],
        ("interpolation", prep.interpolation),
        ("normalisation", prep.normalisation),
    ]
    columns: Rows = []
    for column in m.members[0].columns:
        missing = f", missing in {column.missing_rate:.0%} of training rows"
        columns.append((column.name, f"{column.kind}{missing if column.missing_rate else ''}"))
    imputer = f"iterative, {len(m.members[0].steps)} steps" if m.members[0].steps else "median"
    columns.append(("gaps are filled by", imputer))
    sections["table"] = columns
    sections["engines (every file's SHA-256 is right)"] = [
        (
            f"{e.engine} {e.precision} {e.part}",
            f"{e.file}, {e.size / 2**20:.1f} MiB, device {e.device}; differs from "
            f"{e.comparison.against} by {e.comparison.largest_difference:.1e} "
            f"({e.comparison.cases} {'real' if e.comparison.real_cases else 'random'} cases, "
            f"tolerance {e.comparison.tolerance:.0e})",
        )
        for e in m.engines
    ]
    return Description(m.model_dump(mode="json"), sections)

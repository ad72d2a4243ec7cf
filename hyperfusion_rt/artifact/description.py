"""An artifact in words: what `hfrt inspect` prints."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperfusion_rt.artifact.certainty_facts import inspected
from hyperfusion_rt.artifact.manifest import Artifact, EngineFile
from hyperfusion_rt.artifact.operations import Activated, Affine, AnyOperation, Conv, HyperConv
from hyperfusion_rt.artifact.plan import read_plan
from hyperfusion_rt.config import Channel, Preprocessing
from hyperfusion_rt.metrics.words import headline

Rows = list[tuple[str, object]]


@dataclass(frozen=True)
class Description:
    """The manifest as it is, and as sections of (name, value); `label`: which artifact it is."""

    label: str
    raw: dict[str, Any]
    sections: dict[str, Rows]


def describe(folder: Path) -> Description:
    """Read the artifact `folder` and check the hash of every file.

    Raises:
        ArtifactError: it is damaged or incomplete.
    """
    artifact = Artifact.open(folder)
    for engine in artifact.engines:
        artifact.file(engine)
    artifact.check_card()
    m = artifact.manifest
    source = m.provenance
    prep = m.preprocessing
    shape = " x ".join(str(n) for n in prep.shape)
    sections: dict[str, Rows] = {}
    sections["what it is"] = [
        ("task", m.task),
        (
            "output",
            f"probabilities of {', '.join(m.classes)}"
            if m.classes
            else f"for every voxel one of {', '.join(m.labels)}"
            if m.labels
            else " in ".join(filter(None, (m.table.target, m.unit))),
        ),
        ("network", ", ".join(f"{k} {v}" for k, v in source.network.items())),
        ("size", f"{source.parameters:,} parameters, {source.gflop:.3g} GFLOP per box"),
        ("members", f"{len(m.members)}, combined by {m.combine}"),
        ("run", f"{source.run or 'none: imported'}, exported {source.created}"),
        ("versions", ", ".join(f"{k} {v}" for k, v in source.versions.items())),
        ("cases", ", ".join(f"{v} {k}" for k, v in source.cases.items()) or "unknown"),
        (
            "trained and tested on",
            f"{m.population.cases} scans of {m.population.people} people; its card says more"
            if m.population
            else "not known: imported, exported without its study, or by an older version",
        ),
        *[(caption, value) for value, caption in headline(source.metrics)],
    ]
    sections["preprocessing"] = [
        ("orientation", prep.orientation),
        ("box", f"{shape} voxels at {prep.spacing:g} mm"),
        *[
            (f"{box.name} box", f"centre {box.center} mm{', mirrored' if box.mirror else ''}")
            for box in prep.boxes
        ],
        ("interpolation", prep.interpolation),
        *[(f"image {c.name}", image_text(prep, c)) for c in prep.channels],
    ]
    columns: Rows = []
    for column in m.members[0].columns:
        missing = f", missing in {column.missing_rate:.0%} of training rows"
        other = m.table.map.get(column.name)
        text = f"{column.kind}{missing if column.missing_rate else ''}"
        columns.append((column.name, text + (f", or column {other.column!r}" if other else "")))
    imputer = f"iterative, {len(m.members[0].steps)} steps" if m.members[0].steps else "median"
    columns.append(("gaps are filled by", imputer) if columns else ("columns", "none"))
    sections["table"] = columns
    sections["how sure it is"] = [*inspected(m)]
    sections["engines (every file's SHA-256 is right)"] = [
        (f"{e.engine} {e.precision} {e.part}", f"{e.file}, {describe_file(e, m.compared_in)}")
        for e in m.engines
    ]
    return Description(artifact.label, m.model_dump(mode="json"), sections)


def image_text(prep: Preprocessing, channel: Channel) -> str:
    """How a channel is found and normalised."""
    given = prep.range_of(channel)
    how = prep.normalisation_of(channel) + (f" {given[0]:g} to {given[1]:g}" if given else "")
    return f"{channel.files or 'every scan'}, {how}"


def describe_file(entry: EngineFile, unit: str) -> str:
    """One engine file in words: size, device, and how it was checked."""
    size = f"{entry.size / 2**20:.1f} MiB" if entry.size > 2**20 else f"{entry.size / 1024:.0f} KiB"
    if entry.part == "log":
        return f"{size}, what the builder said"
    words = [entry.precision, size]
    made, found = entry.build, entry.comparison
    if entry.part == "source":
        return "; ".join([*words, f"what {entry.engine} was built from"])
    if entry.part != "whole":
        return "; ".join([*words, f"the {entry.part} by itself"])
    if made is not None:
        low, usual, high = made.batch
        kept = f", kept in fp32: {', '.join(made.kept)}" if made.kept else ""
        words.append(
            f"{made.status}: for {entry.device}, batch {low} to {high} (usually {usual}), "
            f"{made.layers} layers in {made.seconds:.1f} s{kept}"
        )
    kind = "real" if found.real_cases else "random"
    by = "" if found.by == "engine" else f"{found.by}: "
    words.append(
        f"{by}differs from {found.against} by {found.largest_difference:.1e} of the outputs' scale "
        f"(tolerance {found.tolerance:g}), in the result by {found.drift:.1e}{unit and ' '}{unit} "
        f"(tolerance {found.drift_tolerance:.3g}); {found.cases} {kind} cases, batch "
        f"{', '.join(map(str, found.batches))}"
    )
    return "; ".join(words)


PLAN_HEADER = ["part", "operation", "layer", "output", "how", "fused", "GFLOP", "MB"]


def plan_rows(folder: Path, member: int = 0) -> list[list[str | float]]:
    """The fused operations of one member in the native plan, one row each, under `PLAN_HEADER`.

    GFLOP of the direct algorithm; MB of inputs and outputs as stored, and of weights in float32.

    Raises:
        HyperFusionError: the artifact has no native engine, or it is damaged.
    """
    plan = read_plan(Artifact.open(folder).file("native"))
    rows: list[list[str | float]] = []
    for part, program in (("trunk", plan.trunk), ("head", plan.head)):
        for op in program.ops:
            if re.match(r"m\d+\.", op.output) and not op.output.startswith(f"m{member}."):
                continue
            how, fused = _fused(op, plan.precision)
            shape = "x".join(str(n) for n in op.shape)
            cost = op.gflop, op.megabytes
            rows.append([part, op.op, op.layer, shape, how, ", ".join(fused), *cost])
    return rows


def _fused(op: AnyOperation, precision: str) -> tuple[str, list[str]]:
    """By which algorithm an operation is computed, and what was fused into it."""
    act: list[str] = [op.act.kind] if isinstance(op, Activated) and op.act is not None else []
    if not isinstance(op, Conv | HyperConv):
        return "", [] if isinstance(op, Affine) else act
    how = f"{op.algorithm} {'x'.join(map(str, op.tile))}" if op.tile else op.algorithm
    if op.pairs or how == "gather":
        how += f" {precision}"
    before = {"prologue": op.prologue, "residual": op.residual, "shortcut": op.shortcut}
    after = {"max pool": op.pool, "second output": op.second, "every second voxel": op.sparse}
    return how, [
        *(name for name, there in before.items() if there),
        *act,
        *(name for name, there in after.items() if there),
    ]

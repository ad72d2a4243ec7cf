"""A draft in words for a terminal, and as one object for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hyperfusion_rt.study.columns import Used
from hyperfusion_rt.study.draft import Draft
from hyperfusion_rt.study.yaml_draft import facts


def report(draft: Draft) -> list[str]:
    """The draft in words, for a terminal."""
    target, matched = draft.target, draft.matched
    lines = [*matched.notes]
    without = [p for p in matched.problems if p.kind != "passed-over"]
    for source, what in (("scan", "scans"), ("row", "rows of the table")):
        found = [p for p in without if p.source == source]
        if found:
            shown = "; ".join(f"{p.subject}: {p.reason}" for p in found[:3])
            more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
            lines.append(f"{len(found)} {what} not used: {shown}{more}")
    if target.classes:
        counts = ", ".join(f"{name} {count}" for name, count in target.counts.items())
        lines.append(f"target: {target.name}, classes: {counts} ({target.why})")
    else:
        unit = f" in {target.unit}" if target.unit else ", without a unit"
        lines.append(f"target: {target.name}, a number{unit}: {target.facts} ({target.why})")
    width = max((len(one.feature.name) for one in draft.used), default=0)
    lines += [
        f"feature {one.feature.name:<{width}}  {one.feature.kind}: {facts(one.column)}"
        for one in draft.used
    ]
    lines += [f"not read: {one.name}: {one.reason}" for one in draft.unused]
    what = "whole brain" if draft.boxes == "whole-brain" else "hippocampi"
    lines.append(f"boxes: {what} ({draft.boxes_why}); preset {draft.preset}; {draft.parts} parts")
    for channel in draft.images.channels:
        lines.append(f"channel {channel.name}: {channel.files}")
    return lines + [f"warning: {warning}" for warning in draft.warnings]


def summary(draft: Draft) -> dict[str, Any]:
    """The draft and the join as one object for programs."""
    target, matched = draft.target, draft.matched

    def subjects(source: str, kinds: Sequence[str]) -> list[str]:
        return [p.subject for p in matched.problems if p.source == source and p.kind in kinds]

    return {
        "join": {
            "scans": matched.scans,
            "rows": matched.rows,
            "cases": matched.cases,
            "subjects": matched.subjects,
            "id_column": matched.id_column,
            "session_column": matched.session_column,
            "notes": list(matched.notes),
            "scans_without_row": subjects("scan", ("scan-without-row", "defect")),
            "rows_without_scan": subjects("row", ("row-without-scan", "defect")),
        },
        "target": {
            "name": target.name,
            "why": target.why,
            "task": target.task,
            "classes": {
                name: {"values": list(values), "cases": target.counts[name]}
                for name, values in target.classes.items()
            },
            "unit": target.unit,
            "left_out": target.left,
        },
        "features": [_feature(one) for one in draft.used],
        "not_read": [{"name": one.name, "reason": one.reason} for one in draft.unused],
        "missing": draft.missing,
        "codes_for_missing": draft.codes,
        "boxes": draft.boxes,
        "warnings": list(draft.warnings),
        "config": draft.config.model_dump(mode="json"),
    }


def _feature(one: Used) -> dict[str, Any]:
    column = one.column
    return {
        **one.feature.model_dump(mode="json"),
        "known": column.known,
        "missing": column.missing,
        "unusable": column.unusable,
        "remarks": one.remarks,
    }

"""A draft as the text of `hfrt.yaml`, with a comment on every decision."""

from __future__ import annotations

from typing import Any

from hyperfusion_rt.config import Feature
from hyperfusion_rt.data.column_check import Column
from hyperfusion_rt.study.columns import Unused
from hyperfusion_rt.study.draft import Draft
from hyperfusion_rt.yaml_text import commented, remark, scalar


def text(draft: Draft, schema: str | None = None) -> str:
    """The file's text. `schema`: the JSON schema beside it, which editors read."""
    lines = [f"# yaml-language-server: $schema={schema}"] if schema else []
    lines += remark(
        "Drafted by `hfrt init`: read it, change what you know better, then `hfrt check`."
    )
    lines += remark("What is not said here is the preset's: `hfrt config` prints all of it.")
    target = draft.target
    what = "the probability of each class" if target.classes else "a number"
    lines += [
        "",
        *commented(f"preset: {draft.preset}", _about_preset(draft)),
        *commented(f"task: {target.task}", f"what is predicted: {what}"),
        *commented(f"scans: {scalar(draft.scans)}", draft.matched.with_row),
        *commented(f"table: {scalar(draft.table)}", f"{draft.matched.rows} rows can be used"),
        "",
        *_tabular(draft),
        "",
        *_preprocessing(draft),
        "",
        *_training(draft),
    ]
    return "\n".join(lines) + "\n"


def _about_preset(draft: Draft) -> str:
    if not draft.preset.endswith("-small"):
        return "as published; with -small: coarser voxels, minutes on two cores"
    return f"minutes on two CPU cores; {draft.preset.removesuffix('-small')}: as published, slow"


# ---- the table


def _tabular(draft: Draft) -> list[str]:
    target, matched = draft.target, draft.matched
    lines = [
        "tabular:",
        *commented(f"  id_column: {scalar(matched.id_column)}", matched.with_row),
    ]
    if matched.session_column:
        # As a comment: tables of new scans may have no sessions, and without it both are read.
        line = f"  # session_column: {scalar(matched.session_column)}"
        lines += commented(line, "of the visits; found without this line, too")
    lines += commented(f"  target: {scalar(target.name)}", target.why)
    lines += remark(target.facts, 2)
    for warning in target.warnings:
        lines += remark(f"Look at this: {warning}.", 2)
    if target.classes:
        lines += commented("  classes:", "each class with the values that mean it")
        for name, values in target.classes.items():
            count = target.counts[name]
            said = f"{count} case{'s' if count != 1 else ''}"
            lines += commented(f"    {scalar(name)}: {scalar(values)}", said)
    else:
        lines += commented(f"  unit: {scalar(target.unit)}", target.unit_from)
    lines += _features(draft)
    lines += commented(
        f"  stratify: {scalar(draft.stratify)}", "beside the target, alike in all parts"
    )
    why = f"gaps: at most {draft.gaps:.0%} of a number's cells"
    lines += commented(f"  imputer: {draft.imputer}", f"{why}; or {_other(draft.imputer)}")
    return lines


def _other(imputer: str) -> str:
    return "median" if imputer == "iterative" else "iterative: a regression on the others"


def _features(draft: Draft) -> list[str]:
    if draft.missing:
        listed = ", ".join(
            f"{name if name == 'an empty cell' else repr(name)} ({count})"
            for name, count in draft.missing.items()
        )
        lines = remark(f"Read as 'not known': {listed}.", 2)
    else:
        lines = []
    for name, found in draft.codes.items():
        lines += remark(f"Perhaps 'not known', but read as a number: {name} {found}.", 2)
    if draft.used:
        lines += ["  features:"]
        for one in draft.used:
            for note in one.remarks:
                lines += remark(f"Look at this: {note}.", 2)
            lines += commented(f"  - {entry(one.feature)}", facts(one.column))
    else:
        lines += commented("  features: []", "the network reads the image alone")
    if draft.unused:
        lines += remark("Left out. To take a column in, move its line up and take off the '# '.", 2)
        lines += [line for one in draft.unused for line in _left(one)]
    return lines


def entry(feature: Feature) -> str:
    """A feature as YAML."""
    return scalar(feature.model_dump(exclude_defaults=True))


def facts(column: Column) -> str:
    """What a column holds: `23 of 24 known; 55 to 90, median 72`."""
    total = column.known + column.missing + column.unusable
    found = f"{column.known} of {total} known" if column.known < total else "all known"
    if column.values:
        shown = [f"{value} {count}" for value, count in column.values.items()]
        more = f", and {len(shown) - 6} more" if len(shown) > 6 else ""
        return f"{found}; {', '.join(shown[:6])}{more}"
    if column.low is None:
        return found
    return f"{found}; {column.low:g} to {column.high:g}, median {column.median:g}"


def _left(one: Unused) -> list[str]:
    if one.feature is None:
        return remark(f"{one.name}: {one.reason}", 2)
    return [*remark(f"{one.name}: {one.reason}", 2), f"  # - {entry(one.feature)}"]


# ---- the image


def _preprocessing(draft: Draft) -> list[str]:
    change = draft.change
    given: dict[str, Any] = change.get("preprocessing", {})
    config = draft.config
    prep = config.preprocessing
    what = "the whole brain" if draft.boxes == "whole-brain" else "the two hippocampi"
    lines = remark(
        f"What the network sees: {what} ({draft.boxes_why}). Your own boxes: the centre of each in "
        "mm of MNI space (x to the right, y to the front, z upwards), one shape in voxels for all, "
        "and the edge of a voxel in mm:"
    )
    shown = [
        *(f"- {scalar(box.model_dump(exclude_defaults=True))}" for box in prep.boxes),
    ]
    own = [
        "boxes:",
        *shown,
        f"shape: {scalar(prep.shape)}",
        f"spacing: {scalar(prep.spacing)}",
    ]
    if given:
        lines += ["preprocessing:"]
        lines += _channels(draft)
        if "boxes" in given:
            lines += [f"  {line}" for line in own]
        else:
            lines += [f"  # {line}" for line in own]
    else:
        lines += ["# preprocessing:", *(f"#   {line}" for line in own)]
    if "network" in change:
        lines += ["", "network:"]
        said = {
            "architecture": "the network that goes with these boxes",
            "fusion": "no column of the table is read",
        }
        for name, value in change["network"].items():
            lines += commented(f"  {name}: {scalar(value)}", said[name])
    return lines


def _channels(draft: Draft) -> list[str]:
    images = draft.images
    if not images.channels:
        return []
    lines = commented("  channels:", "the images of a case, each found by the end of its path")
    for channel, count in zip(images.channels, images.subjects, strict=True):
        written = scalar(channel.model_dump(exclude_defaults=True))
        lines += commented(f"  - {written}", f"{count} subjects")
    if any(not channel.t1_weighted for channel in images.channels):
        lines += remark(
            "An image whose values are quantities (PET SUVR, FA) keeps them with "
            "'normalisation: fixed-range, range: [0, 3]' in its line.",
            2,
        )
    if images.others:
        listed = ", ".join(images.others)
        lines += remark(f"Further T1-weighted images, which are not read: {listed}.", 2)
    return lines


# ---- training


def _training(draft: Draft) -> list[str]:
    subjects = draft.matched.subjects
    lines = ["training:"]
    lines += commented(
        f"  parts: {draft.parts}", f"of {subjects} subjects; one is the test set, one validates"
    )
    counts = draft.target.counts
    if counts and max(counts.values()) >= 2 * min(counts.values()):
        mean = sum(counts.values()) / len(counts)
        weights = [round(mean / max(1, count), 2) for count in counts.values()]
        lines += commented(f"  # class_weights: {scalar(weights)}", "all classes alike in the loss")
    lines += commented("  # members: 4", "an ensemble: four networks, better and slower")
    return lines

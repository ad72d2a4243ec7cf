"""What an artifact says of new cases besides its answers, in words: for `hfrt inspect` and card."""

from __future__ import annotations

from hyperfusion_rt.artifact.calibration import FEWEST, LEVEL, Calibration
from hyperfusion_rt.artifact.manifest import Manifest
from hyperfusion_rt.artifact.typical_scans import TypicalScans
from hyperfusion_rt.number_text import number

_AGAIN = "not known: imported, exported without its study, or by an older version; export again"
Rows = list[tuple[str, str]]


def inspected(m: Manifest) -> Rows:
    """What `hfrt inspect` says: what is known, or that it is not and what to do."""
    rows: Rows = []
    if m.calibration is None:
        rows.append(
            ("sets and intervals", f"{_AGAIN} where the study is, or with calibration cases")
        )
    else:
        rows += calibration_rows(m.calibration, m)
    where = f"{_AGAIN} where the study is"
    few = "not known: too few scans apart from the training, or the study was not at hand"
    unknown = where if m.calibration is None else few
    rows.append(("usual scans", usual_text(m.typical_scans) if m.typical_scans else unknown))
    summary = m.table_summary
    told = f"of {summary.rows} training rows, {len(summary.columns)} columns" if summary else where
    return [*rows, ("summary of the table", told)]


def calibration_rows(made: Calibration, m: Manifest) -> Rows:
    """Name and value of what was measured on the calibration cases."""
    source = "given at export, and not learned from"
    if made.source == "validation":
        source = "of the validation part" + (", which also chose the weights" * chose_weights(m))
    rows = [
        ("calibration cases", f"{made.cases} people, {source}"),
        ("highest level", number(made.highest_level)),
    ]
    if m.classes:
        rows.append(("temperature", number(made.temperature)))
        told = [f"{n} {number(v)}" for n, v in made.coverage.items() if v is not None]
        held = ", ".join(told) or "too few cases of each class"
        rows.append((f"sets at {LEVEL:g} hold of these cases", held))
    if made.ece is not None:
        before, after = map(number, made.ece)
        rows.append(("calibration error", f"{before}, {after} after scaling, of these cases"))
    if (bias := made.age_bias) is not None:
        sign = "-" if bias.slope < 0 else "+"
        slope = f"{number(bias.intercept)} {sign} {number(abs(bias.slope))} x true age"
        rows.append(("bias of age", f"predicted - true = {slope}"))
    if (usual := made.errors) is not None:
        lines = []
        for sex, (a, b) in usual.lines.items():
            of = f"{sex or 'all others'}: " if len(usual.lines) > 1 else ""
            ends = (f"{number(a + b * x)} at {number(x)}" for x in (usual.low, usual.high))
            lines.append(of + " to ".join(ends))
        rows.append(("predicted - true usually is", "; ".join(lines)))
    if not m.classes:
        return rows
    groups = ", ".join(made.scores.groups) or f"none has {FEWEST} cases"
    return [*rows, ("groups with thresholds of their own", groups)]


def chose_weights(m: Manifest) -> bool:
    """Whether the weights are those that were best on the validation part."""
    return m.provenance.training.get("keep") == "best"


def usual_text(usual: TypicalScans) -> str:
    """What scans are compared with."""
    return (
        f"fitted on {usual.fitted} training scans; threshold {number(usual.threshold)}, from "
        f"{usual.cases} other scans: {usual.false_alarms:.1%} of usual ones exceed it"
    )


def certainty_facts(m: Manifest) -> dict[str, str | None]:
    """Short sentences by name, as `card_facts.facts`."""
    made, usual = m.calibration, m.typical_scans
    what = "a set of classes" if m.classes else "an interval"
    scaled = made is not None and made.temperature != 1.0
    shapley = ", Shapley values" if m.table_summary else ""
    return {
        "certainty": "no set or interval comes with an answer"
        if made is None
        else f"{what} that holds the truth with a probability that is asked for, at most "
        f"{made.highest_level:.3g}, by {made.cases} calibration cases",
        "scaled": f"probabilities are scaled by a temperature of {made.temperature:.3g}, fitted on "
        f"{made.cases} cases"
        if made is not None and scaled
        else "answers are not scaled afterwards",
        "usual_scans": f"a scan whose features lie beyond those of {1 - usual.false_alarms:.1%} of "
        "usual scans is warned of, or refused where that is asked for"
        if usual
        else "scans are not compared with the training's by their features",
        "explanations": "maps of the image by occlusion and by integrated gradients (hfrt "
        f"explain); answers to other rows, smallest changes{shapley} (hfrt what-if, the report)",
    }

"""What an artifact knows of itself, as short sentences by name, and its known failures.

A fact that it does not know is not in the mapping: an item of a guideline that needs it is open.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hyperfusion_rt.artifact.certainty_facts import certainty_facts
from hyperfusion_rt.artifact.manifest import Manifest
from hyperfusion_rt.artifact.population import Population
from hyperfusion_rt.data import scan_check
from hyperfusion_rt.errors import CODES
from hyperfusion_rt.metrics.bootstrap import SAMPLES
from hyperfusion_rt.metrics.words import in_lines, is_empty
from hyperfusion_rt.number_text import number

# Fewer training cases of a class are hardly learned from.
FEW = 10
PARTS = {"train": "training", "validation": "validation", "test": "test"}
# What a reader sees where a count is not told.
WITHHELD = "not told"


def facts(manifest: Manifest) -> dict[str, str]:
    """Every fact that the artifact knows."""
    found: dict[str, str | None] = {
        **_of_network(manifest),
        **_of_input(manifest),
        **_of_training(manifest),
        **_of_figures(manifest),
        **certainty_facts(manifest),
        **(_of_population(manifest.population) if manifest.population else {}),
    }
    return {name: text for name, text in found.items() if text}


def _of_network(m: Manifest) -> dict[str, str | None]:
    source = m.provenance
    what = m.table.target + (f" in {m.unit}" if m.unit else "")
    sd = ", with its standard deviation" if m.answers_sd else ""
    return {
        "target": f"{m.table.target}: {', '.join(m.classes or m.labels)}"
        if m.classes or m.labels
        else what,
        "target_column": m.table.target,
        "output": f"probabilities of {', '.join(m.classes)}; the most probable one is named"
        if m.classes
        else "a label for every voxel of the scan, the one of the largest score, and each label's "
        "volume in ml"
        if m.labels
        else f"a number, {what}{sd}",
        "network": f"{_kind(source.network)}, fusion "
        f"{source.network.get('fusion', 'unknown')}, {source.parameters:,} parameters",
        "members": f"{len(m.members)} networks, combined by {m.combine}"
        if len(m.members) > 1
        else "one network, no ensemble",
        "software": ", ".join(f"{name} {text}" for name, text in source.versions.items()),
        "use": "hfrt infer, or hyperfusion_rt.load in Python",
    }


def _kind(network: dict[str, Any]) -> str:
    """Which network it is; of one that the study brought: what made it."""
    if imported := network.get("import"):
        return f"made by {imported}"
    return f"architecture {network.get('architecture', 'unknown')}"


def _of_input(m: Manifest) -> dict[str, str | None]:
    prep, encoder = m.preprocessing, m.members[0]
    shape = " x ".join(map(str, prep.shape))
    ways = sorted({prep.normalisation_of(channel) for channel in prep.channels})
    gaps = {c.name: c.missing_rate for c in encoder.columns if c.missing_rate}
    most = sorted(gaps, key=lambda name: -gaps[name])[:3]
    checks = m.scan_reference.checks if m.scan_reference else None
    return {
        "preprocessing": f"scans in MNI space; boxes of {shape} voxels at {prep.spacing:g} mm, "
        f"{prep.interpolation}, {' and '.join(ways)}",
        "boxes": ", ".join(box.name for box in prep.boxes),
        "predictors": f"the images {', '.join(c.name for c in prep.channels)}; "
        f"{len(encoder.columns)} columns of the table",
        "encoding": "numbers have mean 0 and standard deviation 1 in training, categories are one "
        "input each, and a column with gaps has an input that says so"
        if encoder.training_rows
        else None,
        "missing": None
        if not encoder.training_rows
        else "in training rows most often: " + ", ".join(f"{n} {gaps[n]:.0%}" for n in most)
        if most
        else "none in training rows",
        "imputer": None
        if not encoder.training_rows
        else "gaps of a row are filled from its other columns (chained equations)"
        if encoder.steps
        else "gaps are filled with the training's median or most frequent category",
        "scan_checks": {
            "refuse": "a scan that is no T1-weighted brain in MNI space, or unlike the training's, "
            "is refused",
            "warn": "a scan that is no T1-weighted brain in MNI space, or unlike the training's, "
            "is predicted with a warning",
            "off": "scans are not checked",
        }.get(checks or ""),
    }


def _of_training(m: Manifest) -> dict[str, str | None]:
    """How it was trained: of an older artifact or an imported network nothing is known."""
    training, augmentation = m.provenance.training, m.provenance.augmentation
    if not training:
        return {}
    ema = f", a moving average of the weights ({training['ema']:g})" if training["ema"] else ""
    given = training.get("split_column") or training.get("split_file")
    strata = ", ".join([m.table.target, *m.table.stratify])
    changed = ", ".join(f"{name} {value}" for name, value in augmentation.items())
    balanced = training["sampling"] == "balanced"
    weights = training["class_weights"]
    return {
        "training": f"{training['optimizer']}, learning rate {training['lr']:g} "
        f"({training['schedule']}), batches of {training['batch_size']}, at most "
        f"{training['epochs']} epochs, seed {training['seed']}",
        "augmentation": f"random changes of samples: {changed}"
        if changed
        else "samples are not changed at random",
        "selection": (
            "the epoch that is best on the validation part"
            if training["keep"] == "best"
            else "the last epoch"
        )
        + ema,
        "partition": "as the study itself says (its own split)"
        if given
        else f"at random into {training['parts']} parts with alike {strata}, seed "
        f"{training['seed']}; one is the test part, the others take turns as validation part",
        "imbalance": "; ".join(
            [
                *(["as many samples of each class are drawn"] if balanced else []),
                *([f"the classes weigh {', '.join(map(number, weights))}"] if weights else []),
            ]
        )
        or "nothing was done for it",
        "initial": ("weights given" if m.provenance.network.get("weights") else "random weights")
        + (
            "; the table's embedding from a network of the table alone"
            if training["embedding_start"] == "table"
            and training["embedding_epochs"]
            and m.provenance.network.get("architecture") == "ad"
            else ""
        )
        + f", seed {training['seed']}",
        "disjoint": "by person: all scans of one are in one part",
        "updating": "none",
        "same_table": "from the same table as the training's",
    }


def _of_figures(m: Manifest) -> dict[str, str | None]:
    metrics, cases = m.provenance.metrics, m.provenance.cases
    parts = [f"{cases[n]} for {PARTS[n]}" for n in PARTS if n in cases]
    names = (
        "balanced accuracy, AUC, macro F1, Brier score, calibration error, recall of each class"
        if m.classes
        else "mean absolute error, correlation, mean error and its slope on the truth"
    )
    found: dict[str, str | None] = {
        "parts": f"scans: {', '.join(parts)}" if parts else None,
        "left_out": str(cases["left_out"]) if "left_out" in cases else None,
    }
    if is_empty(metrics):
        return found
    recalls = metrics.get("recall", {})
    groups = m.population is not None and m.population.performance is not None
    return found | {
        "measures": names + ("; coverage by its standard deviation" if m.answers_sd else ""),
        "intervals": f"95 %, bootstrap over people, {SAMPLES:,} samples",
        "performance": "; ".join(in_lines(metrics)),
        "by_group": "figures by sex and age, as far as groups are large enough, are above"
        if groups
        else None,
        "tested": f"{metrics['cases']} scans",
        "internal": f"{metrics['cases']} scans of the same study that training did not see",
        "diagnostic": ", ".join(
            f"recall of {name} {number(value)}"
            for name, value in recalls.items()
            if value is not None
        ),
        "failures": "recall of each class, groups and known failures are above",
    }


def _of_population(p: Population) -> dict[str, str | None]:
    parts = ", ".join(
        f"{part.cases} ({part.people} people) for {PARTS[part.name]}" for part in p.parts
    )
    left = ", ".join(f"{count_text(n)}: {CODES.get(code, code)}" for code, n in p.left_out.items())
    edges = [f"{name}: {_edges(low, mid, high)}" for name, (low, mid, high) in p.spacing.items()]
    scanners = [f"{name} ({count_text(n)} scans)" for name, n in p.scanners.items()]
    return {
        "cohort": f"{p.cases} scans of {p.people} people",
        "parts": f"scans: {parts}",
        "left_out": left or "none",
        **({"scanners": ", ".join(scanners)} if scanners else {}),
        "characteristics": "sex, age and target of each part are above",
        "spacing": f"edges of voxels in mm, {'; '.join(edges)}",
    }


def _edges(low: float, middle: float, high: float) -> str:
    return f"{low:g}" if low == high else f"{low:g} to {high:g}, median {middle:g}"


def count_text(count: int | None) -> str:
    """A count for a reader."""
    return WITHHELD if count is None else f"{count:,}"


def known_failures(m: Manifest) -> list[str]:
    """Where it is known to fail, and what it refuses; nothing of what nobody has looked at."""
    metrics, p = m.provenance.metrics, m.population
    return [
        *_of_overall(metrics),
        *(_of_classes(metrics) if m.classes else _of_numbers(metrics)),
        *(_of_counts(p) if p else []),
        *(_of_groups(metrics, p) if p and p.performance else []),
        *_of_gaps(m),
        *_of_scans(m),
    ]


def _of_overall(metrics: dict[str, Any]) -> list[str]:
    if is_empty(metrics):
        return ["its figures on new cases are not known"]
    name, value, bounds, chance = _main(metrics)
    if bounds is None or chance is None:
        return []
    better = bounds[1] < chance if name == "mae" else bounds[0] > chance
    if better:
        return []
    return [
        f"it is not shown to be better than guessing: {_NAMES[name]} {number(value)} (95 % "
        f"{number(bounds[0])} to {number(bounds[1])}), chance {number(chance)}"
    ]


_NAMES = {"balanced_accuracy": "balanced accuracy", "mae": "mean absolute error"}


def _main(metrics: dict[str, Any]) -> tuple[str, float, list[float] | None, float | None]:
    """The main figure: its key, value, interval and chance level."""
    name = "mae" if "mae" in metrics else "balanced_accuracy"
    return name, metrics[name], metrics.get(f"{name}_95"), metrics.get("chance")


def _of_classes(metrics: dict[str, Any]) -> list[str]:
    """Classes that are found less often than by guessing, or never tested."""
    if is_empty(metrics):
        return []
    found = [
        f"no test case is of class {name}: nothing is known of it" for name in metrics["absent"]
    ]
    for name, value in metrics.get("recall", {}).items():
        if value is not None and value < metrics["chance"]:
            found.append(
                f"class {name} is found less often than by guessing: recall {number(value)}, "
                f"chance {number(metrics['chance'])}"
            )
    return found


def _of_numbers(metrics: dict[str, Any]) -> list[str]:
    """Low ones predicted too high and high ones too low."""
    bounds = metrics.get("bias_slope_95")
    if is_empty(metrics) or bounds is None or bounds[0] <= 0 <= bounds[1]:
        return []
    slope = metrics["bias_slope"]
    way = "too high, high ones too low" if slope < 0 else "too low, high ones too high"
    return [
        f"low ones are predicted {way}: the error changes by {number(slope)} for each unit of the "
        f"truth (95 % {number(bounds[0])} to {number(bounds[1])})"
    ]


def _of_counts(p: Population) -> list[str]:
    found = [*p.findings]
    train = next(part for part in p.parts if part.name == "train")
    for name, count in train.classes.items():
        if count == 0:
            found.append(
                f"the training part has no case of {name}: it can never be answered rightly"
            )
        elif count is not None and count < FEW:
            found.append(f"the training part has {count} cases of {name} only")
    if any(count is None for count in train.classes.values()):
        found.append("a class has so few training cases that their number is not told")
    if p.more_findings:
        found.append(
            f"more that the check of the study found odd: {p.more_findings}; it may quote cases, "
            "and stands in check.json of the run"
        )
    return found


def _of_groups(metrics: dict[str, Any], p: Population) -> list[str]:
    """Groups whose interval lies wholly on the worse side of the figure of all."""
    if is_empty(metrics) or p.performance is None:
        return []
    key, whole, _, _ = _main(metrics)
    found = []
    for kind, groups in (("sex", p.performance.sex), ("age", p.performance.age)):
        for group in groups:
            bounds = group.figures.get(f"{key}_95")
            if bounds is None:
                continue
            if bounds[0] > whole if key == "mae" else bounds[1] < whole:
                found.append(
                    f"it is worse for {kind} {group.name or 'not known'}: {_NAMES[key]} "
                    f"{number(group.figures[key])}, of all {number(whole)}"
                )
    return found


def _of_gaps(m: Manifest) -> list[str]:
    return [
        f"column {column.name} is empty in {column.missing_rate:.0%} of the training rows: the "
        "imputer guesses most of it"
        for column in m.members[0].columns
        if column.missing_rate > 0.5
    ]


def _of_scans(m: Manifest) -> list[str]:
    """What the checks of scans refuse; nothing where they are off or not known."""
    stored = m.scan_reference
    if stored is None:
        return ["scans are not compared with a template: anything is predicted"]
    if stored.checks == "off":
        return ["scans were not checked in training: anything is predicted, with no warning"]
    low, high = scan_check.CONTRAST["refuse"]
    what = "refused" if stored.checks == "refuse" else "predicted with a warning"
    like = "" if stored.boxes else "; whether it is like the training's is not known"
    return [
        f"a scan is {what} where it is not in MNI space (correlation with the template below "
        f"{scan_check.CORRELATION['refuse']:g}), still has its skull (more than "
        f"{scan_check.SHELL['refuse']:.0%} of the shell around the brain is bright) or has no "
        f"contrast of a T1-weighted image ({low:g} to {high:g}){like}"
    ]


def usual_boxes(m: Manifest) -> list[tuple[str, ...]]:
    """Beyond which figures a box is unlike the training's: its name, fill, contrast, likeness."""
    stored = m.scan_reference
    if stored is None or not stored.boxes:
        return []
    found: list[tuple[str, ...]] = []
    names = scan_check.box_names(m.preprocessing)
    for name, usual in zip(names, stored.boxes, strict=True):
        spans = []
        for one in (usual.fill, usual.contrast):
            reach = scan_check.BOX_WARN * one.spread
            spans.append(f"{number(max(0.0, one.median - reach))} to {number(one.median + reach)}")
        least = usual.correlation.median - scan_check.BOX_WARN * usual.correlation.spread
        found.append(
            (name.removesuffix(" box"), *spans, f"{number(float(np.tanh(least)))} at least")
        )
    return found

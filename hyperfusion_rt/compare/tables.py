"""The tables of a comparison: CSV for programs, Markdown and LaTeX for papers."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from hyperfusion_rt.compare.answers import Answers, Cases
from hyperfusion_rt.compare.plan import Plan
from hyperfusion_rt.compare.summary import Pair, Result
from hyperfusion_rt.config import TableSpec
from hyperfusion_rt.metrics.words import is_empty
from hyperfusion_rt.number_text import number
from hyperfusion_rt.training.results import answered

# Figures of a model: how they are called, in the order of the columns.
_OF_CLASSES = {
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC",
    "macro_f1": "macro F1",
    "brier": "Brier score",
    "ece": "calibration error",
}
_OF_NUMBERS = {"mae": "MAE", "r": "r", "bias": "mean error", "bias_slope": "slope of the error"}
_SHORT = ("balanced_accuracy", "auc", "brier", "ece", "mae", "r", "bias")
_TEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}
Cell = tuple[float | None, list[float] | None]


def figure_names(spec: TableSpec) -> dict[str, str]:
    """Each figure, and how it is called; `recall of NAME` of each class."""
    if not spec.classes:
        return _OF_NUMBERS
    return _OF_CLASSES | {f"recall of {name}": f"recall {name}" for name in spec.classes}


def figure_of(figures: dict[str, Any], name: str) -> Cell:
    """(value, interval) of a figure."""
    if name.startswith("recall of "):
        of = name.removeprefix("recall of ")
        return figures.get("recall", {}).get(of), figures.get("recall_95", {}).get(of)
    return figures.get(name), figures.get(f"{name}_95")


def shown(cell: Cell) -> str:
    """`0.712 (0.65 to 0.77)`."""
    value, between = cell
    if value is None:
        return "none"
    return number(value) + (f" ({number(between[0])} to {number(between[1])})" if between else "")


def p_text(value: float | None) -> str:
    """A p-value; it is never 0."""
    if value is None:
        return "none"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def predictions_csv(spec: TableSpec, cases: Cases, answers: Sequence[Answers]) -> str:
    """Every prediction of a case by a model that did not see it."""
    classes = list(spec.classes)
    first = ["model", "seed", "fold", "subject", "session", "truth"]
    rows: list[dict[str, Any]] = []
    for item in answers:
        for job in item.jobs:
            for i, answer in enumerate(item.values[job.seed]):
                if cases.parts[job.seed, i] != job.fold or answer[0] != answer[0]:
                    continue
                subject, session = cases.keys[i]
                target = cases.truth[i]
                truth = classes[int(target)] if classes else f"{target:.6g}"
                about = (item.model.name, job.seed, job.fold, subject, session, truth)
                rows.append({**dict(zip(first, about, strict=True)), **answered(spec, answer)})
    return _csv([*first, *(["prediction"] if classes else []), *spec.answers], rows)


def comparison_csv(spec: TableSpec, found: Sequence[Result], external: Sequence[Result]) -> str:
    """A line for each model and set, with every figure and its interval."""
    rows = [_line(spec, item, "cohort") for item in found]
    rows += [_line(spec, item, "external") for item in external]
    return _csv(list(rows[0]), rows)


def _line(spec: TableSpec, item: Result, where: str) -> dict[str, Any]:
    cells: dict[str, Any] = {
        "model": item.name,
        "set": where,
        "trainings": item.done,
        "of": item.jobs,
        "subjects": item.figures.get("subjects", 0),
        "cases": item.figures["cases"],
    }
    for name in figure_names(spec):
        cells |= _cells(name.replace(" of ", "_"), figure_of(item.figures, name))
    return cells


def _cells(name: str, cell: Cell) -> dict[str, Any]:
    value, between = cell
    low, high = between or (None, None)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def groups_csv(spec: TableSpec, found: Sequence[Result]) -> str:
    """A line for each model and group; a group of too few cases has no figures."""
    rows: list[dict[str, Any]] = []
    for item in found:
        for by, groups in item.groups.items():
            for group, figures in groups.items():
                about = {"model": item.name, "by": by, "group": group or "not known"}
                cells: dict[str, Any] = {**about, "cases": figures["cases"]}
                for name in figure_names(spec):
                    cells |= _cells(name.replace(" of ", "_"), figure_of(figures, name))
                rows.append(cells)
    first = ["model", "by", "group", "cases"]
    return _csv(list(rows[0]) if rows else first, rows)


def pairs_csv(pairs: Sequence[Pair], external: Sequence[Pair] = ()) -> str:
    """A line for each pair, figure and set."""
    rows = []
    for where, of in (("cohort", pairs), ("external", external)):
        for pair in of:
            low, high = pair.interval or (None, None)
            rows.append(
                {
                    "set": where,
                    "figure": pair.figure,
                    "a": pair.a,
                    "b": pair.b,
                    "difference": pair.difference,
                    "low": low,
                    "high": high,
                    "trainings": pair.folds,
                    "p_resampled_t": pair.p_folds,
                    "p_resampled_t_holm": pair.p_folds_holm,
                    "test": pair.test,
                    "p": pair.p_cases,
                    "p_holm": pair.p_cases_holm,
                }
            )
    names = [*("set", "figure", "a", "b", "difference", "low", "high", "trainings")]
    names += ["p_resampled_t", "p_resampled_t_holm", "test", "p", "p_holm"]
    return _csv(names, rows)


def _csv(names: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return stream.getvalue()


# ---- for papers


def model_rows(
    spec: TableSpec, found: Sequence[Result], *, short: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Header and a row for each model: its figures, with intervals; `short`: the main ones."""
    names = {k: v for k, v in figure_names(spec).items() if not short or k in _SHORT}
    whole = all(item.done == item.jobs for item in found)
    header = ["model", *([] if whole else ["trainings"]), *names.values()]
    rows = []
    for item in found:
        done = [] if whole else [f"{item.done} of {item.jobs}"]
        cells = [
            "none" if is_empty(item.figures) else shown(figure_of(item.figures, n)) for n in names
        ]
        rows.append([item.name, *done, *cells])
    return header, rows


def pair_rows(spec: TableSpec, pairs: Sequence[Pair]) -> tuple[list[str], list[list[str]]]:
    """Header and a row for each pair: its difference, and its p-values corrected by Holm."""
    names = figure_names(spec)
    folds = any(pair.folds for pair in pairs)
    header = ["pair", "figure", "difference", *(["p, trainings"] if folds else []), "p, subjects"]
    rows = []
    for pair in pairs:
        over = [p_text(pair.p_folds_holm)] if folds else []
        rows.append(
            [
                f"{pair.a} − {pair.b}",
                names[pair.figure],
                shown((pair.difference, pair.interval)),
                *over,
                p_text(pair.p_cases_holm),
            ]
        )
    return header, rows


def caption(plan: Plan, found: Sequence[Result]) -> str:
    """Of what the figures are."""
    spec = plan.base.tabular
    figures = max((item.figures for item in found), key=lambda f: int(f["cases"]))
    seeds = f", with {plan.seeds} splits, of which figures are the mean" if plan.seeds > 1 else ""
    unit = f" in {spec.unit}" if spec.unit else ""
    return (
        f"{spec.target}{unit}: {figures.get('subjects', 0)} subjects, {figures['cases']} cases, "
        f"{len(plan.folds)}-fold cross-validation{seeds}. In brackets: 95 % intervals, a bootstrap "
        "over subjects."
    )


PAIRS_CAPTION = (
    "Differences with 95 % intervals (bootstrap over subjects, both models drawn alike). p-values "
    "are corrected by Holm for all pairs of a figure; trainings: corrected resampled t-test; "
    "subjects: paired permutation test, of AUC DeLong's test."
)


def markdown(
    plan: Plan,
    found: Sequence[Result],
    pairs: Sequence[Pair],
    external: Sequence[Result] = (),
    external_pairs: Sequence[Pair] = (),
) -> str:
    """All tables."""
    spec = plan.base.tabular
    text = f"{caption(plan, found)}\n\n{_markdown(*model_rows(spec, found))}\n"
    if pairs:
        text += f"{PAIRS_CAPTION}\n\n{_markdown(*pair_rows(spec, pairs))}\n"
    if external:
        text += f"{external_caption(external)}\n\n{_markdown(*model_rows(spec, external))}\n"
        if external_pairs:
            text += f"{_markdown(*pair_rows(spec, external_pairs))}\n"
    return text


def external_caption(external: Sequence[Result]) -> str:
    """Of what the figures of the external test set are."""
    figures = max((item.figures for item in external), key=lambda f: int(f["cases"]))
    return (
        f"External test set: {figures.get('subjects', 0)} subjects, {figures['cases']} cases. "
        "Every training of a model predicts all of them; figures are the mean over the trainings."
    )


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def latex(
    plan: Plan, found: Sequence[Result], pairs: Sequence[Pair], external: Sequence[Result] = ()
) -> str:
    """The tables in LaTeX, for the package booktabs."""
    spec = plan.base.tabular
    parts = [_latex(caption(plan, found), *model_rows(spec, found))]
    if pairs:
        parts.append(_latex(PAIRS_CAPTION, *pair_rows(spec, pairs)))
    if external:
        parts.append(_latex(external_caption(external), *model_rows(spec, external)))
    return "% Needs \\usepackage{booktabs}.\n" + "\n".join(parts)


def _latex(text: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" & ".join(map(_escaped, line)) + r" \\" for line in rows]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_escaped(text)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            r"\toprule",
            " & ".join(map(_escaped, header)) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _escaped(text: str) -> str:
    made = "".join(_TEX.get(sign, sign) for sign in text.replace("\\", "/"))
    return made.replace("−", "$-$").replace("< ", "$<$ ")

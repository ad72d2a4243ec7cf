"""The page of a search: the best trial, all trials, what mattered, and what was ended early."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hyperfusion_rt.config import TableSpec
from hyperfusion_rt.machine import describe_machine
from hyperfusion_rt.number_text import number
from hyperfusion_rt.runtime.outputs.chart import Axis, Chart, Charts
from hyperfusion_rt.runtime.outputs.report import Page, Shares
from hyperfusion_rt.tune.results import (
    COMPLETE,
    DIVERGED,
    ENDED,
    FAILED,
    PRUNED,
    RUNNING,
    Trial,
    Tuned,
)
from hyperfusion_rt.tune.space import Choices, field_of, shown
from hyperfusion_rt.yaml_text import scalar

_BEST, _DONE, _EARLY = 0, 1, 7  # colours of the page
_PRUNERS = {
    "median": "A trial ends early when its best figure so far is worse than the median of the "
    "others at the same epoch, after the first third of the epochs",
    "hyperband": "Hyperband (Li 2018) gives up the worse trials after a third of the epochs",
    "none": "No trial ends early",
}


def search_page(found: Tuned) -> Page:
    """The page. It names no subject."""
    plan, best = found.search.plan, found.best
    spec = plan.base.tabular
    ended = found.of(*ENDED)
    page = Page(f"{len(ended)} trials of {spec.target}")
    page.text("For research. Not a medical device; not for diagnosis.", soft=True)
    page.text(
        f"Each trial is a training with other values of {len(plan.space)} fields. What counts is "
        f"the {plan.metric_name}" + (", of equal ones the smaller loss." if _tied(found) else ".")
    )
    page.text(_certainty(found))
    _cards(page, found, best)
    if best is not None:
        _best(page, found, best)
    page.heading("The search")
    page.add(Charts(tuple(_charts(found))))
    if found.importance:
        page.heading("What mattered")
        page.text(
            "How much of the spread between the complete trials each field explains (fANOVA), in "
            f"percent. Of {len(found.of(COMPLETE))} trials, so it is a hint."
        )
        rows = [(name, (round(100 * part),)) for name, part in found.importance.items()]
        page.add(Shares(("percent",), tuple(rows)))
    charts = [_field(found, name) for name in found.importance or plan.space]
    if found.of(COMPLETE):
        page.heading("Field by field")
        page.add(Charts(tuple(charts)))
    page.heading("Trials")
    page.table(*_table(found))
    _early(page, found)
    page.heading("How it was made")
    page.table(["", ""], _origin(found))
    return page


def metric_of(found: Tuned, trial: Trial) -> float | None:
    """What the search looks at, of a trial: its figure or its loss."""
    return trial.loss if found.search.plan.metric == "loss" else trial.figure


def _tied(found: Tuned) -> bool:
    return found.search.plan.maximises


def _certainty(found: Tuned) -> str:
    """How far the figure can be trusted."""
    plan = found.search.plan
    cases, members = plan.cases, plan.base.training.members
    text = f"The validation part has {cases} cases"
    if members > 1:
        text += f", another one for each of the {members} members, whose mean it is"
    if plan.metric == "loss" or not plan.base.tabular.classes:
        return f"{text}."
    # Of a share of n cases, at most.
    return (
        f"{text}: the figure of one training is uncertain by about {0.5 / cases**0.5:.2f} (a "
        "standard error), and smaller differences between trials may be luck."
    )


def _shown(value: float | None) -> str:
    return "–" if value is None else number(value)


def _cards(page: Page, found: Tuned, best: Trial | None) -> None:
    name, itself = found.search.plan.metric_name, found.study_itself
    cards = []
    if best is not None:
        cards.append((_shown(metric_of(found, best)), f"best: trial {best.number}, {name}"))
    if itself is not None:
        cards.append((_shown(metric_of(found, itself)), "the study as it was: trial 0"))
    counts = [(len(found.of(state)), state) for state in (*ENDED, RUNNING)]
    page.cards([*cards, *((str(count), state) for count, state in counts if count)])


def _best(page: Page, found: Tuned, best: Trial) -> None:
    plan = found.search.plan
    page.heading(f"The best: trial {best.number}")
    rows = []
    for name, item in plan.space.items():
        values = [field_of(plan.base, name), best.fields.get(name)]
        rows.append([name, *(shown(value) for value in values), item.text])
    page.table(["field", "before", "best", "searched"], rows)
    page.text(
        "The search looked at the validation part only. The test figures of the best trial, and of "
        "the others, were not looked at and stand nowhere on this page: they lie unread in the "
        "trials' run folders, as every run has them. Look at those of one trial, once, at the end."
    )
    page.text(
        f"The best of {len(found.of(*ENDED))} on one validation part is partly luck: on new cases "
        "expect less than this figure."
    )
    page.text(
        "Train it again: put best.yaml under the preset of hfrt.yaml, or have hfrt train change "
        f"these fields: {' '.join(found.settings)}"
    )


def _charts(found: Tuned) -> list[Chart]:
    return [chart for chart in (_history(found), _courses(found)) if chart is not None]


def _history(found: Tuned) -> Chart | None:
    """Every trial's figure in their order, and the best so far."""
    plan = found.search.plan
    drawn = [(t, v) for t in found.of(COMPLETE, PRUNED) if (v := _finite(found, t)) is not None]
    if not drawn:
        return None
    chart = Chart(
        "Trial after trial",
        f"The {plan.metric_name} of each trial in their order, and the best so far",
        Axis.around("trial", [float(trial.number) for trial, _ in drawn]),
        Axis.around(plan.metric_name, [value for _, value in drawn]),
    )
    steps: list[tuple[float, float]] = []
    for trial, value in drawn:
        if trial.state != COMPLETE:
            continue
        last = steps[-1][1] if steps else value
        now = max(last, value) if plan.maximises else min(last, value)
        steps += [(float(trial.number), last), (float(trial.number), now)]
    chart.line(steps, _BEST)
    for state, colour in ((COMPLETE, _DONE), (PRUNED, _EARLY)):
        places = [(float(t.number), v) for t, v in drawn if t.state == state]
        chart.points(places, colour, [3.5] * len(places))
        if places:
            chart.legend.append((colour, state))
    chart.legend.insert(0, (_BEST, "best so far"))
    chart.note = "Of a pruned trial: its last epoch."
    return chart


def _courses(found: Tuned) -> Chart | None:
    """The score of each trial after each epoch."""
    plan, best = found.search.plan, found.best
    drawn = [trial for trial in found.of(COMPLETE, PRUNED) if trial.course]
    if not drawn:
        return None
    epochs = [float(epoch) for trial in drawn for epoch, _ in trial.course]
    members = plan.base.training.members
    chart = Chart(
        "Epoch after epoch",
        f"The {plan.metric_name} of each trial after each epoch",
        Axis.around("epoch" + (", member after member" if members > 1 else ""), epochs),
        Axis.around(plan.metric_name, [value for trial in drawn for _, value in trial.course]),
    )
    kinds = [(_EARLY, "pruned", PRUNED), (_DONE, "complete", COMPLETE)]
    for colour, name, state in kinds:
        for trial in (t for t in drawn if t.state == state and t is not best):
            _course(chart, trial, colour)
        if any(trial.state == state for trial in drawn):
            chart.legend.append((colour, name))
    if best is not None and best.course:
        _course(chart, best, _BEST)
        chart.legend.insert(0, (_BEST, f"best: trial {best.number}"))
    return chart


def _course(chart: Chart, trial: Trial, colour: int) -> None:
    places = [(float(epoch), value) for epoch, value in trial.course]
    chart.line(places, colour)
    if len(places) == 1 or trial.state == PRUNED:
        chart.points(places[-1:], colour, [2.5])


def _field(found: Tuned, name: str) -> Chart:
    """The figure of each complete trial over its value of a field."""
    plan, item = found.search.plan, found.search.plan.space[name]
    drawn = [t for t in found.of(COMPLETE) if _finite(found, t) is not None]
    values = [float(metric_of(found, t) or 0) for t in drawn]
    if isinstance(item, Choices):
        x = Axis.of_names(name, item.names)
        places = [float(item.texts.index(scalar(t.fields[name]))) for t in drawn]
    else:
        across = (lambda v: math.log10(v)) if item.log else float
        x = Axis.around(f"{'log10 of ' * item.log}{name}", [across(item.low), across(item.high)])
        places = [across(t.fields[name]) for t in drawn]
    y = Axis.around(plan.metric_name, values or [0.0, 1.0])
    chart = Chart(name, f"The {plan.metric_name} of each complete trial over {name}", x, y, True)
    best = [index for index, trial in enumerate(drawn) if trial is found.best]
    others = [n for n in range(len(drawn)) if n not in best]
    for chosen, colour, size in ((others, _DONE, 3.5), (best, _BEST, 5.0)):
        points = [(places[n], values[n]) for n in chosen]
        chart.points(points, colour, [size] * len(points))
    return chart


def _finite(found: Tuned, trial: Trial) -> float | None:
    value = metric_of(found, trial)
    return value if value is not None and math.isfinite(value) else None


def figure_names(spec: TableSpec) -> tuple[str, str]:
    """What the figure is called in a table's header, and the loss."""
    unit = f" ({spec.unit})" if spec.unit else ""
    return ("balanced accuracy" if spec.classes else f"mean absolute error{unit}"), "loss"


def trial_rows(found: Tuned, trials: Sequence[Trial]) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of a table of trials, the best first."""
    space = list(found.search.plan.space)
    sign = -1 if found.search.plan.maximises else 1
    states = (COMPLETE, RUNNING, PRUNED, DIVERGED, FAILED)
    order = sorted(trials, key=lambda t: (states.index(t.state), sign * (t.score or 0.0), t.number))
    rows: list[list[Any]] = []
    for trial in order:
        seconds = "–" if trial.seconds is None else f"{trial.seconds:.0f}"
        told = [_shown(trial.figure), _shown(trial.loss), str(trial.epochs), seconds]
        values = [shown(trial.fields[name]) if name in trial.fields else "–" for name in space]
        rows.append([str(trial.number), trial.state, *told, *values])
    names = figure_names(found.search.plan.base.tabular)
    return ["trial", "state", *names, "epochs", "seconds", *space], rows


def _table(found: Tuned) -> tuple[list[str], list[list[Any]]]:
    return trial_rows(found, found.trials)


def _early(page: Page, found: Tuned) -> None:
    plan = found.search.plan
    pruned = found.of(PRUNED)
    page.heading("What was ended early")
    page.text(f"{_PRUNERS[plan.pruner]}.")
    if pruned:
        done = sum(trial.epochs for trial in pruned)
        training = plan.base.training
        whole = len(pruned) * training.epochs * training.members
        page.text(
            f"{len(pruned)} of {len(found.of(*ENDED))} trials were pruned, after {done} epochs in "
            f"all instead of {whole}."
        )
    rows = [(f"trial {t.number}", t.state, t.reason) for t in found.of(DIVERGED, FAILED)]
    if rows:
        page.table(["", "", "why"], rows)


def _origin(found: Tuned) -> list[tuple[str, Any]]:
    plan, training = found.search.plan, found.search.plan.base.training
    seconds = sum(trial.seconds or 0 for trial in found.trials)
    return [
        ("program", plan.program),
        ("search", found.search.folder.name),
        ("sampler", f"{plan.sampler} (Optuna), seed {plan.seed}"),
        ("pruner", plan.pruner),
        ("training", f"{training.epochs} epochs, {training.members} member(s), preset "
         f"{plan.base.preset}, seed {training.seed}"),
        ("trained for", f"{seconds:.0f} seconds, all trials together"),
        *describe_machine().items(),
    ]  # fmt: skip

"""How much a leak from the test rows into the training raises the balanced accuracy, wrongly.

    python benchmarks/leak.py        # writes benchmarks/results/leak.md and .json

About ten minutes of one core. What is done is kept in build/leak, and a second call goes on.

On simulated tables alone (AD, no images). Every repetition is a new cohort and five-fold
cross-validation, each row predicted once. Two leaks, each against the right way on the same cohort:

    encoder   imputer, mean and standard deviation are fitted on all rows, not on the training rows
    twins     each subject stands in the table twice, under two names; rows are split at random, not
              by subject. As many rows, so half as many subjects

by a logistic regression and by the network of the table (`hfrt train` with network.fusion=tabular).
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from hyperfusion_rt.config import Config, preset
from hyperfusion_rt.data.encoder import TabularEncoder, read_target
from hyperfusion_rt.data.simulate.population import draw_subject
from hyperfusion_rt.data.table_file import Row
from hyperfusion_rt.files import write_text
from hyperfusion_rt.machine import describe_machine
from hyperfusion_rt.metrics import balanced_accuracy
from hyperfusion_rt.training.pretraining import pretrained

OUT = Path(__file__).parent / "results" / "leak.md"
WORK = Path(__file__).parent.parent / "build" / "leak"
FOLDS = 5
# Of the cohorts: no other benchmark draws from it.
SEED = 2027
LEAKS = {
    "encoder": "imputer and scaler fitted on all rows",
    "twins": "every subject twice, split by row",
}

Index = NDArray[np.int64]
Inputs = NDArray[np.float32]
# (inputs [N, T], classes [N], training rows, seed) → predicted class of every row [N]
Learner = Callable[[Inputs, Index, Index, int], Index]


def cohort(subjects: int, repetition: int) -> list[Row]:
    """The table of new subjects."""
    rng = np.random.default_rng([SEED, subjects, repetition])
    return [Row(f"S{i}", None, i + 2, draw_subject("ad", rng).row) for i in range(subjects)]


def learners(config: Config) -> dict[str, Learner]:
    """By name."""
    weights = dict(enumerate(config.training.class_weights))

    def logistic(inputs: Inputs, truth: Index, train: Index, seed: int) -> Index:
        model = LogisticRegression(max_iter=10_000, class_weight=weights)
        found: Index = model.fit(inputs[train], truth[train]).predict(inputs)
        return found

    def network(inputs: Inputs, truth: Index, train: Index, seed: int) -> Index:
        torch.manual_seed(seed)
        nothing = np.empty(0, np.int64)
        made = pretrained(config, seed, inputs, truth.astype(np.float64), train, nothing).eval()
        with torch.inference_mode():
            found: Index = made(torch.empty(0), torch.from_numpy(inputs)).argmax(1).numpy()
        return found

    return {"logistic": logistic, "network": network}


def folds_of(truth: Index, repetition: int) -> Index:
    """The fold of each `[N]`, as many of each class in all of them."""
    found = np.empty(len(truth), np.int64)
    split = StratifiedKFold(FOLDS, shuffle=True, random_state=repetition)
    with warnings.catch_warnings():
        # A class of fewer than five is in fewer folds.
        warnings.filterwarnings("ignore", "The least populated class")
        for fold, (_, test) in enumerate(split.split(truth, truth)):
            found[test] = fold
    return found


def encoded(rows: Sequence[Row], fitted_on: Sequence[Row], config: Config) -> Inputs:
    """`[N, T]`: `rows`, by an encoder that is fitted on other rows, or the same."""
    return TabularEncoder.fit(fitted_on, config.tabular).encode(rows)


def inputs_of(rows: Sequence[Row], folds: Index, config: Config) -> list[Inputs]:
    """What a network reads in each fold: its encoder is fitted on the training rows."""
    return [
        encoded(rows, [r for r, f in zip(rows, folds, strict=True) if f != fold], config)
        for fold in range(FOLDS)
    ]


def accuracy(
    learn: Learner, inputs: Sequence[Inputs], truth: Index, folds: Index, seed: int
) -> float:
    """Balanced accuracy of all rows, each predicted in the fold that it is tested in."""
    found = np.empty_like(truth)
    for fold in range(FOLDS):
        test = folds == fold
        answers = learn(inputs[fold], truth, np.flatnonzero(~test), seed)
        found[test] = answers[test]
    return balanced_accuracy(truth, found, 3)


def repetition(size: int, number: int, learn: dict[str, Learner], config: Config) -> dict[str, Any]:
    """`{learner: {leak: (right, leaking)}}` of one cohort of `size` rows."""
    rows = cohort(size, number)
    truth = np.array([read_target(row, config.tabular) for row in rows])
    folds = folds_of(truth, number)
    right, leaking = inputs_of(rows, folds, config), [encoded(rows, rows, config)] * FOLDS
    if np.array_equal(right[0], leaking[0]):
        raise AssertionError("the encoder of all rows is that of the training rows")

    # The first half of the subjects, twice: a copy stands `half` rows further. One encoder for both
    # ways, so that nothing but the split differs.
    half = size // 2
    own = encoded(rows[:half], rows[:half], config)
    twins, twice = [np.tile(own, (2, 1))] * FOLDS, np.tile(truth[:half], 2)
    by_subject, by_row = np.tile(folds_of(truth[:half], number), 2), folds_of(twice, number)
    return {
        name: {
            "encoder": [accuracy(one, x, truth, folds, number) for x in (right, leaking)],
            "twins": [accuracy(one, twins, twice, folds, number) for folds in (by_subject, by_row)],
        }
        for name, one in learn.items()
    }


def kept(size: int, number: int, learn: dict[str, Learner], config: Config) -> dict[str, Any]:
    """`repetition`, kept in a file."""
    path = WORK / f"{size}-{number}-{'-'.join(learn)}.json"
    if not path.exists():
        found = repetition(size, number, learn, config)
        write_text(path, json.dumps(found) + "\n")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def summary(pairs: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Means over repetitions, and the paired difference with Student's 95 % interval."""
    right, leaking = np.array(pairs).T
    rise = leaking - right
    margin = stats.t.ppf(0.975, len(rise) - 1) * rise.std(ddof=1) / np.sqrt(len(rise))
    return {
        "repetitions": len(rise),
        "right": float(right.mean()),
        "leaking": float(leaking.mean()),
        "rise": float(rise.mean()),
        "rise_95": [float(rise.mean() - margin), float(rise.mean() + margin)],
        "rise_sd": float(rise.std(ddof=1)),
    }


def page(found: Sequence[dict[str, Any]], machine: dict[str, str], date: str) -> str:
    """The results as a table."""
    lines = [
        "# What a leak adds to the balanced accuracy",
        "",
        f"`{' '.join(['python', 'benchmarks/leak.py', *sys.argv[1:]])}` · "
        f"{', '.join(f'{name} {value}' for name, value in machine.items())} · {date}",
        "",
        f"Simulated tables (AD, additive), CN / MCI / AD, {FOLDS}-fold cross-validation; a new "
        "cohort for every repetition. The rise is leaking minus right on the same cohort, with the "
        "95 % interval of its mean; SD: of the rise from cohort to cohort.",
        "",
        "| leak | rows | learner | right | leaking | rise (95 %) | SD | repetitions |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in sorted(found, key=lambda one: list(LEAKS).index(one["leak"])):
        low, high = one["rise_95"]
        lines.append(
            f"| {LEAKS[one['leak']]} | {one['rows']} | {one['learner']} | {one['right']:.3f} | "
            f"{one['leaking']:.3f} | {one['rise']:+.4f} ({low:+.4f} to {high:+.4f}) | "
            f"{one['rise_sd']:.3f} | {one['repetitions']} |"
        )
    return "\n".join(lines) + "\n"


def main(
    sizes: Annotated[str, typer.Option(help="Rows of a cohort.")] = "60,150",
    logistic: Annotated[int, typer.Option(min=2, help="Repetitions.")] = 100,
    network: Annotated[int, typer.Option(min=2, help="Repetitions.")] = 20,
    out: Annotated[Path, typer.Option(help="The page; the figures lie beside it.")] = OUT,
) -> None:
    """Measure both leaks with both learners, and write the table."""
    torch.set_num_threads(1)
    WORK.mkdir(parents=True, exist_ok=True)
    config = preset("ad-small")
    every = learners(config)
    counts = {"logistic": logistic, "network": network}
    found = []
    for size in map(int, sizes.split(",")):
        pairs: dict[tuple[str, str], list[list[float]]] = {}
        began = time.perf_counter()
        for number in range(max(counts.values())):
            chosen = {name: one for name, one in every.items() if number < counts[name]}
            for name, leaks in kept(size, number, chosen, config).items():
                for leak, pair in leaks.items():
                    pairs.setdefault((name, leak), []).append(pair)
        for (name, leak), values in pairs.items():
            found.append({"leak": leak, "rows": size, "learner": name, **summary(values)})
        print(f"{size} rows: {time.perf_counter() - began:.0f} s", flush=True)
    machine, date = describe_machine(), time.strftime("%Y-%m-%d")
    text = page(found, machine, date)
    print(text)
    out.parent.mkdir(exist_ok=True)
    out.write_text(text, encoding="utf-8")
    content = {"machine": machine, "date": date, "folds": FOLDS, "results": found}
    out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

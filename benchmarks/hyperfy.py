"""A network that others wrote, conditioned by `hyperfy`, beside the same with concatenation.

    python benchmarks/hyperfy.py                   # writes hyperfy.md and hyperfy.json
    python benchmarks/hyperfy.py --seeds tuning    # other cohorts, to choose settings with
    python benchmarks/hyperfy.py --small           # does everything once, in minutes; shows nothing

Simulated AD cohorts (`hfrt simulate`). `additive`: age and sex say how much atrophy is usual.
`place`: APOE4 says which region's atrophy is the disease's, so that the table changes what the
image means. `hfrt compare` trains MONAI's 3D ResNet18 three times on the same parts: its layers
generated from the row, the row's embedding joined to the input of its last layer, and the image
alone. All have the same recipe, epochs, seeds and first weights. They are tested on every subject
of the cohort once, and on new subjects of another seed.

Then other networks that `hyperfy` takes: a U-Net whose decoder is generated, and a 2D network; and
a frozen network, whose features are kept. They show that such networks train and export, and how
long an epoch takes, and are compared with nothing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

# Before torch is imported: spinning threads of one training take the cores of the other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer
from safetensors.torch import save_file

from hyperfusion_rt.compare.compare import Compared, compare
from hyperfusion_rt.compare.options import CompareOptions
from hyperfusion_rt.compare.tables import model_rows, pair_rows
from hyperfusion_rt.config import load_config
from hyperfusion_rt.config.merge import merge
from hyperfusion_rt.data.simulate import simulate_cohort
from hyperfusion_rt.export import export_run
from hyperfusion_rt.export.check import check_exports
from hyperfusion_rt.machine import describe_machine, installed, usable_cores
from hyperfusion_rt.models.own import own_of
from hyperfusion_rt.training.results import load_member
from hyperfusion_rt.training.run_folder import Run
from hyperfusion_rt.training.train import Callbacks, train

HERE = Path(__file__).parent
NETWORKS = HERE / "hyperfy_networks.py"
WORK = HERE.parent / "build" / "hyperfy"
Row = dict[str, Any]


class Seeds(StrEnum):
    """Which cohorts are simulated."""

    reported = "reported"
    tuning = "tuning"


# Of (the cohort and the trainings, new subjects). Those that are reported were not looked at while
# settings were chosen.
SEEDS = {Seeds.reported: (7301, 7401), Seeds.tuning: (5301, 5401)}


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is done."""

    subjects: int = 360
    new: int = 300
    folds: int = 5
    epochs: int = 40
    shown: int = 8  # epochs of the other networks


SMALL = Size(subjects=40, new=20, folds=3, epochs=1, shown=1)

COLUMNS = {
    "AGE": {"name": "AGE", "kind": "numeric"},
    "PTGENDER": {"name": "PTGENDER", "kind": "categorical", "categories": ["Female", "Male"]},
    "APOE4": {"name": "APOE4", "kind": "numeric"},
}
STUDIES = {"additive": ("AGE", "PTGENDER"), "place": ("AGE", "PTGENDER", "APOE4")}
MODELS = ("hyper", "concat", "image", "logistic")
RESNET: Row = {
    "import": f"{NETWORKS.name}:resnet18",
    "hyper_layers": ["layer4.*.conv1", "fc"],
    "generator_rank": 4,
    "fusion_at": "fc",
}
OTHERS: dict[str, Row] = {
    "3D U-Net, decoder generated": {
        "import": f"{NETWORKS.name}:unet",
        "hyper_layers": ["network.model.2.*", "network.model.1.submodule.2.*"],
    },
    "2D ResNet18, three slices": {
        "import": f"{NETWORKS.name}:slices",
        "hyper_layers": ["network.layer4.*.conv1", "network.fc"],
        "generator_rank": 4,
    },
}


def changes(study: str, size: Size, seed: int) -> Row:
    """What differs from `ad-small`: the columns, and the budget."""
    return {
        "tabular": {
            "features": [COLUMNS[name] for name in STUDIES[study]],
            "stratify": ["PTGENDER", "AGE"],
            "imputer": "median",
        },
        "network": RESNET,
        "training": {"epochs": size.epochs, "seed": seed, "parts": size.folds},
    }


def cohort(study: str, what: str, count: int, seed: int) -> Path:
    """Simulated once."""
    root = WORK / f"{study}-{what}-{seed}-{count}"
    if not (root / "optimum.json").exists():
        shutil.rmtree(root, ignore_errors=True)
        simulate_cohort(
            root, task="ad", subjects=count, seed=seed, spacing=2, model=study, jobs=usable_cores()
        )
    shutil.copyfile(NETWORKS, root / NETWORKS.name)
    return root


def compared(study: str, size: Size, seeds: tuple[int, int]) -> tuple[Row, Compared, Path]:
    """The three ways and the table alone, on the same parts and on new subjects."""
    root = cohort(study, "train", size.subjects, seeds[0])
    new = cohort(study, "new", size.new, seeds[1])
    name = f"hyperfy-{size.epochs}-{size.folds}"
    change = changes(study, size, seeds[0])
    start = time.perf_counter()
    options = CompareOptions(
        models=MODELS,
        folds=None if (root / "compare" / name).exists() else size.folds,
        name=name,
        resume=(root / "compare" / name).exists(),
        jobs=usable_cores(),
        threads=1,
        test=new / "scans",
        test_table=new / "data.csv",
    )
    given = {} if options.resume else change
    calls = Callbacks(on_network=check_exports)
    found = compare(root / "hfrt.yaml", options, given, callbacks=calls)
    took = time.perf_counter() - start
    if found.failed:
        raise SystemExit(f"{found.comparison.folder}: {found.failed} trainings have no result")
    spec = found.comparison.plan.base.tabular
    place = next(found.comparison.place(job) for job in found.comparison.plan.jobs()
                 if job.model == "hyper")  # fmt: skip
    made: Row = {
        "seconds": None if options.resume else took,
        "cohort": model_rows(spec, found.models, short=True),
        "pairs": pair_rows(spec, found.pairs),
        "new": model_rows(spec, found.external, short=True),
        "new_pairs": pair_rows(spec, found.external_pairs),
        "results": [dataclasses.asdict(p) for p in (*found.pairs, *found.external_pairs)],
        "export": exported(Run.open(place)),
    }
    return made, found, root


def exported(run: Run) -> Row:
    """The largest difference of the exported engines from float64, and the size."""
    made = export_run(run, WORK / f"{run.folder.name}.hfrt", engines=("native",), force=True)
    source, engine = made.manifest.provenance, made.manifest.engines[0]
    return {
        "parameters": source.parameters,
        "gflop": source.gflop,
        "difference": engine.comparison.largest_difference,
        "cases": engine.comparison.cases,
    }


def shown(root: Path, change: Row, name: str, network: Row, epochs: int) -> tuple[Row, Run]:
    """One training of one of the other networks, and its export."""
    shutil.rmtree(root / "runs" / name, ignore_errors=True)
    own = {**change, "network": network, "training": {**change["training"], "epochs": epochs}}
    rows: list[Row] = []
    calls = Callbacks(on_network=check_exports, on_epoch=lambda _, __, row: rows.append(row))
    start = time.perf_counter()
    run = train(load_config(root / "hfrt.yaml", own), root, name=name, callbacks=calls)
    return {
        "epochs": epochs,
        "seconds": time.perf_counter() - start,
        "epoch_seconds": sorted(row["seconds"] for row in rows)[len(rows) // 2],
        "loss": [rows[0]["train_loss"], rows[-1]["train_loss"]],
        "balanced_accuracy": run.metrics["test"]["balanced_accuracy"],
        **exported(run),
    }, run


def frozen(root: Path, change: Row, size: Size) -> Row:
    """A network of the image alone; then it is frozen, and only what reads the row learns."""
    image = {**RESNET, "fusion": "image"}
    before, run = shown(root, change, "pretrained", image, size.shown)
    network = own_of(load_member(run, run.member(0)))
    assert network is not None
    save_file(network.network.base_state_dict(), root / "pretrained.safetensors")
    still = {**RESNET, "weights": "pretrained.safetensors", "freeze": True, "train": ["fc"]}
    plain = merge(change, {"augmentation": {"policy": "none"}})
    first, _ = shown(root, plain, "frozen", still, size.shown)
    kept, _ = shown(root, plain, "frozen-again", still, size.shown)
    whole, _ = shown(root, plain, "frozen-whole", {**still, "keep_features": False}, 1)
    files = list((root / ".hfrt_cache" / "features").rglob("*.npy"))
    return {
        "the image alone": before,
        "then frozen; features are made": first,
        "again; features are there": kept,
        "features are not kept": whole,
        "bytes": sum(file.stat().st_size for file in files),
        "scans": len(files),
    }


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(map(str, line))} |" for line in lines] + [""]


def _shown_rows(found: Row) -> list[list[str]]:
    return [
        [
            name,
            str(row["epochs"]),
            f"{row['epoch_seconds']:.1f}",
            f"{row['loss'][0]:.3f} to {row['loss'][1]:.3f}",
            f"{row['balanced_accuracy']:.3f}",
            f"{row['parameters']:,}",
            f"{row['difference']:.1e}",
        ]
        for name, row in found.items()
        if isinstance(row, dict)
    ]


def page(content: Row) -> str:
    """As Markdown."""
    size, seeds = content["size"], content["seeds"]
    lines = [
        "# Networks of others, conditioned",
        "",
        f"Written by `python benchmarks/hyperfy.py`{content['options']}. Simulated cohorts of "
        f"{size['subjects']} subjects, {size['folds']} parts, each the test set once; {size['new']}"
        f" new subjects. {size['epochs']} epochs of the preset `ad-small`'s recipe, alike for all; "
        f"seeds {seeds[0]} (cohort, trainings) and {seeds[1]} (new subjects), "
        f"{content['kind']}. It says nothing about patients.",
        "",
        f"Machine: {'; '.join(f'{k} {v}' for k, v in content['machine'].items())}; "
        f"{', '.join(f'{k} {v}' for k, v in content['versions'].items())}. "
        f"{content['minutes']:.0f} minutes.",
        "",
        "`hyper`: MONAI's 3D ResNet18 (a quarter of its channels; the first convolution has a "
        "stride of 2) with the layers "
        f"{', '.join(f'`{name}`' for name in RESNET['hyper_layers'])} generated from the row "
        f"(rank {RESNET['generator_rank']}); `concat`: an embedding of the row joined to the "
        f"input of `{RESNET['fusion_at']}`; `image`: without the table; `logistic`: the table "
        "alone. Intervals: 95 %, bootstrap over subjects. p-values are two-sided, corrected by "
        "Holm's method.",
    ]
    for study, found in content["studies"].items():
        export = found["export"]
        lines += [
            "",
            f"## {study}: {', '.join(STUDIES[study])}",
            "",
            "Every subject of the cohort, by a network that did not see it:",
            "",
            *_table(*found["cohort"]),
            *_table(*found["pairs"]),
            "New subjects, by all networks of a model:",
            "",
            *_table(*found["new"]),
            *_table(*found["new_pairs"]),
            f"`hyper` has {export['parameters']:,} parameters and {export['gflop']:.2f} GFLOP per "
            f"box; exported, it differs from PyTorch in float64 by {export['difference']:.1e} of "
            f"its outputs' scale ({export['cases']} cases).",
        ]
    header = ["network", "epochs", "s per epoch", "training loss", "balanced accuracy",
              "parameters", "export differs by"]  # fmt: skip
    lines += [
        "",
        "## Other networks",
        "",
        "One training each, on one part: that they train and export.",
        "",
        *_table(header, _shown_rows(content["others"])),
        "## A frozen network",
        "",
        f"The features of {content['frozen']['scans']} scans take "
        f"{content['frozen']['bytes'] / 1e6:.1f} MB. An epoch trains on "
        f"{content['trained_on']} scans.",
        "",
        *_table(header, _shown_rows(content["frozen"])),
    ]
    return "\n".join(lines).rstrip() + "\n"


def main(
    seeds: Annotated[Seeds, typer.Option(help="Which cohorts.")] = Seeds.reported,
    small: Annotated[bool, typer.Option("--small", help="Everything once, in minutes.")] = False,
    study: Annotated[str, typer.Option(help="With commas: additive, place.")] = "additive,place",
) -> None:
    """Measure, and write hyperfy.json and hyperfy.md; those of tuning and of --small in build/."""
    start = time.perf_counter()
    size, pair = SMALL if small else Size(), SEEDS[seeds]
    WORK.mkdir(parents=True, exist_ok=True)
    content: Row = {
        "kind": f"{seeds.value} ones",
        "options": " --small" if small else "",
        "size": dataclasses.asdict(size),
        "seeds": pair,
        "network": RESNET,
        "machine": describe_machine(),
        "versions": {name: installed(name) for name in ("torch", "monai", "hyperfusion_rt")},
        "studies": {},
    }
    for name in study.split(","):
        content["studies"][name], _, root = compared(name, size, pair)
        print(f"{name}: {(time.perf_counter() - start) / 60:.1f} min", flush=True)
    change = changes(name, size, pair[0])
    content["others"] = {
        what: shown(root, change, what.split(",")[0].replace(" ", "-"), network, size.shown)[0]
        for what, network in OTHERS.items()
    }
    content["frozen"] = frozen(root, change, size)
    content["trained_on"] = Run.open(root / "runs" / "frozen").metrics["cases"]["train"]
    content["minutes"] = (time.perf_counter() - start) / 60
    place = WORK if small or seeds == Seeds.tuning else HERE
    (place / "hyperfy.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (place / "hyperfy.md").write_text(page(content), encoding="utf-8")
    print(f"{place / 'hyperfy.md'}: {content['minutes']:.1f} minutes")


if __name__ == "__main__":
    typer.run(main)

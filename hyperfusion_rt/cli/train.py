"""Commands from a study to an artifact: train, import weights, export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperfusion_rt.cli import terminal
from hyperfusion_rt.cli.figures import show_run
from hyperfusion_rt.cli.options import INPUT, OUTPUT, Json, command, spell
from hyperfusion_rt.cli.shown import Shown
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.number_text import number

if TYPE_CHECKING:
    from rich.progress import Progress

    from hyperfusion_rt.config import Config
    from hyperfusion_rt.export.import_options import ImportOptions
    from hyperfusion_rt.export.options import ExportOptions
    from hyperfusion_rt.training.options import TrainOptions
    from hyperfusion_rt.training.train import Callbacks


Configuration = Annotated[Path, typer.Option(help="The configuration.")]
Change = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Overrule a field of the configuration."),
]


def overrides(pairs: list[str]) -> dict[str, Any]:
    """What `--set` changes, as nested as the configuration."""
    from hyperfusion_rt.yaml_text import read_yaml

    change: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair}: write it as section.field=value", code="option-wrong")
        node = change
        *parents, last = name.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(
                    f"--set {pair}: another --set gives {parent!r} as a whole", code="option-wrong"
                )
        node[last] = read_yaml(text, f"--set {pair}")
    return change


@command("Examples: hfrt check; hfrt check --scans; hfrt check --set tabular.target=DX --json")
def check(
    config: Configuration = Path("hfrt.yaml"),
    change: Change = None,
    scans: Annotated[
        bool,
        typer.Option("--scans", help="Decode every scan, too, as training does it; slower."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Look at the columns, the parts and the cases of a study before training on them.

    Reads the table and finds the scans; refuses what can only be a mistake, as `hfrt train` does.
    """
    from dataclasses import asdict

    from hyperfusion_rt.config import load_config
    from hyperfusion_rt.training.check import lines
    from hyperfusion_rt.training.dataset import check_study

    settings = load_config(config, overrides(change or []))
    root = config.parent.resolve()
    with terminal.progress() as progress:
        bar = progress.add_task("decoding", total=None, visible=scans)
        found = check_study(
            settings,
            root,
            scans=scans,
            on_scan=lambda done, count: progress.update(bar, completed=done, total=count),
        )
    error = found.error(root)
    if as_json:
        content = asdict(found)
        if error is not None:
            content["error"] = {"code": error.code, "message": spell(error)}
        terminal.print_json(content)
    else:
        for line in lines(found, everything=True):
            print(spell(line))
    if error is not None:
        print(f"error: {spell(error)}", file=sys.stderr)
        raise typer.Exit(1)
    if not as_json:
        looked = "" if scans else "; the scans were not decoded (--scans does that)"
        print(f"{found.cases} cases can be used, {len(found.left_out)} are left out{looked}")


@command(
    "Examples: hfrt train; hfrt train --set network.fusion=film --set training.epochs=10; "
    "hfrt train --cross-validate; hfrt train --resume",
    options="training.options:TrainOptions",
)
def train(
    options: TrainOptions,
    config: Configuration = Path("hfrt.yaml"),
    change: Change = None,
    name: Annotated[str | None, typer.Option(help="The run's name.")] = None,
    split_file: Annotated[
        Path | None,
        typer.Option(help="A table of subjects and the part of each; a field training.split_file."),
    ] = None,
    folds: Annotated[
        bool,
        typer.Option("--cross-validate", help="Train once for each part, which is the test set."),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the latest run.")] = False,
    run: Annotated[Path | None, typer.Option(help="With --resume: the run to continue.")] = None,
    as_json: Json = False,
) -> None:
    """Train the networks that hfrt.yaml describes; writes runs/NAME."""
    terminal.need_torch("training")
    terminal.share_the_cores()
    import torch

    from hyperfusion_rt.config import load_config
    from hyperfusion_rt.training.cross_validation import CrossValidation, cross_validate
    from hyperfusion_rt.training.group import place_given
    from hyperfusion_rt.training.run_folder import Run
    from hyperfusion_rt.training.train import train as start

    if options.threads:
        torch.set_num_threads(options.threads)
    root = config.parent
    changes = overrides(change or [])
    if split_file is not None:
        changes.setdefault("training", {})["split_file"] = str(split_file.absolute())
    if resume and (changes or name):
        raise ConfigError(
            "--resume keeps the run's configuration: leave out --set, --split-file and --name",
            code="option-conflict",
        )
    if folds:
        older = None
        if resume:
            older = CrossValidation.open(run) if run else CrossValidation.latest(root / "runs")
        settings = older.config if older else load_config(config, changes)
        with terminal.progress() as progress:
            shown = _Training(progress, settings)
            made = cross_validate(
                settings,
                root,
                name=name,
                resume=older,
                options=options,
                callbacks=shown.callbacks(),
                on_fold=shown.on_fold,
            )
        _show(made.folder, made.metrics, as_json)
        return
    place = place_given()
    quiet = place is not None and place.rank > 0  # of those that train together, the first speaks
    old = None
    if resume:
        old = Run.open(run) if run else Run.latest(root / "runs", finished=False)
    settings = old.config if old else load_config(config, changes)
    with terminal.progress() as progress:
        shown = _Training(progress, settings)
        calls = None if quiet else shown.callbacks()
        finished = start(settings, root, name=name, resume=old, options=options, callbacks=calls)
    if not quiet:
        _show(finished.folder, finished.metrics, as_json)


def _show(folder: Path, metrics: dict[str, Any], as_json: bool) -> None:
    """What training has come to, and what comes next."""
    if as_json:
        terminal.print_json({"run": str(folder), **metrics})
        return
    folder = terminal.near(folder)
    show_run(folder, metrics)
    print(f"every prediction: {folder / 'predictions.csv'}")
    run = folder if "folds" not in metrics else folder / f"fold-{metrics['parts'][0]}"
    if "folds" not in metrics:
        print(f"learning curve: {folder / 'learning_curve.png'}")
    print(f"Next: hfrt export --run {run}")


class _Training(Shown):
    """What is shown of a training: bars on a terminal, and a line for each epoch everywhere."""

    def __init__(self, progress: Progress, config: Config) -> None:
        super().__init__(progress)
        self.training = config.training
        self.epochs = progress.add_task("training", total=None, visible=False)
        self.features = progress.add_task("frozen layers", total=None, visible=False)
        self.fold, self.folds = 1, 1
        self.done: dict[tuple[int, int], int] = {}  # epochs, by fold and member

    def callbacks(self) -> Callbacks:
        """For the library."""
        from hyperfusion_rt.export.check import check_exports
        from hyperfusion_rt.training.train import Callbacks

        return Callbacks(
            self.on_scan, self.on_check, self.on_epoch, check_exports, self.on_features
        )

    def on_features(self, done: int, count: int) -> None:
        """The frozen layers have run on a scan."""
        self.are_read()
        self.progress.update(self.features, completed=done, total=count, visible=done < count)

    def on_fold(self, fold: int, folds: int) -> None:
        """A fold of a cross-validation begins."""
        self.fold, self.folds = fold, folds
        self.say(f"fold {fold} of {folds}")

    def on_epoch(self, member: int, epoch: int, row: dict[str, Any]) -> None:
        """An epoch of a member is done."""
        epochs = self.training.epochs
        # With `jobs`, several members, and several folds, go on at the same time.
        self.done[self.fold, member] = epoch + 1
        done, total = sum(self.done.values()), epochs * self.training.members * self.folds
        self.are_read()
        self.progress.update(self.epochs, completed=done, total=total, visible=True)
        figures = {k.replace("_", " "): v for k, v in row.items() if k not in ("epoch", "lr")}
        who = f"member {member}, " if self.training.members > 1 else ""
        shown = ", ".join(f"{name} {number(value)}" for name, value in figures.items())
        self.say(f"{who}epoch {epoch + 1:3d} of {epochs}: {shown}")


@command("Example: hfrt import-checkpoint model.safetensors --name published")
def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help=".safetensors, or a torch file of tensors.")],
    name: Annotated[str | None, typer.Option(help="The run's name.")] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            help="Fit the preset's tabular encoder on this table; default: columns "
            "x0, x1, ... that are encoded already."
        ),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Make a run from weights with the published networks' layer names."""
    terminal.need_torch("importing a checkpoint")
    from hyperfusion_rt.training.imported import import_checkpoint as start

    run = start(checkpoint, runs, name=name, table=table)
    if as_json:
        terminal.print_json({"run": str(run.folder), "network": run.config.network.model_dump()})
    else:
        print(f"{run.folder}: imported. Next: hfrt export --run {run.folder}")


@command(
    "Example: hfrt import sfcn.onnx --shape 160,192,160 --normalise zscore --bins 42.5,81.5 "
    "--target age --unit years",
    name="import",
    options="export.import_options:ImportOptions",
)
def import_network(
    model: Annotated[Path, typer.Argument(help="An ONNX file, opset 11 to 23.")],
    options: ImportOptions,
    as_json: Json = False,
) -> None:
    """Make an artifact of an ONNX file: say how scans become its input, and what it answers."""
    from hyperfusion_rt.artifact.description import describe_file

    terminal.need_torch("importing a network")
    from hyperfusion_rt.export.imported import import_network as start

    artifact = start(model, options)
    for note in artifact.notes:
        print(f"note: {spell(note)}", file=sys.stderr)
    if as_json:
        content = artifact.manifest.model_dump(mode="json")
        terminal.print_json(
            {"artifact": str(artifact.folder), **content, "notes": list(artifact.notes)}
        )
        return
    unit = artifact.manifest.compared_in
    rows = [[entry.file, describe_file(entry, unit)] for entry in artifact.manifest.engines]
    terminal.table(f"{artifact.folder}: compared with float64", ["file", "what it is"], rows)
    print(f"Next: hfrt infer scans/ --artifact {artifact.folder}")


@command(
    "Examples: hfrt export; hfrt export --engine onnx --engine trt-rtx --precision fp16 "
    "--batch 1:8:32; hfrt export --serve models/",
    options="export.options:ExportOptions",
)
def export(
    options: ExportOptions,
    run: Annotated[
        Path | None, typer.Option(help="The run; default: the latest.", rich_help_panel=INPUT)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The artifact's folder; default: the run's name, which is replaced.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write an artifact from a run, and compare its engines with torch in float64."""
    from hyperfusion_rt.artifact.description import describe_file

    terminal.need_torch("exporting")
    from hyperfusion_rt.export import export_run
    from hyperfusion_rt.training.run_folder import Run

    chosen = Run.open(run) if run else Run.latest(Path("runs"))
    target = out or Path(f"{chosen.folder.name}.hfrt")
    with terminal.progress() as progress:
        bar = progress.add_task("exporting and comparing", total=None)
        artifact = export_run(
            chosen,
            target,
            options.model_copy(update={"replace": out is None}),
            on_progress=lambda phase, done, steps: progress.update(
                bar, description=f"TensorRT: {phase[:40].lower()}", completed=done, total=steps
            ),
        )
    for note in artifact.notes:
        print(f"note: {spell(note)}", file=sys.stderr)
    if as_json:
        content = artifact.manifest.model_dump(mode="json")
        terminal.print_json({"artifact": str(target), **content, "notes": list(artifact.notes)})
        return
    unit = artifact.manifest.unit
    rows = [[entry.file, describe_file(entry, unit)] for entry in artifact.manifest.engines]
    terminal.table(f"{target}: compared with float64", ["file", "what it is"], rows)
    print(
        f"Next: hfrt evaluate {target} new-scans/ --tabular new.csv, where the truth is known; or "
        f"hfrt infer new-scans/ --tabular new.csv --artifact {target}"
    )
    if options.serve is not None:
        print(
            f"{options.serve}: models {target.stem}, its trunk and its head; "
            "NVIDIA_TF32_OVERRIDE=0 "
            f"tritonserver --model-repository={options.serve.resolve()}"
        )

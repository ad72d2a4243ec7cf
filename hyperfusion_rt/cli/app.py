"""The command line. It parses and prints; what it calls is imported inside the commands.

Exit status: 0 all well, 1 an error, 2 wrong usage, 3 some cases of a cohort failed.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hyperfusion_rt.cli import terminal
from hyperfusion_rt.errors import ConfigError, HyperFusionError

if TYPE_CHECKING:
    from hyperfusion_rt.runtime.cohort.record import Result

app = typer.Typer(
    name="hfrt",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Train HyperFusion networks (a table generates weights of a 3D CNN), export them, "
    "and predict brain scans.",
    epilog="In a folder made by 'hfrt simulate': hfrt train; hfrt export; "
    "hfrt infer scans/ --tabular data.csv",
)

INTERRUPTED = 130
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


def _at_most_cores(threads: int | None) -> int | None:
    from hyperfusion_rt.machine import at_most_cores

    return at_most_cores(threads)


Threads = Annotated[
    int | None,
    typer.Option(
        callback=_at_most_cores,
        min=1,
        help="Threads; default, and at most: the cores this process may use.",
    ),
]
ChosenArtifact = Annotated[
    Path | None, typer.Option(help="The artifact; default: the latest *.hfrt here.")
]
OutTable = Annotated[Path, typer.Option(help="The table to write: .csv, .tsv, .parquet or .jsonl.")]
Report = Annotated[
    Path | None, typer.Option(help="The report; default: report.html beside the table.")
]
ScanSource = Annotated[
    Literal["registered", "raw"],
    typer.Option("--from", help="raw: with skull, not registered; see hfrt preprocess."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what exists.")]


def _version(value: bool) -> None:
    if value:
        from hyperfusion_rt import __version__

        print(f"hfrt {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: hfrt simulate cohort --task ad --subjects 300 --seed 1 --spacing 2")
def simulate(
    out: Annotated[Path, typer.Argument(help="The folder to write; new or empty.")],
    task: Annotated[
        Literal["ad", "brain-age"], typer.Option(help="What is to be predicted.")
    ] = "ad",
    subjects: Annotated[int, typer.Option(min=1, help="How many.")] = 480,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same cohort.")] = 1,
    spacing: Annotated[int, typer.Option(min=1, max=2, help="Voxel size in mm.")] = 2,
    jobs: Annotated[int | None, typer.Option(min=1, help="Worker processes.")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Simulate a cohort on the MNI152 anatomy, with a truth that is known."""
    from hyperfusion_rt.data.simulate import simulate_cohort

    with terminal.progress() as progress:
        bar = progress.add_task("simulating", total=subjects)
        summary = simulate_cohort(
            out,
            task=task,
            subjects=subjects,
            seed=seed,
            spacing=spacing,
            jobs=jobs,
            force=force,
            on_subject=lambda _: progress.advance(bar),
        )
    if as_json:
        terminal.print_json(summary)
    else:
        print(f"{out}: {subjects} subjects. Next: cd {out}; hfrt train")


def _overrides(pairs: list[str]) -> dict[str, Any]:
    import yaml

    change: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair}: write it as section.field=value")
        node = change
        *parents, last = name.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = yaml.safe_load(text)
    return change


@app.command(
    epilog="Examples: hfrt train; hfrt train --set network.fusion=film "
    "--set training.epochs=10; hfrt train --resume"
)
def train(
    config: Annotated[Path, typer.Option(help="The configuration.")] = Path("hfrt.yaml"),
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Overrule a field of the configuration."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The run's name.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the latest run.")] = False,
    run: Annotated[Path | None, typer.Option(help="With --resume: the run to continue.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N.")] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Train the networks that hfrt.yaml describes; writes runs/NAME."""
    _need_torch("training")
    _share_the_cores()
    import torch

    from hyperfusion_rt.config import load_config
    from hyperfusion_rt.training.run_folder import Run
    from hyperfusion_rt.training.train import Callbacks
    from hyperfusion_rt.training.train import train as start

    if threads:
        torch.set_num_threads(threads)
    root = config.parent
    old = None
    if resume:
        old = Run.open(run) if run else Run.latest(root / "runs", finished=False)
        if change or name:
            raise ConfigError("--resume keeps the run's configuration: leave out --set and --name")
        settings = old.config
    else:
        settings = load_config(config, _overrides(change or []))
    console = terminal.console()
    with terminal.progress() as progress:
        scans = progress.add_task("decoding", total=None)
        epochs = progress.add_task("training", total=None, visible=False)
        total = settings.training.epochs * settings.training.members

        def on_epoch(member: int, epoch: int, row: dict[str, Any]) -> None:
            done = member * settings.training.epochs + epoch + 1
            progress.update(scans, visible=False)
            progress.update(epochs, completed=done, total=total, visible=True)
            figures = {k: v for k, v in row.items() if k not in ("epoch", "lr")}
            shown = "  ".join(f"{k} {v:.4g}" for k, v in figures.items())
            console.print(
                f"member {member} epoch {epoch + 1:3d}  {shown}", highlight=False, soft_wrap=True
            )

        finished = start(
            settings,
            root,
            name=name,
            resume=old,
            device=device,
            callbacks=Callbacks(
                on_scan=lambda done, count: progress.update(scans, completed=done, total=count),
                on_epoch=on_epoch,
            ),
        )
    terminal.show_run(finished, as_json)


def _share_the_cores() -> None:
    """Before torch is imported: its threads sleep at a barrier instead of spinning.

    Where another process wants a core too, spinning made a training step 14 times slower.
    """
    import os

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _need_torch(purpose: str) -> None:
    from importlib.util import find_spec

    from hyperfusion_rt.errors import MissingExtraError

    for package in ("torch", "safetensors", "sklearn"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "train", purpose)


@app.command(
    "import-checkpoint",
    epilog="Example: hfrt import-checkpoint model.safetensors --name published",
)
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
    _need_torch("importing a checkpoint")
    from hyperfusion_rt.training.imported import import_checkpoint as start

    run = start(checkpoint, runs, name=name, table=table)
    if as_json:
        terminal.print_json({"run": str(run.folder), "network": run.config.network.model_dump()})
    else:
        print(f"{run.folder}: imported. Next: hfrt export --run {run.folder}")


@app.command(
    epilog="Examples: hfrt export; hfrt export --engine onnx --engine trt-rtx --precision fp16 "
    "--batch 1:8:32; hfrt export --serve models/"
)
def export(
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="native, onnx, trt, trt-rtx or torch; repeatable; default: the first two."
        ),
    ] = None,
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"],
        typer.Option(help="Of the engines that have it; the others stay fp32."),
    ] = "fp32",
    combine: Annotated[
        Literal["mean", "confidence_weighted", "weighted_voting", "most_confident"] | None,
        typer.Option(help="What several members say together; default: as the run says."),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="The run; default: the latest.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The artifact's folder; default: the run's name, which is replaced."),
    ] = None,
    batch: Annotated[
        str, typer.Option(help="TensorRT: smallest, usual and largest batch of cases.")
    ] = "1:8:32",
    workspace: Annotated[float, typer.Option(help="TensorRT: GiB that a layer may use.")] = 4.0,
    compute_capability: Annotated[
        list[int] | None,
        typer.Option(help="trt-rtx: 80 for 8.0; repeatable; default: 80, 86, 89 and 120."),
    ] = None,
    serve: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Also write a model repository for NVIDIA Triton Inference Server."
        ),
    ] = None,
    serve_backend: Annotated[
        Literal["onnx", "tensorrt"],
        typer.Option(help="What runs the trunk there; tensorrt needs this machine's GPU."),
    ] = "onnx",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write an artifact from a run, and compare its engines with torch in float64."""
    from hyperfusion_rt.artifact.description import describe_file
    from hyperfusion_rt.runtime.engines.choose import DEFAULT_ENGINES, check_name
    from hyperfusion_rt.runtime.engines.trt_build import CAPABILITIES, BuildOptions

    if serve is None and serve_backend != "onnx":
        raise ConfigError(f"--serve-backend {serve_backend}: needs --serve DIR")
    engines = engine or DEFAULT_ENGINES
    for name in engines:
        check_name(name)
    try:
        low, usual, high = (int(part) for part in batch.split(":"))
    except ValueError:
        raise ConfigError(
            f"--batch {batch}: write it as SMALLEST:USUAL:LARGEST, such as 1:8:32"
        ) from None
    capabilities = tuple(dict.fromkeys(compute_capability or CAPABILITIES))
    options = BuildOptions((low, usual, high), workspace, capabilities)
    _need_torch("exporting")
    from hyperfusion_rt.export import export_run
    from hyperfusion_rt.training.run_folder import Run

    chosen = Run.open(run) if run else Run.latest(Path("runs"))
    target = out or Path(f"{chosen.folder.name}.hfrt")
    with terminal.progress() as progress:
        bar = progress.add_task("exporting and comparing", total=None)
        artifact = export_run(
            chosen,
            target,
            engines=engines,
            precision=precision,
            rule=combine,
            options=options,
            serve=serve,
            backend=serve_backend,
            force=force,
            replace=out is None,
            on_progress=lambda phase, done, steps: progress.update(
                bar, description=f"TensorRT: {phase[:40].lower()}", completed=done, total=steps
            ),
        )
    if as_json:
        terminal.print_json({"artifact": str(target), **artifact.manifest.model_dump(mode="json")})
        return
    for entry in artifact.manifest.engines:
        print(f"{target / entry.file}: {describe_file(entry, artifact.manifest.unit)}")
    if serve is not None:
        print(
            f"{serve}: models {target.stem}, its trunk and its head; NVIDIA_TF32_OVERRIDE=0 "
            f"tritonserver --model-repository={serve.resolve()}"
        )


def _size(text: str | None) -> int | None:
    """Bytes, from `4G`, `500M` or a number."""
    if text is None:
        return None
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    try:
        size = float(number) * units.get(unit, 0 if unit else 1)
    except ValueError:
        size = 0
    if not 0 < size < 2**60:
        raise ConfigError(f"--max-memory {text}: write it as 4G or 500M")
    return int(size)


def _shard(text: str | None) -> tuple[int, int] | None:
    """(2, 8), from `2/8`."""
    if text is None:
        return None
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ConfigError(f"--shard {text}: write it as 2/8, the second of eight")
    return int(index), int(count)


_EPILOG = (
    "Examples: hfrt infer scans/ --tabular data.csv; every night: hfrt infer scans/ --tabular "
    "data.csv --resume; in a SLURM array: --shard $SLURM_ARRAY_TASK_ID/8, then hfrt merge"
)


@app.command(epilog=_EPILOG)
def infer(
    scans: Annotated[list[Path], typer.Argument(help="Scans, or folders with scans.")],
    tabular: Annotated[Path, typer.Option(help="The table: CSV or TSV.")],
    artifact: ChosenArtifact = None,
    out: OutTable = Path("predictions.csv"),
    report: Report = None,
    engine: Annotated[
        str, typer.Option(help="native, onnx, trt, trt-rtx, torch, or auto: the fastest here.")
    ] = "auto",
    threads: Threads = None,
    source: ScanSource = "registered",
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Keep what is done already and has not changed since."),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Begin anew though the run before did not finish.")
    ] = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first case that fails.")
    ] = False,
    max_errors: Annotated[
        int | None, typer.Option(min=0, help="Stop when more cases than this have failed.")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="What the process may take, such as 4G.")
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Most cases in one call of the engine (for GPUs).")
    ] = 1,
    feature_cache: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the scans' features: a new table takes seconds."),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only this part of the subjects; hfrt merge.")
    ] = None,
    subject: Annotated[
        list[str] | None, typer.Option(help="Only this subject; repeatable.")
    ] = None,
    derivative: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write a BIDS derivatives dataset.")
    ] = None,
    executor: Annotated[
        Literal["local", "ray"], typer.Option(help="ray: on every machine of a Ray cluster.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="With ray: engines, of --threads cores each.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="With ray: the cluster; default: RAY_ADDRESS, or this one.")
    ] = None,
    id_column: Annotated[str | None, typer.Option(help="The column of subjects.")] = None,
    duplicates: Annotated[
        Literal["refuse", "first"], typer.Option(help="Several rows of one subject and session.")
    ] = "refuse",
    unmatched_scans: Annotated[
        Literal["list", "ignore", "fail"], typer.Option(help="Scans without a row.")
    ] = "list",
    unmatched_rows: Annotated[
        Literal["list", "ignore", "fail"], typer.Option(help="Rows without a scan.")
    ] = "list",
    as_json: Json = False,
) -> None:
    """Predict scans with their rows of the table; writes predictions.csv and report.html.

    Every result is written down as it comes (predictions.csv.journal): a run that was killed goes
    on with --resume.
    """
    from hyperfusion_rt.runtime.cohort.infer import infer as start
    from hyperfusion_rt.runtime.cohort.shards import shard_path

    if executor == "local" and (workers or ray_address):
        raise ConfigError("--workers and --ray-address need --executor ray")
    part = _shard(shard)
    # A shard's report would stand where the next shard's does: hfrt merge writes one.
    page = report or (None if part else out.with_name("report.html"))
    with terminal.progress() as progress:
        bar = progress.add_task("predicting", total=None)
        result = start(
            scans,
            tabular,
            artifact=artifact,
            out=out,
            report=page,
            engine=engine,
            threads=threads,
            source=source,
            id_column=id_column,
            duplicates=duplicates,
            unmatched_scans=unmatched_scans,
            unmatched_rows=unmatched_rows,
            subjects=subject or (),
            shard=part,
            resume=resume,
            force=force,
            max_errors=0 if fail_fast else max_errors,
            max_memory=_size(max_memory),
            batch=batch,
            feature_cache=feature_cache,
            derivative=derivative,
            executor=executor,
            workers=workers,
            address=ray_address,
            on_case=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    _show_inference(result, shard_path(out, part), page, as_json)


def _show_inference(
    result: Result,
    out: Path,
    page: Path | None,
    as_json: bool,
    content: dict[str, Any] | None = None,
) -> None:
    if as_json:
        terminal.print_json(content or result.as_dict())
    else:
        summary = result.summary
        new = summary["ok"] - result.taken_over
        if new > 0 and summary["wall_seconds"]:
            parts = ", ".join(
                f"{name} {value:.0f}" for name, value in summary["ms_per_scan"].items()
            )
            rate = summary["wall_seconds"] / new
            print(
                f"{new} predicted by the {result.engine} engine: {1e3 * rate:.0f} ms per scan "
                f"({parts}, in ms)"
            )
            use = result.usage.utilisation()
            if bound := result.usage.bound():
                print(f"bounded by the {bound} stage, busy {use[bound]:.0%} of the time")
        if result.taken_over:
            print(f"{result.taken_over} were done before")
        for note in result.notes:
            print(f"warning: {note}", file=sys.stderr)
        for item in result.failed[:10]:
            print(f"{item.subject}: {item.reason}", file=sys.stderr)
        if len(result.failed) > 10:
            print(f"... and {len(result.failed) - 10} more: see {out}", file=sys.stderr)
        if result.ending == "stopped":
            print("stopped; continue with --resume", file=sys.stderr)
        print(f"{summary['error']} failed, {summary['skipped']} skipped")
        print(f"written: {out}" + (f", {page}" if page else ""))
    if result.ending == "interrupted":
        print("continue with --resume", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if result.summary["error"]:
        raise typer.Exit(3)


@app.command(
    epilog="Examples: hfrt preprocess raw/ --out scans; hfrt preprocess dicom/ --out scans"
)
def preprocess(
    scans: Annotated[
        list[Path], typer.Argument(help="Raw T1 scans, folders with them, or DICOM folders.")
    ],
    out: Annotated[Path, typer.Option(help="The folder for the registered scans.")],
    artifact: Annotated[
        Path | None, typer.Option(help="Measure the coverage of this artifact's boxes.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Measure the coverage of this preset's boxes.")
    ] = None,
    threads: Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Do again what is there.")] = False,
    as_json: Json = False,
) -> None:
    """Register raw T1 scans to MNI space, correct their bias field, take the skull off.

    Writes each scan with a JSON sidecar, and quality.csv. Run again to continue.
    """
    from dataclasses import asdict

    from hyperfusion_rt.artifact.manifest import Artifact
    from hyperfusion_rt.config import preset as named
    from hyperfusion_rt.runtime.cohort.preprocess import TABLE
    from hyperfusion_rt.runtime.cohort.preprocess import preprocess as start

    boxes = named(preset).preprocessing if preset else None
    if artifact is not None:
        boxes = Artifact.open(artifact).manifest.preprocessing
    with terminal.progress() as progress:
        bar = progress.add_task("registering", total=None)
        found = start(
            scans,
            out,
            preprocessing=boxes,
            threads=threads,
            force=force,
            on_scan=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    failed = [item for item in found if item.status == "error"]
    if as_json:
        terminal.print_json({"scans": [asdict(item) for item in found]})
    else:
        for item in found:
            if item.reason:
                print(f"{item.scan}: {item.reason}", file=sys.stderr)
        kept = sum(item.status == "kept" for item in found)
        print(f"{len(found) - len(failed) - kept} registered, {kept} kept, {len(failed)} failed")
        print(f"written: {out}, {out / TABLE}")
    if failed:
        raise typer.Exit(3)


@app.command(
    "bids-app",
    epilog="Examples: hfrt bids-app BIDS derivatives/hfrt participant --participant-label 01; "
    "hfrt bids-app BIDS derivatives/hfrt group",
)
def bids_app(
    bids_dir: Annotated[Path, typer.Argument(help="The dataset.")],
    out: Annotated[Path, typer.Argument(help="The derivatives dataset.")],
    level: Annotated[
        Literal["participant", "group"],
        typer.Argument(help="participant predicts; group collects what is there."),
    ],
    participant_label: Annotated[
        list[str] | None, typer.Option(help="With or without sub-; repeatable; default: all.")
    ] = None,
    session_label: Annotated[
        list[str] | None, typer.Option(help="With or without ses-; repeatable; default: all.")
    ] = None,
    artifact: ChosenArtifact = None,
    tabular: Annotated[
        Path | None, typer.Option(help="The table; default: participants.tsv of the dataset.")
    ] = None,
    engine: Annotated[str, typer.Option(help="As for hfrt infer.")] = "auto",
    threads: Threads = None,
    source: ScanSource = "registered",
    as_json: Json = False,
) -> None:
    """Predict a BIDS dataset into a BIDS derivatives dataset, as a BIDS App."""
    from hyperfusion_rt.runtime.cohort.bids_app import bids_app as start

    with terminal.progress() as progress:
        bar = progress.add_task("predicting", total=None, visible=level == "participant")
        found = start(
            bids_dir,
            out,
            level,
            participant_label=participant_label or (),
            session_label=session_label or (),
            artifact=artifact,
            tabular=tabular,
            engine=engine,
            threads=threads,
            on_case=lambda done, total: progress.update(bar, completed=done, total=total),
            source=source,
        )
    if found.missing and not as_json:
        print(f"without a result: {', '.join(found.missing)}", file=sys.stderr)
    _show_inference(found.result, found.table or found.out, found.report, as_json, found.as_dict())


@app.command(epilog="Example: hfrt merge predictions.shard-*.csv --out predictions.csv")
def merge(
    shards: Annotated[list[Path], typer.Argument(help="The shards' tables, or their folder.")],
    artifact: Annotated[
        Path | None, typer.Option(help="The artifact, if it is not where the shards found it.")
    ] = None,
    out: OutTable = Path("predictions.csv"),
    report: Report = None,
    as_json: Json = False,
) -> None:
    """Join what the shards of a run predicted (hfrt infer --shard I/N), all of them or none."""
    from hyperfusion_rt.runtime.cohort.shards import merge as start

    page = report or out.with_name("report.html")
    _show_inference(start(shards, artifact=artifact, out=out, report=page), out, page, as_json)


@app.command(epilog="Examples: hfrt bench; hfrt bench --preset brain-age --batch 1 --only onnx")
def bench(
    artifact: Annotated[Path | None, typer.Option(help="Default: the latest here.")] = None,
    run: Annotated[Path | None, typer.Option(help="Its run; default: by name in runs/.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Time this preset with random weights instead.")
    ] = None,
    features: Annotated[int | None, typer.Option(min=1, help="With --preset: f.")] = None,
    batch: Annotated[list[int], typer.Option(help="Batch sizes; may be repeated.")] = [1, 4],  # noqa: B006
    threads: Threads = None,
    rounds: Annotated[int, typer.Option(min=2, help="Timings of each; the median counts.")] = 9,
    only: Annotated[
        list[str] | None, typer.Option(help="Contenders whose names begin so; repeatable.")
    ] = None,
    scans: Annotated[
        Path | None, typer.Option(help="Scans for the time per scan from the file.")
    ] = None,
    tabular: Annotated[Path | None, typer.Option(help="Their table.")] = None,
    out: Annotated[Path, typer.Option(help="Writes OUT.json and OUT.png.")] = Path("bench"),
    as_json: Json = False,
) -> None:
    """Time the engine beside its peers, in one run and after a check of correctness."""
    _need_torch("the benchmark")
    from hyperfusion_rt.bench.measure import bench as start

    with terminal.console().status("measuring") as status:
        found = start(
            artifact=artifact,
            run=run,
            preset_name=preset,
            features=features,
            batches=batch,
            threads=threads,
            rounds=rounds,
            only=only or [],
            scans=scans,
            tabular=tabular,
            out=out,
            on_step=lambda text: status.update(text),
        )
    if as_json:
        terminal.print_json(found.as_dict())
        return
    rows: list[list[Any]] = [
        [
            t.contender,
            t.precision,
            t.batch,
            round(t.median_ms, 2),
            round(t.spread_ms, 2),
            round(t.ms_per_box, 2),
            round(t.gflops, 1),
            f"{t.difference:.1e}{'' if t.correct else ' WRONG'}",
        ]
        for t in found.timings
    ]
    header = ["contender", "type", "batch", "ms", "IQR", "ms/box", "GFLOP/s", "off float64"]
    title = f"{found.network}: {found.gflop_per_box:.2f} GFLOP per box, {found.threads} threads"
    terminal.table(title, header, rows)
    machine = ", ".join(f"{k} {v}" for k, v in found.machine.items())
    print(f"limits here: {found.limit_gflops:.0f} GFLOP/s fp32, {found.limit_gbs:.0f} GB/s copy")
    print(f"machine: {machine}")
    for name, reason in found.left_out.items():
        print(f"left out: {name}: {reason}")
    if found.end_to_end:
        parts = ", ".join(f"{k} {v:.1f} ms" for k, v in found.end_to_end.items() if k != "scans")
        print(f"one scan from its file (median of {found.end_to_end['scans']:.0f}): {parts}")
    print(f"written: {out}.json, {out}.png")


@app.command(epilog="Example: hfrt inspect cohort.hfrt")
def inspect(
    path: Annotated[
        Path | None, typer.Argument(help="An artifact or a run; default: the latest artifact.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="The native engine's operations, with GFLOP and MB.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print what an artifact (or a run) says of itself, and check its files."""
    from hyperfusion_rt.artifact.manifest import latest_artifact

    path = path or latest_artifact(Path())
    if (path / "config.json").exists():
        from hyperfusion_rt.training.run_folder import Run

        run = Run.open(path)
        if as_json:
            terminal.print_json(
                {"config": run.config.model_dump(mode="json"), "metrics": run.metrics}
            )
        else:
            print(run.config.model_dump_json(indent=2))
            terminal.show_run(run, False)
        return
    from hyperfusion_rt.artifact.description import PLAN_HEADER, describe, plan_rows

    if plan:
        operations = plan_rows(path)
        if as_json:
            terminal.print_json([dict(zip(PLAN_HEADER, row, strict=True)) for row in operations])
        else:
            terminal.table(f"{path}: plan of member 0", PLAN_HEADER, [*operations])
        return
    content = describe(path)
    if as_json:
        terminal.print_json(content.raw)
        return
    for title, rows in content.sections.items():
        terminal.table(title, ["", ""], [list(row) for row in rows])


@app.command(epilog="Example: hfrt doctor --json")
def doctor(as_json: Json = False) -> None:
    """Print what this machine has, which engines it can use, and what is known to be bad here."""
    from hyperfusion_rt.doctor import as_dict, diagnose

    found = diagnose()
    if as_json:
        terminal.print_json(as_dict(found))
        return
    terminal.table("This machine", ["", ""], [list(row) for row in found.rows])
    rows = [[name, "yes" if usable else "no", note] for name, usable, note in found.engines]
    terminal.table("Engines", ["engine", "usable", ""], rows)
    for text in found.warnings:
        print(f"warning: {text}")
    if not found.warnings:
        print("nothing known to be bad")


@app.command(epilog="Example: hfrt demo demo")
def demo(
    out: Annotated[Path, typer.Argument(help="The folder to write.")] = Path("demo"),
    subjects: Annotated[int, typer.Option(min=60, help="Subjects to train with.")] = 600,
    held_out: Annotated[int, typer.Option(min=30, help="New subjects to predict.")] = 200,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Simulate, train, export, predict new subjects, and report: the whole way, in minutes."""
    _need_torch("the demo")
    _share_the_cores()
    from hyperfusion_rt.demo import demo as start

    console = terminal.console()
    with terminal.progress() as progress:
        bar = progress.add_task("", total=None)

        def step(text: str, done: int, total: int) -> None:
            progress.update(bar, description=text, completed=done, total=total or None)

        content = start(
            out,
            subjects=subjects,
            held_out=held_out,
            force=force,
            on_step=step,
            say=lambda text: console.print(text, highlight=False, markup=False),
        )
    if as_json:
        terminal.print_json(content)
        return
    terminal.table(
        "HyperFusion on subjects that it has not seen", ["figure", "value"], content["rows"]
    )
    print(f"report: {content['report']}")


_LABELS = ("--participant-label", "--session-label")


def _spread_labels(arguments: list[str]) -> list[str]:
    """BIDS Apps take several labels after one option (also `--participant_label`): one each."""
    if arguments[:1] != ["bids-app"]:
        return arguments
    spread: list[str] = []
    option = ""
    for text in arguments:
        name = text.replace("_", "-") if text.startswith("--") else ""
        if text.startswith("-"):
            option = name if name in _LABELS else ""
            spread += [] if option else [text]
        elif option:
            spread += [option, text]
        else:
            spread.append(text)
    return spread


def main() -> None:
    """Run the command line; a HyperFusionError is one line and exit status 1."""
    # A scheduler's SIGTERM is treated like Ctrl-C: nothing half-made is left.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app(_spread_labels(sys.argv[1:]))
    except HyperFusionError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except SystemExit as status:  # typer turns an interrupt into one
        if status.code == INTERRUPTED:
            print("interrupted", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()

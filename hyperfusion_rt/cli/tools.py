"""Commands that look: at an artifact, at this machine, at the speed, at the whole way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperfusion_rt.cli import terminal
from hyperfusion_rt.cli.figures import show_run
from hyperfusion_rt.cli.options import Force, Json, command
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.number_text import number

if TYPE_CHECKING:
    from hyperfusion_rt.bench.options import BenchOptions


@command("Examples: hfrt inspect cohort.hfrt; hfrt inspect cohort.hfrt --card > card.md")
def inspect(
    path: Annotated[
        Path | None, typer.Argument(help="An artifact or a run; default: the only *.hfrt here.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="The native engine's operations, with GFLOP and MB.")
    ] = False,
    card: Annotated[
        bool, typer.Option("--card", help="The model card, in Markdown, as the manifest says it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print what an artifact (or a run) says of itself, and check its files."""
    from hyperfusion_rt.artifact.manifest import Artifact, only_artifact

    chosen = path or only_artifact(Path())
    if card:
        from hyperfusion_rt.artifact.card import card as card_of

        if plan:
            raise ConfigError("--card and --plan: choose one", code="option-conflict")
        text = card_of(Artifact.open(chosen).manifest)
        if as_json:
            terminal.print_json({"card": text})
        else:
            print(text, end="")
        return
    if (chosen / "config.json").exists():
        from hyperfusion_rt.training.run_folder import Run

        run = Run.open(chosen)
        if as_json:
            terminal.print_json(
                {"config": run.config.model_dump(mode="json"), "metrics": run.metrics}
            )
        else:
            print(run.config.model_dump_json(indent=2))
            show_run(run.folder, run.metrics)
        return
    from hyperfusion_rt.artifact.description import PLAN_HEADER, describe, plan_rows

    if plan:
        operations = plan_rows(chosen)
        if as_json:
            terminal.print_json([dict(zip(PLAN_HEADER, row, strict=True)) for row in operations])
        else:
            terminal.table(f"{chosen}: plan of member 0", PLAN_HEADER, [*operations])
        return
    content = describe(chosen)
    if as_json:
        terminal.print_json(content.raw)
        return
    terminal.show_artifact(content.label, path is None)
    for title, rows in content.sections.items():
        terminal.table(title, ["", ""], [list(row) for row in rows])


@command("Example: hfrt doctor --json")
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


@command(
    "Examples: hfrt bench; hfrt bench --preset brain-age --batch 1 --only onnx",
    options="bench.options:BenchOptions",
)
def bench(options: BenchOptions, as_json: Json = False) -> None:
    """Time the engine beside its peers, in one run and after a check of correctness."""
    terminal.need_torch("the benchmark")
    from hyperfusion_rt.bench.measure import bench as start

    with terminal.console().status("measuring") as status:
        found = start(options, on_step=lambda text: status.update(text))
    if as_json:
        terminal.print_json(found.as_dict())
        return
    rows: list[list[Any]] = [
        [
            t.contender,
            t.precision,
            t.batch,
            t.median_ms,
            t.spread_ms,
            t.ms_per_box,
            t.gflops,
            f"{t.difference:.2e}{'' if t.correct else ' WRONG'}",
        ]
        for t in found.timings
    ]
    header = ["contender", "type", "batch", "ms", "IQR", "ms/box", "GFLOP/s", "off float64"]
    if found.artifact:
        terminal.show_artifact(found.artifact, options.artifact is None)
    title = f"{found.network}: {number(found.gflop_per_box)} GFLOP per box, {found.threads} threads"
    terminal.table(title, header, rows)
    machine = ", ".join(f"{k} {v}" for k, v in found.machine.items())
    limits = f"{number(found.limit_gflops)} GFLOP/s fp32, {number(found.limit_gbs)} GB/s copy"
    print(f"limits here: {limits}")
    print(f"machine: {machine}")
    for name, reason in found.left_out.items():
        print(f"left out: {name}: {reason}")
    if found.end_to_end:
        steps = found.end_to_end.items()
        parts = ", ".join(f"{name} {number(ms)} ms" for name, ms in steps if name != "scans")
        print(f"one scan from its file (median of {found.end_to_end['scans']:.0f}): {parts}")
    print(f"written: {options.out}.json, {options.out}.png")


@command("Example: hfrt demo demo")
def demo(
    out: Annotated[Path, typer.Argument(help="The folder to write.")] = Path("demo"),
    subjects: Annotated[int, typer.Option(min=60, help="Subjects to train with.")] = 600,
    held_out: Annotated[int, typer.Option(min=30, help="New subjects to predict.")] = 200,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Simulate, train, export, predict new subjects, and report: the whole way, in minutes."""
    terminal.need_torch("the demo")
    terminal.share_the_cores()
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

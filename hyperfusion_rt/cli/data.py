"""Commands that make data: simulate a cohort, register raw scans."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hyperfusion_rt.cli import terminal
from hyperfusion_rt.cli.options import Force, Json, Threads, command, spell

if TYPE_CHECKING:
    from hyperfusion_rt.config import Published
    from hyperfusion_rt.data.simulate.population import Model


@command(
    "Example: hfrt simulate cohort --task ad --subjects 300 --seed 1 --spacing 2",
    task="config:Published",
    model="data.simulate.population:Model",
)
def simulate(
    out: Annotated[Path, typer.Argument(help="The folder to write; new or empty.")],
    task: Annotated[Published, typer.Option(help="What is to be predicted.")] = "ad",
    subjects: Annotated[int, typer.Option(min=1, help="How many.")] = 480,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same cohort.")] = 1,
    spacing: Annotated[int, typer.Option(min=1, max=2, help="Voxel size in mm.")] = 2,
    model: Annotated[
        Model,
        typer.Option(
            help="AD: what the table changes. additive: how much atrophy is usual; "
            "place: which region's atrophy is the disease's, by APOE4."
        ),
    ] = "additive",
    scans: Annotated[
        int, typer.Option(min=1, help="Scans of each subject, as sessions: the same brain.")
    ] = 1,
    flair: Annotated[
        bool, typer.Option("--flair", help="Two images of each subject, T1w and FLAIR.")
    ] = False,
    volumes: Annotated[
        bool,
        typer.Option("--volumes", help="Volumes of hippocampi and ventricles (ml) in the table."),
    ] = False,
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
            model=model,
            scans=scans,
            flair=flair,
            volumes=volumes,
            jobs=jobs,
            force=force,
            on_subject=lambda _: progress.advance(bar),
        )
    if as_json:
        terminal.print_json(summary)
    else:
        print(f"{out}: {subjects} subjects. Next: cd {out}; hfrt train")


@command("Examples: hfrt preprocess raw/ --out scans; hfrt preprocess dicom/ --out scans")
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
    mask_suffix: Annotated[
        str | None,
        typer.Option(help="Of brain masks beside the scans: _mask for S01_mask.nii.gz."),
    ] = None,
    bids_filter: Annotated[
        Path | None,
        typer.Option(help="Which T1-weighted files are scans: a JSON file; see hfrt infer."),
    ] = None,
    threads: Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Do again what is there.")] = False,
    as_json: Json = False,
) -> None:
    """Register raw T1 scans to MNI space, correct their bias field, take the skull off.

    Writes each scan with a JSON sidecar and a picture, quality.csv and quality.html. Run again to
    continue.
    """
    from dataclasses import asdict

    from hyperfusion_rt.artifact.manifest import Artifact
    from hyperfusion_rt.config import preset as named
    from hyperfusion_rt.runtime.cohort.preprocess import PAGE, TABLE
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
            mask_suffix=mask_suffix,
            bids_filter=bids_filter,
            on_scan=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    failed = [item for item in found if item.status == "error"]
    if as_json:
        terminal.print_json({"scans": [asdict(item) for item in found]})
    else:
        for item in found:
            if item.reason:
                print(f"{item.scan}: {spell(item.reason)}", file=sys.stderr)
        kept = sum(item.status == "kept" for item in found)
        done = sum(item.status == "ok" for item in found)
        skipped = sum(item.status == "skipped" for item in found)
        more = f", {skipped} skipped" if skipped else ""
        print(f"{done} registered, {kept} kept, {len(failed)} failed{more}")
        print(f"written: {out}, {out / TABLE}, {out / PAGE}")
    if failed:
        raise typer.Exit(3)

"""What `hfrt bench` does: find or make the network, measure, write JSON and chart."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from hyperfusion_rt.artifact.manifest import Artifact, latest_artifact
from hyperfusion_rt.bench.chart import chart
from hyperfusion_rt.bench.race import Report
from hyperfusion_rt.bench.race import bench as measure
from hyperfusion_rt.config import preset
from hyperfusion_rt.data.cohort import Case
from hyperfusion_rt.data.encoder import TabularEncoder
from hyperfusion_rt.errors import ConfigError, MissingExtraError
from hyperfusion_rt.export import export_run
from hyperfusion_rt.files import write_text
from hyperfusion_rt.models import network_of
from hyperfusion_rt.runtime.predictor import Predictor
from hyperfusion_rt.training.imported import run_from_state
from hyperfusion_rt.training.run_folder import Run

# End-to-end times are medians over at most so many scans.
_SCANS = 20


def random_run(preset_name: str, features: int | None, parent: Path, width: int = 15) -> Run:
    """A run with the preset's network and random weights, in `parent`; for timing only."""
    change = {"network": {"features": features}} if features else {}
    config = preset(preset_name, change)
    width = width if config.task == "ad" else 2
    torch.manual_seed(0)
    network = network_of(config, width)
    encoder = TabularEncoder.passthrough(width)
    state = network.state_dict()
    return run_from_state(state, config, encoder, parent, name=preset_name, source="random")


def bench(
    *,
    artifact: Path | None,
    run: Path | None,
    preset_name: str | None,
    features: int | None,
    batches: Sequence[int],
    threads: int | None,
    rounds: int,
    only: Sequence[str],
    scans: Path | None,
    tabular: Path | None,
    out: Path,
    on_step: Callable[[str], None] | None = None,
) -> Report:
    """Measure, and write `OUT.json` and `OUT.png`; see `hfrt bench --help`.

    Raises:
        HyperFusionError: there is no artifact or run, or nothing could be timed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtraError("matplotlib", "bench", "the chart") from None
    with tempfile.TemporaryDirectory() as scratch:
        if preset_name is not None:
            if on_step is not None:
                on_step("exporting the preset with random weights")
            source = random_run(preset_name, features, Path(scratch))
            built = export_run(source, Path(scratch) / f"{preset_name}.hfrt")
        else:
            built = Artifact.open(artifact or latest_artifact(Path()))
            source = _run_of(built, run)
        found = measure(
            source,
            built,
            batches=batches,
            threads=threads,
            rounds=rounds,
            only=only,
            cases=_cases(built, preset_name, scans, tabular, threads),
            on_step=on_step,
        )
    write_text(out.with_name(f"{out.name}.json"), json.dumps(found.as_dict(), indent=2) + "\n")
    chart(found, out.with_name(f"{out.name}.png"))
    return found


def _run_of(artifact: Artifact, run: Path | None) -> Run:
    name = artifact.manifest.provenance.run
    folder = run or artifact.folder.resolve().parent / "runs" / name
    if not folder.exists():
        raise ConfigError(
            f"{folder}: the run behind {artifact.folder} is not there, and the torch contenders "
            "need its weights; name it with --run"
        )
    found = Run.open(folder)
    if found.folder.name != name:
        raise ConfigError(f"{artifact.folder} was exported from run '{name}', not from {folder}")
    return found


def _cases(
    artifact: Artifact,
    preset_name: str | None,
    scans: Path | None,
    tabular: Path | None,
    threads: int | None,
) -> list[Case]:
    """The scans to time from the file: those given, or the ones that stand beside the artifact."""
    if preset_name is not None:
        return []
    root = artifact.folder.resolve().parent
    scans, tabular = scans or root / "scans", tabular or root / "data.csv"
    if not (scans.exists() and tabular.exists()):
        return []
    return Predictor(artifact, threads=threads).gather(scans, tabular).cases[:_SCANS]

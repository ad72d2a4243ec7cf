"""Where each epoch's figures are written: TensorBoard always, MLflow and Weights & Biases if asked.

Both of these stay on this machine unless the environment says otherwise: MLflow writes to
`mlflow.db` beside the runs (another place: MLFLOW_TRACKING_URI), Weights & Biases into the run's
folder (WANDB_MODE=online sends it). They get the configuration and figures: no file, no picture,
no id, and neither user, host nor command line.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from hyperfusion_rt.config import Config
from hyperfusion_rt.errors import HyperFusionError, MissingExtraError
from hyperfusion_rt.files import write_text
from hyperfusion_rt.training.run_folder import Member

Tracker = Literal["mlflow", "wandb"]
PROJECT = "hyperfusion_rt"  # MLflow's experiment, the project of Weights & Biases
IDS = "trackers.json"  # in a member's folder: which run of which tracker it is
MLFLOW_STORE = "mlflow.db"


class _Board(Protocol):
    """One place that figures go to; `id` is its name for the run."""

    id: str

    def write(self, epoch: int, figures: dict[str, float]) -> None: ...
    def close(self, failed: bool) -> None: ...


class Trackers:
    """Writes an epoch's row to every place. `start`: the first epoch, above 0 of a resumed run.

    A run that goes on goes on in the same run of each tracker, whether it is named again or not:
    their ids are in the member's folder. What a tracker does not take is tried again after the next
    epoch: a server that is away for an hour ends no training.

    Raises:
        MissingExtraError: a tracker's package is not installed.
        HyperFusionError: a tracker's server cannot be reached, or refuses.
    """

    def __init__(
        self, member: Member, config: Config, names: Sequence[Tracker] = (), start: int = 0
    ) -> None:
        self._boards: dict[str, _Board] = {"tensorboard": _TensorBoard(member, start)}
        self._waiting: dict[str, list[tuple[int, dict[str, float]]]] = {}
        known = _kept(member)
        try:
            for name in dict.fromkeys([*names, *(n for n in _KINDS if n in known)]):
                made = _KINDS[name]
                try:
                    with _of_others():
                        self._boards[name] = made(member, config, known.get(name))
                except ImportError:
                    what = f"`trackers` {name}"
                    raise MissingExtraError(_PACKAGES[name], name, what) from None
                except Exception as error:
                    raise _refused(name, error) from error
        except HyperFusionError:
            self.close(failed=True)
            raise
        ids = {**known, **{name: board.id for name, board in self._boards.items() if board.id}}
        if ids:
            write_text(member.folder / IDS, json.dumps(ids, indent=1) + "\n")

    def write(self, epoch: int, row: dict[str, Any]) -> None:
        """The figures of an epoch, from 0."""
        figures = {name: float(value) for name, value in row.items() if name != "epoch"}
        for name in self._boards:
            self._waiting.setdefault(name, []).append((epoch, figures))
            self._try(name)

    def _try(self, name: str) -> Exception | None:
        """Write what waits; what kept that from being done."""
        waiting = self._waiting.get(name, [])
        try:
            with _of_others():
                while waiting:
                    self._boards[name].write(*waiting[0])
                    waiting.pop(0)
        except Exception as error:
            return error
        return None

    def close(self, failed: bool = False) -> None:
        """All is written; `failed`: the training ended before its time.

        Raises:
            HyperFusionError: a tracker has not taken everything.
        """
        refused: HyperFusionError | None = None
        for name in list(self._boards):
            error = self._try(name)
            try:
                with _of_others():
                    self._boards.pop(name).close(failed)
            except Exception as last:
                error = error or last
            if error is not None:
                refused = refused or _refused(name, error)
        if refused is not None and not failed:
            raise refused

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(failed=kind is not None)


def _refused(name: str, error: Exception) -> HyperFusionError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return HyperFusionError(
        f"`trackers` {name}: {reason}; the run is kept, with all figures in history.csv: see that "
        "the tracker can be reached, and go on with `resume`",
        code="tracker-failed",
    )


def _kept(member: Member) -> dict[str, str]:
    try:
        found = json.loads((member.folder / IDS).read_text(encoding="utf-8"))
        return {str(name): str(value) for name, value in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _title(member: Member, config: Config) -> str:
    """RUN, or RUN/member-0 where there are several."""
    run = member.folder.parent.name
    return f"{run}/{member.folder.name}" if config.training.members > 1 else run


def _fields(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """`("training.lr", 0.001)`, ...: lists stay as they are."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _fields(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


@contextlib.contextmanager
def _of_others() -> Iterator[None]:
    """Warnings of a tracker's own packages are not the user's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _TensorBoard:
    id = ""

    def __init__(self, member: Member, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What was written after the checkpoint that a run goes on from is forgotten.
        self._writer: Any = SummaryWriter(str(member.folder / "tensorboard"), purge_step=start)

    def write(self, epoch: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, epoch)

    def close(self, failed: bool) -> None:
        self._writer.close()


class _MLflow:
    def __init__(self, member: Member, config: Config, known: str | None) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        runs = member.folder.resolve().parent.parent
        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs / MLFLOW_STORE}"
        # The client, not `mlflow.start_run`, which adds the user's name, paths and Git's state.
        self._client: Any = MlflowClient(tracking_uri=place)
        if known is not None:
            self.id = known
            self._client.update_run(known, status="RUNNING")
            return
        run = self._client.create_run(self._experiment(runs), run_name=_title(member, config))
        self.id = run.info.run_id
        fields = _fields(config.model_dump(mode="json"))
        # Names of columns and classes may hold what MLflow allows in no name.
        params = [Param(re.sub(r"[^\w. /-]", "_", k), str(v)[:500]) for k, v in fields]
        for first in range(0, len(params), 100):  # as many as a server takes at once
            self._client.log_batch(self.id, params=params[first : first + 100])

    def _experiment(self, runs: Path) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        # Where a local store would keep files; none is ever written.
        own = None if os.environ.get("MLFLOW_TRACKING_URI") else (runs / "mlflow-files").as_uri()
        return str(self._client.create_experiment(name, artifact_location=own))

    def write(self, epoch: int, figures: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self._metric(name, value, now, epoch)
            for name, value in figures.items()
            if math.isfinite(value)
        ]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self.id, status="FAILED" if failed else "FINISHED")


class _WeightsAndBiases:
    def __init__(self, member: Member, config: Config, known: str | None) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self.id = known or secrets.token_hex(4)
        folder = member.folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        mode = os.environ.get("WANDB_MODE") or "offline"
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=_title(member, config),
            id=self.id,
            # Offline there is nothing to look up: the same id joins both when they are sent.
            resume=None if mode == "offline" else "allow",
            dir=str(folder),
            config=config.model_dump(mode="json"),
            reinit="create_new",
            settings=wandb.Settings(
                mode=mode,
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                save_code=False,
                disable_job_creation=True,
                x_disable_meta=True,  # the user, the host, the command line
                x_disable_stats=True,
                x_disable_machine_info=True,
            ),
        )

    def write(self, epoch: int, figures: dict[str, float]) -> None:
        self._run.log(figures, step=epoch)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)


_KINDS: dict[Tracker, Any] = {"mlflow": _MLflow, "wandb": _WeightsAndBiases}
_PACKAGES: dict[Tracker, str] = {"mlflow": "mlflow", "wandb": "wandb"}

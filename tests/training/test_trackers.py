"""Figures go to TensorBoard, and to MLflow and Weights & Biases where they are asked for."""

import json
import sqlite3
import sys
import time

import pytest

from hyperfusion_rt.config import load_config, preset
from hyperfusion_rt.errors import HyperFusionError, MissingExtraError
from hyperfusion_rt.training import trackers
from hyperfusion_rt.training.options import TrainOptions
from hyperfusion_rt.training.run_folder import Member
from hyperfusion_rt.training.trackers import Trackers
from hyperfusion_rt.training.train import Callbacks, train

TINY = {
    "network": {"features": 2, "fusion": "tabular"},
    "training": {"epochs": 3, "embedding_epochs": 1, "batch_size": 16, "parts": 5},
}
ROW = {"epoch": 0, "lr": 0.1, "train_loss": 1.0, "validation_loss": float("nan")}


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """No environment of the machine's says where figures go."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def member_of(tmp_path):
    folder = tmp_path / "runs" / "one" / "member-0"
    folder.mkdir(parents=True)
    return Member(folder)


def asked(path, query):
    with sqlite3.connect(path) as database:
        found = database.execute(query).fetchall()
    database.close()
    return found


@pytest.mark.slow
def test_mlflow_goes_on_in_the_same_run(session_cohort, tmp_path):
    pytest.importorskip("mlflow", reason="mlflow is not installed: its tracker was not tested")

    class Killed(Exception):
        pass

    def die(member, epoch, row):
        if epoch == 1:
            raise Killed

    config = load_config(session_cohort / "hfrt.yaml", TINY)
    given = {"options": TrainOptions(trackers=("mlflow",)), "parent": tmp_path / "runs"}
    with pytest.raises(Killed):
        train(config, session_cohort, name="a", callbacks=Callbacks(on_epoch=die), **given)
    store = tmp_path / "runs" / "mlflow.db"
    assert asked(store, "select name, status from runs") == [("a", "FAILED")]
    from hyperfusion_rt.training.run_folder import Run

    old = Run.open(tmp_path / "runs" / "a")
    # It is not named again: a run keeps its trackers.
    run = train(config, session_cohort, resume=old)
    assert asked(store, "select name, status from runs") == [("a", "FINISHED")]
    steps = asked(store, "select step, value from metrics where key = 'validation_loss'")
    history = (run.member(0).folder / "history.csv").read_text().splitlines()
    column = history[0].split(",").index("validation_loss")
    assert sorted(steps) == [
        (n, float(row.split(",")[column])) for n, row in enumerate(history[1:])
    ]
    params = dict(asked(store, "select key, value from params"))
    assert params["network.fusion"] == "tabular"
    assert params["training.epochs"] == "3"
    tags = dict(asked(store, "select key, value from tags"))
    assert set(tags) == {"mlflow.runName"}
    content = store.read_bytes()
    for told in (b"S001", bytes(str(session_cohort), "utf-8")):
        assert told not in content
    (identity,) = asked(store, "select run_uuid from runs")
    kept = json.loads((run.member(0).folder / "trackers.json").read_text())
    assert kept == {"mlflow": identity[0]}


@pytest.mark.slow
def test_wandb_writes_into_the_run_and_sends_nothing(tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed: its tracker was not tested")
    member = member_of(tmp_path)
    config = preset("ad-small", TINY)
    for start in (0, 1):
        with Trackers(member, config, ["wandb"], start) as board:
            board.write(start, {**ROW, "epoch": start})
    found = sorted((member.folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(found) == 2
    identity = json.loads((member.folder / "trackers.json").read_text())["wandb"]
    for path in found:
        assert path.name == f"run-{identity}.wandb"
        # The service of Weights & Biases writes the last of it after the run has ended.
        end = time.monotonic() + 20
        while b"train_loss" not in (content := path.read_bytes()):
            assert time.monotonic() < end
            time.sleep(0.1)
        assert bytes(str(tmp_path), "utf-8") not in content


def test_a_package_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "mlflow.entities", None)
    config = preset("ad-small", TINY)
    with pytest.raises(MissingExtraError, match=r"hyperfusion_rt\[mlflow\]") as error:
        Trackers(member_of(tmp_path), config, ["mlflow"])
    assert error.value.parameter == "trackers"


class Flaky:
    """A tracker that is away for a while."""

    def __init__(self, member, config, known):
        self.id, self.written, self.away = known or "x", [], 0
        self.ended = None
        type(self).last = self

    def write(self, epoch, figures):
        if self.away:
            self.away -= 1
            raise ConnectionError("nobody is there\nat all")
        self.written.append((epoch, figures["lr"]))

    def close(self, failed):
        self.ended = "failed" if failed else "done"


@pytest.fixture
def flaky(monkeypatch, tmp_path):
    monkeypatch.setitem(trackers._KINDS, "wandb", Flaky)
    config = preset("ad-small", TINY)
    return Trackers(member_of(tmp_path), config, ["wandb"]), Flaky.last


def test_what_a_tracker_does_not_take_is_tried_again(flaky):
    board, place = flaky
    with board:
        place.away = 2
        for epoch in range(4):
            board.write(epoch, {**ROW, "epoch": epoch, "lr": epoch / 10})
            assert len(place.written) == (epoch + 1 if epoch > 1 else 0)
    assert place.written == [(0, 0.0), (1, 0.1), (2, 0.2), (3, 0.3)]
    assert place.ended == "done"


def test_a_tracker_that_stays_away_is_told_at_the_end(flaky):
    board, place = flaky
    place.away = 99
    board.write(0, ROW)
    with pytest.raises(HyperFusionError, match="wandb: nobody is there; the run is kept") as error:
        board.close()
    assert error.value.code == "tracker-failed"
    assert place.ended == "done"


def test_a_training_that_fails_says_so_itself(flaky):
    board, place = flaky

    def fail():
        with board:
            place.away = 99
            board.write(0, ROW)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert place.ended == "failed"

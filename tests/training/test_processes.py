"""Several processes that train one network."""

import csv
import multiprocessing
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import torch

from hyperfusion_rt.config import load_config
from hyperfusion_rt.errors import ConfigError, HyperFusionError
from hyperfusion_rt.training import group as groups
from hyperfusion_rt.training import train as training
from hyperfusion_rt.training.group import Group, Place, joined, place_given
from hyperfusion_rt.training.loop import summarise
from hyperfusion_rt.training.options import TrainOptions
from hyperfusion_rt.training.results import answers_of
from hyperfusion_rt.training.run_folder import Run
from hyperfusion_rt.training.train import Callbacks, device_of, train

TINY = {
    "network": {"features": 2},
    # 24 training cases in batches of 7: the last has three, fewer than four processes.
    "training": {"epochs": 3, "embedding_epochs": 2, "batch_size": 7, "parts": 5, "members": 1},
}
ENVIRONMENT = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE",
)  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)

    def put(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        return place_given()

    return put


def test_a_process_alone_knows_it(environment):
    assert environment() is None


def test_torchrun_says_the_place(environment):
    found = environment(
        RANK="3", WORLD_SIZE="4", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="node1", MASTER_PORT="29400",
    )  # fmt: skip
    assert found == Place(3, 4, 1, 2, "node1", 29400)


def test_srun_says_the_place(environment):
    found = environment(
        SLURM_STEP_NUM_TASKS="5", SLURM_PROCID="4", SLURM_LOCALID="0", SLURM_NODEID="2",
        SLURM_STEP_NODELIST="gpu[07-09]", SLURM_STEP_TASKS_PER_NODE="2(x2),1", SLURM_JOB_ID="41",
    )  # fmt: skip
    assert found == Place(4, 5, 0, 1, "gpu07", 20041)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[07-09,12],cpu3", "gpu07"), ("cpu3,gpu[1-2]", "cpu3"), ("login", "login")],
)
def test_the_first_host_of_a_list(nodes, first):
    assert groups._first_host(nodes) == first


def test_a_batch_script_is_one_process(environment):
    assert environment(SLURM_JOB_ID="41", SLURM_PROCID="0", SLURM_NTASKS="4") is None


@pytest.mark.parametrize(
    "values",
    [
        {"RANK": "x", "WORLD_SIZE": "2"},
        {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"},
    ],
)
def test_half_an_environment_is_refused(environment, values):
    with pytest.raises(ConfigError, match="incomplete") as error:
        environment(**values)
    assert error.value.code == "option-conflict"


def test_options_that_do_not_go_together():
    with pytest.raises(ConfigError, match="`node_rank` 2 is none of 2 machines"):
        TrainOptions(nodes=2, node_rank=2)
    with pytest.raises(ConfigError, match="HOST:PORT"):
        TrainOptions(nodes=2, rendezvous="here")
    with pytest.raises(ConfigError, match="`devices` and `nodes` train one network"):
        TrainOptions(devices=2, jobs=2)


def test_machines_need_a_place_to_meet(session_cohort):
    config = load_config(session_cohort / "hfrt.yaml", TINY)
    with pytest.raises(ConfigError, match="`nodes` needs `rendezvous`"):
        train(config, session_cohort, options=TrainOptions(nodes=2))


def test_a_launcher_of_another_size():
    with pytest.raises(ConfigError, match=r"started 3 processes, but .* say 2"):
        device_of(TrainOptions(devices=2, device="cpu"), Place(0, 3))


def test_nccl_is_missing(monkeypatch):
    monkeypatch.setattr(groups.dist, "is_nccl_available", lambda: False)
    with (
        pytest.raises(ConfigError, match="need NCCL, and this torch has none") as error,
        joined(Place(0, 2), torch.device("cuda")),
    ):
        pass
    assert error.value.code == "device-unavailable"


def test_more_processes_than_samples(session_cohort):
    config = load_config(session_cohort / "hfrt.yaml", TINY)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"8 processes .* a step has 7 samples") as error:
        train(config, session_cohort, options=TrainOptions(devices=8))
    assert error.value.code == "training-too-many-processes"
    assert time.monotonic() - began < 5  # before any is started


def test_more_processes_than_cases(session_cohort):
    change = {**TINY, "training": {**TINY["training"], "batch_size": 64}}
    config = load_config(session_cohort / "hfrt.yaml", change)
    dataset = training.gather(config, session_cohort)
    with pytest.raises(ConfigError, match=r"30 processes .* the training part 2") as error:
        training._refuse_unlike(Group(Place(0, 30)), dataset, config, session_cohort)
    assert error.value.code == "training-too-many-processes"


@pytest.mark.parametrize("count", [1, 2, 5, 7])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_every_sample_is_one_processes(count, size):
    parts = [Group(Place(rank, size)).part(count) for rank in range(size)]
    assert [i for part in parts for i in range(count)[part]] == list(range(count))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


# ---- processes


def curve(run):
    with open(run.member(0).folder / "history.csv") as file:
        rows = list(csv.DictReader(file))
    return np.array([[float(row["train_loss"]), float(row["validation_loss"])] for row in rows])


@pytest.fixture(scope="module")
def alone(session_cohort):
    """The run of one process, and how far one unit in the last place of its weights carries."""
    config = load_config(session_cohort / "hfrt.yaml", TINY)
    whole = train(config, session_cohort, name="one-process")
    build = training.Trainer.build
    with pytest.MonkeyPatch.context() as patch:

        def other(self):
            network = build(self)
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.copy_(torch.nextafter(parameter, parameter + 1))
            return network

        patch.setattr(training.Trainer, "build", other)
        near = train(config, session_cohort, name="one-process-ulp")
    return curve(whole), np.abs(curve(near) - curve(whole)).max()


def assert_same_curve(run, alone):
    """As far apart as rounding carries: processes round each sum of a step anew."""
    expected, apart = alone
    assert len(curve(run)) == len(expected)
    assert np.abs(curve(run) - expected).max() < max(20 * apart, 1e-5)


@pytest.mark.slow
def test_a_killed_process_ends_all_and_another_number_goes_on(session_cohort, alone):
    config = load_config(session_cohort / "hfrt.yaml", TINY)
    killed = []

    def kill(member, epoch, row):
        if not killed:
            second = multiprocessing.active_children()[-1]
            os.kill(second.pid, signal.SIGKILL)
            killed.append(time.monotonic())

    with pytest.raises(HyperFusionError, match="killed by signal 9") as error:
        train(
            config,
            session_cohort,
            name="killed-process",
            options=TrainOptions(devices=2, threads=1),
            callbacks=Callbacks(on_epoch=kill),
        )
    assert time.monotonic() - killed[0] < 15
    assert error.value.code == "training-process-died"
    assert "is kept: continue" in str(error.value)
    assert not multiprocessing.active_children()
    run = Run.latest(session_cohort / "runs", finished=False)
    assert run.folder.name == "killed-process"
    assert 1 <= len(curve(run)) < 3
    done = train(run.config, session_cohort, resume=run, options=TrainOptions(devices=3, threads=1))
    assert_same_curve(done, alone)


@pytest.mark.slow
def test_four_processes_learn_as_one_does(session_cohort, alone):
    config = load_config(session_cohort / "hfrt.yaml", TINY)
    options = TrainOptions(devices=4, threads=1)
    run = train(config, session_cohort, name="four", options=options)
    assert_same_curve(run, alone)
    assert run.metrics["cases"]["test"] == 8
    # What each of them predicted is what the network that was kept predicts.
    outputs = answers_of(run, training.gather(config, session_cohort), torch.device("cpu"))
    values = summarise(config, outputs)
    with open(run.folder / "predictions.csv") as file:
        written = list(csv.DictReader(file))
    for row, value in zip(written, values, strict=True):
        found = [float(row[f"p_{name}"]) for name in config.tabular.classes]
        np.testing.assert_allclose(found, value, atol=1e-5)


@pytest.mark.slow
def test_machines_that_see_different_tables_are_refused(session_cohort, tmp_path):
    """Two machines, as two calls that meet; each starts a process of its own."""
    other = tmp_path / "other"
    shutil.copytree(session_cohort, other, ignore=shutil.ignore_patterns("runs", "*.hfrt"))
    lines = (other / "data.csv").read_text().splitlines()
    cells = lines[1].split(",")
    age = lines[0].split(",").index("AGE")
    cells[age] = str(float(cells[age]) + 1)
    (other / "data.csv").write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n")
    config = load_config(session_cohort / "hfrt.yaml", TINY)
    found = {}

    def machine(rank, root):
        options = TrainOptions(nodes=2, node_rank=rank, rendezvous="127.0.0.1:29651", threads=1)
        try:
            train(config, root, name="machines", options=options)
        except HyperFusionError as error:
            found[rank] = error

    threads = [
        threading.Thread(target=machine, args=item) for item in enumerate((session_cohort, other))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert {error.code for error in found.values()} == {"training-processes-differ"}
    assert "process 1 of 2 has another scan or row than process 0" in str(found[0])
    assert not (session_cohort / "runs" / "machines").exists()

"""Training end to end on a small simulated cohort."""

import csv
import json
import resource

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hyperfusion_rt.config import load_config
from hyperfusion_rt.errors import ConfigError, HyperFusionError
from hyperfusion_rt.training import loop
from hyperfusion_rt.training.dataset import gather
from hyperfusion_rt.training.learner import Learner
from hyperfusion_rt.training.loop import Trainer
from hyperfusion_rt.training.memory import check_budget
from hyperfusion_rt.training.options import TrainOptions
from hyperfusion_rt.training.run_folder import Member, Run
from hyperfusion_rt.training.train import Callbacks, choose_device, train

TINY = {
    "network": {"features": 2},
    "training": {"epochs": 3, "embedding_epochs": 2, "batch_size": 8, "parts": 5},
}


def numbers(run):
    """The history without the times."""
    with open(run.member(0).folder / "history.csv") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_a_run_holds_everything(session_run):
    folder = session_run.folder
    for name in ("config.json", "splits.csv", "metrics.json", "learning_curve.png"):
        assert (folder / name).stat().st_size > 0
    assert len(session_run.members) == 2
    for member in session_run.members:
        assert member.weights.exists()
        assert list((member.folder / "tensorboard").iterdir())
        assert len(numbers(session_run)) == 2
    test = session_run.metrics["test"]
    assert test["cases"] == 8
    assert sum(map(sum, test["confusion"])) == 8
    assert 0 <= test["balanced_accuracy"] <= 1


def test_the_encoder_saw_training_rows_only(session_run):
    with open(session_run.folder / "splits.csv") as file:
        rows = list(csv.DictReader(file))
    for index, member in enumerate(session_run.members):
        count = sum(row[f"member_{index}"] == "train" for row in rows)
        assert member.encoder.training_rows == count == 24
    first, second = (m.encoder.columns[0] for m in session_run.members)
    assert (first.mean, first.std) != (second.mean, second.std)


class Killed(Exception):
    pass


def test_a_killed_run_resumes_to_the_same_numbers(session_cohort):
    config = load_config(session_cohort / "hfrt.yaml", TINY)
    whole = train(config, session_cohort, name="whole")

    def kill(member, epoch, row):
        if epoch == 0:
            raise Killed

    with pytest.raises(Killed):
        train(config, session_cohort, name="killed", callbacks=Callbacks(on_epoch=kill))
    killed = Run.latest(session_cohort / "runs", finished=False)
    assert killed.folder.name == "killed"
    assert len(numbers(killed)) == 1
    resumed = train(killed.config, session_cohort, resume=killed)
    assert numbers(resumed) == numbers(whole)
    assert resumed.metrics == whole.metrics
    a, b = (load_file(run.member(0).weights) for run in (whole, resumed))
    assert all(np.array_equal(a[k].numpy(), b[k].numpy()) for k in a)


def test_a_disk_that_fills_up_leaves_the_last_epoch(session_cohort):
    config = load_config(session_cohort / "hfrt.yaml", TINY)
    whole = train(config, session_cohort, name="roomy")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(member, epoch, row):
        # Larger files cannot be written any more, as on a full disk: the checkpoint is one.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, limits[1]))

    try:
        with pytest.raises(HyperFusionError, match=r"cannot be written: .*is unchanged") as error:
            train(config, session_cohort, name="full", callbacks=Callbacks(on_epoch=fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.code == "output-cannot-be-written"
    full = Run.latest(session_cohort / "runs", finished=False)
    assert full.folder.name == "full"
    assert len(numbers(full)) == 1
    left = {path.name for path in full.member(0).folder.iterdir()}
    assert not [name for name in left if name.startswith(".")]
    resumed = train(full.config, session_cohort, resume=full)
    assert numbers(resumed) == numbers(whole)


def test_parts_of_a_step_have_the_gradient_of_the_whole(session_cohort):
    """Without batch norm and dropout, which see a part at a time, the epochs are the same."""
    change = {"network": {"fusion": "tabular"}, "training": {**TINY["training"], "ema": 0.0}}
    found = []
    for parts in (1, 3):
        change["training"]["accumulate"] = parts
        config = load_config(session_cohort / "hfrt.yaml", change)
        trainer = Trainer(
            config, gather(config, session_cohort), Member(session_cohort), 0, torch.device("cpu")
        )
        network = torch.nn.Linear(trainer.split.encoder.width, 3)
        torch.nn.init.zeros_(network.weight)
        torch.nn.init.zeros_(network.bias)
        learner = Learner(Rows(network), config.training, trainer.loss, trainer.device)
        trainer._epoch(learner, 0)
        found.append([p.detach().clone() for p in network.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


class Rows(torch.nn.Module):
    """A network of the row alone."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, image, tabular):
        return self.layer(tabular)


def test_a_training_that_needs_more_memory_is_refused(session_cohort):
    change = {**TINY, "training": {**TINY["training"], "batch_size": 32}}
    config = load_config(session_cohort / "hfrt.yaml", change)
    options = TrainOptions(max_memory="1M")
    with pytest.raises(HyperFusionError, match=r"`max_memory` 1 MiB: .* give it more") as error:
        train(config, session_cohort, name="memory", options=options)
    assert error.value.code == "out-of-budget"


def test_what_fits_is_said():
    with pytest.raises(HyperFusionError, match=r"training.accumulate to 4, which needs 26 MiB"):
        check_budget(lambda parts: (10 + 64 / parts) * 2**20, 30 << 20, 32, 1, 2)
    check_budget(lambda parts: 2.0**20, 2 << 20, 32, 1, 1)


def test_another_seed_gives_other_numbers(session_cohort, session_run):
    change = {**TINY, "training": {**TINY["training"], "epochs": 1, "seed": 9}}
    run = train(load_config(session_cohort / "hfrt.yaml", change), session_cohort, name="seed9")
    assert numbers(run)[0] != numbers(session_run)[0]


@pytest.mark.parametrize(
    "fusion", ["image", "tabular", "concat", "film", "daft", "tabmixer", "attention"]
)
def test_the_baselines_train(session_cohort, fusion):
    change = {"network": {"features": 2, "fusion": fusion}, "training": {"epochs": 1, "parts": 5}}
    run = train(load_config(session_cohort / "hfrt.yaml", change), session_cohort, name=fusion)
    assert run.metrics["test"]["cases"] == 8


def test_early_stop(session_cohort):
    change = {**TINY, "training": {"epochs": 50, "patience": 1, "lr": 1e-9, "embedding_epochs": 0}}
    run = train(load_config(session_cohort / "hfrt.yaml", change), session_cohort, name="stop")
    assert len(numbers(run)) < 20


def spoilt(monkeypatch, epochs):
    """In these epochs the network's answers to the validation part are NaN."""
    calls, predict = [], loop.predict

    def answers(*arguments):
        calls.append(0)
        return predict(*arguments) * (np.nan if len(calls) - 1 in epochs else 1)

    monkeypatch.setattr(loop, "predict", answers)


def test_an_epoch_without_finite_answers_is_never_the_best(session_cohort, monkeypatch):
    spoilt(monkeypatch, {0, 2})
    change = {**TINY, "training": {**TINY["training"], "keep": "best"}}
    run = train(load_config(session_cohort / "hfrt.yaml", change), session_cohort, name="nan-first")
    history = numbers(run)
    assert [row["validation_loss"] == "nan" for row in history] == [True, False, True]
    kept = torch.load(run.member(0).folder / "checkpoint.pt", weights_only=True)
    assert kept["best_epoch"] == 1
    assert np.isfinite(kept["best"]).all()


@pytest.mark.parametrize(("keep", "epochs"), [("last", {2}), ("best", {0, 1, 2})])
def test_a_network_without_finite_answers_is_not_kept_in_silence(
    session_cohort, monkeypatch, keep, epochs
):
    spoilt(monkeypatch, epochs)
    change = {**TINY, "training": {**TINY["training"], "keep": keep}}
    config = load_config(session_cohort / "hfrt.yaml", change)
    with pytest.raises(HyperFusionError, match=r"validation part.*lower training\.lr") as caught:
        train(config, session_cohort, name=f"nan-{keep}")
    assert caught.value.code == "training-diverged"
    run = Run.latest(session_cohort / "runs", finished=False)
    assert run.folder.name == f"nan-{keep}"
    assert not run.metrics
    weights = run.member(0).weights
    assert weights.exists() == (keep == "last")  # of the epoch before
    if keep == "last":
        assert all(torch.isfinite(value).all() for value in load_file(weights).values())


def test_bad_cases_are_left_out_and_listed(cohort, session_cohort):
    for scan in sorted((session_cohort / "scans").iterdir())[8:]:
        (cohort / "scans" / scan.name).symlink_to(scan)
    broken = cohort / "scans" / "S5-0001.nii.gz"
    content = broken.read_bytes()
    broken.unlink()
    broken.write_bytes(content[: len(content) // 2])
    lines = (cohort / "data.csv").read_text().splitlines()
    fields = lines[2].split(",")
    fields[1] = "seventy"
    lines[2] = ",".join(fields)
    fields = lines[3].split(",")
    fields[-1] = "Unknown disease"
    lines[3] = ",".join(fields)
    (cohort / "data.csv").write_text("\n".join(lines[:-1]))
    change = {**TINY, "training": {"epochs": 1, "embedding_epochs": 0, "parts": 5}}
    run = train(load_config(cohort / "hfrt.yaml", change), cohort)
    listed = json.loads((run.folder / "left_out.json").read_text())
    left = {subject: reason for subject, _, reason, _ in listed}
    assert "truncated" in left["S5-0001"]
    assert "seventy" in left["S5-0002"]
    assert "Unknown disease" in left["S5-0003"]
    assert "no row" in left["S5-0040"]
    assert {subject: code for subject, _, _, code in listed} == {
        "S5-0001": "scan-truncated",
        "S5-0002": "table-not-a-number",
        "S5-0003": "table-unknown-category",
        "S5-0040": "scan-without-row",
    }
    assert run.metrics["cases"]["left_out"] == 4


def test_errors_say_what_to_do(session_cohort, tmp_path):
    config = load_config(session_cohort / "hfrt.yaml", TINY)
    with pytest.raises(ConfigError, match="exists; choose another name"):
        train(config, session_cohort, name="base")
    with pytest.raises(ConfigError, match="no finished run here; train one"):
        Run.latest(tmp_path)
    with pytest.raises(ConfigError, match="not a run folder"):
        Run.open(tmp_path)
    with pytest.raises(ConfigError, match=r"device 'nonsense'"):
        choose_device("nonsense")
    wrong = load_config(session_cohort / "hfrt.yaml", {"training": {"class_weights": [1.0]}})
    with pytest.raises(ConfigError, match="1 numbers for 3 classes"):
        train(wrong, session_cohort, name="weights")
    wild = load_config(session_cohort / "hfrt.yaml", {**TINY, "training": {"lr": 1e30}})
    with pytest.raises(HyperFusionError, match=r"lower training\.lr"):
        train(wild, session_cohort, name="wild")


@pytest.fixture(scope="module")
def ages(tmp_path_factory):
    from hyperfusion_rt.data.simulate import simulate_cohort

    root = tmp_path_factory.mktemp("ages")
    simulate_cohort(root, task="brain-age", subjects=20, seed=1, spacing=2)
    return root


@pytest.mark.parametrize("loss", ["l1", "bins", "gaussian"])
def test_brain_age_trains(ages, loss):
    training = {"epochs": 1, "standardise_target": loss != "l1", "loss": loss, "keep": "best"}
    change = {"network": {"features": 2}, "training": training}
    run = train(load_config(ages / "hfrt.yaml", change), ages)
    assert run.metrics["test"]["mae"] < 40
    assert run.metrics["cases"] == {"train": 16, "validation": 2, "test": 2, "left_out": 0}


def test_generated_layers_of_ones_own_choice_train_and_export(session_cohort, tmp_path):
    from hyperfusion_rt.export import export_run

    network = {
        "features": 2,
        "hyper_layers": ["block4.*", "fc*"],
        "generated_part": 0.2,
        "generator_rank": 1,
        "embedding_dropout": 0.1,
    }
    change = {**TINY, "network": network, "training": {**TINY["training"], "epochs": 1}}
    run = train(load_config(session_cohort / "hfrt.yaml", change), session_cohort, name="chosen")
    names = load_file(run.member(0).weights)
    assert "block4.conv2.layer.mix.hyper_net.weights_gen.weight" in names
    artifact = export_run(run, tmp_path / "chosen.hfrt")
    assert artifact.engines == ["native", "onnx"]


@pytest.mark.parametrize(
    ("start", "epochs", "same"), [("table", 2, True), ("table", 0, False), ("random", 2, False)]
)
def test_the_embedding_starts_from_the_tables_network_or_not(
    session_cohort, tmp_path, monkeypatch, start, epochs, same
):
    training = {**TINY["training"], "embedding_start": start, "embedding_epochs": epochs}
    config = load_config(session_cohort / "hfrt.yaml", {**TINY, "training": training})
    trained, plain = [], loop.pretrained
    monkeypatch.setattr(loop, "pretrained", lambda *a: trained.append(plain(*a)) or trained[0])
    dataset = gather(config, session_cohort)
    network = loop.Trainer(config, dataset, Member(tmp_path), 0, torch.device("cpu")).build()
    [embedding] = {m.embedding_model for m in network.modules() if hasattr(m, "embedding_model")}
    assert len(trained) == same
    for one in trained:
        assert torch.equal(embedding[0].weight, one.embedding_model[0].weight)

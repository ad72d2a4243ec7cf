"""A network that the study brings: trained, resumed, exported, and refused before it is trained."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from hyperfusion_rt.compare.compare import compare
from hyperfusion_rt.compare.options import CompareOptions
from hyperfusion_rt.config import Config, load_config
from hyperfusion_rt.data.simulate import simulate_cohort
from hyperfusion_rt.errors import ConfigError, HyperFusionError
from hyperfusion_rt.export import export_run
from hyperfusion_rt.export.check import check_exports
from hyperfusion_rt.models import network_of
from hyperfusion_rt.models.own import own_of
from hyperfusion_rt.runtime.predictor import load
from hyperfusion_rt.training.cross_validation import cross_validate
from hyperfusion_rt.training.learner import Learner
from hyperfusion_rt.training.results import load_member
from hyperfusion_rt.training.run_folder import Run
from hyperfusion_rt.training.train import Callbacks, train

from .networks import HYPER, NET, SMALL, study

CONCAT = {**HYPER, "fusion": "concat", "fusion_at": "fc"}
IMAGE = {**HYPER, "fusion": "image"}
NUMBER = {
    "task": "regression",
    "tabular": {
        "features": [{"name": "PTGENDER", "kind": "categorical"}],
        "target": "AGE",
        "unit": "years",
        "stratify": [],
    },
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    simulate_cohort(folder, task="ad", subjects=20, seed=8, spacing=2, jobs=2)
    return folder


@pytest.fixture(scope="module")
def run(root):
    """Two members, which export what they were trained on."""
    config = study(root, training={"members": 2})
    return train(config, root, name="base", callbacks=Callbacks(on_network=check_exports))


def answers_of(run, root):
    """What the artifact of `run` and its networks say of the test part, `[N, C]` each."""
    folder = export_run(run, root / f"{run.folder.name}.hfrt", engines=("native",)).folder
    predictor = load(folder)
    found = {p.subject: p.values for p in predictor.predict(root / "scans", root / "data.csv")}
    with open(run.folder / "predictions.csv", encoding="utf-8") as file:
        header, *lines = (line.strip().split(",") for line in file)
    whole = {"all", "0"} if run.config.training.members == 1 else {"all"}
    names = run.config.tabular.answers
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    rows = [row for row in rows if row["member"] in whole]
    said = np.array([[float(row[name]) for name in names] for row in rows])
    return np.array([found[row["subject"]] for row in rows])[:, : len(names)], said


def test_from_a_study_to_predictions(root, run):
    assert run.config.network.architecture == "own"
    assert Config.model_validate_json(run.config.model_dump_json()) == run.config
    record = json.loads((run.network / "network.json").read_text(encoding="utf-8"))
    assert record["import"] == "net.py:make"
    assert list(record["files"]) == ["net.py"]
    assert (run.network / "net.py").read_text(encoding="utf-8") == NET
    # The study's file is not needed any more, and infer reads no code of it.
    (root / "net.py").write_text("raise RuntimeError('it was run')", encoding="utf-8")
    found, said = answers_of(run, root)
    np.testing.assert_allclose(found, said, atol=1e-5)
    card = next((root / "base.hfrt").glob("*.md")).read_text(encoding="utf-8")
    assert "made by net.py:make, fusion hyper" in card


@pytest.mark.parametrize(
    ("network", "changes"),
    [
        (CONCAT, {}),
        (IMAGE, {}),
        ({**HYPER, "fusion": "tabular"}, {}),
        ({"import": "net.py:flat", "hyper_layers": ["*"]}, {}),
        ({**HYPER, "generator_rank": 2}, {"training": {"loss": "bins"}, **NUMBER}),
        (CONCAT, {"training": {"loss": "gaussian"}, **NUMBER}),
        (HYPER, {"training": {"standardise_target": False}, **NUMBER}),
    ],
    ids=["concat", "image", "tabular", "slices", "bins", "gaussian", "own scale"],
)
def test_every_fusion_and_task(root, network, changes, request):
    config = study(root, network, **changes)
    name = re.sub(r"\W", "-", request.node.callspec.id)
    made = train(config, root, name=name, callbacks=Callbacks(on_network=check_exports))
    found, said = answers_of(made, root)
    np.testing.assert_allclose(found, said, rtol=1e-4, atol=1e-5)


def test_fusions_of_one_seed_start_from_the_same_layers(root):
    base = study(root)
    states = []
    for network in (HYPER, CONCAT, IMAGE):
        torch.manual_seed(1)
        config = base.model_copy(update={"network": base.network.model_copy(update=network)})
        states.append(own_of(network_of(config, 3, place=root)).network.base_state_dict())
    assert all(states[0].keys() == state.keys() for state in states)
    for name, value in states[0].items():
        assert all(torch.equal(value, state[name]) for state in states)


class KilledError(Exception):
    pass


def killed_after(steps):
    def step(self, *inputs):
        steps[0] -= 1
        if steps[0] < 0:
            raise KilledError
        return ORIGINAL(self, *inputs)

    return step


ORIGINAL = Learner.step
FROZEN = {**HYPER, "hyper_layers": ["fc"], "freeze": True, "train": ["fc"]}


@pytest.mark.slow
@pytest.mark.parametrize("network", [HYPER, FROZEN], ids=["trained", "frozen"])
def test_a_killed_run_comes_to_the_same(root, network, monkeypatch):
    config, name = study(root, network), f"kill-{network.get('freeze', False)}"
    whole = train(config, root, name=f"{name}-not")
    monkeypatch.setattr(Learner, "step", killed_after([2]))
    with pytest.raises(KilledError):
        train(config, root, name=name)
    monkeypatch.setattr(Learner, "step", ORIGINAL)
    # What the study's file says now is another network: the run keeps its own.
    (root / "net.py").write_text(NET.replace("nn.ReLU()", "nn.Tanh()"), encoding="utf-8")
    again = train(config, root, resume=Run.open(root / "runs" / name))
    a, b = (load_file(made.member(0).weights) for made in (whole, again))
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_cross_validation_trains_one_network(root, run, monkeypatch):
    config = study(root, training={"parts": 3, "epochs": 1})
    made = cross_validate(config, root, name="folds")
    texts = {(made.fold(part) / "network" / "network.json").read_bytes() for part in made.parts}
    assert len(texts) == 1
    shutil.rmtree(made.fold(2))
    (made.folder / "network" / "net.py").write_text(NET + "\n# edited", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"net\.py changed"):
        cross_validate(config, root, resume=made)


@pytest.mark.slow
def test_the_ways_are_compared_on_the_same_parts(root):
    change = {"network": {**HYPER, "fusion_at": "fc"}, "training": {"epochs": 1, "parts": 3}}
    study(root)
    (root / "compared.yaml").write_text(yaml.safe_dump({"preset": "ad-small", **SMALL, **change}))
    options = CompareOptions(models="hyper,concat,image", name="ways")
    calls = Callbacks(on_network=check_exports)
    found = compare(root / "compared.yaml", options, callbacks=calls)
    assert [(item.name, item.done) for item in found.models] == [
        ("hyper", 3), ("concat", 3), ("image", 3)
    ]  # fmt: skip
    kept = found.comparison.folder / "networks" / "concat"
    record = json.loads((kept / "network.json").read_text(encoding="utf-8"))
    (root / "net.py").unlink()  # the comparison keeps it
    again = CompareOptions(name="ways", resume=True)
    assert compare(root / "compared.yaml", again).failed == 0
    job = next(job for job in found.comparison.plan.jobs() if job.model == "concat")
    place = found.comparison.place(job) / "network" / "network.json"
    assert json.loads(place.read_text(encoding="utf-8")) == record
    with pytest.raises(ConfigError, match="of a published network has values of its own"):
        compare(root / "compared.yaml", CompareOptions(ablate="network.hyper_layers"))


def test_a_package_must_be_as_it_was(root, tmp_path, monkeypatch):
    package = tmp_path / "theirs"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "net.py").write_text(NET, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    config = study(root, {**IMAGE, "import": "theirs.net:make"}, training={"epochs": 1})
    made = train(config, root, name="package")
    load_member(made, made.member(0))
    (package / "net.py").write_text(NET + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"theirs\.net changed") as caught:
        export_run(made, tmp_path / "a.hfrt")
    assert caught.value.code == "network-changed"
    for name in ("theirs.net", "theirs"):
        del sys.modules[name]


# ---- weights


def saved(root, path, **arguments):
    """Weights of the study's network, and where they are."""
    names = {}
    exec(NET, names)
    torch.manual_seed(3)
    network = names["make"](1, 3, **arguments)
    save_file(network.state_dict(), path)
    return network.state_dict()


def test_weights_are_loaded_except_those_that_are_not(root, tmp_path):
    state = saved(root, tmp_path / "w.safetensors")
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    network = {**FROZEN, "weights": str(tmp_path / "w.pt"), "weights_except": ["fc.*"]}
    made = train(study(root, network), root, name="weights")
    found = own_of(load_member(made, made.member(0))).network.base_state_dict()
    for name, value in state.items():
        assert torch.equal(found[name], value) != name.startswith("fc."), name
    record = json.loads((made.network / "network.json").read_text(encoding="utf-8"))
    assert len(record["weights"]["sha256"]) == 64
    # They have done their part.
    (tmp_path / "w.pt").unlink()
    artifact = export_run(made, tmp_path / "w.hfrt", engines=("native",))
    source = artifact.manifest.provenance.network
    assert (source["import"], source["weights"]) == ("net.py:make", "w.pt")  # no path of ours
    with pytest.raises(ConfigError, match=r"w\.pt: no such file") as caught:
        train(made.config, root, resume=made)
    assert caught.value.code == "checkpoint-not-found"


BAD = {
    "no module": ({"import": "no_such_package.net:make"}, "network-import", "no_such_package"),
    "no file": ({"import": "nothing.py:make"}, "network-import", "no such file"),
    "no callable": ({"import": "net.py:mak"}, "network-import", "near: make"),
    "no maker": ({"import": "net.py:network"}, "network-import", "'network' is a Linear"),
    "no network": ({"import": "net.py:number"}, "network-import", "returns int"),
    "fails": ({"import": "net.py:failing"}, "network-import", "no such luck"),
    "no argument": ({"arguments": {"depth": 3}}, "network-import", "'depth'"),
    "no stand-in": ({"arguments": {"width": "$widht"}}, "config-invalid", r"\$channels"),
    "outputs": ({"import": "net.py:fixed", "arguments": {"inputs": 1}}, "network-unfit",
                r"gives \[2, 7\].* must give \[2, 3\]"),
    "channels": ({"import": "net.py:fixed", "arguments": {"classes": "$outputs"}},
                 "network-unfit", r"fails on an image \[2, 1, 12, 16, 12\]"),
    "no layer": ({"hyper_layers": ["layer9.*"]}, "hyperfy-layer-unknown", "network.hyper_layers"),
    "no kind": ({"hyper_layers": ["drop"]}, "hyperfy-layer-unknown", "drop is a Dropout"),
    "no head": ({"fusion": "concat", "fusion_at": "layer1"}, "hyperfy-layer-unknown", "are fc"),
    "no trained": ({"freeze": True, "train": ["head"]}, "hyperfy-layer-unknown", "head"),
    "not lowered": ({"arguments": {"answer": "rolled"}}, "export-unsupported-operation",
                    "cannot be exported, so it is not trained: roll"),
    "no weights": ({"weights": "w.safetensors"}, "checkpoint-not-found", "no such file"),
    "all trained first": ({"freeze": True, "train": ["stem"]}, "network-features",
                          "comes first"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_trained_is_refused_before(root, name, monkeypatch):
    change, code, text = BAD[name]
    config = study(root, {**HYPER, **change})
    monkeypatch.setattr("hyperfusion_rt.training.train.gather", None)
    with pytest.raises(ConfigError, match=text) as caught:
        train(config, root, name="bad", callbacks=Callbacks(on_network=check_exports))
    assert caught.value.code == code
    assert not (root / "runs" / "bad").exists()


def test_weights_of_another_network_are_refused(root, tmp_path):
    saved(root, tmp_path / "wide.safetensors", width=8)
    with pytest.raises(ConfigError, match=r"another shape: fc\.weight \(3, 16\), not \(3, 8\)"):
        train(study(root, {**HYPER, "weights": str(tmp_path / "wide.safetensors")}), root)
    save_file({"conv.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"missing, conv\.weight unknown") as caught:
        train(study(root, {**HYPER, "weights": str(tmp_path / "other.safetensors")}), root)
    assert caught.value.code == "checkpoint-mismatch"
    network = {**HYPER, "weights": str(tmp_path / "wide.safetensors"), "weights_except": ["head"]}
    with pytest.raises(ConfigError, match="'head' matches no name"):
        train(study(root, network), root)


FIELDS = {
    "hyper_layers is empty": {"import": "net.py:make"},
    "needs fusion_at": {**HYPER, "fusion": "concat"},
    "takes hyper, concat, image": {**HYPER, "fusion": "film"},
    "write it as package.module:callable": {"import": "net"},
    "features is of the published": {**HYPER, "features": 4},
    "leave out architecture": {"import": "net.py:make", "fusion": "image", "architecture": "ad"},
    "freeze goes with import": {"freeze": True},
    "set freeze": {**HYPER, "train": ["fc"]},
    "nothing to train": {**IMAGE, "freeze": True},
    "goes with weights": {**HYPER, "weights_except": ["fc"]},
}


@pytest.mark.parametrize("text", FIELDS)
def test_fields_that_do_not_go_together(root, text):
    with pytest.raises(ConfigError, match=re.escape(text)):
        load_config(root / "hfrt.yaml", {"network": FIELDS[text]})


def test_a_table_is_needed_for_the_truth(root, hfrt):
    # An image-only network has no use for features, but a target stands in a table.
    study(root)
    status, _, error = hfrt(root, "train", "--set", "table=nothing.csv", "--set",
                            "network={import: net.py:make, fusion: image}")  # fmt: skip
    assert status == 1
    assert "nothing.csv" in error
    # No artifact could be made of it.
    with pytest.raises(ConfigError, match=r"tabular\.features is empty"):
        study(root, IMAGE, tabular={"features": []})


def test_the_command_line_refuses_what_cannot_be_exported(root, hfrt, monkeypatch):
    study(root)
    network = "network={import: net.py:make, fusion: image, arguments: {answer: rolled}}"
    status, _, error = hfrt(root, "train", "--set", network)
    assert status == 1
    assert "roll in network: engines cannot do this" in error
    status, _, error = hfrt(root, "compare", "--models", "image,logistic", "--set", network)
    assert status == 1
    assert "roll in network: engines cannot do this" in error
    monkeypatch.setitem(sys.modules, "torch", None)
    status, _, error = hfrt(root, "train", "--set", network)
    assert status == 1
    assert "hyperfusion_rt[train]" in error


# ---- kept features


def kept(root):
    return sorted((root / ".hfrt_cache" / "features").rglob("*.npy"))


def test_frozen_layers_run_once_for_each_scan(root, monkeypatch):
    shutil.rmtree(root / ".hfrt_cache" / "features", ignore_errors=True)
    counted = []
    callbacks = Callbacks(on_features=lambda done, count: counted.append((done, count)))
    config = study(root, FROZEN, training={"epochs": 3})
    made = train(config, root, name="kept", callbacks=callbacks)
    files = kept(root)
    seen = made.metrics["cases"]["train"] + made.metrics["cases"]["validation"]
    assert len(files) == len(counted) == seen
    assert np.load(files[0]).shape == (2, 8)  # of each box what layer2 gives, pooled later
    # The same numbers come of running everything in each epoch, up to rounding.
    other = study(root, {**FROZEN, "keep_features": False}, training={"epochs": 3})
    whole = train(other, root, name="kept-not")
    a, b = (load_file(run.member(0).weights) for run in (made, whole))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-5)
    # Another run finds them, and a damaged one is made again.
    files[0].write_bytes(b"")
    counted.clear()
    train(config, root, name="kept-again", callbacks=callbacks)
    assert counted == [(1, 1)]


def test_other_weights_and_other_scans_have_features_of_their_own(root, tmp_path):
    copy = tmp_path / "study"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns("runs", ".hfrt_cache", "*.hfrt"))
    config = study(copy, FROZEN, training={"epochs": 1})
    train(config, copy, name="one")
    first = kept(copy)
    scan = next(iter(sorted((copy / "scans").iterdir())))
    content = scan.read_bytes()
    scan.unlink()
    scan.write_bytes(content)  # another inode
    train(config, copy, name="two")
    assert len(kept(copy)) - len(first) in (0, 1)  # it may be a test scan
    assert len({file.parent for file in kept(copy)}) == 1
    training = config.training.model_copy(update={"seed": 5})
    train(config.model_copy(update={"training": training}), copy, name="three")
    assert len({file.parent for file in kept(copy)}) == 2


def test_a_full_disk_is_told_before(root, monkeypatch):
    shutil.rmtree(root / ".hfrt_cache" / "features", ignore_errors=True)
    usage = shutil.disk_usage(root)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(HyperFusionError, match=r"0\.0 GB free: make room") as caught:
        train(study(root, FROZEN), root, name="full")
    assert caught.value.code == "output-cannot-be-written"
    assert kept(root) == []


def test_features_and_augmentation_exclude_each_other(root):
    with pytest.raises(ConfigError, match="augmentation changes scans in every epoch"):
        study(root, FROZEN, augmentation={"policy": "light"})
    made = study(root, {**FROZEN, "keep_features": False}, augmentation={"policy": "light"})
    assert made.augmentation.rotation == 5
    (root / "plain.yaml").write_text("preset: ad-small\n", encoding="utf-8")
    assert load_config(root / "plain.yaml").augmentation.moves
    assert not load_config(root / "plain.yaml", {"network": FROZEN}).augmentation.moves

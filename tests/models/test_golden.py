"""Parity with the published networks: their weights in, their outputs out."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hyperfusion_rt.config import NetworkConfig
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.models import build_network
from hyperfusion_rt.models.checkpoint import describe_state, read_state

HERE = Path(__file__).parents[1] / "golden"
SHARED = Path(__file__).parents[2].parent / "shared" / "golden"
NAMES = ["ad_golden_f4", "ad_golden", "brain_age_golden"]


def golden(name):
    folder = HERE if (HERE / f"{name}.cases.safetensors").exists() else SHARED
    if not (folder / f"{name}.cases.safetensors").exists():
        pytest.skip(f"golden case {name} is not in {HERE} nor in {SHARED}: parity NOT checked")
    state = read_state(folder / f"{name}.state_dict.safetensors")
    config, width, outputs, channels, _ = describe_state(state)
    cases = load_file(folder / f"{name}.cases.safetensors")
    image = cases["image"].float()
    network = build_network(
        config,
        shape=tuple(image.shape[2:]),
        tabular_width=width,
        outputs=outputs,
        channels=channels,
    )
    network.load_state_dict(state)
    return network.eval(), image, cases["tabular"], cases["output"]


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_outputs_equal_the_golden_ones_alone_and_in_a_batch(name):
    network, image, tabular, expected = golden(name)
    scale = expected.abs().max()
    alone = torch.cat([network(i[None], t[None]) for i, t in zip(image, tabular, strict=True)])
    assert (alone - expected).abs().max() <= 1e-5 * scale
    assert (network(image, tabular) - expected).abs().max() <= 1e-5 * scale


@torch.inference_mode()
def test_the_pairing_defect_is_not_reproduced():
    network, image, tabular, expected = golden("ad_golden_f4")
    # Two distinct cases; the defect would give the second image the first row's weights.
    shifted = network(image, tabular.roll(1, 0))
    scale = expected.abs().max()
    assert (shifted - expected).abs().amax(1).min() > 1e-3 * scale
    order = [1, 0]
    permuted = network(image[order], tabular[order])
    assert (permuted - expected[order]).abs().max() <= 1e-5 * scale


def test_float64_agrees():
    network, image, tabular, expected = golden("ad_golden_f4")
    with torch.inference_mode():
        exact = network.double()(image.double(), tabular.double())
    assert (exact - expected).abs().max() <= 1e-5 * expected.abs().max()


EMBEDDING = "block4.downsample.0.layer.hyper_net.embedding_model.0.weight"
FIRST = "linear1.layer.hyper_net.weights_gen"


def small_state(task="ad", fusion="hyper", channels=1):
    config = NetworkConfig(architecture=task, fusion=fusion, features=2)
    network = build_network(
        config, shape=(37, 54, 44), tabular_width=5, outputs=3, channels=channels
    )
    return network.state_dict()


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict"])
def test_torch_files_wrappers_and_module_prefix(tmp_path, wrapper):
    state = {f"module.{k}": v for k, v in small_state().items()}
    torch.save({wrapper: state} if wrapper else state, tmp_path / "a.pt")
    config, width, outputs, channels, flat = describe_state(read_state(tmp_path / "a.pt"))
    assert (config.architecture, config.features, config.embedding) == ("ad", 2, 8)
    assert (width, outputs, channels, flat) == (5, 3, 1, None)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("must-not-exist"),))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, "evil.pt")
    with pytest.raises(ConfigError, match="only tensors are accepted"):
        read_state(Path("evil.pt"))
    assert not Path("must-not-exist").exists()


def test_other_bad_checkpoints(tmp_path):
    with pytest.raises(ConfigError, match="no such checkpoint"):
        read_state(tmp_path / "none.pt")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ConfigError, match="cannot be read as weights"):
        read_state(tmp_path / "text.safetensors")
    save_file({"a": torch.tensor([float("nan")])}, tmp_path / "nan.safetensors")
    with pytest.raises(ConfigError, match="a holds NaN"):
        read_state(tmp_path / "nan.safetensors")
    torch.save({"a": 3}, tmp_path / "number.pt")
    with pytest.raises(ConfigError, match="no tensor"):
        read_state(tmp_path / "number.pt")
    with pytest.raises(ConfigError, match="neither of the published"):
        describe_state({"conv.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("task", "fusion", "name", "change", "message"),
    [
        ("ad", "hyper", "block2.conv1.weight", None, "missing: block2.conv1.weight"),
        ("ad", "hyper", "extra", torch.zeros(1), "unexpected: extra"),
        ("ad", "hyper", "fc1.layer.weight", torch.zeros(4), r"another shape: fc1.layer.weight \(4"),
        ("ad", "hyper", EMBEDDING, torch.zeros(4), "needs 2 dimensions"),
        ("ad", "film", "fc2.layer.bias", torch.zeros(3), f"{EMBEDDING} is missing"),
        ("brain-age", "hyper", "batchnorm1.bias", None, "missing: batchnorm1.bias"),
        ("brain-age", "concat", "linear1.layer.bias", None, "only the HyperFusion variant"),
        ("brain-age", "hyper", f"{FIRST}.bias", torch.zeros(16 * 9), f"{FIRST}.weight"),
    ],
)
def test_a_state_that_is_not_whole_says_what_is_wrong(task, fusion, name, change, message):
    state = small_state(task, fusion)
    if change is None:
        del state[name]
    else:
        state[name] = change
    with pytest.raises(ConfigError, match=message):
        describe_state(state)


def test_a_brain_age_state_is_described_for_any_volume():
    config, width, outputs, channels, flat = describe_state(small_state("brain-age", "hyper"))
    assert (config.architecture, config.fusion, config.features) == ("brain-age", "hyper", 2)
    # 37 x 54 x 44 voxels leave 1 x 3 x 2.
    assert (width, outputs, channels, flat) == (5, 3, 1, 8 * 6)


@pytest.mark.parametrize("task", ["ad", "brain-age"])
def test_weights_say_how_many_images_they_read(task):
    found = describe_state(small_state(task, channels=3))
    assert (found.channels, found.width, found.outputs) == (3, 5, 3)


@pytest.mark.slow
def test_a_checkpoint_that_reads_two_images_exports(tmp_path):
    """And says which files it takes for them."""
    from hyperfusion_rt.export import export_run
    from hyperfusion_rt.export.build import load_cases
    from hyperfusion_rt.training.imported import import_checkpoint

    torch.save(small_state(channels=2), tmp_path / "two.pt")
    run = import_checkpoint(tmp_path / "two.pt", tmp_path)
    names = [channel.files for channel in run.config.preprocessing.channels]
    assert names == ["*_channel0.nii.gz", "*_channel1.nii.gz"]
    assert load_cases(run)[0].shape[:3] == (7, 2, 2)
    artifact = export_run(run, tmp_path / "two.hfrt")
    assert artifact.manifest.image_shape == (4, 64, 96, 64)
    extra = 2e-9 * 27 * 2 * 64 * 96 * 64  # of the second image, in the first layer
    torch.save(small_state(), tmp_path / "one.pt")
    one = export_run(import_checkpoint(tmp_path / "one.pt", tmp_path), tmp_path / "one.hfrt")
    more = artifact.manifest.provenance.gflop - one.manifest.provenance.gflop
    assert more == pytest.approx(extra)

"""What is searched: spaces of presets, spaces of one's own, and bad ones."""

import pytest

from hyperfusion_rt.config import PRESETS, preset
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.tune.search import Plan, Search, configured, distributions
from hyperfusion_rt.tune.space import Choices, Range, leaves, nested, read_space, space_of
from hyperfusion_rt.tune.spaces import SPACES


def plan_of(name, changes=None, space=None, **more):
    """The plan of a search of a preset as it is."""
    study, changes = {"preset": name}, changes or {}
    config = configured(study, changes, {})

    def probe(field, value):
        return configured(study, changes, {field: value})

    return Plan(
        program="test",
        root="/",
        config="hfrt.yaml",
        study=study,
        changes=changes,
        space=space or space_of(config, changes, probe),
        **{"metric": "figure", "pruner": "median", "seed": 0, "cases": 10, **more},
    )


@pytest.mark.parametrize("name", PRESETS)
def test_the_space_of_a_preset_holds_the_preset_and_loads(name, tmp_path):
    optuna = pytest.importorskip("optuna")
    plan = plan_of(name)
    # Nothing was left out: every field is one of the configuration, and takes its ends.
    assert set(plan.space) == set(SPACES[name])
    search = Search(tmp_path, plan)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    asked = [study.ask(distributions(plan.space)).params for _ in range(20)]
    drawn = [search.fields(params) for params in (search.plan_first(), *asked)]
    assert all(set(fields) == set(plan.space) for fields in drawn)
    configs = [plan.config_of(fields) for fields in drawn]
    assert configs[0] == preset(name)
    assert len({config.model_dump_json() for config in configs}) == 21


def test_what_is_given_by_hand_is_not_searched():
    plan = plan_of("ad-small", {"network": {"features": 2}, "training": {"lr": 0.01}})
    assert set(SPACES["ad-small"]) - set(plan.space) == {"network.features", "training.lr"}
    assert plan.config_of({"network.dropout": 0.25}).network.features == 2


def test_what_a_network_does_not_read_is_not_searched():
    plan = plan_of("ad-small", {"network": {"fusion": "film"}})
    assert not {"network.embedding", "network.generated_part"} & set(plan.space)


def test_a_seed_draws_the_same(tmp_path):
    pytest.importorskip("optuna")
    drawn = []
    for name in ("a", "b"):
        search = Search.create(tmp_path / name, plan_of("ad-small", seed=7), "one")
        with search.opened() as study:
            claims = [search.claim(study, 3) for _ in range(3)]
        drawn.append([claim.fields for claim in claims])
        for claim in claims:
            claim.close()
    assert drawn[0] == drawn[1]
    assert drawn[0][1] != drawn[0][2]


def probe_of(changes=None):
    return lambda field, value: configured({"preset": "ad-small"}, changes or {}, {field: value})


def read(tmp_path, text, metric="figure", changes=None):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return read_space(path, changes or {}, probe_of(changes), metric)


def test_a_space_of_ones_own(tmp_path):
    found = read(
        tmp_path,
        """
training.lr: {low: 1e-4, high: 1.0e-2, log: true}
network:
  features: {low: 4, high: 12}
  hyper_layers: [[], [block4.conv1], [fc1, fc2]]
training.cuda_graph: [true, false]
training.clip_gradient: {low: 0, high: 5}
""",
    )
    assert found["training.lr"] == Range(low=1e-4, high=1e-2, log=True)
    assert found["network.features"] == Range(low=4, high=12, whole=True)
    assert not found["training.clip_gradient"].whole
    layers = found["network.hyper_layers"]
    assert layers == Choices(choices=([], ["block4.conv1"], ["fc1", "fc2"]))
    assert [layers.value(text) for text in layers.texts] == list(layers.choices)
    config = configured({"preset": "ad-small"}, {}, {"network.hyper_layers": ["fc1", "fc2"]})
    assert config.network.hyper_layers == ("fc1", "fc2")
    # The usual layers are the first choice.
    assert layers.holds(preset("ad-small").network.hyper_layers) == "[]"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("network.fetures: [4, 8]", "did you mean 'features'"),
        ("lr: {low: 1.0e-4, high: 1.0e-2}", "did you mean 'training.lr'"),
        ("training.lr: {low: 0.1, high: 0.01}", "low 0.1 must be below high 0.01"),
        ("training.lr: {low: 0.1, high: 0.1}", "low 0.1 must be below high 0.1"),
        ("training.lr: {low: 0, high: 0.1, log: true}", "log needs a low above 0"),
        ("training.lr: {low: 0, high: 0.1}", "training.lr"),
        ("training.lr: {low: small, high: 0.1}", "training.lr: low"),
        ("training.lr: {low: 0.01, hi: 0.1}", "hi: there is no such field; did you mean 'high'"),
        ("training.lr: {low: .nan, high: 0.1}", "training.lr: low"),
        ("training.lr: 0.1", "write a list of values"),
        ("training.lr: [0.1]", "needs two values or more"),
        ("training.lr: [0.1, 0.1]", "needs two values or more, each once"),
        ("training.lr: [0.1, fast]", "training.lr"),
        ("network.features: {low: 0.5, high: 8}", "is a whole number"),
        ("network.features: {low: true, high: 8}", "is a whole number"),
        ("network.fusion: {low: 1, high: 2}", "is no number"),
        ("network.fusion: [hyper, hypr]", "did you mean 'hyper'"),
        ("augmentation.policy: [none, stronger]", "augmentation.policy"),
        ("training.ema: {low: 0.9, high: 1}", "less than 1"),
        ("training.seed: [0, 1]", "all trials must have this alike"),
        ("tabular: {target: [DX, AGE]}", "all trials must have this alike"),
        ("preprocessing.spacing: [2, 3]", "all trials must have this alike"),
        ("", "holds no field"),
        ("- 4", "holds no field"),
        ("training.lr: {low: 1", "cannot be read as YAML"),
    ],
)
def test_bad_spaces(tmp_path, text, said):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert said in str(error.value)
    assert "space.yaml" in str(error.value)


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, "training.lr: 1\nnetwork.dropout: [0, 9]\nnetwork.embedding: [4, 8]")
    assert "training.lr" in str(error.value)
    assert "network.dropout" in str(error.value)
    assert "network.embedding" not in str(error.value)


def test_a_field_is_fixed_or_searched(tmp_path):
    with pytest.raises(ConfigError, match="also given by hand"):
        read(tmp_path, "network.features: [4, 8]", changes={"network": {"features": 2}})


def test_losses_that_mean_something_else_are_not_compared(tmp_path):
    text = "training.class_weights: [[1, 1, 1], [1, 2, 1]]"
    assert read(tmp_path, text)
    with pytest.raises(ConfigError, match="what the validation loss means"):
        read(tmp_path, text, "loss")


def test_numbers_that_are_tried_are_short_and_inside():
    space = Range(low=1e-4, high=0.99999)
    assert space.value(0.123456789) == 0.1235
    assert space.value(0.999989) == 0.99999
    assert space.holds(0.5) == 0.5
    assert space.holds(2) is None
    assert space.holds(0.123456) is None


def test_equal_accuracies_are_told_apart_by_the_loss():
    plan = plan_of("ad-small")
    assert plan.maximises
    assert plan.score(0.75, 0.8) > plan.score(0.75, 0.9)
    assert plan.score(0.751, 1e9) > plan.score(0.75, 0.0)
    years = plan_of("brain-age-small")
    assert not years.maximises
    assert years.score(4.5, 100.0) == 4.5
    assert plan_of("ad-small", metric="loss").score(0.75, 0.8) == 0.8


def test_what_is_flat_becomes_nested():
    flat = {"network.features": 4, "training.lr": 0.003, "training.ema": 0}
    assert nested(flat) == {"network": {"features": 4}, "training": {"lr": 0.003, "ema": 0}}
    assert dict(leaves(nested(flat))) == flat

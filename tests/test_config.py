"""What the reference page is made from: every field says what it is, in one place."""

import pytest

from hyperfusion_rt import config
from hyperfusion_rt.config import PRESETS, Config, Frozen, load_config, preset
from hyperfusion_rt.errors import ConfigError

MODELS = [
    kind
    for kind in vars(config).values()
    if isinstance(kind, type) and issubclass(kind, Frozen) and kind not in (Frozen, config.Finite)
]


def test_all_models_are_found():
    assert {kind.__name__ for kind in MODELS} == {
        "Augmentation",
        "Box",
        "Channel",
        "Config",
        "Feature",
        "MappedColumn",
        "NetworkConfig",
        "Preprocessing",
        "TableSpec",
        "TrainingConfig",
    }


@pytest.mark.parametrize("kind", MODELS)
def test_every_field_is_described(kind):
    for name, field in kind.model_fields.items():
        assert field.description, name
        assert not field.description.endswith("."), name


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (None, "config-not-found"),
        ("a: [", "config-unreadable"),
        ("lr: 1", "config-no-preset"),
        ("preset: add", "config-unknown-preset"),
        ("preset: ad\ntraining: {lr: -1}", "config-invalid"),
        ("preset: ad\nlearning: 1", "config-invalid"),
    ],
)
def test_a_fault_of_a_configuration_file_has_its_code(tmp_path, text, code):
    path = tmp_path / "hfrt.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"hfrt\.yaml") as caught:
        load_config(path)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("traning: {epochs: 3}", "traning: there is no such field; did you mean 'training'?"),
        ("training: {epoch: 3}", "did you mean 'epochs'?"),
        ("epochs: 3", "did you mean 'training.epochs'?"),
        ("tabular: {features: [{nam: A, kind: numeric}]}", "did you mean 'name'?"),
        ("nothing: 1", "the fields here are preset, task"),
        ("table: a\ntraining: {lr: 1}\ntable: b", "'table' stands twice, in lines 2 and 4"),
        ("training: {lr: 1, seed: 2, lr: 3}", "'lr' stands twice, in line 2"),
        ("scans: ~", "scans: is empty (null); give a value"),
        ("training:", "training: is empty (null)"),
        ("scans: no", "YAML reads an unquoted no, off, false as false; write it in quotes"),
        ("tabular: {classes: {yes: [a], 'no': [b]}}", "unquoted yes, on, true as true"),
        (
            "tabular: {features: [{name: S, kind: categorical, categories: [0, on]}]}",
            "features.0.categories: must be a text; write it in quotes, as '0'; "
            "tabular.features.0.categories: must be a text, but YAML reads an unquoted yes, on",
        ),
        ("tabular: {classes: {a: no, b: ['yes']}}", "classes.a: must be a list of texts, but YAML"),
        ("tabular: {classes: [CN, AD]}", "classes: must be a mapping, with lines 'name: value'"),
        ("tabular: {classes: {0: ['0'], b: [b]}}", "classes: must be a text; write it in quotes"),
        ("tabular: {stratify: SEX}", "tabular.stratify: must be a list; write [SEX]"),
        ("tabular: {features: [AGE]}", "features.0: must be a mapping of fields (name, kind, "),
        ("tabular: [AGE]", "tabular: must be a mapping of fields (features, target, "),
        ("tabular: {taget: DX}", "tabular.taget: there is no such field; did you mean 'target'?"),
        ("preprocessing: {boxs: []}", "preprocessing.boxs: there is no such field; did you mean"),
        (
            "preprocessing: {boxes: [{nam: a, center: [0, 0, 0]}]}",
            "preprocessing.boxes.0.nam: there is no such field; did you mean 'name'?",
        ),
        (
            "preprocessing: {channels: [{name: T1w, file: '*'}]}",
            "preprocessing.channels.0.file: there is no such field; did you mean 'files'?",
        ),
        ("network: {fussion: film}", "network.fussion: there is no such field; did you mean"),
        ("network: {fusion: flim}", "'tabmixer' or 'attention'; did you mean 'film'?"),
        ("task: regresion", "did you mean 'regression'?"),
        ("training: {epochs: yes}", "training.epochs: must be a number; YAML reads this as true"),
        ("network: {features: on}", "network.features: must be a number"),
        ("training: {seed: 010}", "line 2: YAML reads 010 as another number"),
        ("training: {epochs: 1:30}", "YAML reads 1:30 as another number"),
        ("training: {lr: .inf}", "training.lr: Input should be a finite number"),
        (
            "network: {embedding_slope: .nan}",
            "network.embedding_slope: Input should be a finite number",
        ),
        ("training: {batch_size: 1}", "training.batch_size: Input should be greater than"),
    ],
)
def test_what_yaml_would_change_in_silence_is_said(tmp_path, text, message):
    path = tmp_path / "hfrt.yaml"
    path.write_text(f"preset: ad\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value)
    assert caught.value.code == "config-invalid"
    assert "\n" not in str(caught.value)


def test_one_cause_is_said_once(tmp_path):
    path = tmp_path / "hfrt.yaml"
    path.write_text("preset: ad\ntabular: {classes: {no: [no], yes: [yes]}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    _, _, text = str(caught.value).partition("preset 'ad': ")
    assert text == (
        "tabular.classes: must be a text, but YAML reads an unquoted no, off, false as false; "
        "write it in quotes, as 'no'; tabular.classes: must be a text, but YAML reads an unquoted "
        "yes, on, true as true; write it in quotes, as 'yes'"
    )
    path.write_text("preset: ad\npreprocessing: {channels: [{name: A, file: '*'}]}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "at least" not in str(caught.value)


def test_what_yaml_reads_rightly_stays(tmp_path):
    path = tmp_path / "hfrt.yaml"
    path.write_text(
        "preset: ad\n"
        "training: &t {lr: 1e-4, epochs: 3, amp: no, seed: 0}\n"
        "network: {dropout: 0.5}\n"
        "tabular: {id_column: ~, target: 'no', stratify: []}\n",
        encoding="utf-8-sig",
    )
    found = load_config(path)
    assert (found.training.lr, found.training.epochs, found.training.amp) == (1e-4, 3, False)
    assert (found.tabular.id_column, found.tabular.target) == (None, "no")


def test_classes_are_the_users_or_the_presets():
    found = preset("ad", {"tabular": {"target": "group", "classes": {"ctl": ["0"], "pat": ["1"]}}})
    assert found.tabular.classes == {"ctl": ("0",), "pat": ("1",)}
    assert found.training.class_weights == ()  # the preset's were of three classes
    weighted = {"classes": {"a": [], "b": []}}
    found = preset("ad", {"tabular": weighted, "training": {"class_weights": [1, 2]}})
    assert found.training.class_weights == (1, 2)
    assert preset("ad", {"tabular": {"target": "diagnosis"}}).tabular.classes["AD"]
    # Weights are of classes in their order, and a given order may be another.
    classes = PRESETS["ad"]["tabular"]["classes"]
    turned = {name: classes[name] for name in reversed(classes)}
    assert preset("ad", {"tabular": {"classes": turned}}).training.class_weights == ()
    found = preset("brain-age", {"tabular": {"target": "g", "classes": {"a": [], "b": []}}})
    assert (found.task, found.tabular.unit) == ("classification", "")


def test_what_overrules_a_file_replaces_its_classes(tmp_path):
    path = tmp_path / "hfrt.yaml"
    path.write_text("preset: ad\ntabular: {classes: {CN: [CN], MCI: [MCI]}}\n")
    found = load_config(path, {"tabular": {"classes": {"well": ["CN"], "ill": ["MCI"]}}})
    assert found.tabular.classes == {"well": ("CN",), "ill": ("MCI",)}


def test_a_number_has_the_unit_that_is_given():
    found = preset("ad", {"task": "regression", "tabular": {"target": "HV", "unit": "ml"}})
    assert (found.tabular.classes, found.tabular.unit) == ({}, "ml")
    assert (found.training.class_weights, found.training.standardise_target) == ((), True)
    other = preset("brain-age", {"tabular": {"target": "ICV"}})
    assert (other.tabular.unit, other.training.standardise_target) == ("", True)
    published = preset("brain-age")
    assert (published.tabular.unit, published.training.standardise_target) == ("years", False)


@pytest.mark.parametrize("name", PRESETS)
def test_what_older_versions_wrote_is_read(name):
    now = preset(name)
    old = now.model_dump(mode="json")
    old["task"] = old["network"]["task"] = old["network"].pop("architecture")
    del old["tabular"]["unit"], old["training"]["standardise_target"]
    read = Config.model_validate(old)
    scale = {"training": now.training.model_copy(update={"standardise_target": False})}
    assert read == now.model_copy(update=scale)
    assert preset(name, {"task": old["task"]}) == now  # in a file that names a preset


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "regression", "tabular": {"classes": {"a": [], "b": []}}}, "drop one"),
        ({"tabular": {"classes": {"a": []}}}, "needs two classes or more"),
        ({"tabular": {"unit": "ml"}}, "classes have no unit"),
        ({"tabular": {"classes": {}}, "training": {"combine": "weighted_voting"}}, "needs classes"),
        ({"training": {"test_part": 5}}, "count from 0 to 4"),
        ({"training": {"split_column": "a", "split_file": "b"}}, "give one of them"),
        ({"preprocessing": {"boxes": []}}, "preprocessing.boxes"),
        ({"preprocessing": {"channels": [{"name": "a"}, {"name": "b"}]}}, "needs 'files'"),
        ({"preprocessing": {"normalisation": "fixed-range"}}, "needs 'range'"),
        (
            {"preprocessing": {"normalisation": "fixed-range", "range": [3, 0]}},
            "the lower and the higher value",
        ),
        (
            {"preprocessing": {"normalisation": "fixed-range", "range": [0, float("inf")]}},
            "finite",
        ),
        (
            {"preprocessing": {"boxes": [{"name": "a", "center": [float("nan"), 0, 0]}]}},
            "finite",
        ),
        ({"preprocessing": {"spacing": float("inf")}}, "finite"),
        ({"preprocessing": {"shape": [0, 3, 3]}}, "needs one voxel or more along"),
        (
            {"network": {"architecture": "brain-age"}, "preprocessing": {"shape": [64, 35, 64]}},
            "needs at least 36 voxels",
        ),
        (
            {"network": {"hyper_layers": ["fc1", "block5.*"]}},
            "network.hyper_layers: 'block5.*' is no layer of ad, which has conv_bn_relu.0, block1",
        ),
        (
            {"network": {"fusion": "film", "fusion_at": "block5"}},
            "network.fusion_at: 'block5' is no place of ad, which has block1, block2, block3,",
        ),
        ({"network": {"hyper_layers": "fc1"}}, "must be a list; write [fc1]"),
        ({"preprocessing": {"range": [0, 1]}}, "goes with normalisation fixed-range"),
        (
            {"preprocessing": {"channels": [{"name": "a", "files": "x"}] * 2}},
            "each needs a name of its own",
        ),
        ({"tabular": None}, "tabular: is empty"),
        ({"training": [1]}, "training"),
    ],
)
def test_what_does_not_go_together_is_refused(change, message):
    with pytest.raises(ConfigError) as caught:
        preset("ad", change)
    assert message in str(caught.value)


def test_layers_are_chosen_by_names_and_patterns():
    def chosen(*patterns, **fields):
        return preset("ad", {"network": {"hyper_layers": patterns, **fields}}).network.generated

    assert chosen() == ("block4.downsample.0",)
    assert chosen("fc*", "block4.conv1", "fc1") == ("block4.conv1", "fc1", "fc2")
    assert chosen("fc1", fusion="film") == ()
    assert len(chosen("*")) == 15


def test_the_older_name_of_the_architecture_is_read_over_a_preset(tmp_path):
    path = tmp_path / "hfrt.yaml"
    path.write_text("preset: ad\nnetwork: {task: brain-age}\n")
    assert load_config(path).network.architecture == "brain-age"


def test_the_recipe_goes_with_the_task():
    """What the preset says of a number's loss does not stand in the way of classes."""
    two = {"target": "DX", "classes": {"a": [], "b": []}}
    assert preset("brain-age-small").training.loss == "l1"
    assert preset("brain-age-small", {"tabular": two}).training.loss == "mse"
    with pytest.raises(ConfigError, match="is of a number"):
        preset("brain-age-small", {"tabular": two, "training": {"loss": "huber"}})


@pytest.mark.parametrize("name", ["ad", "brain-age"])
def test_the_published_protocols_stay_as_they_are(name):
    found = preset(name)
    assert (found.training.optimizer, found.training.schedule) == ("adam", "constant")
    assert (found.training.ema, found.training.warmup_epochs) == (0, 0)
    assert (found.training.keep, found.training.loss) == ("best", "mse")
    assert found.augmentation == config.Augmentation()
    assert (found.network.generated_part, found.network.bn_momentum) == (1, 0.05)

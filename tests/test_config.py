"""What the reference page is made from: every field says what it is, in one place."""

import pytest

from hyperfusion_rt import config
from hyperfusion_rt.config import Frozen, load_config
from hyperfusion_rt.errors import ConfigError

MODELS = [
    kind
    for kind in vars(config).values()
    if isinstance(kind, type) and issubclass(kind, Frozen) and kind is not Frozen
]


def test_all_models_are_found():
    assert {kind.__name__ for kind in MODELS} == {
        "Box",
        "Config",
        "Feature",
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
            "categories.0: must be a text; write it in quotes, as '0'",
        ),
        ("training: {epochs: yes}", "training.epochs: must be a number; YAML reads this as true"),
        ("network: {features: on}", "network.features: must be a number"),
        ("training: {seed: 010}", "line 2: YAML reads 010 as another number"),
        ("training: {epochs: 1:30}", "YAML reads 1:30 as another number"),
        ("training: {lr: .inf}", "training.lr: Input should be a finite number"),
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

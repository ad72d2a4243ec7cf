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

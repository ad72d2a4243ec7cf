"""A configuration as a whole: where its fields come from, and the schema that editors read."""

import re

import jsonschema
import pytest
import yaml

from hyperfusion_rt.config import PRESETS, load_config, preset
from hyperfusion_rt.study.merged import origins, read, schema, text

WORDS = {"overruled": "--set", "file": "hfrt.yaml", "preset": "preset", "default": "default"}
FILE = """\
preset: ad-small
tabular: {classes: {'no': ['no', HC], 'yes': ['1', 'a: b']}, target: "x\\ny", stratify: []}
network: {features: 2}
training: {epochs: 3, lr: 1.e-5}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "hfrt.yaml"
    path.write_text(FILE)
    return path


def test_every_field_says_where_it_comes_from(file):
    overruled = {"training": {"epochs": 4}}
    config = load_config(file, overruled)
    where = origins(config, read(file), overruled)
    assert where["training.epochs"] == "overruled"
    assert where["training.lr"] == where["network.features"] == where["preset"] == "file"
    assert where["tabular.classes"] == where["tabular.stratify"] == "file"
    assert where["tabular.features"] == where["preprocessing.boxes"] == "preset"
    assert where["network.dropout"] == where["training.schedule"] == "preset"
    assert where["training.seed"] == where["scan_checks"] == "default"
    # The preset's weights go with its classes.
    assert where["training.class_weights"] == "default"
    assert set(where.values()) <= set(WORDS)


def test_what_is_printed_is_the_same_configuration(file, tmp_path):
    config = load_config(file)
    printed = text(config, origins(config, read(file), {}), WORDS)
    other = tmp_path / "other.yaml"
    other.write_text(printed)
    assert load_config(other) == config
    assert "  epochs: 3                               # hfrt.yaml\n" in printed
    assert max(map(len, printed.splitlines())) <= 110


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_printed_is_the_preset(name, tmp_path):
    config = preset(name)
    path = tmp_path / "hfrt.yaml"
    path.write_text(text(config, origins(config, {}, {}), WORDS))
    assert load_config(path) == config


def test_an_older_spelling_comes_from_the_file(tmp_path):
    path = tmp_path / "hfrt.yaml"
    path.write_text("preset: ad\nnetwork: {task: brain-age}\n")
    where = origins(load_config(path), read(path), {})
    assert where["network.architecture"] == "file"


def test_the_schema_is_one():
    made = schema()
    jsonschema.Draft202012Validator.check_schema(made)
    assert made["required"] == ["preset"]
    assert made["properties"]["preset"]["enum"] == list(PRESETS)
    for name, definition in made["$defs"].items():
        assert definition["additionalProperties"] is False, name
        assert all("description" in field for field in definition["properties"].values()), name
    assert {name for name, d in made["$defs"].items() if "required" in d} == {
        "Box", "Channel", "Feature", "MappedColumn",
    }  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_the_schema_takes_every_preset_in_whole_and_in_part(name):
    validator = jsonschema.Draft202012Validator(schema())
    whole = preset(name).model_dump(mode="json")
    validator.validate(whole)
    for section, value in whole.items():
        if not isinstance(value, dict):
            continue
        for field in value:
            validator.validate({"preset": name, section: {field: value[field]}})
    validator.validate({"preset": name})


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "preset: none",
        "{preset: ad, traning: {}}",
        "{preset: ad, training: {epoch: 3}}",
        "{preset: ad, training: {lr: fast}}",
        "{preset: ad, training: {epochs: 0}}",
        "{preset: ad, tabular: {features: [{name: A}]}}",
        "{preset: ad, tabular: {features: [{name: A, kind: number}]}}",
        "{preset: ad, tabular: {classes: {A: [yes]}}}",
    ],
)
def test_the_schema_refuses_what_loading_refuses(content):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema()).validate(yaml.safe_load(content))


def test_a_draft_is_valid(study):
    study.set("DX", lambda i: ("yes", "no")[i % 2])
    study.draft()
    jsonschema.Draft202012Validator(schema()).validate(yaml.safe_load(study.text))


def test_the_examples_of_the_page_are_configurations(request, tmp_path):
    page = (request.config.rootpath / "docs/how-to/configure.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        (tmp_path / "hfrt.yaml").write_text(block, encoding="utf-8")
        config = load_config(tmp_path / "hfrt.yaml")
        jsonschema.Draft202012Validator(schema()).validate(config.model_dump(mode="json"))

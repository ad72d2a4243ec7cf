"""The documentation says what the code does: links, command lines, code blocks, reference pages."""

import csv
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

import hyperfusion_rt
from hyperfusion_rt.config import load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    *(
        ROOT / name
        for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "kernels/README.md")
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
]

_TARGET = re.compile(r'\]\(([^)\s]+)\)|(?:src|srcset)="([^"]+)"')
_CODE = re.compile(r"^```.*?^```|^ {4}.*?$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"\bhfrt ([a-z][a-z-]+)([^`\n]*)")


def blocks(text, language):
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def page_id(path):
    return str(path.relative_to(ROOT))


@pytest.fixture
def generate(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("generate")


def test_the_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 130
    assert [line for line in lines if len(line) > 110] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_to_files(page):
    found = [a or b for a, b in _TARGET.findall(page.read_text(encoding="utf-8"))]
    paths = [link.split("#")[0] for link in found if ":" not in link]
    assert [path for path in paths if path and not (page.parent / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_command_lines_parse(page, generate):
    commands = {name.removeprefix("hfrt "): command for name, command in generate.commands()}
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    wrong = []
    for block in _CODE.findall(text):
        for name, rest in _COMMAND.findall(block):
            line = f"hfrt {name}{rest}"
            if name not in commands:
                wrong.append(line)
                continue
            known = {option for p in commands[name].params for option in p.opts} | {"--help"}
            plain = re.sub(r"'[^']*'", "quoted", rest)
            words = shlex.split(re.split(r"&&|[;|>]|  #", plain)[0], comments=True)
            options = {word.split("=")[0] for word in words if word.startswith("-")}
            wrong += [f"{line}: {option}" for option in options - known]
    assert wrong == []


def test_the_readme_has_the_commands_that_tests_can_find():
    assert len(_COMMAND.findall(README)) >= 5


def test_python_in_the_readme_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # it writes a file
    found = blocks(README, "python")
    assert found
    names = {}
    for block in found:
        exec(compile(block, "README.md", "exec"), names)
    assert names["y"].shape == names["z"].shape == (4, 8)


def test_the_readme_s_table_can_be_drafted(tmp_path):
    from hyperfusion_rt.study.draft import draft

    lines = re.findall(r"\b(?:subject|S\d+),\S*", README)
    assert len(lines) == 3
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "scans").mkdir()
    for name in ("S001", "S002"):
        (tmp_path / "scans" / f"{name}.nii.gz").touch()
    found = draft(tmp_path / "scans", tmp_path / "data.csv", tmp_path).config
    assert found.tabular.id_column == "subject"
    assert found.tabular.classes == {"CN": ("CN",), "AD": ("AD",)}


def test_configurations_in_the_docs_are_valid(tmp_path):
    page = (ROOT / "docs" / "how-to" / "configure.md").read_text(encoding="utf-8")
    found = blocks(page, "yaml")
    assert len(found) >= 3
    for block in found:
        (tmp_path / "hfrt.yaml").write_text(block, encoding="utf-8")
        load_config(tmp_path / "hfrt.yaml")


def test_reference_pages_are_what_the_code_gives(generate):
    stale = [
        name
        for name, text in generate.pages().items()
        if (generate.FOLDER / name).read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run: python docs/generate.py"


def test_every_field_and_option_has_a_meaning(generate):
    fields = [
        f"{model.__name__}.{name}"
        for model in generate.sections(generate.config.Config)
        for name, field in model.model_fields.items()
        if not field.description
    ]
    options = [
        f"{name} {parameter.name}"
        for name, command in generate.commands()
        for parameter in command.params
        if not parameter.help
    ]
    assert fields + options == []


def named(entries):
    """The names in code letters of the first cells of a table's rows."""
    return {name.strip('"') for entry in entries for name in re.findall(r"`([^`]+)`", entry[0])}


def test_the_output_files_are_as_described(generate, cohort, hfrt):
    status, _, _ = hfrt(cohort, "infer", "scans", "--tabular", "data.csv", "--engine", "native")
    assert status == 0
    with open(cohort / "predictions.csv", encoding="utf-8") as file:
        columns = next(csv.reader(file))
    described = [column.name for column in generate.columns()]
    assert [name for name in described if name in columns] == columns
    record = json.loads((cohort / "predictions.csv.run.json").read_text(encoding="utf-8"))
    assert set(record) == named(generate.RUN)
    journal = (cohort / "predictions.csv.journal").read_text(encoding="utf-8").splitlines()
    assert {next(iter(json.loads(line))) for line in journal} == named(generate.JOURNAL)


def test_the_citation_names_this_version_and_the_paper():
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert content["cff-version"] == "1.2.0"
    assert str(content["version"]) == hyperfusion_rt.__version__
    assert "2403.13319" in content["preferred-citation"]["url"]
    assert f"## {hyperfusion_rt.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

"""How commands are made of functions and option models, and how messages are spelt."""

import ast
import json
import re
from pathlib import Path
from typing import get_args

import pytest

from hyperfusion_rt import errors
from hyperfusion_rt.cli import options
from hyperfusion_rt.cli.app import app
from hyperfusion_rt.cli.options import COMMANDS, GROUPS, PANELS, flag, spell

# What the commands of version 0.1.0 were called with, by their names and defaults.
NAMES = {
    "infer": {
        "--level": None, "--refuse-ood": False,
        "--tabular": None, "--artifact": None, "--out": "predictions.csv", "--report": None,
        "--engine": "auto", "--threads": None, "--from": "registered", "--resume": False,
        "--force": False, "--fail-fast": False, "--max-errors": None, "--max-memory": None,
        "--batch": 1, "--feature-cache": None, "--shard": None, "--subject": None,
        "--derivative": None, "--executor": "local", "--workers": None, "--ray-address": None,
        "--id-column": None, "--duplicates": "refuse", "--unmatched-scans": "list",
        "--unmatched-rows": "list", "--bids-filter": None, "--json": False,
    },
    "evaluate": {
        "--level": None, "--refuse-ood": False,
        "--tabular": None, "--out": "evaluation", "--engine": "auto", "--threads": None,
        "--from": "registered", "--scan-checks": None, "--batch": 1, "--feature-cache": None,
        "--max-memory": None, "--id-column": None, "--duplicates": "refuse", "--seen-by": "any",
        "--include-seen": False, "--json": False,
    },
    "explain": {
        "--tabular": None, "--artifact": None, "--out": "explanation", "--method": "occlusion",
        "--of": None, "--atlas": None, "--cube": 8.0, "--engine": "auto", "--threads": None,
        "--from": "registered", "--id-column": None, "--json": False,
    },
    "what-if": {
        "--tabular": None, "--vary": None, "--nearest-flip": False, "--at": None, "--out": None,
        "--artifact": None, "--engine": "auto", "--threads": None, "--id-column": None,
        "--level": None, "--refuse-ood": False, "--json": False,
    },
    "merge": {"--artifact": None, "--out": "predictions.csv", "--report": None, "--json": False},
    "bids-app": {
        "--level": None, "--refuse-ood": False,
        "--participant-label": None, "--session-label": None, "--artifact": None,
        "--tabular": None, "--engine": "auto", "--threads": None, "--from": None,
        "--bids-filter": None, "--json": False,
    },
    "import": {
        "--out": None, "--shape": None, "--spacing": 1.0, "--orientation": "RAS",
        "--normalise": "zscore", "--box": "whole", "--output": None, "--classes": "",
        "--target": "value", "--unit": "", "--bins": "", "--engine": ["native", "onnx"],
        "--precision": "fp32", "--scan-checks": "refuse", "--force": False, "--json": False,
    },
    "export": {
        "--calibration": None, "--calibration-table": None,
        "--engine": ["native", "onnx"], "--precision": "fp32", "--combine": None, "--run": None,
        "--out": None, "--batch": "1:8:32", "--workspace": 4.0,
        "--compute-capability": [80, 86, 89, 120], "--serve": None, "--serve-backend": "onnx",
        "--force": False, "--json": False,
    },
    "bench": {
        "--artifact": None, "--run": None, "--preset": None, "--features": None,
        "--batch": [1, 4], "--threads": None, "--rounds": 9, "--only": None, "--scans": None,
        "--tabular": None, "--out": "bench", "--json": False,
    },
    "train": {
        "--config": "hfrt.yaml", "--set": None, "--name": None, "--resume": False, "--run": None,
        "--device": None, "--threads": None, "--jobs": None, "--executor": "local",
        "--ray-address": None, "--tracker": None, "--json": False,
    },
    "compare": {
        "--config": "hfrt.yaml", "--set": None, "--models": None, "--folds": None, "--seeds": 1,
        "--ablate": None, "--against": None, "--test": None, "--test-table": None, "--name": None,
        "--resume": False, "--jobs": None, "--threads": None, "--device": None,
        "--executor": "local", "--ray-address": None, "--json": False,
    },
    "tune": {
        "--config": "hfrt.yaml", "--set": None, "--trials": 20, "--space": None, "--metric": None,
        "--pruner": None, "--seed": None, "--name": None, "--resume": False, "--timeout": None,
        "--jobs": None, "--threads": None, "--device": None, "--tracker": None, "--json": False,
    },
    "init": {
        "--scans": None, "--table": None, "--target": None, "--task": None, "--unit": None,
        "--boxes": None, "--preset": None, "--id-column": None, "--out": "hfrt.yaml",
        "--force": False, "--json": False,
    },
    "config": {
        "--config": None, "--set": None, "--preset": None, "--schema": False, "--json": False,
    },
    "check": {"--config": "hfrt.yaml", "--set": None, "--scans": False, "--json": False},
    "simulate": {
        "--task": "ad", "--subjects": 480, "--seed": 1, "--spacing": 2, "--jobs": None,
        "--model": "additive", "--scans": 1, "--force": False, "--json": False,
    },
    "preprocess": {
        "--out": None, "--artifact": None, "--preset": None, "--threads": None, "--force": False,
        "--bids-filter": None, "--json": False,
    },
    "import-checkpoint": {"--name": None, "--table": None, "--runs": "runs", "--json": False},
    "inspect": {"--plan": False, "--json": False},
    "doctor": {"--json": False},
    "demo": {"--subjects": 600, "--held-out": 200, "--force": False, "--json": False},
}  # fmt: skip


def named(command: str) -> dict[str, object]:
    """Flag → default of a command's options."""
    made = COMMANDS[command].build()
    found = {}
    for parameter in made.params:
        if parameter.opts[0].startswith("--"):
            default = parameter.default
            found[parameter.opts[0]] = str(default) if isinstance(default, Path) else default
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_names_and_defaults_of_options_stay(command):
    found = named(command)
    for option, default in NAMES[command].items():
        value = found[option]
        assert (list(value) if isinstance(default, list) else value) == default, option


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_panels_and_no_type_for_flags(command, tmp_path, hfrt):
    for option in ("-h", "--help"):
        status, out, _ = hfrt(tmp_path, command, option)
        assert status == 0
        assert "<bool>" not in out
    panels = {p.rich_help_panel for p in COMMANDS[command].build().params}
    assert {panel for panel in panels if panel} <= {*PANELS}


def test_infer_shows_its_options_panel_by_panel(tmp_path, hfrt):
    _, out, _ = hfrt(tmp_path, "infer", "-h")
    panels = re.findall(r"╭─ ([A-Z][A-Za-z ]+) ─", out)
    assert panels[2:] == [
        options.INPUT, options.OUTPUT, options.ENGINE, options.RESUME, options.MACHINES,
    ]  # fmt: skip


def test_commands_stand_in_groups(tmp_path, hfrt):
    _, out, _ = hfrt(tmp_path, "-h")
    assert "<bool>" not in out
    assert "--install-completion" in out
    assert re.findall(r"╭─ ([A-Z][a-z]+) ─", out) == ["Options", *GROUPS]


def test_every_field_of_a_model_has_a_panel():
    known = {name for names in PANELS.values() for name in names}
    for command in COMMANDS.values():
        kinds = map(options._load, command.models.values())
        for kind in (kind for kind in kinds if hasattr(kind, "model_fields")):
            shown = {name for name, _ in options._shown(kind)}
            assert shown <= known, command.name


def test_messages_are_spelt_for_the_terminal():
    assert spell("`max_memory` 20 MiB: too little") == "--max-memory 20 MiB: too little"
    assert spell("begin anew with `force`, or another `source`") == (
        "begin anew with --force, or another --from"
    )
    for text in ("`Not a name`", "a cell of the user's: '`abc`' is no usable number"):
        assert spell(text) == text
    assert flag("subjects") == "--subject"


def test_every_parameter_that_a_message_names_is_known():
    """So that the terminal never shows a name in backticks that cannot be typed."""
    package = Path(errors.__file__).parent
    named = set()
    for path in [*package.rglob("*.py"), *(package / "export").rglob("*.py")]:
        # No command calls `hyperfy`; `models.own` says its parameters as fields.
        if "cli" in path.parts or path.name == "hyperfy.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        raised = [n for n in ast.walk(tree) if isinstance(n, ast.Raise) and n.exc is not None]
        for part in (part for node in raised for part in ast.walk(node)):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                named |= set(re.findall(r"`([a-z_]+)`", part.value))
    assert {"max_memory", "force", "resume"} <= named
    assert named - {"options"} <= {name for names in PANELS.values() for name in names}


def test_an_error_is_spelt_on_the_terminal_and_coded_in_json(cohort, hfrt):
    command = ["infer", "scans", "--tabular", "data.csv", "--resume", "--force"]
    status, out, err = hfrt(cohort, *command)
    assert (status, out) == (1, "")
    assert err == "error: --resume keeps what is done, --force throws it away: choose one\n"
    status, out, _ = hfrt(cohort, *command, "--json")
    assert status == 1
    error = json.loads(out)["error"]
    assert error["code"] == "option-conflict"
    assert error["message"].startswith("--resume keeps")


def test_the_code_is_in_the_table_the_journal_and_the_json(cohort, hfrt):
    scan = cohort / "scans" / "S5-0001.nii.gz"
    content = scan.read_bytes()[:1000]
    scan.unlink()
    scan.write_bytes(content)
    command = ["infer", "scans", "--tabular", "data.csv", "--engine", "native", "--json"]
    command += ["--unmatched-rows", "ignore", "--out", "p.jsonl"]
    status, out, _ = hfrt(cohort, *command)
    assert status == 3
    lines = [json.loads(line) for line in (cohort / "p.jsonl").read_text().splitlines()]
    for rows in (json.loads(out)["predictions"], lines):
        codes = {row["subject"]: row["code"] for row in rows}
        assert codes.pop("S5-0001") == "scan-truncated"
        assert set(codes.values()) == {None}
    journal = [json.loads(line) for line in (cohort / "p.jsonl.journal").read_text().splitlines()]
    cases = {line["case"]["subject"]: line["case"]["code"] for line in journal if "case" in line}
    assert cases["S5-0001"] == "scan-truncated"
    assert set(cases.values()) == {"", "scan-truncated"}
    assert "scan-truncated" in errors.CODES


def test_the_app_completes_commands_and_options(monkeypatch, capsys):
    monkeypatch.setenv("_HFRT_COMPLETE", "complete_bash")
    for words, expected in (
        ("hfrt in", "infer"),
        ("hfrt infer --unmatched-s", "--unmatched-scans"),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        with pytest.raises(SystemExit):
            app(prog_name="hfrt")
        assert expected in capsys.readouterr().out.split()


def test_literals_of_models_are_choices():
    (source,) = [p for p in COMMANDS["infer"].build().params if p.opts[0] == "--from"]
    from hyperfusion_rt.runtime.options import Source

    assert list(source.type_descriptor.choices) == list(get_args(Source))

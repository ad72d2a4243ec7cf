"""The command line: help, exit statuses, and the commands as the README types them."""

import json
import resource
import subprocess
import sys

import pytest

COMMANDS = [
    "simulate", "init", "config", "check", "train", "import-checkpoint", "export", "infer", "bench",
    "inspect", "demo",
]  # fmt: skip


def test_help_is_quick():
    """Processor time, which is the wall time of an idle machine whatever the neighbours do."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "hyperfusion_rt.cli", "--help"]
        done = subprocess.run(command, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        assert done.returncode == 0
        assert all(command in done.stdout for command in COMMANDS)
    assert min(times) < 0.4


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, tmp_path, hfrt):
    status, out, _ = hfrt(tmp_path, command, "--help")
    assert status == 0
    assert "Example" in out
    assert "--json" in out


def test_usage_errors_are_2(tmp_path, hfrt):
    assert hfrt(tmp_path, "infer")[0] == 2
    assert hfrt(tmp_path, "nonsense")[0] == 2
    assert hfrt(tmp_path, "simulate", "x", "--spacing", "7")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "hfrt.yaml: no such file"),
        (["export"], "train one with 'hfrt train'"),
        (["infer", "scans", "--tabular", "data.csv"], "make one with 'hfrt export'"),
        (["inspect"], "make one with 'hfrt export'"),
        (["inspect", "nowhere"], "not an artifact"),
        (["export", "--batch", "many"], "write it as SMALLEST:USUAL:LARGEST"),
        (["export", "--engine", "turbo"], "there is no engine 'turbo'"),
        (["train", "--set", "epochs"], "section.field=value"),
        (["train", "--resume"], "train one with 'hfrt train'"),
        (["import-checkpoint", "none.pt"], "no such checkpoint"),
        (["bench", "--preset", "nonsense"], "there is no preset 'nonsense'"),
    ],
)
def test_errors_are_one_line_and_say_what_to_do(tmp_path, hfrt, arguments, message):
    status, _, err = hfrt(tmp_path, *arguments)
    assert status == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense: 1", "preset: NAME"),
        ("preset: nothing", "there is no preset 'nothing'"),
        ("preset: ad\ntraining: {lr: -1}", "training.lr"),
        ("preset: ad\ntrainig: {lr: 1}", "trainig"),
        ("preset: [", "cannot be read as YAML"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path, hfrt, text, message):
    (tmp_path / "hfrt.yaml").write_text(text)
    status, _, err = hfrt(tmp_path, "train")
    assert status == 1
    assert "hfrt.yaml" in err
    assert message in err


def test_a_missing_extra_is_one_line(tmp_path, hfrt, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "torch" else real(name, *a)
    )
    status, _, err = hfrt(tmp_path, "train")
    assert status == 1
    assert "pip install 'hyperfusion_rt[train]'" in err


def test_the_readme_commands_as_typed(tmp_path, hfrt):
    """simulate, train, export, infer, inspect, bench: with the defaults found."""
    status, out, _ = hfrt(tmp_path, "simulate", "cohort", "--subjects", 25, "--seed", 3)
    assert status == 0
    assert "hfrt train" in out
    root = tmp_path / "cohort"
    assert hfrt(tmp_path, "simulate", "cohort", "--subjects", 25)[0] == 1  # not emptied unasked
    text = (root / "hfrt.yaml").read_text()
    (root / "hfrt.yaml").write_text(
        text + "network: {features: 2}\ntraining: {epochs: 1, parts: 5}\n"
    )
    status, out, _ = hfrt(root, "train", "--json")
    assert status == 0
    assert json.loads(out)["test"]["cases"] == 5
    status, out, _ = hfrt(root, "export", "--engine", "onnx")
    assert status == 0
    assert "tolerance" in out
    status, out, _ = hfrt(root, "infer", "scans/", "--tabular", "data.csv")
    assert status == 0
    assert "25 predicted" in out
    status, out, _ = hfrt(root, "inspect", "--json")
    assert json.loads(out)["provenance"]["cases"]["train"] == 15
    assert hfrt(root, "inspect")[0] == 0
    status, out, _ = hfrt(
        root, "bench", "--rounds", 3, "--batch", 1, "--only", "hfrt", "--only", "torch eager",
        "--only", "openvino", "--json",
    )  # fmt: skip
    assert status == 0
    found = json.loads(out)
    names = {timing["contender"] for timing in found["timings"]}
    assert {"hfrt onnx", "torch eager"} <= names
    assert "hfrt native bf16" not in names  # the artifact has no native engine
    assert all(timing["correct"] for timing in found["timings"]), found["timings"]
    assert found["end_to_end"]["scans"] == 20
    assert (root / "bench.png").stat().st_size > 5000


@pytest.mark.slow
def test_import_export_of_published_weights(tmp_path, hfrt, request, monkeypatch):
    golden = request.config.rootpath / "tests/golden/ad_golden_f4.state_dict.safetensors"
    status, out, _ = hfrt(tmp_path, "import-checkpoint", golden, "--name", "published")
    assert status == 0
    status, out, _ = hfrt(tmp_path, "export", "--json")
    content = json.loads(out)
    assert status == 0
    assert content["engines"][0]["comparison"]["largest_difference"] < 1e-5
    assert not content["engines"][0]["comparison"]["real_cases"]
    assert hfrt(tmp_path, "export", "--precision", "bf16")[0] == 0
    content = json.loads(hfrt(tmp_path, "inspect", "--json")[1])
    assert {e["engine"]: e["precision"] for e in content["engines"]} == {
        "native": "bf16",
        "onnx": "fp32",
    }
    assert 1e-5 < content["engines"][0]["comparison"]["largest_difference"] < 2e-2
    monkeypatch.setenv("COLUMNS", "200")
    assert "gather bf16" in hfrt(tmp_path, "inspect", "--plan")[1]
    status, _, err = hfrt(tmp_path, "export", "--precision", "bf16", "--engine", "onnx")
    assert status == 1
    assert "onnx has fp32" in err
    status, _, err = hfrt(tmp_path, "import-checkpoint", golden, "--name", "published")
    assert status == 1
    assert "exists" in err


def test_the_plan_of_an_artifact(cohort, hfrt):
    status, out, _ = hfrt(cohort, "inspect", "--plan", "--json")
    assert status == 0
    rows = json.loads(out)
    assert {row["part"] for row in rows} == {"trunk", "head"}
    assert rows[0]["how"].startswith("planar")
    assert "max pool" in rows[0]["fused"]
    assert sum(float(row["GFLOP"]) for row in rows) > 0
    status, out, _ = hfrt(cohort, "inspect", "--plan")
    assert status == 0
    assert "winograd" in out

"""The options of an export: documented once, wrong values and what does not go together said."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from hyperfusion_rt.errors import ConfigError, EngineError
from hyperfusion_rt.export import ExportOptions, export_run
from hyperfusion_rt.runtime.engines.trt_build import BuildOptions


def test_every_field_is_documented_and_cannot_be_changed():
    assert all(field.description for field in ExportOptions.model_fields.values())
    options = ExportOptions()
    with pytest.raises(ValidationError):
        options.force = True
    assert ExportOptions.model_validate_json(options.model_dump_json()) == options


def test_what_tensorrt_builds_with():
    assert ExportOptions().build_options() == BuildOptions()
    given = ExportOptions(batch="1:2:4", workspace=1, capabilities=[80, 89, 80])
    assert given.build_options() == BuildOptions((1, 2, 4), 1.0, (80, 89))
    assert ExportOptions(batch=(1, 2, 4)).batch == (1, 2, 4)


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"batch": "8"}, "option-wrong", "`batch` 8: write it as SMALLEST:USUAL:LARGEST"),
        ({"batch": (4, 2, 8)}, "option-wrong", "`batch` 4:2:8: write it as"),
        ({"workspace": float("inf")}, "option-wrong", "`workspace` inf: must be more than 0 GiB"),
        ({"precision": "fp8"}, "option-wrong", "`precision` fp8: input should be"),
        ({"engines": []}, "option-wrong", "`engines` "),
        ({"nonsense": 1}, "option-wrong", "there is no option 'nonsense'"),
        ({"backend": "tensorrt"}, "option-conflict", "`backend` tensorrt: needs `serve` DIR"),
        (
            {"engines": ["onnx", "native"], "precision": "fp16"},
            "precision-unsupported",
            "`precision` fp16: onnx has fp32; native has fp32, bf16",
        ),
    ],
)
def test_a_wrong_option_is_said_by_its_name(fields, code, message):
    with pytest.raises(ConfigError) as error:
        ExportOptions(**fields)
    assert error.value.code == code
    assert message in str(error.value)


def test_an_engine_that_is_none_has_a_code_of_its_own():
    with pytest.raises(EngineError, match="there is no engine 'turbo'") as error:
        ExportOptions(engines=["native", "turbo"])
    assert error.value.code == "engine-unknown"


def test_keywords_overrule_the_options(session_run, tmp_path):
    options = ExportOptions(engines=["onnx"], rule="weighted_voting")
    found = export_run(session_run, tmp_path / "a.hfrt", options, engines=["native"])
    assert found.engines == ["native"]
    assert found.manifest.combine == "weighted_voting"


def test_the_options_need_no_torch():
    code = "import sys, hyperfusion_rt.export.options; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"

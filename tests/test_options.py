"""Option models: declared once, wrong values said by name, the same object for everybody."""

import json

import pytest
from pydantic import ValidationError

import hyperfusion_rt
from hyperfusion_rt.errors import ConfigError
from hyperfusion_rt.machine import usable_cores
from hyperfusion_rt.runtime.options import (
    BidsOptions,
    CohortOptions,
    MergeOptions,
    PredictOptions,
)
from hyperfusion_rt.study.options import DraftOptions

MODELS = [PredictOptions, CohortOptions, MergeOptions, BidsOptions, DraftOptions]


@pytest.mark.parametrize("model", MODELS)
def test_every_field_is_documented_and_cannot_be_changed(model):
    assert all(field.description for field in model.model_fields.values())
    options = model()
    with pytest.raises(ValidationError):
        options.threads = 1
    assert model.model_validate_json(options.model_dump_json()) == options


@pytest.mark.parametrize(
    ("fields", "code", "parameter", "message"),
    [
        ({"thread": 1}, "option-wrong", "threads", "there is no option 'thread'; did you mean"),
        ({"nonsense": 1}, "option-wrong", None, "there is no option 'nonsense'"),
        ({"threads": 0}, "option-wrong", "threads", "`threads` 0: input should be greater than"),
        ({"batch": "x"}, "option-wrong", "batch", "`batch` x: "),
        ({"max_memory": "4X"}, "option-wrong", "max_memory", "write it as 4G or 500M"),
        ({"max_memory": -1}, "option-wrong", "max_memory", "greater than 0"),
        ({"shard": "9/8"}, "option-wrong", "shard", "write it as 2/8"),
        ({"shard": (0, 2)}, "option-wrong", "shard", "write it as 2/8"),
        ({"duplicates": "no"}, "option-wrong", "duplicates", "'refuse' or 'first'"),
        ({"out": "."}, "option-wrong", "out", "is a folder; name a file"),
        ({"resume": True, "force": True}, "option-conflict", "resume", "choose one"),
        ({"workers": 2}, "option-conflict", "workers", "need `executor` ray"),
        ({"derivative": "d", "shard": "1/2"}, "option-conflict", "derivative", "whole dataset"),
        ({"derivative": "d", "subjects": ["a"]}, "option-conflict", "derivative", "whole dataset"),
    ],
)
def test_a_wrong_option_is_said_by_its_name(fields, code, parameter, message):
    with pytest.raises(ConfigError) as error:
        CohortOptions(**fields)
    assert (error.value.code, error.value.parameter) == (code, parameter)
    assert message in str(error.value)


def test_an_option_without_its_name_is_refused(session_artifact):
    with pytest.raises(ConfigError, match="engine='native'") as error:
        hyperfusion_rt.load(session_artifact, "native")
    assert error.value.code == "option-wrong"


def test_texts_are_parsed_as_the_command_line_gives_them():
    options = CohortOptions(max_memory="1.5G", shard="2/8", out="a.tsv", threads=10_000)
    assert options.max_memory == 3 * 2**29
    assert options.shard == (2, 8)
    assert options.out.name == "a.tsv"
    assert options.threads == usable_cores()
    assert CohortOptions(max_memory=500, shard=(1, 1)).max_memory == 500


def test_the_record_of_a_run_holds_the_options_that_it_had(cohort, hfrt):
    command = ["infer", "scans", "--tabular", "data.csv", "--engine", "native"]
    status, _, _ = hfrt(cohort, *command, "--threads", "1", "--duplicates", "first", "--batch", "2")
    assert status == 0
    record = json.loads((cohort / "predictions.csv.run.json").read_text())
    options = CohortOptions.model_validate(record["options"])
    assert options == CohortOptions(
        engine="native", threads=1, duplicates="first", batch=2, report="predictions.html"
    )
    assert record["identity"]["source"] == options.source

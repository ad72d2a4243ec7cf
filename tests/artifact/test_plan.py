"""The plan as a file: every field has a type and a range; what an older version wrote is read."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from hyperfusion_rt.artifact.operations import (
    Activation,
    AdaptivePool,
    Affine,
    AffineMap,
    Binary,
    Combine,
    Concat,
    Conv,
    Ensemble,
    GlobalPool,
    GroupNorm,
    HyperConv,
    HyperLinear,
    Linear,
    OneAnd,
    Pad,
    Pool,
    Reshape,
    SecondOutput,
    Shortcut,
    Slice,
    Softmax,
)
from hyperfusion_rt.artifact.plan import FORMAT, Plan, Program, read_plan, write_plan
from hyperfusion_rt.errors import EngineError
from hyperfusion_rt.runtime.engines.native import NativeEngine

ONE, NONE = (1, 1, 1), (0, 0, 0)
WINDOW = {"kernel": ONE, "stride": ONE, "padding": NONE}
X = {"inputs": ("image",), "shape": (2, 3, 4, 5), "layer": "somewhere", "gflop": 1.5}
V = {"inputs": ("v",), "shape": (2,)}
CONV = {**X, **WINDOW, "weight": "t", "bias": "t", "depthwise": False, "algorithm": "gather"}
MAP = {"scale": "t", "shift": "t", "act": Activation(kind="relu6")}
SECOND = SecondOutput(output="second", shape=(2, 3, 4, 5), **MAP)
FUSED = {
    "act": Activation(kind="leaky_relu", alpha=0.1),
    "nodes": ("n1", "n2"),
    "tile": (2, 2, 2),
    "pairs": True,
    "prologue": AffineMap(**MAP),
    "residual": "image",
    "shortcut": Shortcut(input="image", stride=ONE, weight="t"),
    "second": SECOND,
}
# One of each, with everything that it can have; they need not compute anything.
OPERATIONS = [
    GlobalPool(op="global_avg_pool", inputs=("image",), output="v", shape=(2,), stride=(2, 1, 2)),
    Conv(output="conv", **{**CONV, **FUSED}),
    HyperConv(output="hyper", **{**CONV, "inputs": ("image", "v"), "sparse": True, "pool": True}),
    Linear(output="linear", weight="t", bias="t", act=Activation(kind="prelu", slope="t"), **V),
    HyperLinear(output="hl", weight="t", bias="t", **{**V, "inputs": ("v", "tabular")}),
    Affine(output="affine", scale="t", shift="t", **V),
    GroupNorm(op="group_norm", output="norm", scale="t", shift="t", eps=1e-5, **X),
    Binary(op="mul", output="mul", **{**V, "inputs": ("v", "v")}),
    Combine(output="combine", **{**V, "inputs": ("v", "tabular")}),
    Pool(op="max_pool", output="max", dilation=(1, 2, 1), ceil_mode=True, **WINDOW, **X),
    Pool(op="avg_pool", output="avg", count_include_pad=False, **WINDOW, **X),
    GlobalPool(op="global_max_pool", output="gmax", **V),
    AdaptivePool(op="adaptive_max_pool", output="ad", size=(3, 2, 5), **X),
    Reshape(output="reshape", **V),
    Concat(output="concat", inputs=("v", "linear"), shape=(4,)),
    Slice(output="slice", start=0, stop=2, **V),
    Pad(output="pad", before=NONE, after=(1, 0, 2), **X),
    OneAnd(output="one_and", **V),
    Softmax(output="softmax", **V),
    Ensemble(output="output", members=1, boxes=1, classes=True, rule="mean", **V),
]


@pytest.fixture
def plan() -> Plan:
    inputs = {"image": (2, 3, 4, 5), "tabular": (3,)}
    head = Program(inputs, OPERATIONS, ["output"])
    return Plan(Program({"image": (2, 3, 4, 5)}, [], []), head, {"t": np.ones(2, np.float32)})


def save(body, path, tensors=None, form=FORMAT):
    tensors = {"t": np.ones(2, np.float32)} if tensors is None else tensors
    save_file(tensors, path, {"format": form, "plan": json.dumps(body)})
    return path


@pytest.fixture
def body(plan, tmp_path):
    write_plan(plan, tmp_path / "x")
    with safe_open(tmp_path / "x", "numpy") as file:
        return json.loads(file.metadata()["plan"])


def test_every_operation_comes_back_as_it_was(plan, tmp_path):
    write_plan(plan, tmp_path / "x")
    found = read_plan(tmp_path / "x")
    assert found.head.ops == OPERATIONS
    assert (found.trunk, found.head, found.precision, found.boxes) == (
        plan.trunk, plan.head, "fp32", 1,
    )  # fmt: skip
    assert list(found.tensors) == ["t"]
    np.testing.assert_array_equal(found.tensors["t"], plan.tensors["t"])
    with pytest.raises(KeyError):
        found.tensors["u"]


def leaves(value, path=()):
    """(path, value) of everything in a JSON value that holds nothing else, and of every list."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    else:
        yield path, value
        if isinstance(value, list):
            for index, inner in enumerate(value):
                yield from leaves(inner, (*path, index))


WRONG = {
    bool: (1, 0, "true", 1.0, [], {}),
    int: (True, 1.0, 0.5, "1", None, [], {}, -1, 2**31, 10**30),
    float: (True, "1.5", [], {}, math.nan, math.inf),
    str: (1, True, 0.5, [], {}, ["image"]),
    list: (1, True, "image", {}, 0.5),
}


@pytest.mark.slow
def test_a_field_of_another_type_is_refused(body, tmp_path):
    """Every field of every operation, once with each value that is not of its type."""
    tried = 0
    for path, value in leaves(body["head"]["ops"]):
        if not path:
            continue
        for wrong in WRONG.get(type(value), ()):
            changed = copy.deepcopy(body)
            place = changed["head"]["ops"]
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = wrong
            with pytest.raises(EngineError, match="x: ") as caught:
                read_plan(save(changed, tmp_path / "x"))
            assert caught.value.code == "engine-file-damaged"
            tried += 1
    assert tried > 1500


def test_a_field_that_nobody_knows_or_that_lacks_is_refused(body, tmp_path):
    for number in range(len(body["head"]["ops"])):
        changed = copy.deepcopy(body)
        changed["head"]["ops"][number]["attrs"]["speed"] = 1
        with pytest.raises(EngineError, match="speed"):
            read_plan(save(changed, tmp_path / "x"))
        for field in ("op", "inputs", "output", "shape", "attrs", "tensors"):
            changed = copy.deepcopy(body)
            del changed["head"]["ops"][number][field]
            with pytest.raises(EngineError, match=field):
                read_plan(save(changed, tmp_path / "x"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b["head"]["ops"][0].update(shape=[2, 3]), "must be .F. or .C, D, H, W."),
        (lambda b: b["head"]["ops"][0].update(shape=[0]), "greater than or equal to 1"),
        (lambda b: b["head"]["ops"][0].update(inputs=["image", "image"]), "inputs"),
        (lambda b: b["head"]["ops"][2].update(inputs=["image"]), "inputs"),
        (lambda b: b["head"]["ops"][1]["attrs"].update(stride=[1, 1]), "stride"),
        (lambda b: b["head"]["ops"][1]["attrs"].update(stride=[1, 0, 1]), "stride"),
        (lambda b: b["head"]["ops"][1]["attrs"].update(algorithm="magic"), "algorithm"),
        (lambda b: b["head"]["ops"][1]["attrs"]["act"].update(kind="threshold"), "kind"),
        (lambda b: b["head"]["ops"][1]["attrs"]["second"].update(output="v"), "'v' twice"),
        (lambda b: b["head"]["ops"][1]["attrs"]["shortcut"].update(input="late"), "reads 'late'"),
        (lambda b: b["head"]["ops"][1]["attrs"].update(residual="pad"), "reads 'pad' before"),
        (lambda b: b["head"]["ops"][1]["attrs"]["prologue"].update(scale="u"), "tensor 'u'"),
        (lambda b: b["head"]["ops"][3]["attrs"]["act"].update(slope="u"), "tensor 'u'"),
        (lambda b: b["head"]["ops"][1]["tensors"].update(shortcut="u"), "tensor 'u'"),
        (lambda b: b["head"]["inputs"].update(image=[2, 3]), "must be .F. or .C, D, H, W."),
        (lambda b: b["head"]["inputs"].update(other=[2]), "reads .'other'., which nothing makes"),
        (lambda b: b["head"].update(outputs=["late"]), "reads 'late' before"),
        (lambda b: b.update(precision="fp64"), "precision"),
        (lambda b: b.update(boxes="2"), "boxes"),
        (lambda b: b.pop("trunk"), "trunk"),
    ],
)
def test_what_is_wrong_is_said(body, tmp_path, change, message):
    change(body)
    with pytest.raises(EngineError, match=message) as caught:
        read_plan(save(body, tmp_path / "x"))
    assert str(caught.value).startswith(f"{tmp_path / 'x'}: ")


def test_other_types_of_numbers_are_refused(body, tmp_path):
    tensors = {"t": np.ones(2, np.float32), "u": np.ones(2, np.float16)}
    with pytest.raises(EngineError, match="tensor u: dtype F16"):
        read_plan(save(body, tmp_path / "x", tensors))


def test_what_is_no_file_is_said(tmp_path):
    with pytest.raises(EngineError, match="no: cannot be read") as caught:
        read_plan(tmp_path / "no")
    assert caught.value.code == "engine-file-unreadable"
    with pytest.raises(EngineError, match=f"{tmp_path}: "):
        read_plan(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(EngineError, match="empty: not an engine file"):
        read_plan(tmp_path / "empty")


def test_what_the_first_version_wrote_is_read(tmp_path):
    """It said `act` of all operations, a reshape's shape twice, and of pooling no defaults."""

    def op(name, inputs, output, shape, attrs=None, tensors=None):
        attrs = {"act": None, "from": [output], **(attrs or {})}
        common = {"layer": "a layer", "gflop": 0.0, "megabytes": 0.001}
        return {
            "op": name, "inputs": inputs, "output": output, "shape": shape, "attrs": attrs,
            "tensors": tensors or {}, **common,
        }  # fmt: skip

    window = {"kernel": [2, 2, 2], "stride": [2, 2, 2], "padding": [0, 0, 0]}
    pool = {**window, "ceil_mode": False, "count_include_pad": True}
    trunk = [
        op("avg_pool", ["image"], "a", [1, 2, 2, 2], pool),
        op("affine", ["a"], "b", [1, 2, 2, 2], {"act": {"kind": "relu"}}),
        op("reshape", ["b"], "c", [8], {"shape": [8]}),
        op("global_avg_pool", ["a"], "d", [1]),
    ]
    names = {"weight": "w", "bias": "t"}
    act = {"act": {"kind": "prelu", "slope": "t"}}
    head = [
        op("linear", ["c"], "e", [2], act, names),
        op("slice", ["tabular"], "f", [2], {"start": 1, "stop": 3}),
        op("add", ["e", "f"], "output", [2]),
    ]
    body = {
        "trunk": {"inputs": {"image": [1, 4, 4, 4]}, "ops": trunk, "outputs": ["c", "d"]},
        "head": {
            "inputs": {"c": [8], "d": [1], "tabular": [3]},
            "ops": head,
            "outputs": ["output"],
        },
        "precision": "fp32",
        "boxes": 1,
    }
    tensors = {"w": np.arange(16, dtype=np.float32).reshape(8, 2), "t": np.ones(2, np.float32)}
    path = save(body, tmp_path / "x", tensors, "hfrt-plan-2")
    found = NativeEngine(path)(np.ones((1, 1, 4, 4, 4), np.float32), np.ones((1, 3), np.float32))
    np.testing.assert_array_equal(found, [[56 + 2, 64 + 2]])
    assert load_file(path).keys() == tensors.keys()
    assert read_plan(path).trunk.ops[2].nodes == ("c",)

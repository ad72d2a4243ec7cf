"""The native engine's file: what is damaged or hostile gives an error, never a crash."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import struct
import time

import numpy as np
import pytest

from hyperfusion_rt import _native
from hyperfusion_rt.artifact.operations import (
    Activation,
    Binary,
    Concat,
    Conv,
    Ensemble,
    GlobalPool,
    SecondOutput,
    Shortcut,
    Slice,
)
from hyperfusion_rt.artifact.plan import Plan, Program, read_plan, write_plan
from hyperfusion_rt.errors import EngineError
from hyperfusion_rt.runtime.engines.native import NativeEngine

ONES = (1, 1, 1)
RELU = Activation(kind="relu")


def conv(x: str, output: str, shape: tuple[int, ...], number: str = "", **more) -> Conv:
    given = {"act": RELU, "algorithm": "winograd" if "tile" in more else "planar"} | more
    return Conv(
        inputs=(x,), output=output, shape=shape, kernel=(3, 3, 3), stride=ONES, padding=ONES,
        weight=f"w{number}", bias=f"b{number}", depthwise=False, **given,
    )  # fmt: skip


def mean(x: str, output: str, channels: int) -> GlobalPool:
    return GlobalPool(op="global_avg_pool", inputs=(x,), output=output, shape=(channels,))


def part(x: str, output: str, start: int, stop: int) -> Slice:
    return Slice(inputs=(x,), output=output, shape=(stop - start,), start=start, stop=stop)


def add(x: str, output: str) -> Binary:
    return Binary(op="add", inputs=(x, "tabular"), output=output, shape=(3,))


def small_plan() -> Plan:
    rng = np.random.default_rng(0)
    first = conv("image", "x", (3, 5, 6, 7), tile=(2, 4, 2), layer="layer")
    trunk = Program({"image": (2, 5, 6, 7)}, [first, mean("x", "y", 3)], ["y"])
    head = Program({"y": (3,), "tabular": (3,)}, [add("y", "output")], ["output"])
    tensors = {"w": rng.standard_normal((27, 2, 3)), "b": rng.standard_normal(3)}
    return Plan(trunk, head, {k: v.astype(np.float32) for k, v in tensors.items()})


def narrow_plan() -> Plan:
    """Few channels in bfloat16: two images, read by a planar layer that pools, two narrow ones, a
    shortcut."""
    rng = np.random.default_rng(1)
    tile = (4, 4, 4)
    second = SecondOutput(output="s", shape=(6, 2, 3, 3), scale="b3", shift="b3", act=RELU)
    short = Shortcut(input="x", stride=ONES, weight="w4")
    last = {"tile": tile, "act": None, "shortcut": short, "sparse": True, "second": second}
    trunk = Program(
        {"image": (2, 5, 6, 7)},
        [
            conv("image", "x", (4, 2, 3, 3), "1", pool=True),
            conv("x", "y", (5, 2, 3, 3), "2", tile=tile),
            conv("y", "z", (6, 1, 2, 2), "3", **last),
            mean("s", "m", 6),
            part("m", "f", 1, 4),
        ],
        ["f"],
    )
    head = Program({"f": (3,), "tabular": (3,)}, [add("f", "output")], ["output"])
    shapes = {"w1": (27, 2, 4), "w2": (27, 4, 5), "w3": (27, 5, 6), "w4": (4, 6)}
    shapes |= {"b1": (4,), "b2": (5,), "b3": (6,)}
    tensors = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    return Plan(trunk, head, tensors, "bf16")


def boxed_plan() -> Plan:
    """Two boxes: a trunk that runs on each, a head that combines two members' outputs."""
    plan = small_plan()
    rule = {"members": 2, "boxes": 2, "classes": True, "rule": "weighted_voting"}
    head = Program(
        {"y": (6,), "tabular": (3,)},
        [
            part("y", "a", 0, 3),
            part("y", "b", 3, 6),
            add("b", "c"),
            Concat(inputs=("a", "b", "c", "a"), output="members", shape=(12,)),
            Ensemble(inputs=("members",), output="output", shape=(3,), **rule),
        ],
        ["output", "members"],
    )
    return Plan(plan.trunk, head, plan.tensors, boxes=2)


def run(engine, channels=2):
    return engine(np.ones((2, channels, 5, 6, 7), np.float32), np.ones((2, 3), np.float32))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "engine.native"
    write_plan(small_plan(), path)
    return path


def test_round_trip(file):
    found = read_plan(file)
    expected = small_plan()
    assert (found.trunk, found.head) == (expected.trunk, expected.head)
    write_plan(narrow_plan(), file)
    assert read_plan(file).precision == "bf16"
    first, *others = NativeEngine(file).trunk.engine.steps[:3]
    assert first == _native.StepKind.planar
    assert others == [_native.StepKind.narrow_winograd] * 2
    write_plan(expected, file)
    for name, array in expected.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], array)
    np.testing.assert_array_equal(run(NativeEngine(file)), run(NativeEngine(expected)))


def test_inputs_that_do_not_fit_are_named(file):
    engine = NativeEngine(file)
    image = np.ones((1, 2, 5, 6, 7), np.float32)
    with pytest.raises(EngineError, match=r"tabular is \[B, 3\], but it was given nothing") as e:
        engine(image)
    assert e.value.code == "engine-wrong-input"
    with pytest.raises(EngineError, match=r"image is \[B, 2, 5, 6, 7\].* \(1, 1, 5, 6, 7\)"):
        engine(image[:, :1], np.ones((1, 3), np.float32))


def test_other_programs_can_read_the_tensors(file):
    safetensors = pytest.importorskip("safetensors.numpy", reason="NOT read by safetensors")
    np.testing.assert_array_equal(safetensors.load_file(file)["w"], small_plan().tensors["w"])


def test_it_loads_fast(session_artifact):
    path = session_artifact / "model.native"
    times = []
    for _ in range(5):
        start = time.perf_counter()
        NativeEngine(path)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05


def parts(file):
    content = file.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["plan"]), content[8 + length :]


def assemble(file, header, plan, body):
    header = copy.deepcopy(header)
    header["__metadata__"]["plan"] = json.dumps(plan)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)


def test_every_truncation_is_an_error(file):
    content = file.read_bytes()
    for length in [*range(0, 200), *range(200, len(content), 97), len(content) - 1]:
        file.write_bytes(content[:length])
        with pytest.raises(EngineError, match=str(file)):
            NativeEngine(file)


HOSTILE = [
    0, -1, 1, 3, 2**31, 2**62, 2**63, 10**30, 0.5, float("nan"), None, True, "", "x", "image", [],
    [1], [0, 0, 0], [2**40] * 3, [-1, -1, -1], {}, {"kind": "relu"}, {"kind": "prelu"},
    {"kind": "elu", "alpha": "x"},
]  # fmt: skip


def places(value, path=()):
    """The paths of everything in a JSON value."""
    yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from places(inner, (*path, key))


def changed(value, path, new):
    if not path:
        return new
    copied = copy.copy(value)
    copied[path[0]] = changed(value[path[0]], path[1:], new)
    return copied


def attempt(file, channels=2):
    """Load and run: it works or it is an EngineError."""
    with contextlib.suppress(EngineError):
        run(NativeEngine(file, threads=1), channels)


@pytest.mark.parametrize(("make", "channels"), [(small_plan, 2), (narrow_plan, 2), (boxed_plan, 4)])
def test_hostile_plans(file, make, channels):
    """Every number, name and list of the plan and the header, replaced by what it should not be."""
    write_plan(make(), file)
    assert np.isfinite(run(NativeEngine(file), channels)).all()
    header, plan, body = parts(file)
    rng = random.Random(0)
    for path in places(plan):
        for new in rng.sample(HOSTILE, 8):
            assemble(file, header, changed(plan, path, new), body)
            attempt(file, channels)
    for path in places(header):
        if not path or path[0] == "__metadata__":
            continue
        for new in rng.sample(HOSTILE, 8):
            assemble(file, changed(header, path, new), plan, body)
            attempt(file, channels)


def test_random_bytes(file):
    content = bytearray(file.read_bytes())
    rng = random.Random(1)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        file.write_bytes(damaged)
        attempt(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["trunk"]["ops"][0].update(op="warp"), "operation 'warp'"),
        (lambda p: p["trunk"]["ops"][0].update(inputs=["z"]), "reads 'z' before"),
        (lambda p: p["trunk"]["ops"][0].update(shape=[3, 5, 6, 8]), "but the plan says"),
        (lambda p: p["trunk"]["ops"][0]["tensors"].update(weight="v"), "tensor 'v'"),
        (lambda p: p["trunk"]["ops"][1].update(output="x"), "'x' twice"),
        (lambda p: p["head"]["ops"][0].update(inputs=["y", "image"]), "reads 'image' before"),
        (lambda p: p.update(boxes=0), "a case of 0 boxes"),
        (lambda p: p["head"].update(outputs=[]), "the plan's outputs are"),
    ],
)
def test_what_is_wrong_is_said(file, change, message):
    header, plan, body = parts(file)
    change(plan)
    assemble(file, header, plan, body)
    with pytest.raises(EngineError, match=message):
        NativeEngine(file)


def test_a_newer_format_is_refused(file):
    header, plan, body = parts(file)
    header["__metadata__"]["format"] = "hfrt-plan-9"
    assemble(file, header, plan, body)
    with pytest.raises(EngineError, match="export it again") as error:
        NativeEngine(file)
    assert error.value.code == "engine-file-version"


def test_settings_that_the_engine_lacks_are_no_damage(file, monkeypatch):
    with pytest.raises(EngineError, match="threads must be 1 to 4096") as error:
        NativeEngine(file, threads=5000)
    assert error.value.code == "engine-wrong-setting"
    monkeypatch.setenv("HFRT_ISA", "mmx")
    with pytest.raises(EngineError, match="mmx") as error:
        NativeEngine(file)
    assert error.value.code == "engine-wrong-setting"


def test_many_rows_are_shared_by_threads_and_have_the_same_bits():
    one, two = NativeEngine(boxed_plan(), 1), NativeEngine(boxed_plan(), 2)
    rng = np.random.default_rng(0)
    shapes = one.head.program.inputs
    for rows in (511, 512, 1025):
        feed = {name: rng.random((rows, *shape), np.float32) for name, shape in shapes.items()}
        tabular = feed.pop("tabular")
        expected, found = one.finish(feed, tabular), two.finish(feed, tabular)
        assert list(found) == list(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
    assert two._workers._max_workers == 1
    for wrong in (600, 1026):
        features = {
            name: np.resize(array, (wrong, *array.shape[1:])) for name, array in feed.items()
        }
        with pytest.raises(ValueError, match="in a batch of"):
            two.finish(features, tabular)

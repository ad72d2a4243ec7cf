"""A trunk that runs its first operations around a changed place, against the whole trunk."""

import numpy as np
import pytest

from hyperfusion_rt.artifact.manifest import Artifact
from hyperfusion_rt.artifact.operations import Activation, Conv, GlobalPool, Pool
from hyperfusion_rt.artifact.plan import Plan, Program, read_plan
from hyperfusion_rt.runtime.engines.local import LocalTrunk, Reach, channels_of, cut_at, find_cut
from hyperfusion_rt.runtime.engines.native import CompiledProgram

# Odd sizes, and ends that no stride divides.
SIZE = (48, 35, 37)
PLACES = [
    (slice(0, 3), slice(0, 3), slice(0, 3)),
    (slice(9, 12), slice(6, 9), slice(12, 15)),
    (slice(45, 48), slice(33, 35), slice(34, 37)),
    (slice(40, 43), slice(5, 8), slice(0, 3)),
]


def chain(rng):
    """Convolutions with strides, dilation and pooling, and a mean; weights by name."""
    relu = Activation(kind="relu")
    cube = lambda n: (n, n, n)  # noqa: E731
    specs = [  # channels, kernel, stride, padding, dilation, pool, shape
        (4, 3, 1, 1, 1, True, (24, 17, 18)),
        (6, 3, 1, 2, 2, False, (24, 17, 18)),
        (5, 5, 2, 2, 1, False, (12, 9, 9)),
    ]
    ops, tensors, before, name = [], {}, 2, "image"
    for i, (channels, kernel, stride, padding, dilation, pool, shape) in enumerate(specs):
        tensors[f"w{i}"] = rng.standard_normal((kernel**3, before, channels), np.float32) / 8
        tensors[f"b{i}"] = rng.standard_normal(channels, np.float32)
        ops.append(
            Conv(
                inputs=(name,), output=f"v{i}", shape=(channels, *shape), weight=f"w{i}",
                bias=f"b{i}", depthwise=False, algorithm="gather", kernel=cube(kernel),
                stride=cube(stride), padding=cube(padding), dilation=cube(dilation), pool=pool,
                act=relu, gflop=1.0,
            )
        )  # fmt: skip
        before, name = channels, f"v{i}"
    ops.append(
        Pool(op="max_pool", inputs=(name,), output="p", shape=(5, 6, 5, 5), kernel=cube(3),
             stride=cube(2), padding=cube(1), gflop=0.1)
    )  # fmt: skip
    ops.append(GlobalPool(op="global_avg_pool", inputs=("p",), output="mean", shape=(5,)))
    head = Program({"mean": (5,), "tabular": (1,)}, [], ["mean"])
    return Plan(Program({"image": (2, *SIZE)}, ops, ["mean"]), head, tensors)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_every_cut_gives_what_the_whole_trunk_gives(depth):
    rng = np.random.default_rng(depth)
    plan = chain(rng)
    cut = cut_at(plan.trunk, PLACES, depth)
    assert len(cut.first) == depth
    assert cut.crop[0] < SIZE[0]
    images, fill = rng.standard_normal((2, 2, 2, *SIZE), np.float32)
    local = LocalTrunk(plan, cut, images, 1)
    whole = CompiledProgram(plan.trunk, plan.tensors, 1)
    jobs = [(box, place) for box in (0, 1) for place in PLACES] * 2
    found = np.concatenate([batch["mean"] for batch in local.changed(jobs, fill)])
    (base,) = whole([images])
    for (box, place), mine in zip(jobs, found, strict=True):
        image = images[box].copy()
        image[channels_of(place)] = fill[box][channels_of(place)]
        (expected,) = whole([image[None]])
        # Sums of some hundred terms, each rounded to 2^-24 of its size.
        np.testing.assert_allclose(mine, expected[0], atol=1e-5)
        assert np.abs(mine - base[box]).max() > 1e-4


def test_a_real_trunk(session_artifact):
    plan = read_plan(Artifact.open(session_artifact).file("native"))
    (shape,) = plan.trunk.inputs.values()
    places = [tuple(slice(n - 4, n) for n in shape[1:]), (slice(8, 12), slice(4, 8), slice(0, 4))]
    cut = cut_at(plan.trunk, places, 3)  # of two members
    assert len(cut.first) == 6
    rng = np.random.default_rng(1)
    images, fill = rng.standard_normal((2, 1, *shape), np.float32)
    local = LocalTrunk(plan, cut, images, 1)
    whole = CompiledProgram(plan.trunk, plan.tensors, 1)
    base = dict(zip(plan.trunk.outputs, whole([images]), strict=True))
    for name, values in local.features().items():
        np.testing.assert_allclose(values, base[name], atol=1e-5)
    (found,) = local.changed([(0, place) for place in places], fill)
    for index, place in enumerate(places):
        image = images[0].copy()
        image[channels_of(place)] = fill[0][channels_of(place)]
        expected = dict(zip(plan.trunk.outputs, whole([image[None]]), strict=True))
        for name, values in found.items():
            np.testing.assert_allclose(values[index], expected[name][0], atol=1e-5)


def test_what_a_voxel_reads_composes():
    """By hand: 3x3x3, then maxima of two, then 3x3x3 with stride 2."""
    reach = Reach().through((3,) * 3, (1,) * 3, (1,) * 3)
    reach = reach.through((2,) * 3, (2,) * 3, (0,) * 3).through((3,) * 3, (2,) * 3, (1,) * 3)
    assert (reach.stride[0], reach.before[0], reach.after[0]) == (4, 3, 4)
    # Voxel 2 reads 5 to 12: a change of voxel 12 reaches 2 and 3 (9 to 16).
    region = reach.changed((slice(12, 13),) * 3, (8, 8, 8))
    assert region[0] == slice(2, 4)


def test_a_trunk_without_local_operations_is_not_cut():
    rng = np.random.default_rng(0)
    plan = chain(rng)
    only = Program({"image": (2, *SIZE)}, [plan.trunk.ops[-1]], ["mean"])
    assert find_cut(only, PLACES) is None
    assert cut_at(plan.trunk, PLACES, 5) is None

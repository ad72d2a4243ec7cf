"""A trunk that runs on boxes which differ from one another in a small place only.

A cube that changes leaves most of the early volumes as they are. So the first operations run on a
crop around the cube, what it changes is laid into the volumes of the unchanged box, and the rest
runs on the whole. Along an axis, voxel i of a volume reads the image's voxels

    stride · i - before  ...  stride · i + after

which composes from operation to operation (`Reach`). A crop holds all that the changed voxels read,
and begins at a multiple of the strides; so where it ends inside the box, the zeros around it reach
no voxel that is used, and where it ends with the box, they are the box's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.operations import (
    Affine,
    AnyOperation,
    Binary,
    Conv,
    Pool,
)
from hyperfusion_rt.artifact.plan import Plan, Program
from hyperfusion_rt.runtime.engines.native import CompiledProgram

Floats = NDArray[np.float32]
Slices = tuple[slice, slice, slice]
Channels = tuple[slice, slice, slice, slice]
Shape = tuple[int, ...]

# What moving a byte costs beside a multiply-add of the direct algorithm, for choosing the cut.
_FLOP_PER_BYTE = 30.0
# Crops and volumes that are held at once, in bytes, and at most so many of them.
_HELD, _MOST = 64 * 2**20, 8


def _axes(of: Callable[[int], int]) -> Shape:
    return of(0), of(1), of(2)


@dataclass(frozen=True)
class Reach:
    """Along each axis, which voxels of the image a voxel of a volume reads: see the module."""

    stride: Shape = (1, 1, 1)
    before: Shape = (0, 0, 0)
    after: Shape = (0, 0, 0)

    def through(
        self, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
        dilation: Sequence[int] = (1, 1, 1),
    ) -> Reach:  # fmt: skip
        """Of what a window makes of the volume."""
        beyond = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
        return Reach(
            _axes(lambda i: self.stride[i] * stride[i]),
            _axes(lambda i: self.before[i] + self.stride[i] * padding[i]),
            _axes(lambda i: self.after[i] + self.stride[i] * beyond[i]),
        )

    def with_(self, other: Reach) -> Reach | None:
        """Of a sum of the two; None where their voxels do not meet."""
        if self.stride != other.stride:
            return None
        return Reach(
            self.stride,
            _axes(lambda i: max(self.before[i], other.before[i])),
            _axes(lambda i: max(self.after[i], other.after[i])),
        )

    def changed(self, place: Slices, shape: Shape) -> Slices:
        """The voxels of the volume `shape [3]` that read any of `place` of the image."""
        starts, ends = [], []
        axes = zip(place, self.stride, self.before, self.after, shape, strict=True)
        for p, s, before, after, n in axes:
            starts.append(min(max(-((after - p.start) // s), 0), n))
            ends.append(max(min((p.stop - 1 + before) // s + 1, n), 0))
        return _slices(starts, ends)

    def read(self, region: Slices, size: Shape) -> list[tuple[int, int]]:
        """The image's voxels, of `size [3]`, that a region of the volume reads: first, end."""
        return [
            (max(s * r.start - before, 0), min(s * (r.stop - 1) + after + 1, n))
            for r, s, before, after, n in zip(
                region, self.stride, self.before, self.after, size, strict=True
            )
        ]


def levels_of(ops: Sequence[AnyOperation]) -> list[int]:
    """How many operations stand between the image and each one's output, with itself."""
    level = {"image": 0}
    found = []
    for op in ops:
        found.append(1 + max((level.get(name, 0) for name in op.reads), default=0))
        level |= dict.fromkeys(op.makes, found[-1])
    return found


def reaches(ops: Iterable[AnyOperation]) -> dict[str, Reach] | None:
    """The reach of every volume that operations make; None if one of them is not local."""
    known = {"image": Reach()}
    for op in ops:
        made = _made(op, known)
        if made is None:
            return None
        known |= made
    return known


def _made(op: AnyOperation, known: dict[str, Reach]) -> dict[str, Reach] | None:
    if any(name not in known for name in op.reads):
        return None
    first = known[op.inputs[0]]
    match op:
        case Conv() if op.behind is None:
            found: Reach | None = first.through(op.kernel, op.stride, op.padding, op.dilation)
            beside = [known[op.residual]] if op.residual is not None else []
            if op.shortcut is not None:
                short = known[op.shortcut.input]
                beside.append(short.through((1, 1, 1), op.shortcut.stride, (0, 0, 0)))
            for other in beside:
                found = found and found.with_(other)
            if found is None:
                return None
            if op.pool:
                found = found.through((2, 2, 2), (2, 2, 2), (0, 0, 0))
            kept = found.through((1, 1, 1), (2, 2, 2), (0, 0, 0)) if op.sparse else found
            return {op.output: kept, **({op.second.output: found} if op.second else {})}
        case Pool():
            # Beyond a box's end, ceil_mode makes windows that a crop would not.
            if op.ceil_mode:
                return None
            return {op.output: first.through(op.kernel, op.stride, op.padding, op.dilation)}
        case Affine():
            return {op.output: first}
        case Binary():
            both = first.with_(known[op.inputs[1]])
            return None if both is None else {op.output: both}
    return None


@dataclass(frozen=True)
class Cut:
    """`first` runs on crops of `crop [3]` voxels, `later` on the whole. `reach`: of what `first`
    makes; `kept`: what `later` reads of it. Crops begin at multiples of `grid [3]`."""

    first: list[AnyOperation]
    later: list[AnyOperation]
    crop: Shape
    grid: Shape
    reach: dict[str, Reach]
    kept: dict[str, Reach]


def find_cut(program: Program, places: Sequence[Slices]) -> Cut | None:
    """The cheapest cut of a trunk for images that change in one of `places`; None: none helps."""
    (size,) = (shape[1:] for shape in program.inputs.values())
    shapes = _shapes(program)
    best, least = None, _work(program.ops)
    for depth in range(1, max(levels_of(program.ops), default=0) + 1):
        cut = cut_at(program, places, depth)
        if cut is None:
            continue
        part = math.prod(cut.crop) / math.prod(size)
        moved = sum(4 * math.prod(shapes[name]) for name in cut.kept)
        cost = part * _work(cut.first) + _work(cut.later) + _FLOP_PER_BYTE * moved
        if cost < least:
            best, least = cut, cost
    return best


def _work(ops: Iterable[AnyOperation]) -> float:
    return 1e9 * sum(op.gflop for op in ops)


def cut_at(program: Program, places: Sequence[Slices], depth: int) -> Cut | None:
    """The cut behind the operations of all members up to this level; None where one of them is not
    local."""
    (size,) = (shape[1:] for shape in program.inputs.values())
    shapes = _shapes(program)
    levels = levels_of(program.ops)
    first = [op for op, level in zip(program.ops, levels, strict=True) if level <= depth]
    later = [op for op, level in zip(program.ops, levels, strict=True) if level > depth]
    reach = reaches(first)
    if reach is None:
        return None
    read = {name for op in later for name in op.reads} | set(program.outputs)
    kept = {name: found for name, found in reach.items() if name in read}
    if "image" in kept or not kept:
        return None
    grid = _axes(lambda i: math.lcm(*(found.stride[i] for found in reach.values())))
    # How long a crop is depends on each axis by itself.
    axes = [sorted({(place[i].start, place[i].stop) for place in places}) for i in range(3)]
    crop = [0, 0, 0]
    for turn in range(max(map(len, axes))):
        place = _slices(*zip(*[axis[turn % len(axis)] for axis in axes], strict=True))
        for i, (low, high) in enumerate(_needed(place, kept, shapes, size)):
            crop[i] = max(crop[i], high - low // grid[i] * grid[i])
    whole = _axes(lambda i: min(size[i], crop[i] + (size[i] - crop[i]) % grid[i]))
    return Cut(first, later, whole, grid, reach, kept)


def _shapes(program: Program) -> dict[str, Shape]:
    return {**program.inputs, **{n: s for op in program.ops for n, s in op.makes.items()}}


def _needed(
    place: Slices, kept: dict[str, Reach], shapes: dict[str, Shape], size: Shape
) -> list[tuple[int, int]]:
    """The image's voxels that a crop for `place` must hold: first, end."""
    needs = [(p.start, p.stop) for p in place]
    for name, reach in kept.items():
        region = reach.changed(place, shapes[name][1:])
        for i, (low, high) in enumerate(reach.read(region, size)):
            if region[i].start < region[i].stop:
                needs[i] = min(needs[i][0], low), max(needs[i][1], high)
    return needs


class LocalTrunk:
    """See the module.

    Args:
        plan: of the network, whose trunk is cut.
        cut: what `find_cut` found.
        images: the unchanged boxes, `[N, C, D, H, W]`.
    """

    def __init__(self, plan: Plan, cut: Cut, images: Floats, threads: int) -> None:
        trunk, self.cut, self.images = plan.trunk, cut, images
        self.size = images.shape[2:]
        self._names = list(cut.kept)
        self._features = [n for n in plan.head.inputs if n in trunk.outputs]
        self._outputs = trunk.outputs
        first, later = cut.first, cut.later
        shapes = {name: shape for op in first for name, shape in op.makes.items()}
        less = {
            name: (shape[0], *(
                n - (whole - part) // s
                for n, whole, part, s in zip(
                    shape[1:], self.size, cut.crop, cut.reach[name].stride, strict=True
                )
            ))
            for name, shape in shapes.items()
        }  # fmt: skip
        channels = images.shape[1]

        def compiled(program: Program) -> CompiledProgram:
            return CompiledProgram(program, plan.tensors, threads, precision=plan.precision)

        self._crops = compiled(
            Program(
                {"image": (channels, *cut.crop)}, [_resized(op, less) for op in first], self._names
            )
        )
        kept = {name: shapes[name] for name in self._names}
        self._later = compiled(Program(kept, later, trunk.outputs))
        whole = compiled(Program(trunk.inputs, first, self._names))
        self._base = dict(zip(self._names, whole([np.ascontiguousarray(images)]), strict=True))
        held = sum(values[0].nbytes for values in self._base.values())
        self.batch = max(1, min(_MOST, _HELD // held))

    def features(self) -> dict[str, Floats]:
        """Of the unchanged boxes, `[N, ...]` by name."""
        return self._finish(list(self._base.values()))

    def _finish(self, values: list[Floats]) -> dict[str, Floats]:
        found = dict(zip(self._outputs, self._later(values), strict=True))
        return {name: found[name] for name in self._features}

    def changed(
        self, jobs: Sequence[tuple[int, Slices]], fill: Floats
    ) -> Iterator[dict[str, Floats]]:
        """For each job, a box and a place of it, the features with the place as in `fill [N, C, D,
        H, W]`: `[b, ...]` by name, a batch at a time."""
        channels = self.images.shape[1]
        crops = np.empty((self.batch, channels, *self.cut.crop), np.float32)
        volumes = {
            name: np.empty((self.batch, *values.shape[1:]), np.float32)
            for name, values in self._base.items()
        }
        holds = [-1] * self.batch
        for at in range(0, len(jobs), self.batch):
            some = jobs[at : at + self.batch]
            starts = [self._crop(job, fill, crop) for job, crop in zip(some, crops, strict=False)]
            made = self._crops([crops[: len(some)]])
            laid = []
            for slot, ((box, place), start) in enumerate(zip(some, starts, strict=True)):
                for name, new in zip(self._names, made, strict=True):
                    volume, base = volumes[name][slot], self._base[name][box]
                    if holds[slot] != box:
                        volume[:] = base
                    into = self._lay(volume, new[slot], place, start, self.cut.kept[name])
                    laid.append((volume, into, base))
                holds[slot] = box
            yield self._finish([volume[: len(some)] for volume in volumes.values()])
            for volume, into, base in laid:
                volume[into] = base[into]

    def _crop(self, job: tuple[int, Slices], fill: Floats, crop: Floats) -> list[int]:
        """Write the image around a place, with the place as in `fill`; where the crop begins."""
        box, place = job
        shapes = {name: values.shape[1:] for name, values in self._base.items()}
        needs = _needed(place, self.cut.kept, shapes, self.size)
        start = [
            min(low // g * g, n - c)
            for (low, _), g, n, c in zip(
                needs, self.cut.grid, self.size, self.cut.crop, strict=True
            )
        ]
        ends = [s + c for s, c in zip(start, self.cut.crop, strict=True)]
        crop[:] = self.images[box][channels_of(_slices(start, ends))]
        crop[channels_of(_moved(place, start))] = fill[box][channels_of(place)]
        return start

    def _lay(
        self, volume: Floats, new: Floats, place: Slices, start: Sequence[int], reach: Reach
    ) -> Channels:
        """Lay what changed of a crop's volume `new` into the whole one; where that is."""
        region = reach.changed(place, volume.shape[1:])
        begins = [s // t for s, t in zip(start, reach.stride, strict=True)]
        volume[channels_of(region)] = new[channels_of(_moved(region, begins))]
        return channels_of(region)


def channels_of(place: Slices) -> Channels:
    """A place in all channels of `[C, D, H, W]`."""
    d, h, w = place
    return slice(None), d, h, w


def _slices(starts: Sequence[int], ends: Sequence[int]) -> Slices:
    d, h, w = map(slice, starts, ends)
    return d, h, w


def _moved(place: Slices, by: Sequence[int]) -> Slices:
    """A place, counted from `by` on."""
    starts = [p.start - b for p, b in zip(place, by, strict=True)]
    return _slices(starts, [p.stop - b for p, b in zip(place, by, strict=True)])


def _resized(op: AnyOperation, shapes: dict[str, Shape]) -> AnyOperation:
    """The operation, for volumes of these shapes."""
    made = replace(op, shape=shapes[op.output])
    if isinstance(made, Conv) and made.second is not None:
        second = replace(made.second, shape=shapes[made.second.output])
        made = replace(made, second=second)
    return made

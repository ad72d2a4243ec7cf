"""Answers to one case with cubes of its boxes replaced, with as little work as the engine allows.

An engine in one step runs on whole cases. One in two steps runs its trunk on changed boxes only: a
batch of it holds changed boxes of any cubes, since it knows boxes, not cases. The native engine's
trunk runs its first operations around the cube only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.artifact.plan import Plan
from hyperfusion_rt.runtime.engines.choose import Engine, TrunkAndHead
from hyperfusion_rt.runtime.engines.local import LocalTrunk, Slices, channels_of, find_cut
from hyperfusion_rt.runtime.network import finite_output

Floats = NDArray[np.float32]
Features = dict[str, Floats]
Job = tuple[int, Slices]  # a box, and a place of it

# Boxes that are held at once, in bytes, and at most so many cases.
_HELD, _MOST = 64 * 2**20, 4


@dataclass(frozen=True)
class Cube:
    """A cube of the scan: its place in every box that sees it, (box, voxels) each."""

    places: tuple[Job, ...]


class Passes:
    """See the module.

    Args:
        engine: runs the whole network.
        parts: its two steps, if it has them.
        plan: what they run, of the native engine.
        images: `[N, C, D, H, W]`.
        row: the encoded rows of all members, `[ΣT]`.
        of: which number of the answer.
        values: the answers `[B, C]` in what the engine finds; default: its `output`.

    Attributes:
        answer: to the case as it is.
        count: boxes that have gone through the trunk, or a part of it.

    Raises:
        EngineError: an answer is not finite.
    """

    def __init__(
        self,
        engine: Engine,
        parts: TrunkAndHead | None,
        images: Floats,
        row: Floats,
        of: int,
        *,
        plan: Plan | None = None,
        threads: int = 1,
        values: Callable[[Features], NDArray[np.float64]] | None = None,
    ) -> None:
        self._values = values or finite_output
        self.engine, self.parts, self.of = engine, parts, of
        self.images, self.row = np.ascontiguousarray(images), row
        self.plan, self.threads = plan, threads
        self.boxes = len(images)
        self.count = 0
        self.batch = max(1, min(_MOST, _HELD // max(self.images.nbytes, 1)))  # cases
        case = self.images.reshape(1, -1, *images.shape[2:])
        if parts is not None:
            self._features = parts.features(case)
            self.answer = float(self._answers(parts.finish(self._features, row[None]))[0])
        else:
            self.answer = float(self._answers(engine.run(case, row[None]))[0])

    def _answers(self, found: Features) -> NDArray[np.float64]:
        return self._values(found)[:, self.of]

    def without(self, cubes: Sequence[Cube], fill: Floats) -> NDArray[np.float64]:
        """The answers `[len(cubes)]`, each with one of the cubes as in `fill [N, C, D, H, W]`."""
        fill = np.ascontiguousarray(fill)
        if self.parts is None:
            return self._whole(cubes, fill)
        order = [(i, job) for i, cube in enumerate(cubes) for job in cube.places]
        order.sort(key=lambda item: item[1][0])  # a box's in a row, so that it is laid down once
        jobs = [job for _, job in order]
        waiting = [len(cube.places) for cube in cubes]
        made: dict[int, list[tuple[int, Features]]] = {}
        answers = np.empty(len(cubes))
        done = 0
        for found in self._changed(jobs, fill):
            count = len(next(iter(found.values())))
            for slot, (cube, (box, _)) in enumerate(order[done : done + count]):
                mine = {name: values[slot] for name, values in found.items()}
                made.setdefault(cube, []).append((box, mine))
                waiting[cube] -= 1
            done += count
            if ready := [cube for cube in made if not waiting[cube]]:
                answers[ready] = self._finished([made.pop(cube) for cube in ready])
        self.count += done
        return answers

    def _changed(self, jobs: Sequence[Job], fill: Floats) -> Iterator[Features]:
        """The features of the changed boxes, in the order of `jobs`, a batch at a time."""
        if self.plan is not None and jobs and self.plan.trunk.ops:
            cut = find_cut(self.plan.trunk, [place for _, place in jobs])
            if cut is not None:
                local = LocalTrunk(self.plan, cut, self.images, self.threads)
                return local.changed(jobs, fill)
        return self._changed_boxes(jobs, fill)

    def _changed_boxes(self, jobs: Sequence[Job], fill: Floats) -> Iterator[Features]:
        assert self.parts is not None
        slots = np.zeros((self.batch * self.boxes, *self.images.shape[1:]), np.float32)
        holds = [-1] * len(slots)
        for at in range(0, len(jobs), len(slots)):
            some = jobs[at : at + len(slots)]
            for slot, (box, place) in enumerate(some):
                if holds[slot] != box:
                    slots[slot], holds[slot] = self.images[box], box
                slots[slot][channels_of(place)] = fill[box][channels_of(place)]
            cases = -(-len(some) // self.boxes)
            flat = slots[: cases * self.boxes].reshape(cases, -1, *slots.shape[2:])
            yield {
                name: values.reshape(cases * self.boxes, -1, *values.shape[2:])[: len(some)]
                for name, values in self.parts.features(flat).items()
            }
            for slot, (box, place) in enumerate(some):
                slots[slot][channels_of(place)] = self.images[box][channels_of(place)]

    def _finished(self, changed: Sequence[Sequence[tuple[int, Features]]]) -> NDArray[np.float64]:
        """The answers to cases whose features are the scan's, but for those of `changed` boxes."""
        assert self.parts is not None
        features = {}
        for name, base in self._features.items():
            cases = np.repeat(base.reshape(1, self.boxes, -1, *base.shape[2:]), len(changed), 0)
            for case, boxes in zip(cases, changed, strict=True):
                for box, values in boxes:
                    case[box] = values[name]
            features[name] = cases.reshape(len(changed), *base.shape[1:])
        rows = np.repeat(self.row[None], len(changed), 0)
        return self._answers(self.parts.finish(features, rows))

    def _whole(self, cubes: Sequence[Cube], fill: Floats) -> NDArray[np.float64]:
        answers = [np.empty(0)]
        held = np.repeat(self.images[None], self.batch, 0)
        for at in range(0, len(cubes), self.batch):
            some = cubes[at : at + self.batch]
            for case, cube in zip(held, some, strict=False):
                for box, place in cube.places:
                    case[box][channels_of(place)] = fill[box][channels_of(place)]
            flat = held[: len(some)].reshape(len(some), -1, *self.images.shape[2:])
            rows = np.repeat(self.row[None], len(some), 0)
            answers.append(self._answers(self.engine.run(flat, rows)))
            self.count += len(some) * self.boxes
            for case, cube in zip(held, some, strict=False):
                for box, place in cube.places:
                    case[box][channels_of(place)] = self.images[box][channels_of(place)]
        return np.concatenate(answers)

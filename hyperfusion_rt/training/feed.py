"""The samples of an epoch's steps, made ready while the network learns from those before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperfusion_rt.training.group import Group
from hyperfusion_rt.training.learner import Part
from hyperfusion_rt.training.loss import Loss

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Feed:
    """What this process runs in each step, on `device`.

    `read(cases, sides, epoch)`: image and row of each case, on the CPU; `change(image, epoch,
    cases)`: the image, changed at random; `targets [N]` of all cases; `boxes`: of a case, one of
    which a sample is. A step's samples are split into `parts`, of two at least, and each part
    among the processes. A process that has none of a part gets one that weighs nothing.

    Reading, and on a CPU the changes, too, run in a thread beside the network. A GPU gets its
    samples from pinned memory, without waiting, and changes them itself.
    """

    read: Callable[[Indices, Indices, int], tuple[Tensor, Tensor]]
    change: Callable[[Tensor, int, Sequence[int]], Tensor]
    targets: NDArray[np.float64]
    boxes: int
    loss: Loss
    group: Group
    parts: int
    device: torch.device

    def __call__(
        self, order: Sequence[Indices], epoch: int, rng: np.random.Generator
    ) -> Iterator[list[Part]]:
        """The parts of each step, in this order."""
        made = (self._made(batch, epoch, rng) for batch in order)
        with ThreadPoolExecutor(1) as pool:
            ready = pool.submit(next, made)
            for index in range(len(order)):
                now = ready.result()
                if index + 1 < len(order):
                    ready = pool.submit(next, made)
                yield [self._placed(part, cases, epoch) for part, cases in now]

    def _made(
        self, batch: Indices, epoch: int, rng: np.random.Generator
    ) -> list[tuple[Part, Sequence[int]]]:
        # For all processes alike, whatever of it is this one's.
        sides = rng.integers(self.boxes, size=len(batch))
        whole = self.loss.weight_of(self.targets[batch])
        count = max(1, min(self.parts, len(batch) // 2))
        found = []
        for chunk in np.array_split(np.arange(len(batch)), count):
            own = chunk[self.group.part(len(chunk))]
            counts = len(own) > 0
            own = own if counts else chunk[:1]
            cases = batch[own]
            image, tabular = self.read(cases, sides[own], epoch)
            targets = torch.from_numpy(self.targets[cases]).float()
            weight = self.loss.weight_of(self.targets[cases]) / whole if counts else 0.0
            part = Part(image, tabular, targets, len(chunk), weight)
            found.append((self._ready(part, cases.tolist(), epoch), cases.tolist()))
        return found

    def _ready(self, part: Part, cases: Sequence[int], epoch: int) -> Part:
        """As far as the thread beside can make it."""
        if self.device.type != "cpu":
            image, tabular, targets = (t.pin_memory() for t in part[:3])
            return part._replace(image=image, tabular=tabular, targets=targets)
        return self._changed(part, cases, epoch)

    def _placed(self, part: Part, cases: Sequence[int], epoch: int) -> Part:
        """Where the network is."""
        if self.device.type == "cpu":
            return part
        return self._changed(part.to(self.device), cases, epoch)

    def _changed(self, part: Part, cases: Sequence[int], epoch: int) -> Part:
        if not part.image.numel():
            return part
        return part._replace(image=self.change(part.image, epoch, cases))

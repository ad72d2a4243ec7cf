"""What a 3D convolution does to positions. Needs neither torch nor a backend."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

Triple = tuple[int, int, int]


def triple(values: Iterable[int]) -> Triple:
    """Exactly three numbers, of D, H and W."""
    d, h, w = values
    return d, h, w


class Geometry(NamedTuple):
    """Kernel, stride, padding and dilation along D, H and W, and the groups of channels."""

    kernel: Triple
    stride: Triple
    padding: Triple
    dilation: Triple
    groups: int

    @classmethod
    def of(
        cls,
        kernel: Iterable[int],
        stride: Iterable[int],
        padding: Iterable[int],
        dilation: Iterable[int],
        groups: int,
    ) -> Geometry:
        """From any sequences of three numbers."""
        return cls(triple(kernel), triple(stride), triple(padding), triple(dilation), groups)

    def out(self, size: Triple) -> Triple:
        """The size of y for x of `size`."""
        return triple(
            (n + 2 * p - step * (k - 1) - 1) // s + 1
            for n, k, s, p, step in zip(
                size, self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )

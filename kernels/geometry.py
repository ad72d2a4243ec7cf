"""What a 3D convolution does to positions. Needs neither torch nor a backend."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

Triple = tuple[int, int, int]


def triple(values: Iterable[int]) -> Triple:
    """Exactly three numbers, of D, H and W."""
    d, h, w = values
    return d, h, w


def three(value: int | Triple, name: str, minimum: int) -> Triple:
    """One number or three of an argument `name` as three, none below `minimum`.

    Raises:
        ValueError: another count, or a smaller number.
    """
    found = (value, value, value) if isinstance(value, int) else tuple(value)
    if len(found) != 3:
        raise ValueError(f"{name} takes one number or three, not {value!r}")
    if min(found) < minimum:
        raise ValueError(f"{name} must be {minimum} or more along each axis, not {value!r}")
    return found


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

    def transposed_out(self, size: Triple, output_padding: Triple) -> Triple:
        """The size of y for x of `size`, of a transposed convolution."""
        return triple(
            (n - 1) * s - 2 * p + step * (k - 1) + more + 1
            for n, k, s, p, step, more in zip(
                size,
                self.kernel,
                self.stride,
                self.padding,
                self.dilation,
                output_padding,
                strict=True,
            )
        )

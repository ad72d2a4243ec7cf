"""When generated weights pay inside the convolution, from the bytes that each strategy moves.

    generate in the convolution:  B · R · (K + 1) · |W| · s_G
    write W[b], then convolve:    ⌈B / 16⌉ · (K + 1) · |W| · s_G + B · (1 + R) · |W| · s

and one launch more. B samples, |W| weights of one sample, s_G and s the bytes of one number of G
and of x, R the row tiles of one sample (each reads all weights of its columns again). Where G̃
exceeds the second-level cache, what is read again comes from memory.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from hyperfusion_rt.kernels.geometry import Geometry, Triple
from hyperfusion_rt.kernels.gpu.configs import (
    CONV3D,
    GENERATE,
    WEIGHT_GRADIENT,
    conv3d_config,
    tiles,
)


class Machine(NamedTuple):
    """What the choice depends on. Default: A100 40 GB, the smallest of the data-centre chips.

    `cache` bytes of L2; `cache_rate` and `memory_rate` bytes per second; `launch` seconds.
    """

    cache: int = 40 * 2**20
    cache_rate: float = 4e12
    memory_rate: float = 1.5e12
    launch: float = 2.5e-6


A100 = Machine()


class Cost(NamedTuple):
    """Bytes of weights that a batch moves, and the seconds they take."""

    bytes: int
    seconds: float


class Shape(NamedTuple):
    """One call: samples, generators K (without the constant), channels of x and y, geometry."""

    batch: int
    k: int
    cin: int
    cout: int
    kernel: Triple
    size: Triple
    stride: Triple = (1, 1, 1)
    padding: Triple = (0, 0, 0)
    dilation: Triple = (1, 1, 1)
    groups: int = 1

    @property
    def geometry(self) -> Geometry:
        """Without the sizes."""
        return Geometry(self.kernel, self.stride, self.padding, self.dilation, self.groups)

    @property
    def out(self) -> Triple:
        """The size of y."""
        return self.geometry.out(self.size)

    @property
    def weights(self) -> int:
        """|W|: weights of one sample."""
        return self.cout * (self.cin // self.groups) * prod(self.kernel)


def costs(
    shape: Shape, generator_bytes: int, bytes_: int, machine: Machine = A100
) -> dict[str, Cost]:
    """The weights' traffic of `generate` and `write`."""
    voxels = prod(shape.out)
    rows = CONV3D[conv3d_config(voxels, shape.cout // shape.groups)].rows
    row_tiles = tiles(voxels, rows)
    generators = (shape.k + 1) * shape.weights * generator_bytes
    rate = machine.cache_rate if generators <= machine.cache else machine.memory_rate
    inside = shape.batch * row_tiles * generators
    once = tiles(shape.batch, GENERATE["all"].rows) * generators
    own = shape.batch * (1 + row_tiles) * shape.weights * bytes_
    return {
        "generate": Cost(inside, inside / rate + machine.launch),
        "write": Cost(once + own, once / rate + own / machine.cache_rate + 2 * machine.launch),
    }


def choose_strategy(
    shape: Shape, generator_bytes: int, bytes_: int, machine: Machine = A100
) -> str:
    """`generate` or `write`, whichever moves its weights in less time."""
    found = costs(shape, generator_bytes, bytes_, machine)
    return min(found, key=lambda name: found[name].seconds)


def choose_weight_gradient(shape: Shape, processors: int = 108) -> str:
    """`keep` (W's gradient stays in registers, one program per tile) or `write`.

    `keep` needs no memory for dW[b], but only as many programs as there are tiles, each of which
    goes through the whole batch. It is taken where K fits into registers, the tiles fill a quarter
    of the chip's `processors`, and the batch has few voxels: then the launches and the traffic of
    `write` would cost more than the work.
    """
    if shape.k > 8:
        return "write"
    config = WEIGHT_GRADIENT["keep"]
    rows = shape.cin // shape.groups * prod(shape.kernel)
    own = tiles(rows, config.step) * tiles(shape.cout // shape.groups, config.columns)
    work = shape.batch * prod(shape.out)
    if own * shape.groups >= processors // 4 and work <= 32 * 1024:
        return "keep"
    return "write"

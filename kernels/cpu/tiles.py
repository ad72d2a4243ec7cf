"""What a convolution costs by each algorithm of the native engine."""

from __future__ import annotations

import itertools
import math

BLOCK = 16  # channels that stand side by side in a volume


def few_enough(cin: int, cout: int) -> bool:
    """Whether a convolution of an input of the network, `[Cin, D, H, W]` as it is given, costs less
    without a blocked copy of it and without Winograd's transforms.

    Measured with AVX2 for 1 to 8 channels and 4 to 32 outputs: it takes Cin times as long as with
    one channel, with fewer outputs than a block in proportion to these, too; Winograd's way costs
    as much as 3 to 6 channels of a block.
    """
    return cin < BLOCK and cin * min(cout, BLOCK) <= 4 * BLOCK


def part_channels(cin: int, cout: int, groups: int) -> tuple[int, int]:
    """The channels of the dense convolutions that one in groups is made of: so many groups together
    as fill whole blocks on both sides.
    """
    inputs, outputs = cin // groups, cout // groups
    together = math.lcm(BLOCK // math.gcd(BLOCK, inputs), BLOCK // math.gcd(BLOCK, outputs))
    together = min(together, groups)
    return together * inputs, together * outputs


def choose_tile(
    channels: int, cout: int, extent: tuple[int, ...], precision: str = "fp32", stride: int = 1
) -> tuple[tuple[int, int, int] | None, bool]:
    """The Winograd tile with the lowest modelled cost, or None where gathering is cheaper, and
    whether its products are of bfloat16 pairs.

    `extent [D, H, W]` of the output. A tile costs its transforms (per point and block of 16
    channels) and its multiplications; gathering its copies and multiplications; the weights come
    from memory once. The constants were measured with AVX-512 on two cores; their ratios matter,
    and these vary little. Pairs are for 2x2x2 alone: rounding before the transform back costs 1.7
    times a direct bfloat16 convolution's error there, but 6 to 10 times with larger tiles.
    """
    blocks_in, blocks_out = -(-channels // 16), -(-cout // 16)
    fma = 1 / 6.7  # ns per multiply-add of 16 lanes, per core
    copy = 1.0  # ns per 16 channels of a voxel that is gathered, per core
    byte, cores = 1 / 30, 2
    half = 0.5 if precision == "bf16" else 1.0  # the time and the bytes of a bfloat16 product

    def memory(points: int) -> float:
        return points * channels * blocks_out * 64 * byte

    taps = 27 * math.prod(extent)
    direct = taps * blocks_in * copy / cores + half * (
        taps * channels * blocks_out * fma / cores + memory(27)
    )
    best: tuple[float, tuple[int, int, int] | None, bool] = (direct, None, False)
    for tile in itertools.product((2, 4) if stride == 1 else (2,), repeat=3):
        points = math.prod(t + 2 if stride == 1 else 5 for t in tile)
        tiles = math.prod(-(-n // t) for n, t in zip(extent, tile, strict=True))
        pairs = precision == "bf16" and tile == (2, 2, 2)
        factor = half if pairs else 1.0
        each = 1.35 * blocks_in + 0.9 * blocks_out + channels * blocks_out * fma * factor
        cost = tiles * points * each / cores + memory(points) * factor
        if cost < best[0]:
            best = (cost, (tile[0], tile[1], tile[2]), pairs)
    return best[1], best[2]

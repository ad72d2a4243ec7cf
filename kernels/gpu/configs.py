"""The launch configurations of the kernels, as data, and which of them a shape takes.

Every configuration below is compiled for each chip and dtype by `benchmarks/gpu_static.py`.
"""

from __future__ import annotations

from typing import NamedTuple

Triple = tuple[int, int, int]
DTYPES = ("fp32", "tf32", "fp16", "bf16")
CHIPS = (80, 86, 89, 90, 100, 120)  # compute capabilities that the configurations were compiled for


class Config(NamedTuple):
    """A tile of `rows` voxels by `columns` channels, reduced in steps of `step`."""

    rows: int
    columns: int
    step: int
    warps: int
    stages: int


# Convolution: rows are voxels of one sample. The few names differ by the channels they suit.
CONV3D = {
    "narrow": Config(128, 16, 32, 4, 2),
    "middle": Config(128, 32, 32, 4, 2),
    "wide": Config(128, 64, 32, 4, 2),
    "small": Config(64, 64, 32, 4, 2),
}

# Gradient of the weights: `step` weights (tap, input channel) by `columns` channels, summed over
# chunks of `rows` voxels.
WEIGHT_GRADIENT = {
    "write": Config(32, 64, 64, 4, 2),
    "keep": Config(32, 32, 16, 4, 2),
}

# Elements per program of the kernel that writes generated weights.
GENERATE_BLOCK = 1024


def conv3d_config(voxels: int, channels: int) -> str:
    """The configuration for `voxels` output voxels per sample and `channels` per group."""
    if channels <= 16:
        return "narrow"
    if channels <= 32:
        return "middle"
    return "small" if voxels <= 4096 else "wide"

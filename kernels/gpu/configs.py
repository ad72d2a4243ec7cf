"""The launch configurations of the kernels, as data, and which of them a shape takes.

Every configuration below is compiled for each chip and dtype by `benchmarks/gpu_static.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

DTYPES = ("fp32", "tf32", "fp16", "bf16")
CHIPS = (80, 86, 89, 90, 100, 120)  # compute capabilities that the configurations were compiled for


class Config(NamedTuple):
    """A tile of `rows` voxels by `columns` channels, reduced in steps of `step`.

    `registers`: the most that a thread may have. Without a limit of ours ptxas aims at a round
    number of resident programs, and spills for it.
    """

    rows: int
    columns: int
    step: int
    warps: int
    stages: int
    registers: int

    def constants(self, precision: str) -> dict[str, Any]:
        """The tile and its options, as a matrix product's launch takes them."""
        tile = {"BM": self.rows, "BN": self.columns, "BK": self.step}
        return {**tile, "PRECISION": "tf32" if precision == "tf32" else "ieee", **self.options}

    @property
    def options(self) -> dict[str, Any]:
        """What a launch passes to the compiler. Triton 3.10 fuses a product and a sum no more
        unless it is told to.
        """
        return {
            "num_warps": self.warps,
            "num_stages": self.stages,
            "maxnreg": self.registers,
            "enable_fp_fusion": True,
        }


# Convolution: rows are voxels of one sample. The few names differ by the channels they suit.
CONV3D = {
    "narrow": Config(128, 16, 32, 8, 2, 255),
    "narrow-ieee": Config(128, 16, 16, 8, 2, 255),
    "middle": Config(128, 32, 32, 8, 2, 255),
    "middle-ieee": Config(128, 32, 32, 8, 3, 255),
    "wide": Config(128, 64, 32, 8, 2, 255),
    "wide-ieee": Config(128, 64, 16, 8, 2, 255),
    "small": Config(64, 64, 32, 8, 2, 255),
}

# Gradient of the weights: `step` weights (tap, input channel) by `columns` channels, summed over
# chunks of `rows` voxels.
WEIGHT_GRADIENT = {
    "write": Config(32, 64, 64, 8, 2, 255),
    "write-narrow": Config(64, 32, 32, 4, 2, 255),
    "write-ieee": Config(32, 32, 64, 8, 2, 255),
    "keep": Config(32, 64, 16, 8, 2, 255),
    "keep-ieee": Config(32, 32, 16, 8, 2, 255),
}

# Writing generated weights: `rows` samples by `columns` weights.
GENERATE = {"all": Config(16, 256, 1, 4, 1, 255)}

# `hyper_linear`: rows are samples, columns outputs, steps inputs.
LINEAR = {
    "few": Config(16, 32, 128, 4, 3, 255),
    "few-ieee": Config(16, 32, 32, 4, 3, 255),
    "many": Config(32, 32, 64, 4, 3, 255),
    "many-ieee": Config(32, 32, 32, 8, 3, 255),
}


def tiles(count: int, size: int) -> int:
    """How many tiles of `size` cover `count`."""
    return -(-count // size)


def conv3d_config(voxels: int, channels: int, precision: str = "tf32") -> str:
    """The configuration for `voxels` output voxels per sample and `channels` per group.

    `precision` is one of `DTYPES`: float32 sums without tensor cores need more registers.
    """
    if channels > 32 and voxels <= 64:
        return "small"
    name = "narrow" if channels <= 16 else "middle" if channels <= 32 else "wide"
    return f"{name}-ieee" if precision == "fp32" else name


def weight_gradient_config(channels: int, precision: str, *, keep: bool) -> str:
    """The configuration that keeps or writes the gradient of the weights of `channels` per group.

    `precision` is one of `DTYPES`.
    """
    name = "keep" if keep else "write"
    if precision == "fp32":
        return f"{name}-ieee"
    return "write-narrow" if channels <= 32 and not keep else name


def linear_config(samples: int, precision: str) -> str:
    """The configuration of `hyper_linear`: up to 16 samples waste no more than the tile's rest."""
    name = "few" if samples <= 16 else "many"
    return f"{name}-ieee" if precision == "fp32" else name

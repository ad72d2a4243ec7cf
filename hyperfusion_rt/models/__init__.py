"""The published networks, their baselines, and the layers that they are made of."""

from hyperfusion_rt.models.initialisation import initialise_generators, load_embedding
from hyperfusion_rt.models.layers import HyperConv3d, HyperLinear
from hyperfusion_rt.models.registry import (
    answers_sd,
    bins_count,
    build_network,
    image_shape,
    network_of,
    outputs_count,
    raw_outputs_count,
)

__all__ = [
    "HyperConv3d",
    "HyperLinear",
    "answers_sd",
    "bins_count",
    "build_network",
    "image_shape",
    "initialise_generators",
    "load_embedding",
    "network_of",
    "outputs_count",
    "raw_outputs_count",
]

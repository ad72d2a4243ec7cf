"""Typed configuration and the preset table.

A run is described by one `Config`: which network (`network.architecture`, `network.fusion`), which
task (`task`: classes or a number), and what is read of a study (`preprocessing`, `tabular`).
`hfrt.yaml` holds a preset's name and what differs from it; `load_config` merges the two. Every
field is validated, and an unknown one is an error.
"""

from hyperfusion_rt.config.augmentation import POLICIES, Augmentation, Policy
from hyperfusion_rt.config.base import Finite, Frozen
from hyperfusion_rt.config.load import load_config, preset
from hyperfusion_rt.config.network import (
    BRAIN_AGE_VOXELS,
    LAYERS,
    PLACES,
    Architecture,
    Fusion,
    NetworkConfig,
    Published,
)
from hyperfusion_rt.config.preprocessing import (
    Box,
    Channel,
    Normalisation,
    Point,
    Preprocessing,
    Range,
    Shape,
)
from hyperfusion_rt.config.presets import PRESETS
from hyperfusion_rt.config.study import OLDER_TASKS, Config, Precision, ScanChecks, Task
from hyperfusion_rt.config.tabular import SD, Feature, MappedColumn, TableSpec, answer_columns
from hyperfusion_rt.config.training import Rule, TrainingConfig

__all__ = [
    "BRAIN_AGE_VOXELS",
    "LAYERS",
    "OLDER_TASKS",
    "PLACES",
    "POLICIES",
    "PRESETS",
    "SD",
    "Architecture",
    "Augmentation",
    "Box",
    "Channel",
    "Config",
    "Feature",
    "Finite",
    "Frozen",
    "Fusion",
    "MappedColumn",
    "NetworkConfig",
    "Normalisation",
    "Point",
    "Policy",
    "Precision",
    "Preprocessing",
    "Published",
    "Range",
    "Rule",
    "ScanChecks",
    "Shape",
    "TableSpec",
    "Task",
    "TrainingConfig",
    "answer_columns",
    "load_config",
    "preset",
]

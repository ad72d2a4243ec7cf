"""What is searched unless a study says otherwise, as data: of each preset, a few fields.

A range has `low` and `high`, both included; with `log` it is searched evenly in the logarithm. A
list is tried value by value. The preset's own values lie inside, so that a search begins with them.
"""

from __future__ import annotations

from typing import Any

_POLICIES = ["none", "light", "strong"]

# The published protocols: Adam with an L2 penalty, a constant rate, the best epoch.
_AD: dict[str, Any] = {
    "training.lr": {"low": 2e-5, "high": 2e-3, "log": True},
    "training.weight_decay": {"low": 1e-6, "high": 1e-3, "log": True},
    "training.batch_size": [16, 32],
    "network.dropout": {"low": 0, "high": 1.5},
    "network.embedding": [4, 8, 16, 32],
    "network.generated_part": {"low": 0.05, "high": 1},
    "augmentation.policy": _POLICIES,
}
_BRAIN_AGE: dict[str, Any] = {
    "training.lr": {"low": 2e-5, "high": 2e-3, "log": True},
    "training.weight_decay": {"low": 1e-3, "high": 0.2, "log": True},
    "network.dropout": {"low": 0, "high": 1.5},
    "network.generated_part": {"low": 0.05, "high": 1},
    "augmentation.policy": _POLICIES,
}

# Our recipe: AdamW, whose decay is apart from the gradient, a cosine, the average of the weights.
_RECIPE: dict[str, Any] = {
    "training.lr": {"low": 2e-4, "high": 5e-3, "log": True},
    "training.weight_decay": {"low": 0.05, "high": 3, "log": True},
    "training.ema": [0, 0.97, 0.99, 0.997],
    "network.dropout": {"low": 0, "high": 1},
    "network.generated_part": {"low": 0.02, "high": 0.5, "log": True},
    "augmentation.policy": _POLICIES,
}
_AD_RECIPE: dict[str, Any] = {
    **_RECIPE,
    "network.embedding": [8, 16, 32, 64],
    "training.embedding_decay": {"low": 0.1, "high": 5, "log": True},
}
# A policy brings all its own fields, and none of them flips.
_BRAIN_AGE_RECIPE: dict[str, Any] = {**_RECIPE, "augmentation.flip": [True, False]}

SPACES: dict[str, dict[str, Any]] = {
    "ad": _AD,
    "ad-best": {**_AD_RECIPE, "network.features": [8, 16]},
    "ad-small": {**_AD_RECIPE, "network.features": [4, 8, 12]},
    "brain-age": _BRAIN_AGE,
    "brain-age-best": {**_BRAIN_AGE_RECIPE, "network.features": [8, 16]},
    "brain-age-small": {**_BRAIN_AGE_RECIPE, "network.features": [4, 8, 12]},
}
# What only a network whose weights the table generates reads.
OF_HYPER = ("network.embedding", "network.generated_part", "training.embedding_decay")

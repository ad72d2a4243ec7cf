"""The presets, as data."""

from __future__ import annotations

from typing import Any

from hyperfusion_rt.config.merge import merge

# The hippocampus lies near (±26, -21, -15) mm in MNI space. The right box is mirrored, so that one
# network reads both. At half a millimetre an even number of 1 mm voxels falls on whole millimetres,
# which is the template's grid: such scans are cropped, not interpolated.
HIPPOCAMPI: list[dict[str, Any]] = [
    {"name": "left", "center": (-26.5, -20.5, -14.5)},
    {"name": "right", "center": (26.5, -20.5, -14.5), "mirror": True},
]

_ADNI_TABLE: dict[str, Any] = {
    "features": [
        {"name": "AGE", "kind": "numeric"},
        {"name": "PTGENDER", "kind": "categorical", "categories": ("Female", "Male")},
        {"name": "PTEDUCAT", "kind": "numeric"},
        {"name": "APOE4", "kind": "numeric"},
        {"name": "ABETA", "kind": "censored"},
        {"name": "TAU", "kind": "censored"},
        {"name": "PTAU", "kind": "censored"},
        {"name": "FDG", "kind": "numeric"},
        {"name": "AV45", "kind": "numeric"},
    ],
    "target": "DX",
    "classes": {"CN": ("CN",), "MCI": ("MCI", "EMCI", "LMCI"), "AD": ("AD", "Dementia")},
    "stratify": ("PTGENDER", "AGE"),
    "imputer": "iterative",
}

_SEX_TABLE: dict[str, Any] = {
    "features": [{"name": "PTGENDER", "kind": "categorical", "categories": ("Female", "Male")}],
    "target": "AGE",
    "unit": "years",
    "stratify": ("PTGENDER",),
}

_AD: dict[str, Any] = {
    "preset": "ad",
    "task": "classification",
    "preprocessing": {"boxes": HIPPOCAMPI, "shape": (64, 96, 64), "spacing": 1.0},
    "tabular": _ADNI_TABLE,
    "network": {"architecture": "ad"},
    "training": {
        "lr": 1e-4,
        "weight_decay": 1e-5,
        "batch_size": 32,
        "epochs": 250,
        "class_weights": (1.1, 0.6962, 1.4),
    },
}

# The template's brain spans -72..72, -107..73, -72..82 mm. At 1.7 mm the published 90 x 120 x 99
# voxels are 153 x 204 x 168 mm: the brain and a margin of 4 mm or more on each side.
_BRAIN_AGE: dict[str, Any] = {
    "preset": "brain-age",
    "task": "regression",
    "preprocessing": {
        "boxes": [{"name": "brain", "center": (0.0, -17.0, 5.0)}],
        "shape": (90, 120, 99),
        "spacing": 1.7,
    },
    "tabular": _SEX_TABLE,
    "network": {"architecture": "brain-age"},
    "training": {
        "lr": 1.5e-4,
        "weight_decay": 0.05,
        "batch_size": 16,
        "epochs": 60,
        "parts": 10,
        "standardise_target": False,
    },
}


# What wins on simulated cohorts: see docs/how-to/recipe.md. Weights decay apart from the gradient,
# the average of the weights is kept, and samples are moved a little.
_RECIPE: dict[str, Any] = {
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.5,
    "batch_size": 16,
    "schedule": "cosine",
    "warmup_epochs": 2,
    "ema": 0.99,
    "keep": "last",
    "parts": 10,
    "embedding_epochs": 30,
    "embedding_start": "random",
    "embedding_decay": 1.0,
}
_AD_RECIPE: dict[str, Any] = {
    "network": {
        "bn_momentum": 0.1,
        "dropout": 0.5,
        "embedding": 32,
        "embedding_slope": 1.0,
        "generated_part": 0.1,
    },
    "training": _RECIPE,
    "augmentation": {"policy": "light"},
}
_BRAIN_AGE_RECIPE: dict[str, Any] = {
    "network": {"bn_momentum": 0.1, "generated_part": 0.1},
    "training": {**_RECIPE, "loss": "l1", "standardise_target": True},
    "augmentation": {"policy": "light", "flip": True},
}


def _made(base: dict[str, Any], *changes: dict[str, Any]) -> dict[str, Any]:
    for change in changes:
        base = merge(base, change)
    return base


# `ad` and `brain-age` are the published protocols. `-best` ones are trained by our recipe. `-small`
# ones are, too, and read the same boxes at a coarser spacing with fewer channels: minutes on two
# CPU cores, for demonstrations and first looks.
PRESETS: dict[str, dict[str, Any]] = {
    "ad": _AD,
    "ad-best": _made(
        _AD, _AD_RECIPE, {"preset": "ad-best", "training": {"epochs": 60, "members": 4}}
    ),
    "ad-small": _made(
        _AD,
        _AD_RECIPE,
        {
            "preset": "ad-small",
            "preprocessing": {"shape": (32, 48, 32), "spacing": 2.0},
            "network": {"features": 8},
            "training": {"epochs": 40},
        },
    ),
    "brain-age": _BRAIN_AGE,
    "brain-age-best": _made(
        _BRAIN_AGE, _BRAIN_AGE_RECIPE, {"preset": "brain-age-best", "training": {"epochs": 60}}
    ),
    "brain-age-small": _made(
        _BRAIN_AGE,
        _BRAIN_AGE_RECIPE,
        {
            "preset": "brain-age-small",
            "preprocessing": {"shape": (48, 64, 53), "spacing": 3.2},
            "network": {"features": 8},
            "training": {"epochs": 20},
        },
    ),
}

"""The presets, as data."""

from __future__ import annotations

from typing import Any

from hyperfusion_rt.config.merge import merge

# The hippocampus lies near (±26, -21, -15) mm in MNI space. The right box is mirrored, so that one
# network reads both. At half a millimetre an even number of 1 mm voxels falls on whole millimetres,
# which is the template's grid: such scans are cropped, not interpolated.
_HIPPOCAMPI = [
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
    "preprocessing": {"boxes": _HIPPOCAMPI, "shape": (64, 96, 64), "spacing": 1.0},
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


# `ad` and `brain-age` are the published protocols. `-small` ones read the same boxes at a coarser
# spacing with fewer channels: minutes on two CPU cores, for demonstrations and first looks.
PRESETS: dict[str, dict[str, Any]] = {
    "ad": _AD,
    "ad-small": merge(
        _AD,
        {
            "preset": "ad-small",
            "preprocessing": {"shape": (32, 48, 32), "spacing": 2.0},
            "network": {"features": 8, "dropout": 0.5},
            "training": {
                "lr": 5e-4,
                "weight_decay": 1e-3,
                "batch_size": 16,
                "epochs": 18,
                "schedule": "cosine",
            },
        },
    ),
    "brain-age": _BRAIN_AGE,
    "brain-age-small": merge(
        _BRAIN_AGE,
        {
            "preset": "brain-age-small",
            "preprocessing": {"shape": (48, 64, 53), "spacing": 3.2},
            "network": {"features": 8},
            "training": {
                "lr": 5e-4,
                "batch_size": 16,
                "epochs": 20,
                "schedule": "cosine",
                "standardise_target": True,
            },
        },
    ),
}

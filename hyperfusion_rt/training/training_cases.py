"""Which cases a run was trained on, as hashes: kept in the run, and by export in the artifact."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hyperfusion_rt.config import Config
from hyperfusion_rt.data.fingerprint import TrainingCases
from hyperfusion_rt.files import write_text
from hyperfusion_rt.training.dataset import Dataset
from hyperfusion_rt.training.loop import split_of

NAME = "training_cases.json"


def keep_training_cases(folder: Path, dataset: Dataset, config: Config) -> None:
    """Write the hashes of every case that is in a member's training or validation part."""
    splits = [split_of(dataset, config, member) for member in range(config.training.members)]
    parts = [part for split in splits for part in (split.train, split.validation)]
    cases = [dataset.cases[i] for i in np.unique(np.concatenate(parts))]
    content = [text for case in cases for text in dataset.cache.figures(case.files).content]
    found = TrainingCases.of([case.subject for case in cases], content)
    write_text(folder / NAME, found.model_dump_json(indent=1) + "\n", private=True)


def kept_training_cases(folder: Path) -> TrainingCases | None:
    """What a run's folder keeps; None of an imported or an older run."""
    path = folder / NAME
    if not path.is_file():
        return None
    return TrainingCases.model_validate_json(path.read_text(encoding="utf-8"))

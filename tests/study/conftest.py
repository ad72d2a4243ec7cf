"""A study of 48 cases whose scans hold nothing: a draft opens none."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from hyperfusion_rt.config import load_config
from hyperfusion_rt.study.draft import draft
from hyperfusion_rt.study.options import DraftOptions
from hyperfusion_rt.study.yaml_draft import text


class Study:
    def __init__(self, root: Path):
        self.root = root
        rng = np.random.default_rng(0)
        self.rows = [
            {
                "PTID": f"S{i:02d}",
                "AGE": f"{55 + 30 * rng.random():.1f}",
                "SEX": "FM"[i % 2],
                "ABETA": ">1700" if i % 9 == 0 else str(rng.integers(300, 1500)),
                "EDU": str(rng.integers(8, 21)),
                "DX": ("CN", "MCI", "AD")[i % 3],
            }
            for i in range(48)
        ]

    def set(self, column, values):
        """Overwrite the first cells of a column, or all of them by a function of the row number."""
        for i, row in enumerate(self.rows):
            if callable(values):
                row[column] = str(values(i))
            elif i < len(values):
                row[column] = values[i]
            else:
                row.setdefault(column, "")

    def drop(self, *columns):
        for row in self.rows:
            for column in columns:
                row.pop(column, None)

    def rename(self, old, new):
        self.rows = [{(new if k == old else k): v for k, v in row.items()} for row in self.rows]

    def write(self, names=None, separator=",", sidecar=None):
        """The table, and empty scans called `names` (by default one flat file a subject)."""
        names = names or [f"S{i:02d}.nii.gz" for i in range(48)]
        for name in names:
            path = self.root / "mri" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        with open(self.root / "x.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, self.rows[0], delimiter=separator)
            writer.writeheader()
            writer.writerows(self.rows)
        if sidecar is not None:
            (self.root / "x.json").write_text(json.dumps(sidecar))

    def again(self, **options):
        """The draft of what lies there; its text must say what was decided."""
        made = draft(self.root / "mri", self.root / "x.csv", self.root, DraftOptions(**options))
        path = self.root / "hfrt.yaml"
        path.write_text(text(made))
        assert load_config(path) == made.config
        return made

    def draft(self, names=None, separator=",", sidecar=None, **options):
        self.write(names, separator, sidecar)
        return self.again(**options)

    @property
    def text(self):
        return (self.root / "hfrt.yaml").read_text()


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path)

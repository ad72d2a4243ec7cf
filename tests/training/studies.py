"""A study of 40 cases for tests: a table, and scans that hold nothing."""

import csv

import numpy as np

from hyperfusion_rt.config import load_config
from hyperfusion_rt.training.dataset import check_study

AD = """\
preset: ad-small
training: {parts: 5}
tabular:
  features:
  - {name: AGE, kind: numeric}
  - {name: SEX, kind: categorical}
  - {name: ABETA, kind: censored}
  - {name: EDU, kind: numeric}
  stratify: [SEX]
"""
AGES = """\
preset: brain-age-small
tabular: {features: [{name: SEX, kind: categorical}], target: AGE, stratify: [SEX]}
training: {parts: 4}
"""


class Study:
    """40 cases that are as they should be, in a table with `separator`; scans that hold nothing."""

    def __init__(self, root):
        self.root = root
        rng = np.random.default_rng(0)
        self.rows = [
            {
                "subject": f"S{i:02d}",
                "AGE": f"{55 + 30 * rng.random():.1f}",
                "SEX": "FM"[i % 2],
                "ABETA": str(rng.integers(300, 1500)),
                "EDU": str(rng.integers(8, 21)),
                "DX": ("CN", "MCI", "AD")[i % 3],
            }
            for i in range(40)
        ]
        (root / "scans").mkdir()
        for row in self.rows:
            (root / "scans" / f"{row['subject']}.nii.gz").touch()

    def set(self, column, values):
        """Overwrite the first cells of a column, or all of them by a function of the row."""
        for i, row in enumerate(self.rows):
            if callable(values):
                row[column] = values(row)
            elif i < len(values):
                row[column] = values[i]
            else:
                row.setdefault(column, "")

    def write(self, text=AD, separator=","):
        with open(self.root / "data.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, self.rows[0], delimiter=separator)
            writer.writeheader()
            writer.writerows(self.rows)
        (self.root / "hfrt.yaml").write_text(text)

    def check(self, text=AD, separator=",", **change):
        self.write(text, separator)
        return check_study(load_config(self.root / "hfrt.yaml", change), self.root)

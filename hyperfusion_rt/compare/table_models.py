"""Models of the table from scikit-learn: what an image must be worth more than.

They see what a network sees of the table: rows through the encoder that is fitted on the training
rows. `logistic` and `ridge` (of a number) read the encoded row; `boosting`, gradient boosting of
trees over histograms, reads the numbers before gaps are filled; `late` does, too, and beside them
what the image network answered (`compare.late`). They learn from the training rows
of their fold alone, with the weights that classes have in `training`. Their settings are those
of `_GRIDS` that do best in a cross-validation inside the training rows, grouped by subject, by
what networks keep their best epoch by: balanced accuracy, or the mean absolute error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperfusion_rt.compare.plan import Kind
from hyperfusion_rt.config import Config
from hyperfusion_rt.errors import CohortError
from hyperfusion_rt.files import write_text
from hyperfusion_rt.training.dataset import Dataset
from hyperfusion_rt.training.loop import Split, split_of
from hyperfusion_rt.training.results import TABLE, answered, figures, write_table

_INNER = 5  # parts of the cross-validation inside the training rows
_TREES = {"max_iter": [30, 100], "max_depth": [1, 3]}
_GRIDS: dict[Kind, dict[str, list[Any]]] = {
    "logistic": {"C": [0.001, 0.01, 0.1, 1.0, 10.0]},
    "ridge": {"alpha": [0.1, 1.0, 10.0, 100.0, 1000.0]},
    "boosting": _TREES,
    "late": _TREES,
}
Floats = NDArray[np.float64]


class TableModel:
    """One of them, fitted on the training part of a split.

    `beside [cases, C]`: further columns. With them it learns from the cases outside the test part
    that have them, wherever their answers come from.

    Raises:
        CohortError: these are too few.
    """

    def __init__(
        self,
        kind: Kind,
        config: Config,
        dataset: Dataset,
        split: Split,
        beside: Floats | None = None,
    ) -> None:
        from threadpoolctl import threadpool_limits

        self.kind, self.config, self.encoder = kind, config, split.encoder
        self.classes = len(config.tabular.classes)
        train = split.train if beside is None else _with(beside, split)
        self.learned = len(train)
        x, y = self._inputs(dataset, train, beside), dataset.targets[train]
        if beside is not None and len(np.unique(y)) < (2 if self.classes else 1):
            raise CohortError(
                f"late: the {len(train)} validation cases that it learns from are not of two "
                "classes; raise training.members, so that more parts are validated",
                code="cohort-too-small",
            )
        subjects = np.array([dataset.cases[i].subject for i in train])
        with threadpool_limits(1):  # tables are small: threads would only wait for each other
            self.model, self.chosen = self._fit(x, y.astype(int) if self.classes else y, subjects)

    def _fit(self, x: Floats, y: Any, subjects: Any) -> tuple[Any, dict[str, Any]]:
        from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedGroupKFold

        if self.classes:
            of_class = [len(set(subjects[y == c])) for c in np.unique(y)]
            parts = min(_INNER, *of_class)
        else:
            parts = min(_INNER, len(set(subjects)))
        grid = _GRIDS[self.kind]
        estimator = self._estimator(y)
        if parts < 2:  # nothing to choose by: the middle of each
            chosen = {name: values[len(values) // 2] for name, values in grid.items()}
            return estimator.set_params(**chosen).fit(x, y), chosen
        seed = self.config.training.seed
        inner: Any = GroupKFold(parts)
        if self.classes:
            inner = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
        by = "balanced_accuracy" if self.classes else "neg_mean_absolute_error"
        search = GridSearchCV(estimator, grid, scoring=by, cv=list(inner.split(x, y, subjects)))
        search.fit(x, y)
        return search.best_estimator_, dict(search.best_params_)

    def _estimator(self, y: Any) -> Any:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
        from sklearn.linear_model import LogisticRegression, Ridge

        weights = self._class_weights(y) if self.classes else None
        if self.kind == "logistic":
            return LogisticRegression(max_iter=10_000, class_weight=weights)
        if self.kind == "ridge":
            return Ridge()
        settings: dict[str, Any] = {"early_stopping": False, "min_samples_leaf": 10}
        settings["random_state"] = self.config.training.seed
        if self.classes:
            return HistGradientBoostingClassifier(class_weight=weights, **settings)
        return HistGradientBoostingRegressor(**settings)

    def _class_weights(self, y: Any) -> dict[int, float]:
        """What a training row of each class counts, in a network's training, too."""
        training = self.config.training
        given = training.class_weights or (1.0,) * self.classes
        found = {}
        for c, count in zip(*np.unique(y, return_counts=True), strict=True):
            share = len(y) / count if training.sampling == "balanced" else 1.0
            found[int(c)] = given[int(c)] * float(share)
        return found

    def _inputs(
        self, dataset: Dataset, indices: NDArray[np.int64], beside: Floats | None
    ) -> Floats:
        rows = [dataset.cases[int(i)].row for i in indices]
        if self.kind in ("boosting", "late"):
            numbers = self.encoder.numbers(rows)
            return numbers if beside is None else np.hstack([numbers, beside[indices]])
        return np.asarray(self.encoder.encode(rows), np.float64)

    def __call__(
        self, dataset: Dataset, indices: NDArray[np.int64], beside: Floats | None = None
    ) -> Floats:
        """Probabilities or numbers `[len(indices), C]` of cases that the encoder can read."""
        if not len(indices):
            return np.empty((0, self.classes or 1))
        x = self._inputs(dataset, indices, beside)
        if not self.classes:
            return np.asarray(self.model.predict(x), np.float64)[:, None]
        found = np.zeros((len(x), self.classes))  # 0 for a class that no training row has
        found[:, self.model.classes_] = self.model.predict_proba(x)
        return found


def _with(beside: Floats, split: Split) -> NDArray[np.int64]:
    """The cases outside the test part that have further columns, and a row that can be read."""
    known = np.isfinite(beside).all(1) & np.isfinite(split.tabular).all(1)
    return np.setdiff1d(np.flatnonzero(known), split.test)


def train_table_model(
    folder: Path, kind: Kind, config: Config, dataset: Dataset, beside: Floats | None = None
) -> None:
    """Fit one, and write what a run folder has of it: configuration, predictions, figures.

    `beside`: as of `TableModel`. It learns from validation cases, too, and predicts the test part
    alone.
    """
    split = split_of(dataset, config, 0)
    model = TableModel(kind, config, dataset, split, beside)
    spec, targets = config.tabular, dataset.targets
    write_text(folder / "config.json", config.model_dump_json(indent=2))
    rows = []
    for part in ("validation", "test") if beside is None else ("test",):
        chosen: NDArray[np.int64] = getattr(split, part)
        for i, answer in zip(chosen, model(dataset, chosen, beside), strict=True):
            case, target = dataset.cases[i], targets[i]
            rows.append(
                {
                    "subject": case.subject,
                    "session": case.session or "",
                    "part": int(dataset.parts.of[i]),
                    "member": "0",
                    "split": part,
                    "truth": list(spec.classes)[int(target)] if spec.classes else f"{target:.6g}",
                    **answered(spec, answer),
                }
            )
    write_table(folder / TABLE, spec, rows)
    subjects = [dataset.cases[i].subject for i in split.test]
    metrics = {
        "model": kind,
        "settings": model.chosen,
        "cases": {
            "train": model.learned,
            "validation": len(split.validation) if beside is None else 0,
            "test": len(split.test),
        },
        "test": figures(spec, targets[split.test], model(dataset, split.test, beside), subjects),
    }
    write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")

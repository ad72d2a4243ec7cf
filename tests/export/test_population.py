"""What an artifact says of its people: counts and figures, compared with those made by hand."""

import dataclasses

import numpy as np
import pytest

from hyperfusion_rt.export import population as made
from hyperfusion_rt.metrics import classification
from hyperfusion_rt.training.splits import Parts
from hyperfusion_rt.training.train import dataset_again


@pytest.fixture(scope="module")
def dataset(session_run):
    return dataset_again(session_run)


@pytest.fixture
def tested(dataset, monkeypatch):
    """All 40 cases in the test part, two scans of each person, and answers to all of them."""
    cases = [
        dataclasses.replace(case, subject=f"P{i // 2}", session=str(i % 2))
        for i, case in enumerate(dataset.cases)
    ]
    rng = np.random.default_rng(0)
    said = rng.dirichlet([1, 1, 1], len(cases))
    rows = [
        {"subject": c.subject, "session": c.session, "p_CN": a, "p_MCI": b, "p_AD": d}
        for c, (a, b, d) in zip(cases, said, strict=True)
    ]
    monkeypatch.setattr(made, "test_rows", lambda run: rows)
    parts = Parts(np.zeros(len(cases), np.int64), 0, (1,), named=True)
    return dataclasses.replace(dataset, cases=cases, parts=parts), said


def test_groups_have_the_figures_of_their_cases(session_run, tested):
    dataset, said = tested
    found = made.population_of(session_run, dataset)
    sexes = np.array([case.row.values["PTGENDER"] for case in dataset.cases])
    tested_on = found.performance
    assert (tested_on.cases, tested_on.people) == (40, 20)
    assert {group.name for group in tested_on.sex} == {"Female", "Male"}
    for group in tested_on.sex:
        index = np.flatnonzero(sexes == group.name)
        subjects = [dataset.cases[i].subject for i in index]
        truth = dataset.targets[index].astype(int)
        expected = classification(truth, said[index], ["CN", "MCI", "AD"], subjects)
        assert group.cases == len(index) >= 10
        for name in ("balanced_accuracy", "balanced_accuracy_95", "auc", "brier", "ece_95"):
            assert group.figures[name] == expected[name]
        # What counts few people stays out.
        assert not {"confusion", "recall", "recall_95", "subjects"} & set(group.figures)
        assert not [name for name in group.figures["reasons"] if name.startswith("recall")]
    assert sum(one.cases for one in tested_on.reliability) == 40
    top, right = said.max(1), said.argmax(1) == dataset.targets
    cases = np.array([one.cases for one in tested_on.reliability])
    for name, exact in (("probability", top), ("accuracy", right)):
        values = np.array([getattr(one, name) for one in tested_on.reliability])
        assert (values * cases).sum() / 40 == pytest.approx(exact.mean())


def test_people_are_counted_once(session_run, tested):
    dataset, _ = tested
    found = made.population_of(session_run, dataset)
    assert (found.cases, found.people) == (40, 20)
    train, _, test = found.parts
    assert (test.cases, test.people) == (40, 20)
    assert (train.cases, train.people) == (0, 0)
    firsts = [case.row.values["PTGENDER"] for case in dataset.cases[::2]]
    assert test.sex == {name: firsts.count(name) for name in ("Female", "Male")}


def test_gaps_spacings_and_leaks(session_run, dataset, monkeypatch):
    found = made.population_of(session_run, dataset)
    column = [case.row.values["FDG"] for case in dataset.cases]
    assert found.missing["FDG"] == pytest.approx(column.count("") / 40)
    assert 0 < found.missing["FDG"] < 1
    assert found.missing["DX"] == 0
    assert found.spacing == {"T1w": (2.0, 2.0, 2.0)}
    assert (found.sex_column, found.age_column) == ("PTGENDER", "AGE")
    assert found.left_out == {}
    # A column that tells the class is said; what quotes cases is only counted.
    for case in dataset.cases:
        case.row.values["EDU"] = case.row.values["DX"]
    spec = session_run.config.tabular
    feature = spec.features[0].model_copy(
        update={"name": "EDU", "kind": "categorical", "categories": ()}
    )
    tabular = spec.model_copy(update={"features": (*spec.features, feature)})
    config = session_run.config.model_copy(update={"tabular": tabular})
    run = dataclasses.replace(session_run, config=config)
    try:
        (said,) = made.population_of(run, dataset).findings
    finally:
        for case in dataset.cases:
            del case.row.values["EDU"]
    assert "'EDU'" in said
    assert "S5-" not in said


def test_a_run_without_predictions_has_no_performance(session_run, dataset, monkeypatch):
    monkeypatch.setattr(made, "test_rows", lambda run: [])
    assert made.population_of(session_run, dataset).performance is None


def test_a_split_file_is_not_named(session_run):
    training = session_run.config.training.model_copy(update={"split_file": "/home/me/split.csv"})
    config = session_run.config.model_copy(update={"training": training})
    found = made.how_trained(dataclasses.replace(session_run, config=config))
    assert found["training"]["split_file"] == "given"
    assert "/home/me" not in str(found)

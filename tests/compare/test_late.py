"""Late fusion in `hfrt compare`: boosting beside what the image network answers."""

import csv
import json

import numpy as np
import pytest

from hyperfusion_rt.compare.compare import compare
from hyperfusion_rt.compare.executor import run
from hyperfusion_rt.compare.late import image_answers
from hyperfusion_rt.compare.options import CompareOptions
from hyperfusion_rt.compare.plan import Comparison, Job
from hyperfusion_rt.compare.table_models import TableModel
from hyperfusion_rt.errors import CohortError
from hyperfusion_rt.training.dataset import gather
from hyperfusion_rt.training.loop import split_of

pytestmark = pytest.mark.slow

CLASSES = ("p_CN", "p_MCI", "p_AD")


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def late(session_cohort):
    """Three parts, two members: each case outside the test part is validated once."""
    options = CompareOptions(models="late,image", folds=3, name="late")
    changes = {
        "network": {"features": 2},
        "training": {"epochs": 1, "batch_size": 16, "members": 2},
    }
    found = compare(session_cohort / "hfrt.yaml", options, changes)
    assert found.failed == 0
    return found.comparison


def test_it_learns_from_answers_to_cases_that_no_network_learned_from(late, session_cohort):
    for fold in range(3):
        job = Job(model="late", seed=0, fold=fold)
        config = late.config(job)
        dataset = gather(config, session_cohort)
        answers = image_answers(late, job, dataset)
        image = rows_of(late.place(job.model_copy(update={"model": "image"})) / "predictions.csv")
        expected = {}
        for row in image:
            said = [float(row[name]) for name in CLASSES]
            if row["split"] == "validation" or (row["split"], row["member"]) == ("test", "all"):
                assert row["subject"] not in expected
                expected[row["subject"]] = np.log(said)
        assert len(expected) == len(dataset.cases) == 40
        for case, answer in zip(dataset.cases, answers, strict=True):
            np.testing.assert_allclose(answer, expected[case.subject])
        split = split_of(dataset, config, 0)
        metrics = json.loads((late.place(job) / "metrics.json").read_text())
        assert metrics["cases"] == {
            "train": 40 - len(split.test), "validation": 0, "test": len(split.test)
        }  # fmt: skip
        model = TableModel("late", config, dataset, split, answers)
        own = {row["subject"]: row for row in rows_of(late.place(job) / "predictions.csv")}
        assert set(own) == {dataset.cases[i].subject for i in split.test}
        for i, answer in zip(split.test, model(dataset, split.test, answers), strict=True):
            row = own[dataset.cases[i].subject]
            assert [float(row[name]) for name in CLASSES] == pytest.approx(answer, abs=1e-5)


def test_it_does_not_learn_from_the_test_part(late, session_cohort):
    job = Job(model="late", seed=0, fold=1)
    config = late.config(job)
    dataset = gather(config, session_cohort)
    split, answers = split_of(dataset, config, 0), image_answers(late, job, dataset)
    before = TableModel("late", config, dataset, split, answers)
    dataset.targets[split.test] = 0
    changed = answers.copy()
    changed[split.test] = 0
    after = TableModel("late", config, dataset, split, changed)
    inside = split.train
    np.testing.assert_array_equal(before(dataset, inside, answers), after(dataset, inside, answers))


def test_the_images_answers_count(late, session_cohort):
    """Where the answers are the truth, and the table says nothing, it learns them."""
    job = Job(model="late", seed=0, fold=0)
    config = late.config(job)
    dataset = gather(config, session_cohort)
    split = split_of(dataset, config, 0)
    told = np.eye(3)[dataset.targets.astype(int)]
    model = TableModel("late", config, dataset, split, told)
    found = model(dataset, split.test, told).argmax(1)
    assert (found == dataset.targets[split.test]).mean() > 0.8


def test_cases_of_one_class_teach_nothing(late, session_cohort):
    job = Job(model="late", seed=0, fold=0)
    config = late.config(job)
    dataset = gather(config, session_cohort)
    split, answers = split_of(dataset, config, 0), image_answers(late, job, dataset)
    answers[dataset.targets != 1] = np.nan
    with pytest.raises(CohortError, match=r"raise training\.members"):
        TableModel("late", config, dataset, split, answers)


def test_without_an_answer_of_the_image_network_it_has_none(late):
    job = Job(model="image", seed=0, fold=2)
    late.fail(job, "training-diverged", "of a test")
    try:
        again = Job(model="late", seed=0, fold=2)
        (late.place(again) / "metrics.json").unlink()
        told = []
        run(late, [again], CompareOptions(), lambda job, reason: told.append((job, reason)))
        assert [job for job, _ in told] == [again]
        assert "has no result" in told[0][1]
        assert Comparison.open(late.folder).failure(again)[0] == "run-not-found"
    finally:
        late.forget_failure(job)

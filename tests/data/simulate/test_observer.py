"""The exact observer's answers about given subjects agree with the expectation of his figure."""

import csv

import numpy as np
import pytest

from hyperfusion_rt.data.simulate.observer import observed
from hyperfusion_rt.data.simulate.optimum import bayes_optimum
from hyperfusion_rt.data.simulate.population import AD, CLASSES, draw_subject


def tables(folder, task, model, count):
    """The tables of a cohort, without its scans."""
    rows, truths = [], []
    for index in range(count):
        subject = draw_subject(task, np.random.default_rng([3, index]), model)
        regions = ("atrophy",) if task == "brain-age" else AD[model].regions
        name = {"subject": f"S{index}"}
        rows.append(name | subject.row)
        truths.append(name | dict(zip(regions, subject.atrophy, strict=True)) | dict(subject.truth))
    for file, content in (("data.csv", rows), ("truth.csv", truths)):
        with open(folder / file, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, content[0].keys())
            writer.writeheader()
            writer.writerows(content)
    return truths


@pytest.mark.parametrize("model", ["additive", "place"])
def test_balanced_accuracy(tmp_path, model):
    truths = tables(tmp_path, "ad", model, 3000)
    answers = observed(tmp_path, "ad", model)
    truth = np.array([CLASSES.index(one["DX"]) for one in truths])
    found = np.stack([answers[one["subject"]] for one in truths])
    np.testing.assert_allclose(found.sum(1), 1)
    recalls = [np.mean(found.argmax(1)[truth == k] == k) for k in range(3)]
    expected = bayes_optimum("ad", model, samples=6000)["both"]
    assert abs(np.mean(recalls) - expected) < 0.025  # three standard errors


def test_age(tmp_path):
    truths = tables(tmp_path, "brain-age", "additive", 2000)
    answers = observed(tmp_path, "brain-age")
    errors = [abs(answers[one["subject"]][0] - one["AGE"]) for one in truths]
    expected = bayes_optimum("brain-age", points=300)["both"]
    assert abs(np.mean(errors) - expected) < 0.2


def test_tables_of_other_subjects_are_refused(tmp_path):
    tables(tmp_path, "brain-age", "additive", 4)
    text = (tmp_path / "data.csv").read_text().replace("S2,", "S9,")
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(ValueError, match="other subjects"):
        observed(tmp_path, "brain-age")

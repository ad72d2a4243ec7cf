"""What charts of answers to other rows say of the row itself, and only of what they draw."""

from dataclasses import replace

import numpy as np
import pytest

from hyperfusion_rt.runtime.explain.answers import WhatIf
from hyperfusion_rt.runtime.outputs.subject_charts import what_if_charts

CLASSES = ("CN", "AD")


def asked(columns, points, own, band=False, unusual=()):
    values = np.tile([0.6, 0.4], (len(points), 1))
    edges = (values - 0.1, values + 0.1) if band else (None, None)
    odd = tuple("odd" if n in unusual else "" for n in range(len(points)))
    return WhatIf(columns, tuple(points), values, *edges, odd, own, values[0])


def note(*arguments, **more):
    (chart,) = what_if_charts(CLASSES, "", [asked(*arguments, **more)])
    return chart.note


@pytest.mark.parametrize(
    ("own", "marked"), [(60.0, True), (65.3, True), (90.0, False), (None, False)]
)
def test_the_row_is_marked_where_it_stands(own, marked):
    """Between the points of a grid, too; not beyond them."""
    points = [(age,) for age in (60.0, 70.0, 80.0)]
    (chart,) = what_if_charts(CLASSES, "", [asked(("AGE",), points, (own,))])
    assert ("this row" in (chart.note or "")) == marked
    assert sum(line.dashed for line in chart.lines) == marked


def test_a_row_of_another_first_column_is_not_on_the_chart():
    points = [("Male", n) for n in (0.0, 1.0)]
    assert "this row" in note(("SEX", "APOE4"), points, ("Male", 0.0))
    assert not note(("SEX", "APOE4"), points, ("Female", 0.0))


def test_only_what_is_drawn_is_explained():
    points = [(age,) for age in (60.0, 70.0)]
    said = note(("AGE",), points, (None,), band=True, unusual=(1,))
    assert "Shaded: 5th to 95th" in said
    assert "hollow: unlike the training table (1 of 2)" in said
    same = asked(("AGE",), points, (None,))
    same = replace(same, low=same.values, high=same.values)  # nothing else was missing
    assert "haded" not in what_if_charts(CLASSES, "", [same])[0].note
    points = [(sex, age) for sex in ("F", "M") for age in (60.0, 70.0)]
    assert not note(("SEX", "AGE"), points, (None, None), band=True, unusual=(1,))

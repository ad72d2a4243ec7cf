"""What an artifact keeps of the training table: no row, but what rows there are like."""

import numpy as np
import pytest

from hyperfusion_rt.artifact.table_summary import FEWEST, TableSummary
from hyperfusion_rt.data.encoder_columns import CategoricalColumn, NumericColumn

COLUMNS = (
    NumericColumn(kind="numeric", name="AGE"),
    CategoricalColumn(kind="categorical", name="SEX", categories=("F", "M"), mode="F"),
    NumericColumn(kind="numeric", name="TAU"),
    NumericColumn(kind="numeric", name="ALLELES"),
)


def table(count=600, seed=0, missing=0.3):
    """TAU goes with AGE (r = 0.8); ALLELES are 0, 1, 2 and no old person has 2."""
    rng = np.random.default_rng(seed)
    age = rng.normal(70, 8, count)
    sex = rng.integers(2, size=count).astype(float)
    tau = 200 + 5 * (age - 70) + 30 * rng.standard_normal(count)
    alleles = rng.choice(3, count, p=[0.5, 0.3, 0.2]).astype(float)
    alleles[(age > 75) & (alleles == 2)] = 1
    cells = np.stack([age, sex, tau, alleles], 1)
    cells[rng.random(count) < missing, 2] = np.nan
    return cells


@pytest.fixture(scope="module")
def summary():
    return TableSummary.fit(table(), COLUMNS)


def test_it_keeps_no_row(summary):
    again = TableSummary.model_validate_json(summary.model_dump_json())
    assert again == summary
    # Numbers by their quantiles alone: the table cannot be read from it.
    assert len(summary.columns[0].values) < 20
    assert summary.rows == 600


def test_what_is_missing_is_drawn_given_what_is_known(summary):
    """Of held-out rows, the 90 % range of the draws holds what was taken away, 9 times of 10."""
    held_out = table(count=1000, seed=1, missing=0)
    gone = held_out.copy()
    gone[:, 2] = np.nan
    drawn = summary.draw(gone, 400)[:, :, 2]
    low, high = np.quantile(drawn, [0.05, 0.95], axis=1)
    inside = (low <= held_out[:, 2]) & (held_out[:, 2] <= high)
    # Three standard errors of 1000 cases, and as much for what 420 rows can tell.
    assert abs(inside.mean() - 0.9) < 0.04
    # They follow the age, which an imputation by the median would not.
    assert np.corrcoef(drawn.mean(1), held_out[:, 0])[0, 1] > 0.95


def test_known_cells_stay_and_one_seed_draws_the_same(summary):
    row = np.array([[72.0, 1.0, np.nan, 0.0]])
    drawn = summary.draw(row, 50)
    assert (drawn[0][:, [0, 1, 3]] == row[0][[0, 1, 3]]).all()
    assert not np.isnan(drawn).any()
    assert (summary.draw(row, 50) == drawn).all()
    assert (summary.draw(row, 50, seed=1) != drawn).any()


def test_the_background_is_like_the_table(summary):
    rows, cells = summary.background(4000), table(missing=0.3)
    assert abs(np.nanmean(rows[:, 0]) - np.nanmean(cells[:, 0])) < 0.6
    assert abs(np.nanstd(rows[:, 0]) - np.nanstd(cells[:, 0])) < 0.6
    assert abs(rows[:, 1].mean() - cells[:, 1].mean()) < 0.04
    assert set(np.unique(rows[:, 3])) == {0.0, 1.0, 2.0}
    assert abs(np.isnan(rows[:, 2]).mean() - np.isnan(cells[:, 2]).mean()) < 0.03
    both = rows[~np.isnan(rows[:, 2])]
    assert np.corrcoef(both[:, 0], both[:, 2])[0, 1] > 0.7


def test_a_pair_that_no_row_had_is_unusual(summary):
    rows = np.array([[85.0, 0.0, np.nan, 2.0], [85.0, 0.0, np.nan, 1.0], [65.0, 0.0, np.nan, 2.0]])
    texts = summary.unusual(rows, varied=np.isin(np.ones((len(rows), 1)) * range(4), [0, 3]))
    assert f"fewer than {FEWEST} training rows had AGE" in texts[0]
    assert "with ALLELES 2" in texts[0]
    assert texts[1:] == ["", ""]


def test_a_row_far_from_all_is_unusual_though_no_cell_is(summary):
    """An old person's TAU in a young one: each alone is usual, together they are not."""
    usual, odd = [60.0, 0.0, 150.0, 0.0], [60.0, 0.0, 290.0, 0.0]
    near, far = summary.distances(np.array([usual, odd]))
    assert near < summary.farthest < far
    texts = summary.unusual(np.array([usual, odd]))
    assert texts[0] == ""
    assert "farther from the training table than 99 %" in texts[1]


def test_of_training_rows_few_are_unusual(summary):
    texts = summary.unusual(table(count=2000, seed=3), varied=np.ones((2000, 4), bool))
    assert sum(map(bool, texts)) < 0.05 * len(texts)


@pytest.mark.parametrize("count", [1, 2, 12])
def test_few_rows_make_a_summary_too(count):
    found = TableSummary.fit(table(count, missing=0), COLUMNS)
    assert found.pairs == ()  # too few to say what is rare
    assert not np.isnan(found.draw(np.full((1, 4), np.nan), 5)).any()


def test_a_constant_column_and_one_without_a_pair():
    cells = table(100)
    cells[:, 0] = 70.0
    cells[:50, 2], cells[50:, 3] = np.nan, np.nan  # never both
    found = TableSummary.fit(cells, COLUMNS)
    assert np.isfinite(found.distances(cells)).all()
    assert (found.background(50)[:, 0] == 70.0).all()

"""Which failures are news."""

import pytest

from hyperfusion_rt.errors import CODES
from hyperfusion_rt.runtime.cohort import failures
from hyperfusion_rt.runtime.cohort.failures import again, lasts, mark_known
from hyperfusion_rt.runtime.prediction import Prediction


def problem(code="scan-without-row", reason="x.nii: no row", subject="S1", status="error"):
    return Prediction(subject, None, status, reason, code=code)


@pytest.mark.parametrize(
    "code",
    [
        "scan-truncated", "scan-unreadable", "scan-without-row", "scan-ambiguous",
        "dicom-slices-uneven", "table-not-a-number", "table-duplicate-row", "cohort-unknown-id",
        "engine-output-not-finite",
    ],
)  # fmt: skip
def test_what_lies_in_a_case_lasts(code):
    assert code in CODES
    assert lasts(code)


@pytest.mark.parametrize(
    "code",
    [
        "not-tried", "run-interrupted", "out-of-memory", "out-of-budget", "gpu-failed",
        "engine-cannot-load", "feature-cache-unusable", "output-cannot-be-written", "ray-failed",
        "missing-extra", "unexpected", "scan-read-failed", "scan-folder-unreadable",
    ],
)  # fmt: skip
def test_what_lies_in_the_machine_or_the_run_may_pass(code):
    assert code in CODES
    assert not lasts(code)


def test_an_unknown_code_may_pass():
    assert not lasts("")


def test_the_exceptions_are_codes():
    assert CODES.keys() >= failures._ALSO | failures._MAY_PASS


def known(found, before):
    return [item.known for item in mark_known(found, before)]


def test_the_same_problem_is_known():
    assert known([problem()], [problem()]) == [True]
    assert known([problem()], []) == [False]
    assert known([problem(subject="S2")], [problem()]) == [False]
    assert known([problem(reason="y.nii: no row")], [problem()]) == [False]
    assert known([problem(code="scan-ambiguous")], [problem()]) == [False]


def test_a_problem_that_was_skipped_is_no_failure():
    assert known([problem(status="skipped")], [problem(status="skipped")]) == [False]
    assert known([problem()], [problem(status="skipped")]) == [False]


def test_a_problem_that_may_pass_is_news_each_time():
    lost = problem(code="scan-folder-unreadable")
    assert known([lost], [lost]) == [False]


def test_one_more_of_the_same_is_news():
    assert known([problem()] * 3, [problem()] * 2) == [True, True, False]


def test_rows_that_moved_are_the_same():
    def twice(line, others, table="data.csv"):
        reason = f"{table}, line {line}: duplicate: line {others} has the same subject; keep one"
        return problem("table-duplicate-row", reason)

    before = [twice(5, "9, 12"), twice(9, "5, 12"), twice(12, "5, 9")]
    assert known([twice(6, "10, 13"), twice(10, "6, 13"), twice(13, "6, 10")], before) == [True] * 3
    assert known([twice(6, "10", "tonight.csv")], [twice(5, "9")]) == [True]


def test_a_kept_reason_names_the_line_where_the_row_stands_now():
    cell = problem("table-not-a-number", "line 7, column 'AGE': 'x' is no usable number")
    assert again(cell, 9).reason == "line 9, column 'AGE': 'x' is no usable number"
    assert again(cell, 9).known
    scan = problem("scan-truncated", "line 7.nii.gz: truncated")
    assert again(scan, 9).reason == "line 7.nii.gz: truncated"

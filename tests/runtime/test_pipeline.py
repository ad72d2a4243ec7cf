"""The pipeline: every case once, bounded queues, back-pressure, errors, an early end."""

import threading
import time

import pytest

from hyperfusion_rt.errors import ScanError
from hyperfusion_rt.runtime.pipeline import Budget, Usage, run


def double(items):
    return [2 * item for item in items]


@pytest.mark.parametrize(("workers", "batch"), [(1, 1), (4, 1), (3, 5)])
def test_every_case_once(workers, batch):
    usage = Usage()
    found = list(run(range(200), lambda n: n, double, workers=workers, batch=batch, usage=usage))
    assert sorted(found) == [2 * n for n in range(200)]
    assert set(usage.utilisation()) == {"prepare", "engine", "write"}
    assert all(0 <= value <= 1 for value in usage.utilisation().values())


def test_batches_are_full_where_cases_are_ready():
    sizes = []
    first = threading.Event()

    def execute(items):
        if not sizes:
            first.wait(5)  # meanwhile the others get ready
        sizes.append(len(items))
        return items

    def prepare(n):
        if n == 5:
            first.set()
        return n

    list(run(range(9), prepare, execute, workers=1, batch=4))
    assert sum(sizes) == 9
    assert max(sizes) == 4


def test_a_slow_writer_holds_the_others_back():
    taken = 0

    def cases():
        nonlocal taken
        for n in range(1000):
            taken += 1
            yield n

    workers, batch = 3, 2
    stream = run(cases(), lambda n: n, double, workers=workers, batch=batch)
    for count in range(1, 6):
        next(stream)
        time.sleep(0.05)
        assert taken - count <= 3 * workers + 3 * batch
    stream.close()
    assert taken < 40


def test_leaving_early_ends_the_threads():
    before = threading.active_count()
    stream = run(range(1000), lambda n: n, double, workers=4)
    next(stream)
    stream.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("where", ["cases", "prepare", "execute"])
def test_an_error_of_a_stage_is_the_callers(where):
    def odd(place, n):
        if place == where and n == 20:
            raise ZeroDivisionError(place)
        return n

    def execute(items):
        return [odd("execute", n) for n in items]

    cases = (odd("cases", n) for n in range(100))
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError, match=where):
        list(run(cases, lambda n: odd("prepare", n), execute, workers=3))
    assert threading.active_count() == before


def test_the_busiest_stage_is_named():
    def execute(items):
        time.sleep(0.01)
        return items

    usage = Usage()
    list(run(range(20), lambda n: n, execute, workers=2, usage=usage))
    assert usage.bound() == "engine"
    assert usage.utilisation()["engine"] > 0.8
    assert Usage().bound() == ""


def test_a_budget_makes_cases_wait_and_refuses_what_never_fits():
    budget = Budget(100)
    held, most = 0, 0
    lock = threading.Lock()

    def prepare(n):
        nonlocal held, most
        budget.take(40, "scan")
        with lock:
            held += 40
            most = max(most, held)
        return n

    def execute(items):
        nonlocal held
        time.sleep(0.001)
        for _ in items:
            with lock:
                held -= 40
            budget.give(40)
        return items

    assert len(list(run(range(50), prepare, execute, workers=4))) == 50
    assert most == 80
    with pytest.raises(ScanError, match=r"big\.nii: needs .* `max_memory` leaves"):
        budget.take(101, "big.nii")


@pytest.mark.parametrize("end", ["close", "error"])
def test_who_waits_for_memory_does_not_hold_up_the_end(end):
    budget = Budget(100)

    def prepare(n):
        budget.take(60, "scan")
        return n

    def execute(items):
        if end == "error":
            time.sleep(0.05)  # the others wait by now
            raise ZeroDivisionError
        return items  # and gives nothing back

    stream = run(range(100), prepare, execute, workers=4, on_stop=budget.lift)
    before = threading.active_count()
    if end == "error":
        with pytest.raises(ZeroDivisionError):
            list(stream)
    else:
        next(stream)
        time.sleep(0.05)
        stream.close()
    assert threading.active_count() <= before


def test_two_runs_at_once_count_their_own_work():
    def slow(n):
        time.sleep(0.02)
        return n

    one = run(range(4), slow, double, workers=2)
    other = run(range(40), lambda n: n, double, workers=2)
    for _ in zip(one, other, strict=False):
        pass
    other.close()
    assert one.usage is not other.usage
    assert one.usage.busy["prepare"] >= 0.08
    assert other.usage.busy["prepare"] < 0.08


def test_usage_is_whole_whoever_adds():
    usage = Usage()
    adders = [
        threading.Thread(target=lambda: [usage.work("prepare", 1.0) for _ in range(10_000)])
        for _ in range(4)
    ]
    for adder in adders:
        adder.start()
    for adder in adders:
        adder.join()
    assert usage.busy == {"prepare": 40_000.0}

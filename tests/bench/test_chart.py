"""Charts of benchmarks: no interval below 0, no label on another."""

import importlib
import itertools
import json
from pathlib import Path

import pytest

from hyperfusion_rt.bench.chart import chart, reach
from hyperfusion_rt.bench.result import Benchmark, Timing

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def timing(median, spread, batch=1, **quartiles):
    return Timing("hfrt native", "fp32", batch, median, spread, median / batch, 1.0, 0.0, True,
                  **quartiles)  # fmt: skip


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (timing(10.0, 4.0, low_ms=9.0, high_ms=13.0), (1.0, 3.0)),
        (timing(10.0, 4.0, 2, low_ms=9.0, high_ms=13.0), (0.5, 1.5)),
        (timing(10.0, 4.0), (2.0, 2.0)),
        (timing(1.0, 6.0), (1.0, 3.0)),  # to 0, not to -2 ms
        (timing(1.0, 6.0, low_ms=-1.0, high_ms=5.0), (1.0, 4.0)),
        (timing(1.0, 0.0, low_ms=1.1, high_ms=1.2), (0.0, pytest.approx(0.2))),
    ],
)
def test_an_interval_ends_at_0(one, expected):
    assert reach(one) == expected


def test_a_chart_of_noisy_times_begins_at_0(tmp_path):
    times = [timing(1.0, 6.0), timing(8.0, 1.0, 8, low_ms=7.5, high_ms=8.5)]
    found = Benchmark("net", 1.0, 1, 2, 100.0, 10.0, {"processor": "CPU"}, timings=times)
    assert Benchmark.from_dict(json.loads(json.dumps(found.as_dict()))) == found
    chart(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_the_committed_results_can_be_drawn_again(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    engines = importlib.import_module("engines")
    monkeypatch.setattr(engines, "picture", lambda preset, f: tmp_path / f"{preset}-{f}.png")
    engines.redrawn()
    assert len(list(tmp_path.iterdir())) == len(engines.NETWORKS)


def test_no_label_of_the_roofline_lies_on_another(monkeypatch, tmp_path):
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    monkeypatch.syspath_prepend(BENCHMARKS)
    native = importlib.import_module("native")
    drawn = []
    plain = Figure.savefig

    def keep(figure, *arguments, **options):
        plain(figure, *arguments, **options)
        drawn.append(figure)

    monkeypatch.setattr(Figure, "savefig", keep)
    last = json.loads((BENCHMARKS / "native.json").read_text())
    native.chart(last["layers"], last["limit_gflops"], last["limit_gbs"], tmp_path / "a.png")
    named = 0
    for axes in drawn[0].axes:
        layers = [text for text in axes.texts if text.get_fontsize() == 6]
        named += len(layers)
        # Of the text alone: that of an annotation also holds its line.
        boxes = [Text.get_window_extent(text) for text in layers]
        assert not [1 for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    assert named == len({(row["network"], row["layer"]) for row in last["layers"]})

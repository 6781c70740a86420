"""Charts: round ticks that enclose the data, places that are right, lines that keep extremes."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upslope.runs.report.charts import HEIGHT, WIDTH, Line, chart, nice_ticks, short, thinned

finite = st.floats(-1e290, 1e290)


@given(finite, finite)
def test_ticks_enclose_the_data_evenly(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(low, high)
    room = 1e-6 * max(abs(low), abs(high), 5e-324)
    assert 2 <= len(ticks) <= 5
    assert ticks[0] <= low + room
    assert ticks[-1] >= high - room
    step = ticks[1] - ticks[0]
    assert step > 0
    assert all(math.isclose(y - x, step, rel_tol=1e-6) for x, y in pairwise(ticks))


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 500, [0, 200, 400, 600]),
        (-1232, -215, [-1500, -1000, -500, 0]),
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (3, 3, [1, 2, 3, 4, 5]),
        (0, 0, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1500, "1500"), (12_000, "12k"), (1.5e6, "1.5M"), (-2e9, "-2G"), (3e-5, "3e-05")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_points_are_where_their_numbers_say() -> None:
    drawn = chart([Line([(0.0, 0.0), (50.0, 1.0), (100.0, 0.5)])], healthy=(0.25, 7.0))
    assert drawn is not None
    assert drawn.shapes[0].points == f"0,{HEIGHT} {WIDTH // 2},0 {WIDTH},{HEIGHT // 2}"
    assert drawn.healthy == (0.0, 0.75 * HEIGHT)  # from 0.25 to the top, as far as is shown
    assert drawn.x_labels == ((0.0, "0"), (25.0, "25"), (50.0, "50"), (75.0, "75"), (100.0, "100"))
    assert drawn.y_labels == ("1", "0.75", "0.5", "0.25", "0")
    assert drawn.grid == [0, 100, 200, 300, 400]


def test_an_axis_ends_where_the_data_end() -> None:
    drawn = chart([Line([(0.0, 1.0), (80.0, 2.0)])])
    assert drawn is not None
    assert drawn.x_labels[-1] == (100.0, "80")
    odd = chart([Line([(0.0, 1.0), (90.0, 2.0)])])
    assert odd is not None
    assert odd.x_labels == ((0.0, "0"), (27.78, "25"), (55.56, "50"), (83.33, "75"))


def test_one_point_is_a_dot_and_none_is_no_chart() -> None:
    drawn = chart([Line([(5.0, 1.0)]), Line([])])
    assert drawn is not None
    assert [shape.dot for shape in drawn.shapes] == [(WIDTH, HEIGHT / 2)]
    assert chart([Line([])]) is None


def test_a_floor_is_shown_and_a_range_out_of_sight_is_not() -> None:
    drawn = chart([Line([(0.0, 5.0), (1.0, 6.0)])], floor=0.0, healthy=(100.0, 200.0))
    assert drawn is not None
    assert drawn.y_labels[-1] == "0"
    assert drawn.healthy is None


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=3000))
def test_thinning_keeps_ends_and_extremes_in_order(values: list[float]) -> None:
    points = [(float(i), value) for i, value in enumerate(values)]
    kept = thinned(points)
    assert len(kept) <= 802
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert list(kept) == sorted(kept, key=lambda point: point[0])
    assert min(y for _, y in kept) == min(values)
    assert max(y for _, y in kept) == max(values)


def test_thinning_keeps_what_stands_out_of_a_long_line() -> None:
    for spike in (9.0, -9.0):
        points = [(float(i), spike if i == 1234 else 0.001 * i) for i in range(5000)]
        kept = thinned(points)
        assert len(kept) < 900
        assert (1234.0, spike) in kept

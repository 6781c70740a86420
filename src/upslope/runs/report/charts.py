"""Line charts as SVG that needs no script: shapes stretch with the page, text stays as it is.

The drawing is 1000 x 400 units whatever its size on the page; labels are text beside it, at places
that the page's style spaces evenly. So a chart is as readable on a phone and on paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT = 1000, 400  # units of the drawing
INTERVALS = 4  # of each axis, at most
BUCKETS = 400  # of a long line; each keeps its lowest and highest point
DRAWABLE = 1e300  # beyond it, differences overflow

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One line of a chart, with an optional band around it."""

    points: Points
    label: str = ""
    colour: int = 0  # number of the page's palette
    low: Points = ()
    high: Points = ()


@dataclass(frozen=True)
class Shape:
    """A line in units of the drawing, as SVG wants it."""

    points: str
    band: str
    colour: int
    label: str
    dot: tuple[float, float] | None  # where a line of one point is


@dataclass(frozen=True)
class Chart:
    """Everything that the page needs to show one chart."""

    shapes: tuple[Shape, ...]
    x_labels: tuple[tuple[float, str], ...]  # place in per cent of the width, and text
    y_labels: tuple[str, ...]  # from the top down
    healthy: tuple[float, float] | None  # top and height of the healthy band
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    @property
    def grid(self) -> list[float]:
        """Heights of the horizontal lines, from the top down."""
        n = len(self.y_labels) - 1
        return [round(i * HEIGHT / n, 2) for i in range(n + 1)]


def chart(
    lines: Sequence[Line],
    *,
    floor: float | None = None,
    healthy: tuple[float, float] | None = None,
) -> Chart | None:
    """Draw lines over environment steps; None where no line has a point.

    Args:
        lines: points are (environment steps, value).
        floor: a value that the axis must show.
        healthy: a range to shade, as far as the lines' own range shows it.
    """
    lines = [_drawable(line) for line in lines]
    everything = [p for line in lines for p in (*line.points, *line.low, *line.high)]
    if not everything:
        return None
    x_high = max(x for x, _ in everything) or 1.0
    values = [y for _, y in everything] + ([] if floor is None else [floor])
    ticks = nice_ticks(min(values), max(values))
    x_range, y_range = (0.0, x_high), (ticks[0], ticks[-1])
    return Chart(
        tuple(_shape(line, x_range, y_range) for line in lines if line.points),
        _x_labels(x_high),
        tuple(short(tick) for tick in reversed(ticks)),
        _healthy(healthy, y_range),
        x_range,
        y_range,
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """Return two to five evenly spaced round numbers that enclose ``low`` to ``high``."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value: give it room
        room = abs(high) / 2 or 1.0
        low, high = low - room, high + room
    rough = (high - low) / INTERVALS
    unit = 10.0 ** math.floor(math.log10(rough))
    for factor in (1, 2, 2.5, 5, 10, 20):
        step = factor * unit
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= INTERVALS:
            break
    return [i * step for i in range(first, last + 1)]


def _x_labels(high: float) -> tuple[tuple[float, str], ...]:
    """Round numbers from 0 on with their places, as far as the axis goes."""
    inside = [tick for tick in nice_ticks(0.0, high) if tick <= high * (1 + 1e-9)]
    return tuple((round(100 * tick / high, 2), short(tick)) for tick in inside)


def short(value: float) -> str:
    """Write a number for an axis: 12k, 1.5M, 0.02, 3e-05."""
    if value == 0:
        return "0"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size and (letter != "k" or abs(value) >= 1e4):
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def thinned(points: Points) -> Points:
    """Return at most about two points a bucket, the lowest and the highest, in order."""
    if len(points) <= 2 * BUCKETS:
        return points
    kept: list[tuple[float, float]] = [points[0]]
    edges = [round(i * len(points) / BUCKETS) for i in range(BUCKETS + 1)]
    for start, end in pairwise(edges):
        indices = range(start, end)
        extremes = {
            min(indices, key=lambda i: points[i][1]),
            max(indices, key=lambda i: points[i][1]),
        }
        kept += [points[i] for i in sorted(extremes)]
    return [*kept, points[-1]]


def _drawable(line: Line) -> Line:
    def kept(points: Points) -> Points:
        return [(x, y) for x, y in points if abs(x) < DRAWABLE and abs(y) < DRAWABLE]

    return Line(kept(line.points), line.label, line.colour, kept(line.low), kept(line.high))


def _shape(line: Line, x_range: tuple[float, float], y_range: tuple[float, float]) -> Shape:
    def place(points: Points) -> list[tuple[float, float]]:
        return [
            (_at(x, x_range, WIDTH), round(HEIGHT - _at(y, y_range, HEIGHT), 1))
            for x, y in thinned(points)
        ]

    placed = place(line.points)
    band = [*place(line.high), *reversed(place(line.low))]
    dot = placed[0] if len(placed) == 1 else None
    return Shape(_text(placed), _text(band), line.colour, line.label, dot)


def _at(value: float, extent: tuple[float, float], length: float) -> float:
    low, high = extent
    return round((value - low) / (high - low) * length, 1)


def _text(points: Points) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def _healthy(
    extent: tuple[float, float] | None, y_range: tuple[float, float]
) -> tuple[float, float] | None:
    if extent is None:
        return None
    low, high = max(extent[0], y_range[0]), min(extent[1], y_range[1])
    if low >= high:
        return None
    top = HEIGHT - _at(high, y_range, HEIGHT)
    return round(top, 1), round(_at(high, y_range, HEIGHT) - _at(low, y_range, HEIGHT), 1)

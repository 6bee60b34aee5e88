"""Lays out curves over steps; templates/macros.html draws them as SVG.

templates/page.js shows their values under the pointer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

Points = list[tuple[float, float]]

COLOURS = (
    *('#4477aa', '#ee6677', '#228833', '#b8860b', '#2ba8c9', '#aa3377', '#e07b00'),
    *('#7a7a7a', '#7755cc', '#11a38f'),
)
_SMALLEST = 1e-45  # of float32
LOGARITHMIC_FROM = 10  # ratio of the largest to the smallest value

_DASHES = ('', '6 4', '2 4')


class Curve(NamedTuple):
    """The points of single runs, drawn thin, and of their mean, drawn thick.

    `style` is the index of a colour; from `len(COLOURS)` on, the curve is dashed.
    """

    name: str
    runs: Sequence[Points]
    style: int

    @property
    def mean(self) -> Points:
        """The mean over the runs at the steps that all of them have."""
        if not self.runs:
            return []
        values = [dict(points) for points in self.runs]
        steps = sorted(set.intersection(*map(set, values)))
        return [(step, sum(run[step] for run in values) / len(values)) for step in steps]

    @property
    def colour(self) -> str:
        return COLOURS[self.style % len(COLOURS)]

    @property
    def dash(self) -> str:
        """The lengths of dashes and gaps; '' for a solid line."""
        return _DASHES[min(self.style // len(COLOURS), len(_DASHES) - 1)]


class Tick(NamedTuple):
    """A number beside an axis; `place` is its coordinate in the SVG."""

    place: float
    text: str


class Drawn(NamedTuple):
    """A curve with its lines as coordinates of an SVG.

    Attributes:
      pairs: step:value of the mean, shown under the pointer.
      thin: the lines of single runs; empty if there is only one run.
      thick: the line of the mean.
    """

    curve: Curve
    pairs: str
    thin: list[str]
    thick: str


@dataclass(frozen=True)
class Chart:
    """Curves over steps.

    Attributes:
      values: ticks of the vertical axis.
      steps: ticks of the horizontal axis.
      logarithmic: whether the vertical axis is logarithmic.
    """

    title: str
    values: list[Tick]
    steps: list[Tick]
    curves: list[Drawn]
    logarithmic: bool

    # Shared by all charts: the size of the SVG and the edges of the plot.
    width: ClassVar[int] = 480
    height: ClassVar[int] = 300
    left: ClassVar[int] = 52
    right: ClassVar[int] = 468
    top: ClassVar[int] = 30
    bottom: ClassVar[int] = 260


def chart(title: str, curves: Sequence[Curve], logarithmic: bool = False) -> Chart:
    """Lays out curves; at least one must have a point.

    `logarithmic` asks for a logarithmic scale, used if all values are positive and the largest is
    more than `LOGARITHMIC_FROM` times the smallest.
    """
    points = [point for curve in curves for run in curve.runs for point in run]
    low, high = min(y for _, y in points), max(y for _, y in points)
    logarithmic = logarithmic and low > _SMALLEST and high / low > LOGARITHMIC_FROM
    last = max(x for x, _ in points) or 1
    values = _decades(low, high) if logarithmic else _round_numbers(low, high)
    low, high = min(low, values[0]), max(high, values[-1])
    scale = math.log if logarithmic else float

    def across(x: float) -> float:
        return Chart.left + (Chart.right - Chart.left) * x / last

    def up(y: float) -> float:
        fraction = (scale(y) - scale(low)) / ((scale(high) - scale(low)) or 1)
        return Chart.bottom - (Chart.bottom - Chart.top) * fraction

    def line(points: Points) -> str:
        return ' '.join(f'{across(x):.1f},{up(y):.1f}' for x, y in points)

    def draw(curve: Curve) -> Drawn:
        pairs = ' '.join(f'{x:g}:{y:.4g}' for x, y in curve.mean)
        thin = [line(run) for run in curve.runs] if len(curve.runs) > 1 else []
        return Drawn(curve, pairs, thin, line(curve.mean))

    return Chart(
        title,
        values=[Tick(round(up(y), 1), f'{y:g}') for y in values],
        steps=[Tick(round(across(x), 1), _short(x)) for x in _round_numbers(0, last) if x <= last],
        curves=[draw(curve) for curve in curves],
        logarithmic=logarithmic,
    )


def _round_numbers(low: float, high: float) -> list[float]:
    """Four to eight round numbers that enclose `low` and `high`."""
    span = high - low
    if span <= 1e-9 * abs(high) + _SMALLEST:
        span = max(abs(high), _SMALLEST) if high else 1
    unit = 10 ** math.floor(math.log10(span))
    step = next(unit * part for part in (0.1, 0.2, 0.5, 1, 2) if span / (unit * part) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f'{number * step:.6g}') for number in range(first, max(last, first + 1) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten that enclose `low` and `high`."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [part * 10**power for power in powers for part in (1, 2, 5)]
    first = max(mark for mark in marks if mark <= low)
    last = min(mark for mark in marks if mark >= high)
    inside = [mark for mark in marks if first <= mark <= last]
    return inside if len(inside) <= 10 else [m for m in inside if f'{m:e}'.startswith('1')]


def _short(step: float) -> str:
    for size, letter in ((1e6, 'M'), (1e3, 'k')):
        if step >= size:
            return f'{step / size:g}{letter}'
    return f'{step:g}'

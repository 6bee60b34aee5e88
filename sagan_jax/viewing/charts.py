"""Curves over steps, as SVG; templates/page.js shows their values under the pointer."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

Points = list[tuple[float, float]]

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 30, 40  # margins
COLOURS = (
    *('#4477aa', '#ee6677', '#228833', '#b8860b', '#2ba8c9', '#aa3377', '#e07b00'),
    *('#7a7a7a', '#7755cc', '#11a38f'),
)
LOGARITHMIC_FROM = 10  # ratio of the largest to the smallest value


class Curve(NamedTuple):
    """The thin lines of single runs, and the thick one of their mean.

    `style` is its colour's index, and beyond the colours dashed, see `stroke`.
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


def chart(title: str, curves: Sequence[Curve], logarithmic: bool = False) -> str:
    """An SVG of curves, of which at least one has a point.

    `logarithmic` makes it so where values span more than a decade.
    """
    points = [point for curve in curves for run in curve.runs for point in run]
    low, high = min(y for _, y in points), max(y for _, y in points)
    logarithmic = logarithmic and low > 0 and high / low > LOGARITHMIC_FROM
    last = max(x for x, _ in points) or 1
    ticks = _decades(low, high) if logarithmic else _round_numbers(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    bend = math.log if logarithmic else float

    def across(x):
        return LEFT + (WIDTH - LEFT - RIGHT) * x / last

    def up(y):
        share = (bend(y) - bend(low)) / ((bend(high) - bend(low)) or 1)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    def polyline(run, style):
        where = ' '.join(f'{across(x):.1f},{up(y):.1f}' for x, y in run)
        return f'<polyline points="{where}" {style}/>'

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} over steps">',
        f'<text x="{LEFT}" y="18" class="title">{escape(title)}</text>',
    ]
    for y in ticks:
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(y):.1f}" y2="{up(y):.1f}"'
            f'/><text x="{LEFT - 6}" y="{up(y) + 4:.1f}" text-anchor="end">{y:g}</text>'
        )
    for x in _round_numbers(0, last):
        if x <= last:
            anchor = 'end' if across(x) > WIDTH - 30 else 'middle'
            parts.append(
                f'<text x="{across(x):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">'
                f'{_short(x)}</text>'
            )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">steps'
        f'{", values on a logarithmic scale" if logarithmic else ""}</text>'
    )
    for curve in curves:
        values = ' '.join(f'{x:g}:{y:.4g}' for x, y in curve.mean)
        parts.append(f'<g data-values="{values}"><title>{escape(curve.name)}</title>')
        if len(curve.runs) > 1:
            parts += [polyline(run, stroke(curve.style, 1, 0.45)) for run in curve.runs]
        parts += [polyline(curve.mean, stroke(curve.style, 2.5)), '</g>']
    parts.append(f'<line class="pointer" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    return ''.join(parts) + '</svg>'


def legend(curves: Sequence[Curve]) -> str:
    """The names of curves, each beside a piece of its line."""
    return '<ul class="legend">{}</ul>'.format(
        ''.join(
            f'<li><svg viewBox="0 0 36 14"><path d="M0 7h36" {stroke(curve.style, 4)}/></svg>'
            f'{escape(curve.name)}</li>'
            for curve in curves
        )
    )


def stroke(index: int, width: float, opacity: float = 1) -> str:
    """How the curve of an index is drawn, as attributes; dashed once the colours are used up."""
    dash = ('', ' stroke-dasharray="6 4"', ' stroke-dasharray="2 4"')[min(index // len(COLOURS), 2)]
    return (
        f'fill="none" stroke="{COLOURS[index % len(COLOURS)]}" stroke-width="{width}" '
        f'stroke-opacity="{opacity}" stroke-linejoin="round"{dash}'
    )


def _round_numbers(low: float, high: float) -> list[float]:
    """Four to eight round numbers from `low` or below it to `high` or above it."""
    span = (high - low) or abs(high) or 1
    unit = 10 ** math.floor(math.log10(span))
    step = next(unit * part for part in (0.1, 0.2, 0.5, 1, 2) if span / (unit * part) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f'{number * step:.6g}') for number in range(first, max(last, first + 1) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, from `low` or below it to `high` or above it."""
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

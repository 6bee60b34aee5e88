"""Charts as SVG: axes, lines and values."""

import xml.etree.ElementTree

import pytest

from sagan_jax.viewing import charts, page


def svg(title, curves, logarithmic=False):
    macros = page.engine().get_template('macros.html').module
    chart = macros.chart(charts.chart(title, curves, logarithmic))
    return xml.etree.ElementTree.fromstring(chart.strip())


def test_the_mean_covers_the_steps_that_all_runs_have():
    curve = charts.Curve('feat16', [[(10, 4.0), (20, 2.0), (30, 1.0)], [(10, 6.0), (20, 4.0)]], 0)
    assert curve.mean == [(10, 5.0), (20, 3.0)]
    assert charts.Curve('feat16', [], 0).mean == []


@pytest.mark.parametrize(
    ('values', 'logarithmic', 'labels'),
    [
        ((3.0, 47.0), False, ['0', '10', '20', '30', '40', '50']),
        ((3.0, 47.0), True, ['2', '5', '10', '20', '50']),
        ((0.31, 0.9), True, ['0.3', '0.4', '0.5', '0.6', '0.7', '0.8', '0.9']),
        ((5.0, 5.0), False, None),
        ((1e-3, 1e4), True, ['0.001', '0.01', '0.1', '1', '10', '100', '1000', '10000']),
        ((0.0, 1.0), True, ['0', '0.2', '0.4', '0.6', '0.8', '1']),
    ],
)
def test_axes(values, logarithmic, labels):
    points = [(100.0 * (i + 1), value) for i, value in enumerate(values)]
    root = svg('a < b', [charts.Curve('x', [points], 0)], logarithmic)
    chart = charts.Chart
    shown = [text for text in root.findall('text') if text.get('text-anchor') == 'end']
    if labels:
        assert [text.text for text in shown if text.get('x') == str(chart.left - 6)] == labels
    (line,) = root.find('g').findall('polyline')
    for point in line.get('points').split():
        x, y = map(float, point.split(','))
        assert chart.left < x <= chart.right
        assert chart.top <= y <= chart.bottom


def test_values_for_the_pointer():
    """The values under the pointer, also in a chart of a single step."""
    group = svg('a', [charts.Curve('x', [[(0, 1.23456), (200, -3e-7)]], 0)]).find('g')
    assert group.get('data-values') == '0:1.235 200:-3e-07'
    assert len(group.find('polyline').get('points').split()) == 2
    first = svg('a', [charts.Curve('x', [[(0, 1.0)]], 0)])
    assert first.find('g').get('data-values') == '0:1'


def test_the_mean_is_drawn_above_its_runs():
    curve = charts.Curve('x', [[(0, 1.0), (1, 2.0)], [(0, 3.0)], [(0, 5.0)]], 12)
    *thin, thick = svg('a', [curve]).find('g').findall('polyline')
    assert [len(line.get('points').split()) for line in thin] == [2, 1, 1]
    assert all(float(line.get('stroke-opacity')) < 1 for line in thin)
    assert float(thick.get('stroke-width')) > float(thin[0].get('stroke-width'))
    assert thick.get('stroke') == charts.COLOURS[2]
    assert thick.get('stroke-dasharray') == '6 4'


def test_styles_differ():
    curves = [charts.Curve('', [], style) for style in range(3 * len(charts.COLOURS))]
    assert len({(curve.colour, curve.dash) for curve in curves}) == 30

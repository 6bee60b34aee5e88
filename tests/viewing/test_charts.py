"""Curves as SVG: what stands where."""

import xml.etree.ElementTree

import pytest

from sagan_jax.viewing import charts


def test_the_mean_of_curves_goes_as_far_as_all_of_them():
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
    svg = charts.chart('a < b', [charts.Curve('x', [points], 0)], logarithmic)
    root = xml.etree.ElementTree.fromstring(svg)
    shown = [text for text in root.findall('text') if text.get('text-anchor') == 'end']
    if labels:
        assert [text.text for text in shown if text.get('x') == str(charts.LEFT - 6)] == labels
    (line,) = root.find('g').findall('polyline')
    for point in line.get('points').split():
        x, y = map(float, point.split(','))
        assert charts.LEFT < x <= charts.WIDTH - charts.RIGHT
        assert charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM


def test_the_values_beside_the_lines():
    """What is shown under the pointer, and a chart of a single step."""
    curve = charts.Curve('x', [[(0, 1.23456), (200, -3e-7)]], 0)
    group = xml.etree.ElementTree.fromstring(charts.chart('a', [curve])).find('g')
    assert group.get('data-values') == '0:1.235 200:-3e-07'
    assert len(group.find('polyline').get('points').split()) == 2
    first = charts.chart('a', [charts.Curve('x', [[(0, 1.0)]], 0)])
    assert xml.etree.ElementTree.fromstring(first).find('g').get('data-values') == '0:1'


def test_styles_differ():
    assert len({charts.stroke(style, 2) for style in range(3 * len(charts.COLOURS))}) == 30


def test_names_are_escaped():
    assert '<script>' not in charts.legend([charts.Curve('<script>', [], 0)])

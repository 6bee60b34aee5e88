import numpy as np
import pytest

from sagan_jax import metrics
from sagan_jax.metrics.comparison import compare
from sagan_jax.metrics.features import collect


def collected(seed, total, keep):
    r = np.random.default_rng(seed)
    part = {'x': r.normal(size=(total, 6)) + seed, 'y': r.normal(size=(total, 4))}
    return part, collect([part], 'x', 'y', total, splits=3, keep=keep)


def test_scores_equal_those_of_their_functions():
    (a, real), (b, fake) = collected(0, 90, 40), collected(1, 80, 50)
    found = {score.name: score for score in compare(real, fake, seed=5)}
    x, y = a['x'][:40], b['x'][:50]
    kid, kid_std = metrics.kid(x, y, 100, 40, seed=5)
    inception_score, std = metrics.inception_score(b['y'], 3)
    precision, recall = metrics.precision_recall(x, y, 3)
    density, coverage = metrics.density_coverage(x, y, 5)
    expected = {
        'fid': (metrics.fid(a['x'], b['x']), 90, 80, {}),
        'is': (inception_score, 90, 80, {'std': std, 'splits': 3}),
        'kid': (kid, 40, 50, {'std': kid_std, 'subsets': 100, 'subset_size': 40}),
        'precision': (precision, 40, 50, {'k': 3}),
        'recall': (recall, 40, 50, {'k': 3}),
        'density': (density, 40, 50, {'k': 5}),
        'coverage': (coverage, 40, 50, {'k': 5}),
    }
    assert list(found) == list(expected)
    for name, (value, num_real, num_fake, details) in expected.items():
        score = found[name]
        assert score.value == pytest.approx(value)
        assert (score.num_real, score.num_fake) == (num_real, num_fake)
        assert score.details == pytest.approx(details)


def test_without_features_there_are_no_scores_over_pairs():
    real, fake = collected(0, 20, 0)[1], collected(1, 20, 10)[1]
    assert [score.name for score in compare(real, fake, seed=0)] == ['fid', 'is']

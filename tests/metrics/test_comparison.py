import warnings

import numpy as np
import pytest

from sagan_jax import metrics
from sagan_jax.metrics import comparison
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
    with pytest.warns(UserWarning, match='no error bar'):
        kid, _ = metrics.kid(x, y, 100, 40, seed=5)
    inception_score, std = metrics.inception_score(b['y'], 3)
    precision, recall = metrics.precision_recall(x, y, 3)
    density, coverage = metrics.density_coverage(x, y, 5)
    expected = {
        'fid': (metrics.fid(a['x'], b['x']), 90, 80, {}),
        'is': (inception_score, 90, 80, {'std': std, 'splits': 3}),
        'kid': (kid, 40, 50, {'subsets': 100, 'subset_size': 40}),
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


def test_kid_has_an_error_bar_only_with_more_samples_than_a_subset(monkeypatch):
    monkeypatch.setattr(comparison, 'KID_SUBSET_SIZE', 30)
    for kept, has_error_bar in ((40, True), (31, True), (30, False), (20, False)):
        real, fake = collected(0, 90, kept)[1], collected(1, 80, 50)[1]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            kid = next(score for score in compare(real, fake, seed=5) if score.name == 'kid')
        warned = [str(warning.message) for warning in caught if 'KID' in str(warning.message)]
        assert ('std' in kid.details) == has_error_bar
        assert len(warned) == (not has_error_bar)
        assert all(value == value for value in kid.details.values())  # no NaN in JSON


def test_one_split_has_no_error_bar():
    part = {'x': np.random.default_rng(0).normal(size=(20, 2)), 'y': np.eye(4).repeat(5, 0)}
    for splits in (1, 2):
        found = collect([part], 'x', 'y', 20, splits=splits, keep=0)
        assert ('std' in compare(found, found, seed=0)[1].details) == (splits > 1)


def test_without_features_there_are_no_scores_over_pairs():
    real, fake = collected(0, 20, 0)[1], collected(1, 20, 10)[1]
    assert [score.name for score in compare(real, fake, seed=0)] == ['fid', 'is']

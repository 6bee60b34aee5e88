"""Signs of a collapse: their values, and warnings above the thresholds only."""

import numpy as np
import pytest

from sagan_jax.run import collapse
from tests import tiny

HEALTHY = {
    'real_logit': 1.0,
    'fake_logit': -1.0,
    'generator_sigma': 3.0,
    'discriminator_sigma': 4.0,
}


def test_diversity_within_a_class():
    rng = np.random.default_rng(0)
    one_each = rng.integers(0, 256, (3, 1, 8, 8, 3), np.uint8)
    collapsed = np.broadcast_to(one_each, (3, 10, 8, 8, 3)).reshape(30, 8, 8, 3)
    assert collapse.diversity(collapsed, 10) == 0
    two_values = np.tile(np.array([100, 120], np.uint8), 15)[:, None, None, None]
    assert collapse.diversity(np.broadcast_to(two_values, (30, 8, 8, 3)), 10) == pytest.approx(10)


@pytest.mark.parametrize(
    ('values', 'name', 'words'),
    [
        ({'fake_logit': -49.5}, 'max_logit_gap', '50.5 apart'),
        ({'real_logit': -60.0}, 'max_logit_gap', '59 apart'),
        ({'discriminator_sigma': 1001.0}, 'max_sigma', '1e+03'),
        ({'generator_sigma': 1001.0}, 'max_sigma', '1e+03'),
        ({'sample_diversity': 0.9}, 'min_diversity', '0.9 of 255'),
    ],
)
def test_an_exceeded_threshold_is_reported(values, name, words):
    found = collapse.warnings(tiny.config(), HEALTHY | values)
    assert list(found) == [name]
    assert words in found[name]
    assert f'watch.{name}=' in found[name]


@pytest.mark.parametrize('values', [{}, {'fake_logit': -48.0}, {'sample_diversity': 1.1}])
def test_a_healthy_run_has_no_warnings(values):
    assert collapse.warnings(tiny.config(), HEALTHY | values) == {}

"""Learning rates over a run."""

import numpy as np
import pytest

from sagan_jax import optimizers
from tests import tiny


@pytest.mark.parametrize(
    ('decay_from', 'expected'), [(0.0, [1, 0.75, 0.5, 0.25]), (0.5, [1, 1, 1, 0.5])]
)
def test_rates_fall_linearly_after_decay_from(decay_from, expected):
    config = tiny.config(num_train_steps=4, optimizer__decay_from=decay_from)
    np.testing.assert_allclose(
        [optimizers.decay(config, step) for step in range(4)], expected, rtol=1e-6
    )

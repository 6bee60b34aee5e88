"""Resampling against numpy, and its forms against each other."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sagan_jax.models import resampling

RNG = np.random.default_rng(0)


def test_resampling():
    x = RNG.normal(size=(2, 4, 6, 3)).astype(np.float32)
    up = np.asarray(resampling.upsample(x))
    assert up.shape == (2, 8, 12, 3)
    for i, j in np.ndindex(8, 12):
        np.testing.assert_array_equal(up[:, i, j], x[:, i // 2, j // 2])
    mean, maximum = np.asarray(resampling.average_pool(x)), np.asarray(resampling.max_pool(x))
    for i, j in np.ndindex(2, 3):
        window = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        np.testing.assert_allclose(mean[:, i, j], window.mean((1, 2)), rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(maximum[:, i, j], window.max((1, 2)))


def test_projections():
    x, kernel = RNG.normal(size=(2, 4, 6, 3)), RNG.normal(size=(1, 1, 3, 5))
    x, kernel = x.astype(np.float32), kernel.astype(np.float32)
    means = x.reshape(2, 2, 2, 3, 2, 3).mean((2, 4))
    for function, seen in ((resampling.project, x), (resampling.pool_and_project, means)):
        expected = np.einsum('bhwc,cd->bhwd', seen, kernel[0, 0])
        np.testing.assert_allclose(function(x, kernel), expected, rtol=1e-5, atol=1e-5)


FORMS = {
    'upsample': (resampling._repeat, resampling._broadcast),
    'pool_and_project': (resampling._project_means, resampling._project_windows),
    'project_and_upsample': (
        lambda x, kernel, bias: jnp.repeat(jnp.repeat(x @ kernel[0, 0] + bias, 2, 1), 2, 2),
        resampling.project_and_upsample,
        resampling._project_into_windows,
    ),
}


# Up to 64 features, a TPU joins pairs of columns.
@pytest.mark.parametrize(('channels', 'features'), [(3, 5), (8, 65)])
@pytest.mark.parametrize('name', FORMS)
def test_the_forms_of_all_platforms_are_equal_with_their_gradients(name, channels, features):
    shapes = [(3, 4, 6, channels)]
    if 'project' in name:
        shapes.append((1, 1, channels, features))
    if name == 'project_and_upsample':
        shapes.append((features,))
    operands = [jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in shapes]

    def with_gradients(form):
        y, pull_back = jax.vjp(form, *operands)
        weights = np.random.default_rng(1).normal(size=y.shape)
        return y, pull_back(jnp.asarray(weights, y.dtype))

    first, *others = map(with_gradients, FORMS[name])
    for other in others:
        chex.assert_trees_all_close(other, first, rtol=1e-5, atol=1e-5)

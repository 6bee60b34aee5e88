"""Spectral normalisation against numpy's SVD and finite differences."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sagan_jax import spectral_norm
from tests.traced import operations, precisions


def example(seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        {
            'conv': {'kernel': (3, 3, 4, 6), 'bias': (6,)},
            'embed': {'embedding': (5, 8)},
            'attention16': {'gamma': (), 'query': {'kernel': (1, 1, 4, 2)}},
            'norm1': {'scale': (5, 4), 'bias': (5, 4)},
        },
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def matrices(params):
    """Each normalised weight as the matrix whose largest singular value is σ."""
    return {
        'conv': np.asarray(params['conv']['kernel']).reshape(-1, 6),
        'embed': np.asarray(params['embed']['embedding']),
        'query': np.asarray(params['attention16']['query']['kernel']).reshape(4, 2),
    }


def test_all_products_are_float32_on_every_platform():
    def sigmas_and_gradients(params, stats):
        def total(params):
            weights, next_stats = spectral_norm.normalise(params, stats)
            return sum(map(jnp.sum, jax.tree.leaves(weights))), next_stats

        return jax.grad(total, has_aux=True)(params), spectral_norm.converge(params, stats)

    params = example()
    stats = spectral_norm.init(jax.random.key(0), params)
    assert precisions(operations(sigmas_and_gradients, params, stats)) == {'HIGHEST'}


def test_statistics_exist_for_normalised_weights_only():
    stats = spectral_norm.init(jax.random.key(0), example())
    shapes = jax.tree.map(jnp.shape, stats)
    assert shapes == {
        'conv': {'kernel': {'u': (6,), 'sigma': ()}},
        'embed': {'embedding': {'u': (5,), 'sigma': ()}},  # one entry per class
        'attention16': {'query': {'kernel': {'u': (2,), 'sigma': ()}}},
    }
    assert np.abs(stats['conv']['kernel']['u']).max() <= 2  # truncated normal
    assert not np.array_equal(stats['conv']['kernel']['u'][:5], stats['embed']['embedding']['u'])


def test_class_tables_are_normalised_if_asked_for():
    params = example()
    alone = spectral_norm.init(jax.random.key(0), params)
    stats = spectral_norm.init(jax.random.key(0), params, tables=True)
    tables = stats.pop('norm1')
    assert jax.tree.map(jnp.shape, stats) == jax.tree.map(jnp.shape, alone)
    assert jax.tree.map(jnp.shape, tables) == {
        key: {'u': (5,), 'sigma': ()} for key in ('scale', 'bias')
    }
    converged = spectral_norm.converge(params, {'norm1': tables})
    weights, _ = spectral_norm.normalise(params, converged)
    for name, table in params['norm1'].items():
        sigma = np.linalg.svd(np.asarray(table))[1][0]
        np.testing.assert_allclose(weights['norm1'][name], table / sigma, rtol=1e-4)
    chex.assert_trees_all_equal(weights['conv'], params['conv'])


def test_one_power_iteration_by_hand():
    params = example()
    stats = spectral_norm.init(jax.random.key(0), params)
    weights, after = spectral_norm.normalise(params, stats)

    matrix = matrices(params)['conv'].astype(np.float64)
    v = matrix @ np.asarray(stats['conv']['kernel']['u'], np.float64)
    v /= np.linalg.norm(v)
    u = matrix.T @ v
    u /= np.linalg.norm(u)
    sigma = v @ matrix @ u
    np.testing.assert_allclose(after['conv']['kernel']['u'], u, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after['conv']['kernel']['sigma'], sigma, rtol=1e-5)
    np.testing.assert_allclose(
        weights['conv']['kernel'], params['conv']['kernel'] / sigma, rtol=1e-5, atol=1e-6
    )
    chex.assert_trees_all_equal(weights['norm1'], params['norm1'])
    assert weights['attention16']['gamma'] == params['attention16']['gamma']


def test_sigma_converges_to_the_largest_singular_value():
    params = example()
    stats = spectral_norm.init(jax.random.key(0), params)
    stats = spectral_norm.converge(params, stats)
    weights, stats = spectral_norm.normalise(params, stats)
    found = {
        'conv': stats['conv']['kernel']['sigma'],
        'embed': stats['embed']['embedding']['sigma'],
        'query': stats['attention16']['query']['kernel']['sigma'],
    }
    for name, matrix in matrices(params).items():
        true = np.linalg.svd(matrix, compute_uv=False)[0]
        np.testing.assert_allclose(found[name], true, rtol=1e-4)
        after = np.linalg.svd(matrices(weights)[name], compute_uv=False)[0]
        np.testing.assert_allclose(after, 1, rtol=1e-4)
    largest = max(np.linalg.svd(m, compute_uv=False)[0] for m in matrices(params).values())
    np.testing.assert_allclose(spectral_norm.largest_sigma(stats), largest, rtol=1e-4)


def test_parameters_without_statistics_are_returned_unchanged():
    params = example()
    weights, stats = spectral_norm.normalise(params, {})
    chex.assert_trees_all_equal(weights, params)
    assert stats == {} == spectral_norm.converge(params, {})
    assert spectral_norm.largest_sigma({}) == 0


def test_gradient_holds_u_and_v_constant():
    """∂/∂W of f(W/σ), σ = vᵀWu, by finite differences with constant u and v."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        matrix, target = rng.normal(size=(7, 4)), rng.normal(size=(7, 4))
        stats = {'dense': {'kernel': {'u': rng.normal(size=4), 'sigma': np.ones(())}}}
        v = matrix @ stats['dense']['kernel']['u']
        v /= np.linalg.norm(v)
        u = matrix.T @ v
        u /= np.linalg.norm(u)

        def by_hand(w):
            return np.sum(np.sin(w / (v @ w @ u)) * target)

        def ours(w):
            weights, _ = spectral_norm.normalise({'dense': {'kernel': w}}, stats)
            return jnp.sum(jnp.sin(weights['dense']['kernel']) * target)

        gradient = np.asarray(jax.grad(ours)(jnp.asarray(matrix)))
        for index in np.ndindex(matrix.shape):
            step = np.zeros_like(matrix)
            step[index] = 1e-5
            difference = (by_hand(matrix + step) - by_hand(matrix - step)) / 2e-5
            # σ is computed in float32, whatever the dtype of the weights.
            np.testing.assert_allclose(gradient[index], difference, rtol=1e-4, atol=1e-5)

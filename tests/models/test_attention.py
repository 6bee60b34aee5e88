"""Self-attention against numpy and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sagan_jax.models.attention import SelfAttention


def numpy_attention(params, x):
    """The block written out with loops over queries, in float64."""
    b, h, w, c = x.shape
    x = np.asarray(x, np.float64)
    weights = {
        name: np.asarray(params[name]['kernel'], np.float64)[0, 0]
        for name in ('query', 'key', 'value', 'output')
    }

    def pooled(features):
        return np.stack(
            [
                features[:, i : i + 2, j : j + 2].max((1, 2))
                for i in range(0, h, 2)
                for j in range(0, w, 2)
            ],
            axis=1,
        )  # [B, HW/4, C']

    query = (x @ weights['query']).reshape(b, h * w, -1)
    key, value = pooled(x @ weights['key']), pooled(x @ weights['value'])
    o = np.zeros((b, h * w, value.shape[-1]))
    for image in range(b):
        for position in range(h * w):
            logits = key[image] @ query[image, position]
            attention = np.exp(logits - logits.max())
            o[image, position] = (attention / attention.sum()) @ value[image]
    o = (o @ weights['output']).reshape(b, h, w, c)
    return x + float(params['gamma']) * o


@pytest.fixture
def block():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 6, 16)).astype(np.float32)
    module = SelfAttention(jnp.dtype('float32'))
    params = module.init(jax.random.key(0), x)['params']
    return module, params, x


def test_starts_as_the_identity(block):
    module, params, x = block
    assert params['gamma'] == 0
    np.testing.assert_array_equal(module.apply({'params': params}, x), x)


def test_channels(block):
    shapes = {name: value['kernel'].shape for name, value in block[1].items() if name != 'gamma'}
    assert shapes == {
        'query': (1, 1, 16, 2),
        'key': (1, 1, 16, 2),
        'value': (1, 1, 16, 8),
        'output': (1, 1, 8, 16),
    }


def test_equals_numpy(block):
    module, params, x = block
    params = params | {'gamma': jnp.float32(0.7)}
    result = module.apply({'params': params}, 3 * x)
    np.testing.assert_allclose(result, numpy_attention(params, 3 * x), rtol=1e-4, atol=1e-4)


def test_gradients_against_finite_differences(block):
    module, params, x = block
    params = params | {'gamma': jnp.float32(0.7)}
    target = np.random.default_rng(1).normal(size=x.shape)
    grads = jax.grad(lambda p: (module.apply({'params': p}, x) * target).sum())(params)

    def numpy_loss(p):
        return (numpy_attention(p, x) * target).sum()

    rng = np.random.default_rng(2)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
    for name in params:  # along a random direction of one weight at a time
        only = jax.tree.map(np.zeros_like, direction) | {name: direction[name]}
        ends = [
            numpy_loss(jax.tree.map(lambda p, d, s=s: np.asarray(p) + s * d, params, only))
            for s in (1e-5, -1e-5)
        ]
        slope = sum(
            np.vdot(g, d)
            for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(only), strict=True)
        )
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-3)

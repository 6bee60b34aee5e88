"""Self-attention against numpy and finite differences."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sagan_jax.models.attention import ResidualBlock, SelfAttention, attention


def numpy_attention(params, x):
    """The block in numpy, with loops over queries, in float64."""
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


# ---- The paper's text, and the residual block. -------------------------------------------------


def test_as_in_the_papers_text():
    """Values have C/8 channels, and every position attends to all N."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 4, 4, 16)).astype(np.float32)
    module = SelfAttention(jnp.dtype('float32'), value_divisor=8, pooling=False)
    params = module.init(jax.random.key(0), x)['params'] | {'gamma': jnp.float32(0.7)}
    assert params['value']['kernel'].shape == (1, 1, 16, 2)
    flat = x.reshape(2, 16, 16).astype(np.float64)
    f, g, h, v = (
        np.asarray(params[name]['kernel'], np.float64)[0, 0]
        for name in ('query', 'key', 'value', 'output')
    )
    logits = np.einsum('bic,bjc->bij', flat @ f, flat @ g)
    beta = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = flat + 0.7 * (beta @ (flat @ h)) @ v
    actual = module.apply({'params': params}, x)
    np.testing.assert_allclose(actual, expected.reshape(x.shape), rtol=1e-5, atol=1e-5)


def test_residual_block_against_numpy():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 5, 6, 16)).astype(np.float32)
    module = ResidualBlock(jnp.dtype('float32'))
    params = module.init(jax.random.key(0), x)['params']
    first, second = (np.asarray(params[name]['kernel']) for name in ('conv1', 'conv2'))
    padded = np.pad(np.maximum(x, 0).astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    hidden = sum(padded[:, i : i + 5, j : j + 6] @ first[i, j] for i in range(3) for j in range(3))
    expected = x + np.maximum(hidden, 0) @ second[0, 0]
    actual = module.apply({'params': params}, x)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('channels', [64, 128, 256, 512])
def test_residual_block_has_as_many_parameters_as_attention(channels):
    x = jnp.zeros((1, 4, 4, channels))
    counts = [
        sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(m.init, jax.random.key(0), x)))
        for m in (SelfAttention(jnp.dtype('float32')), ResidualBlock(jnp.dtype('float32')))
    ]
    assert counts[0] == counts[1] + 1  # gamma


def attention_gradients(q, block, dtype='float32'):
    """A function that returns `attention`'s output and three gradients, and operands for it."""
    rng = np.random.default_rng(3)
    shapes = ((2, q, 4), (2, q // 4, 4), (2, q // 4, 6), (2, q, 6))
    *operands, target = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)

    def run(*operands):
        o, pull_back = jax.vjp(lambda *operands: attention(*operands, block), *operands)
        return o, *pull_back(target)

    return jax.jit(run), operands


@pytest.mark.parametrize('block', [1, 16, 32, 64, 1000])
def test_blocks_of_queries_change_nothing(block):
    (plain, operands), (blocked, _) = attention_gradients(64, 0), attention_gradients(64, block)
    chex.assert_trees_all_close(blocked(*operands), plain(*operands), rtol=1e-5, atol=1e-5)


def test_blocks_of_queries_keep_bfloat16():
    (plain, operands), (blocked, _) = (attention_gradients(64, n, 'bfloat16') for n in (0, 16))
    found = blocked(*operands)
    assert all(array.dtype == jnp.bfloat16 for array in found)
    chex.assert_trees_all_close(found, plain(*operands), rtol=0.05, atol=0.05)


def test_memory_grows_with_the_block():
    def megabytes(block):
        run, operands = attention_gradients(2048, block)
        return run.lower(*operands).compile().memory_analysis().temp_size_in_bytes / 2**20

    assert megabytes(0) > 2 * 2048 * 512 * 4 / 2**20  # the weights of two images
    assert megabytes(64) < megabytes(0) / 5


@pytest.mark.parametrize('query_block', [0, 8])
def test_sown_weights_give_the_output(block, query_block):
    module = SelfAttention(jnp.dtype('float32'), query_block=query_block)
    _, params, x = block
    params = params | {'gamma': jnp.float32(0.7)}
    y, found = module.apply({'params': params}, x, mutable=['attention'])
    (weights,) = found['attention']['weights']
    value = jnp.einsum('bhwc,cd->bhwd', x, params['value']['kernel'][0, 0])
    pooled = value.reshape(2, 2, 2, 3, 2, 8).max((2, 4)).reshape(2, 6, 8)
    o = (weights @ pooled @ params['output']['kernel'][0, 0]).reshape(x.shape)
    np.testing.assert_allclose(y, x + 0.7 * o, rtol=1e-4, atol=1e-4)

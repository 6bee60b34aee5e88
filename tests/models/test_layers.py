"""Convolutions against those of Flax, and batch norm against numpy."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sagan_jax.models import layers, resampling

RNG = np.random.default_rng(0)


@pytest.mark.parametrize('layer', [layers.UpConv, layers.DownConv, layers.PooledConv])
def test_resampling_convolutions_equal_resampling_and_convolution(layer):
    """Outputs and gradients of both operations that the layer fuses."""
    x = RNG.normal(size=(2, 6, 4, 3)).astype(np.float32)
    module = layer(5, jnp.dtype('float32'))
    params = module.init(jax.random.key(0), x)['params']
    params['bias'] = jnp.asarray(RNG.normal(size=5), jnp.float32)
    conv = nn.Conv(5, params['kernel'].shape[:2])

    def plain(params, x):
        if layer is layers.UpConv:
            return conv.apply({'params': params}, resampling.upsample(x))
        return resampling.average_pool(conv.apply({'params': params}, x))

    def fused(params, x):
        return module.apply({'params': params}, x)

    expected, found = plain(params, x), fused(params, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    target = RNG.normal(size=expected.shape)
    gradients = [
        jax.grad(lambda p, x, f=f: (f(p, x) * target).sum(), argnums=(0, 1))(params, x)
        for f in (fused, plain)
    ]
    chex.assert_trees_all_close(*gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('size', 'strides'), [(1, 1), (3, 1), (4, 2)])
@pytest.mark.parametrize('use_bias', [True, False])
def test_convolutions_equal_those_of_flax(size, strides, use_bias):
    """The same function and the same initial parameters."""
    x = RNG.normal(size=(2, 6, 4, 3)).astype(np.float32)
    ours = layers.Conv(5, size, jnp.dtype('float32'), use_bias)
    flaxs = nn.Conv(5, (size, size), strides, use_bias=use_bias, kernel_init=layers.xavier_uniform)
    variables = flaxs.init(jax.random.key(0), x)
    chex.assert_trees_all_equal(ours.init(jax.random.key(0), x), variables)
    if use_bias:
        variables['params']['bias'] = jnp.asarray(RNG.normal(size=5), jnp.float32)
    found, expected = ours.apply(variables, x), flaxs.apply(variables, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def batch_norm(num_classes=0, axis_name=None, dtype='float32', **overrides):
    return layers.BatchNorm(
        num_classes=num_classes,
        decay=0.9,
        epsilon=1e-5,
        axis_name=axis_name,
        dtype=jnp.dtype(dtype),
        **overrides,
    )


def numpy_batch_norm(x, scale, bias, mean, var):
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


@pytest.mark.parametrize('num_classes', [0, 5])
def test_batch_norm(num_classes):
    x = (RNG.normal(size=(8, 4, 4, 3)) * 2 + 3).astype(np.float32)
    labels = RNG.integers(0, 5, 8)
    module = batch_norm(num_classes)
    variables = module.init(jax.random.key(0), x, labels, train=False)
    shape = (5, 3) if num_classes else (3,)
    assert variables['params']['scale'].shape == variables['params']['bias'].shape == shape
    assert (variables['params']['scale'] == 1).all()
    assert (variables['params']['bias'] == 0).all()

    scale, bias = RNG.normal(size=(2, *shape)).astype(np.float32)
    rows = (scale[labels, None, None], bias[labels, None, None]) if num_classes else (scale, bias)
    variables['params'] = {'scale': scale, 'bias': bias}
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))

    y, updated = module.apply(variables, x, labels, train=True, mutable=['batch_stats'])
    np.testing.assert_allclose(y, numpy_batch_norm(x, *rows, mean, var), rtol=1e-4, atol=1e-4)
    averages = updated['batch_stats']['moments']
    np.testing.assert_allclose(averages['mean'], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(averages['var'], 0.9 + 0.1 * var, rtol=1e-5)

    variables = variables | updated
    y = module.apply(variables, x, labels, train=False)
    expected = numpy_batch_norm(x, *rows, 0.1 * mean, 0.9 + 0.1 * var)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_the_tables_of_a_drawn_batch_norm():
    """Gains are 1 + table, and the tables are Xavier uniform."""
    x, labels = RNG.normal(size=(8, 4, 4, 3)).astype(np.float32), RNG.integers(0, 500, 8)
    module = batch_norm(500, drawn=True)
    variables = module.init(jax.random.key(0), x, labels, train=False)
    for table in variables['params'].values():
        limit = np.sqrt(6 / 503)
        assert 0.9 * limit < np.abs(table).max() <= limit
        assert np.std(table) == pytest.approx(limit / np.sqrt(3), rel=0.05)
    scale, bias = (
        np.asarray(variables['params'][name])[labels, None, None] for name in ('scale', 'bias')
    )
    y = module.apply(variables, x, labels, train=False)
    np.testing.assert_allclose(y, numpy_batch_norm(x, 1 + scale, bias, 0, 1), rtol=1e-4, atol=1e-4)
    plain = batch_norm(drawn=True).init(jax.random.key(0), x, labels, train=False)['params']
    assert (plain['scale'] == 1).all()
    assert (plain['bias'] == 0).all()


@pytest.mark.parametrize('decay', [0.9, 0.0])
def test_running_averages_by_the_rule_of_pytorch(decay):
    """The variance over n - 1 in the averages, and over n in the output."""
    x, labels = RNG.normal(size=(2, 2, 2, 3)).astype(np.float32), np.zeros(2, np.int32)
    module = batch_norm(unbiased=True).copy(decay=decay)
    variables = module.init(jax.random.key(0), x, labels, train=False)
    variables['batch_stats']['moments'] = {'mean': np.full(3, 5.0), 'var': np.full(3, 7.0)}
    y, updated = module.apply(variables, x, labels, train=True, mutable=['batch_stats'])
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, numpy_batch_norm(x, 1, 0, mean, var), rtol=1e-4, atol=1e-4)
    averages = updated['batch_stats']['moments']
    expected = decay * 7 + (1 - decay) * x.reshape(8, 3).var(0, ddof=1)
    np.testing.assert_allclose(averages['var'], expected, rtol=1e-5)
    np.testing.assert_allclose(averages['mean'], decay * 5 + (1 - decay) * mean, rtol=1e-5)


@pytest.mark.parametrize(('devices', 'unbiased'), [(2, False), (8, False), (2, True)])
def test_moments_over_replicas_are_those_of_the_joint_batch(devices, unbiased):
    # Very different rows on each device: their own moments would be far off.
    x = RNG.normal(size=(8, 4, 4, 3)) + np.arange(8)[:, None, None, None] * 5
    x, labels = x.astype(np.float32), np.zeros(8, np.int32)
    variables = batch_norm().init(jax.random.key(0), x, labels, train=False)

    def run(axis_name):
        apply = partial(
            batch_norm(axis_name=axis_name, unbiased=unbiased).apply,
            variables,
            train=True,
            mutable=['batch_stats'],
        )
        y, updated = jax.pmap(apply, axis_name='batch', devices=jax.devices()[:devices])(
            x.reshape(devices, -1, 4, 4, 3), labels.reshape(devices, -1)
        )
        return np.asarray(y).reshape(x.shape), updated['batch_stats']['moments']

    y, averages = run('batch')
    mean, var = x.astype(np.float64).mean((0, 1, 2)), x.astype(np.float64).var((0, 1, 2))
    np.testing.assert_allclose(y, numpy_batch_norm(x, 1, 0, mean, var), rtol=1e-4, atol=1e-4)
    if unbiased:
        var = var * 128 / 127
    for replica in range(devices):
        np.testing.assert_allclose(averages['mean'][replica], 0.1 * mean, rtol=1e-5)
        np.testing.assert_allclose(averages['var'][replica], 0.9 + 0.1 * var, rtol=1e-5)

    alone, _ = run(None)
    first = x[: 8 // devices].astype(np.float64)
    expected = numpy_batch_norm(first, 1, 0, first.mean((0, 1, 2)), first.var((0, 1, 2)))
    np.testing.assert_allclose(alone[: 8 // devices], expected, rtol=1e-4, atol=1e-4)


def test_moments_are_float32_under_bfloat16():
    x = jnp.asarray(RNG.normal(size=(64, 8, 8, 2)) + 3, jnp.bfloat16)
    labels = jnp.zeros(64, jnp.int32)
    module = batch_norm(dtype='bfloat16')
    variables = module.init(jax.random.key(0), x, labels, train=False)
    y, updated = module.apply(variables, x, labels, train=True, mutable=['batch_stats'])
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    averages = updated['batch_stats']['moments']
    assert averages['mean'].dtype == jnp.float32
    np.testing.assert_allclose(averages['mean'], 0.1 * exact.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(averages['var'], 0.9 + 0.1 * exact.var((0, 1, 2)), rtol=1e-4)

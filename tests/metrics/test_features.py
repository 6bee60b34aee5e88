import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sagan_jax.errors import UserError
from sagan_jax.metrics import scores
from sagan_jax.metrics.features import collect
from sagan_jax.system.streaming import on_devices, rows_at_a_time

IMAGES = np.random.default_rng(0).integers(0, 256, (21, 4, 3, 3), np.uint8)
WEIGHTS = {'w': np.random.default_rng(1).normal(size=(36, 5)).astype(np.float32)}


def network(variables, images):
    flat = images.reshape(len(images), -1).astype(jnp.float32) / 255
    return {'features': flat @ variables['w'], 'logits': flat[:, :7]}


def expected():
    flat = IMAGES.reshape(21, -1) / 255
    return {'features': flat @ WEIGHTS['w'], 'logits': flat[:, :7]}


def in_batches(lengths):
    return np.split(IMAGES, np.cumsum(lengths)[:-1])


@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize('batch_size', [1, 7, 16, 64])
@pytest.mark.parametrize('lengths', [[21], [16, 5], [1] * 21, [3, 17, 1]])
def test_features_depend_on_neither_batches_nor_devices(monkeypatch, devices, batch_size, lengths):
    monkeypatch.setattr(jax, 'local_devices', lambda: jax.devices()[:devices])
    parts = list(on_devices(network, batch_size)(WEIGHTS, in_batches(lengths)))
    for name, values in expected().items():
        actual = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(actual, values, rtol=1e-5, atol=1e-5)


def test_batches_may_be_trees_of_arrays():
    def apply(variables, rows):
        return {'sum': rows['a'].sum(1) + rows['b'] * variables['scale']}

    rows = {'a': np.arange(42.0).reshape(21, 2), 'b': np.arange(21.0)}
    parts = list(on_devices(apply, 8)({'scale': 10.0}, [rows, {k: v[:3] for k, v in rows.items()}]))
    actual = np.concatenate([part['sum'] for part in parts])
    whole = rows['a'].sum(1) + 10 * rows['b']
    np.testing.assert_allclose(actual, np.concatenate([whole, whole[:3]]))


def test_all_batches_share_one_compilation(monkeypatch):
    shapes = []

    def recording(variables, images):
        shapes.append(images.shape)
        return network(variables, images)

    run = on_devices(recording, batch_size=2)
    assert sum(len(part['logits']) for part in run(WEIGHTS, in_batches([20, 1]))) == 21
    assert shapes == [(16, 4, 3, 3)]  # two for each of eight devices


@pytest.mark.parametrize(
    ('batch_size', 'total', 'rows'),
    [(64, None, 512), (64, 10_000, 512), (64, 513, 512), (64, 50, 56), (64, 8, 8), (5, 1, 8)],
)
def test_every_device_has_its_own_batch_and_few_rows_no_padding_beyond_them(
    batch_size, total, rows
):
    seen = []

    def recording(variables, images):
        seen.append(len(images))
        return network(variables, images)

    devices = jax.devices()[:8]
    assert rows_at_a_time(batch_size, devices, total) == rows
    (part,) = on_devices(recording, batch_size, devices, total)(WEIGHTS, [IMAGES[:1]])
    assert len(part['logits']) == 1
    assert seen == [rows]


def stream(total, batch, d=64):
    r = np.random.default_rng(0)
    for start in range(0, total, batch):
        n = min(batch, total - start)
        yield {'x': r.normal(size=(n, d)).astype(np.float32), 'y': r.normal(size=(n, 10))}


@pytest.mark.parametrize('batch', [1, 30, 99, 2000])
def test_collected_sums_are_over_all_features(batch):
    whole = list(stream(99, batch))
    features, logits = (np.concatenate([part[name] for part in whole]) for name in 'xy')
    collected = collect(stream(99, batch), 'x', 'y', total=99, splits=4, keep=50)
    assert collected.moments.count == 99
    np.testing.assert_allclose(collected.moments.covariance, np.cov(features, rowvar=False))
    score = scores.score_of_splits(collected.splits)
    assert score == pytest.approx(scores.inception_score(logits, 4))
    np.testing.assert_array_equal(collected.features, features[:50])
    none = collect(stream(99, batch), 'x', 'y', total=99, splits=4, keep=0)
    assert none.features.shape == (0, 64)


def test_blocks_are_merged(monkeypatch):
    monkeypatch.setattr('sagan_jax.metrics.features.MERGED', 10)
    one = collect(stream(99, 7), 'x', 'y', total=99, splits=1, keep=0)
    monkeypatch.setattr('sagan_jax.metrics.features.MERGED', 1000)
    other = collect(stream(99, 7), 'x', 'y', total=99, splits=1, keep=0)
    np.testing.assert_allclose(one.moments.scatter, other.moments.scatter, atol=1e-9)


@pytest.mark.parametrize('total', [98, 100])
def test_a_wrong_number_of_images_is_refused(total):
    with pytest.raises(ValueError, match=f'features of {total} images, got 99'):
        collect(stream(99, 33), 'x', 'y', total=total, splits=1, keep=10)


def test_features_that_are_not_finite_are_refused():
    batches = [{'x': np.full((4, 3), np.nan), 'y': np.zeros((4, 2))}]
    with pytest.raises(UserError, match='not finite'):
        collect(batches, 'x', 'y', total=4, splits=1, keep=10)


def test_memory_does_not_grow_with_the_number_of_samples():
    def peak(total):
        tracemalloc.start()
        collect(stream(total, 100, d=128), 'x', 'y', total=total, splits=10, keep=200)
        _, maximum = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return maximum

    peak(3000)
    assert peak(30_000) < 1.05 * peak(3000)

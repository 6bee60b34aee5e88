"""Random numbers of a step are drawn for the global batch and divided among the devices."""

from functools import partial

import jax
import numpy as np

from sagan_jax.game import create_game
from sagan_jax.step_inputs import augmentation_numbers, real_labels
from sagan_jax.streams import Stream
from sagan_jax.system.replicas import AXIS
from tests import tiny


def test_numbers_of_augmentation_are_those_of_the_global_batch():
    config = tiny.config(batch_size=4000, diff_augment='color')

    def draw(devices, stream, index):
        game = create_game(config, jax.devices()[:devices])
        on_each = jax.vmap(
            lambda _: augmentation_numbers(game, stream, index), axis_name=AXIS, axis_size=devices
        )
        return np.array(on_each(np.zeros(devices))).reshape(4000, -1)

    numbers = draw(1, Stream.REAL_AUGMENTATION, 3)
    np.testing.assert_array_equal(numbers, draw(8, Stream.REAL_AUGMENTATION, 3))
    assert 0 <= numbers.min() < numbers.max() < 1
    np.testing.assert_allclose(numbers.mean(0), 0.5, atol=0.03)
    others = [draw(1, Stream.REAL_AUGMENTATION, 4)]
    others += [draw(1, stream, 3) for stream in (12, 13)]
    for other in others:
        assert abs(np.corrcoef(numbers.ravel(), other.ravel())[0, 1]) < 0.03
    correlations = np.corrcoef(numbers.T) - np.eye(7)
    assert np.abs(correlations).max() < 0.08

    game = create_game(tiny.config(), jax.devices()[:1])
    assert augmentation_numbers(game, Stream.REAL_AUGMENTATION, 0) is None


def test_wrong_labels_are_uniform_over_the_other_classes():
    """The same on one and on eight devices, different in each update."""
    config = tiny.config(batch_size=24_000, dataset__num_classes=4, mismatch_weight=0.5)
    own = np.random.default_rng(0).integers(0, 4, config.batch_size).astype(np.int32)

    def draw(devices, update):
        game = create_game(config, jax.devices()[:devices])
        on_each = jax.vmap(partial(real_labels, game), in_axes=(0, None), axis_name=AXIS)
        return np.array(on_each(own.reshape(devices, -1), update)).reshape(-1, 2)

    labels = draw(8, update=3)
    np.testing.assert_array_equal(labels[:, 0], own)
    for label in range(4):
        counts = np.bincount(labels[own == label, 1], minlength=4)
        expected = np.where(np.arange(4) == label, 0, counts.sum() / 3)
        np.testing.assert_allclose(counts, expected, atol=5 * np.sqrt(expected.max() * 2 / 3))
        assert counts[label] == 0
    np.testing.assert_array_equal(labels, draw(1, update=3))
    assert (labels != draw(8, update=4)).any()

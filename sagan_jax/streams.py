"""The random keys of a run: functions of its seed, a named stream and a step."""

import enum

import jax
import ml_collections
from jax.typing import ArrayLike


class Stream(enum.IntEnum):
    """A number for each use of randomness, so that no two uses share a key."""

    PARAMETERS = 0
    DISCRIMINATOR_NOISE = 1  # z and labels of the fakes that the discriminator is trained on
    GENERATOR_NOISE = 2  # z and labels of the generator's own update
    DATA_ORDER = 3
    AUGMENTATION = 4  # which real images are mirrored
    STANDING_STATISTICS = 6  # z and labels from which a frozen generator's moments are estimated
    EVALUATION_NOISE = 7  # z of the images that are scored; the step is an image's index
    EVALUATION_LABELS = 8
    SAMPLE_NOISE = 9  # z of all other samples; the step is the index of a sample
    WRONG_LABELS = 10  # labels of real images that the discriminator learns to reject
    REAL_AUGMENTATION = 11  # of what the discriminator sees, see augmentation.py
    FAKE_AUGMENTATION = 12
    GENERATOR_AUGMENTATION = 13  # the same in the generator's own update


_RESTART = 1000  # added to a stream's number at each divergence restart


def stream_key(seed: ArrayLike, stream: ArrayLike, step: ArrayLike = 0) -> jax.Array:
    """The typed key of `stream` at `step`: `fold_in(fold_in(key(seed), stream), step)`."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)


def draw_noise(
    config: ml_collections.ConfigDict,
    stream: Stream,
    step: ArrayLike,
    restarts: ArrayLike = 0,
) -> tuple[jax.Array, jax.Array]:
    """Draws a global batch: z standard normal, float32 [B, z_dim]; labels uniform, int32 [B].

    Each divergence restart draws different noise.
    """
    key = stream_key(config.seed, stream + _RESTART * restarts, step)
    z_key, labels_key = jax.random.split(key)
    z = jax.random.normal(z_key, (config.batch_size, config.model.z_dim))
    classes = max(config.dataset.num_classes, 1)
    return z, jax.random.randint(labels_key, (config.batch_size,), 0, classes)

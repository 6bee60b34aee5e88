"""Every random number of a run, as a function of its seed, a named stream and a step."""

import enum

import jax
import ml_collections


class Stream(enum.IntEnum):
    """One number for each use of randomness, so that no two uses ever share a key."""

    PARAMETERS = 0
    DISCRIMINATOR_NOISE = 1  # z and labels of the fakes that the discriminator is trained on
    GENERATOR_NOISE = 2  # z and labels of the generator's own update
    DATA_ORDER = 3
    AUGMENTATION = 4
    SAMPLING = 5  # the fixed noise of the sample grids
    STANDING_STATISTICS = 6  # noise over which a frozen generator's batch statistics are taken
    EVALUATION_NOISE = 7  # z of the images that are scored, a step for each image
    EVALUATION_LABELS = 8
    NUMBERED_NOISE = 9  # z of the images that a trained model is asked for, a step for each
    WRONG_LABELS = 10  # of real images, for the discriminator to refuse


_RESTART = 1000  # between the numbers of a stream before and after a restart


def stream_key(seed: int, stream: int | jax.Array, step: int | jax.Array = 0) -> jax.Array:
    """The typed key of `stream` at `step`: `fold_in(fold_in(key(seed), stream), step)`."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)


def draw_noise(
    config: ml_collections.ConfigDict,
    stream: Stream,
    step: int | jax.Array,
    restarts: int | jax.Array = 0,
) -> tuple[jax.Array, jax.Array]:
    """A global batch of z, float32 [B, z_dim], standard normal, and labels, int32 [B], uniform.

    Other ones after each restart of a run that diverged.
    """
    key = stream_key(config.seed, stream + _RESTART * restarts, step)
    z_key, labels_key = jax.random.split(key)
    z = jax.random.normal(z_key, (config.batch_size, config.model.z_dim))
    classes = max(config.dataset.num_classes, 1)
    return z, jax.random.randint(labels_key, (config.batch_size,), 0, classes)

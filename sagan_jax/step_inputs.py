"""What one device takes into a step: its rows of the images, the labels and the random numbers.

All randomness is a function of the configuration's seed and a step number. It is drawn for the
global batch of B and each device takes its b rows, so that the number of devices changes nothing.
"""

import jax
import jax.numpy as jnp
from jax import lax

from sagan_jax.augmentation import NUMBERS
from sagan_jax.game import Examples, Game
from sagan_jax.streams import Stream, draw_noise, stream_key
from sagan_jax.system.replicas import AXIS


def own_rows(game: Game, array: jax.Array) -> jax.Array:
    """This device's rows, [b, …], of an array drawn for the global batch, [B, …]."""
    start = lax.axis_index(AXIS) * game.local_batch
    return lax.dynamic_slice_in_dim(array, start, game.local_batch)


def draw(
    game: Game, stream: Stream, index: jax.Array, restarts: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """This device's z, float32 [b, z_dim], and labels, int32 [b], see `streams.draw_noise`."""
    z, labels = draw_noise(game.config, stream, index, restarts)
    return own_rows(game, z), own_rows(game, labels)


def augmentation_numbers(game: Game, stream: Stream, index: jax.Array) -> jax.Array | None:
    """This device's numbers for `augmentation.augment`, float32 [b, NUMBERS]; None without it."""
    config = game.config
    if not config.diff_augment:
        return None
    key = stream_key(config.seed, stream, index)
    return own_rows(game, jax.random.uniform(key, (config.batch_size, NUMBERS)))


def real_examples(game: Game, images: jax.Array, labels: jax.Array, update: jax.Array) -> Examples:
    """What the discriminator is shown of real images in its update.

    Args:
      images: uint8 [b, H, W, 3].
      labels: int32 [b].
      update: int32 [], the discriminator's updates before this one.
    """
    return Examples(
        real_images(game, images, update),
        real_labels(game, labels, update),
        augmentation_numbers(game, Stream.REAL_AUGMENTATION, update),
    )


def real_images(game: Game, images: jax.Array, update: jax.Array) -> jax.Array:
    """Scales uint8 to float32 in [-1, 1]; mirrors half of the images with `dataset.flip`."""
    config = game.config
    images = images.astype(jnp.float32) * (2 / 255) - 1
    if not config.dataset.flip:
        return images
    key = stream_key(config.seed, Stream.AUGMENTATION, update)
    mirrored = own_rows(game, jax.random.bernoulli(key, shape=(config.batch_size,)))
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def real_labels(game: Game, labels: jax.Array, update: jax.Array) -> jax.Array:
    """Labels int32 [b]; with `mismatch_weight` int32 [b, 2], where the second label is wrong."""
    config, classes = game.config, game.config.dataset.num_classes
    if not config.mismatch_weight:
        return labels
    key = stream_key(config.seed, Stream.WRONG_LABELS, update)
    ahead = own_rows(game, jax.random.randint(key, (config.batch_size,), 1, classes))
    return jnp.stack([labels, (labels + ahead) % classes], 1)

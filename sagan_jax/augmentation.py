"""Differentiable augmentation of what the discriminator sees (Zhao et al., NeurIPS 2020).

Real and generated images are augmented alike, so that a discriminator cannot remember few real
images, and gradients pass through to the generator. Nothing here is random: each image comes with
its own random numbers.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NUMBERS = 7  # random numbers of each image


class Augmentation(NamedTuple):
    """One of the authors' augmentations.

    Attributes:
      apply: `apply(images, numbers)`: images float32 [b, H, W, 3], numbers float32 [b, K].
      columns: which K of the `NUMBERS` it takes.
    """

    apply: Callable[[jax.Array, jax.Array], jax.Array]
    columns: slice


def augment(images: jax.Array, numbers: jax.Array, policy: str) -> jax.Array:
    """Augments each image as its numbers say.

    Args:
      images: float32 [b, H, W, 3] in [-1, 1].
      numbers: float32 [b, NUMBERS], uniform in [0, 1).
      policy: names in `AUGMENTATIONS` with commas between, in the order in which they are applied.

    Returns:
      float32 [b, H, W, 3]. 'color' leaves the range of the images.
    """
    for name in policy.split(','):
        apply, columns = AUGMENTATIONS[name]
        images = apply(images, numbers[:, columns])
    return images


def _color(images: jax.Array, numbers: jax.Array) -> jax.Array:
    """Adds -0.5 to 0.5, scales distances from grey by 0 to 2, and from the mean by 0.5 to 1.5."""
    brightness, saturation, contrast = numbers.T[..., None, None, None]
    images = images + (brightness - 0.5)  # not in place: they may be of numpy
    grey = images.mean(3, keepdims=True)
    images = (images - grey) * (saturation * 2) + grey
    mean = images.mean((1, 2, 3), keepdims=True)
    return (images - mean) * (contrast + 0.5) + mean


def _translation(images: jax.Array, numbers: jax.Array) -> jax.Array:
    """Moves an image by up to an eighth of its height and width. What comes in is 0."""
    reach = _share(images, 0.125)
    starts = _integers(numbers, 2 * reach + 1)
    padded = jnp.pad(images, [(0, 0), *((pixels, pixels) for pixels in reach), (0, 0)])

    def window(image: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (*start, 0), images.shape[1:])

    return jax.vmap(window)(padded, starts)


def _cutout(images: jax.Array, numbers: jax.Array) -> jax.Array:
    """Sets a rectangle of half the height and width to 0. Part of it may be outside the image."""
    sides = _share(images, 0.5)
    centres = _integers(numbers, np.array(images.shape[1:3]) + 1 - sides % 2)

    def covered(axis: int) -> jax.Array:  # [b, H] or [b, W]
        first = centres[:, axis, None] - sides[axis] // 2
        at = jnp.arange(images.shape[1 + axis])
        return (first <= at) & (at < first + sides[axis])

    hole = covered(0)[:, :, None] & covered(1)[:, None, :]
    return jnp.where(hole[..., None], 0.0, images)


def _share(images: jax.Array, ratio: float) -> np.ndarray:
    """Pixels that are a share of the height and of the width, rounded: int [2]."""
    return (np.array(images.shape[1:3]) * ratio + 0.5).astype(int)


def _integers(numbers: jax.Array, counts: np.ndarray) -> jax.Array:
    """Numbers uniform in [0, 1) as integers uniform in [0, count): int32 [b, 2]."""
    return jnp.floor(numbers * counts.astype(np.float32)).astype(jnp.int32)


AUGMENTATIONS = {
    'color': Augmentation(_color, slice(0, 3)),
    'translation': Augmentation(_translation, slice(3, 5)),
    'cutout': Augmentation(_cutout, slice(5, 7)),
}

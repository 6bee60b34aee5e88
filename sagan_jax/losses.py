"""The adversarial losses, on logits: large means real."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class Loss(NamedTuple):
    """A pair of losses, each the mean over a batch, float32 [].

    Attributes:
      discriminator: `discriminator(real_logits, fake_logits)`, both float32 [B].
      generator: `generator(fake_logits)`.
      rejection: `rejection(logits)`, the discriminator's loss on images that it should reject:
        the term of `discriminator` for generated images.
    """

    discriminator: Callable[[jax.Array, jax.Array], jax.Array]
    generator: Callable[[jax.Array], jax.Array]
    rejection: Callable[[jax.Array], jax.Array]


def hinge_discriminator(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
    """E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))] (SAGAN, equation 4)."""
    return jax.nn.relu(1 - real_logits).mean() + hinge_rejection(fake_logits)


def hinge_rejection(logits: jax.Array) -> jax.Array:
    """E[max(0, 1 + D)]."""
    return jax.nn.relu(1 + logits).mean()


def hinge_generator(fake_logits: jax.Array) -> jax.Array:
    """-E[D(G(z))] (SAGAN, equation 4)."""
    return -fake_logits.mean()


def non_saturating_discriminator(real_logits: jax.Array, fake_logits: jax.Array) -> jax.Array:
    """-E[log σ(D(x))] - E[log(1 - σ(D(G(z))))] (Goodfellow et al. 2014)."""
    return jax.nn.softplus(-real_logits).mean() + non_saturating_rejection(fake_logits)


def non_saturating_rejection(logits: jax.Array) -> jax.Array:
    """-E[log(1 - σ(D))]."""
    return jax.nn.softplus(logits).mean()


def non_saturating_generator(fake_logits: jax.Array) -> jax.Array:
    """-E[log σ(D(G(z)))] (Goodfellow et al. 2014)."""
    return jax.nn.softplus(-fake_logits).mean()


def mode_seeking(images: jax.Array, z: jax.Array) -> jax.Array:
    """E[|z₁ - z₂| / (d(G(z₁), G(z₂)) + ε)], small if different z give different images.

    Mode seeking (Mao et al. 2019). |z₁ - z₂| is a mean of absolute differences, and ε is 0.01, so
    that equal images have a finite gradient. Two departures from the authors' code:

    - d is the mean absolute difference of the pixels plus that of the mean colours. The authors
      have the pixels alone, which differ as much for two small objects in different places whether
      or not their colours are equal.
    - The ratio is taken for each pair, not of means over the batch, so that it does not depend on
      how devices share a batch.

    Args:
      images: float32 [B, H, W, 3] in [-1, 1], B even; neighbours in the batch are pairs.
      z: float32 [B, z_dim], from which the images were generated.

    Returns:
      float32 [].
    """

    def distance(values: jax.Array) -> jax.Array:  # [B, …] → [B/2]
        pairs = values.reshape(len(values) // 2, 2, -1)
        return jnp.abs(pairs[:, 0] - pairs[:, 1]).mean(-1)

    far = distance(images) + distance(images.mean((1, 2)))
    return (distance(z) / (far + 0.01)).mean()


LECAM_DECAY = 0.99  # of the averages, in each update of the discriminator


def lecam(
    real_logits: jax.Array, fake_logits: jax.Array, averages: Mapping[str, jax.Array]
) -> jax.Array:
    """E[max(0, D(x) - a_F)²] + E[max(0, a_R - D(G(z)))²] (LeCam: Tseng et al. 2021).

    It keeps the logits of real images near those of generated ones in the past, and vice versa. The
    maxima are those of the authors' code. The paper has none, which is the same where D is right.

    Args:
      real_logits, fake_logits: float32 [B].
      averages: `{'real': a_R, 'fake': a_F}`, float32 [], see `next_logit_averages`.

    Returns:
      float32 [].
    """
    above = jax.nn.relu(real_logits - averages['fake'])
    below = jax.nn.relu(averages['real'] - fake_logits)
    return jnp.square(above).mean() + jnp.square(below).mean()


def next_logit_averages(
    averages: Mapping[str, jax.Array],
    real_logit: jax.Array,
    fake_logit: jax.Array,
    update: jax.Array,
) -> dict[str, jax.Array]:
    """The averages of D's logits after one more update, without a bias towards where they began.

    Args:
      averages: `{'real': …, 'fake': …}`, float32 [], after `update` updates.
      real_logit, fake_logit: the mean logits of this update, float32 [].
      update: int32 [], the updates before this one.
    """
    weight = (1 - LECAM_DECAY) / -jnp.expm1((update + 1) * math.log(LECAM_DECAY))
    means = {'real': real_logit, 'fake': fake_logit}
    return {name: average + weight * (means[name] - average) for name, average in averages.items()}


def classification(class_logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-E[log p(label)], AC-GAN's auxiliary loss (Odena et al. 2017, equation 3).

    Both networks minimise it on generated images, and the discriminator on real ones too.
    class_logits is float32 [B, classes], labels int [B]; returns float32 [].
    """
    return optax.softmax_cross_entropy_with_integer_labels(class_logits, labels).mean()


LOSSES = {
    'hinge': Loss(hinge_discriminator, hinge_generator, hinge_rejection),
    'non_saturating': Loss(
        non_saturating_discriminator, non_saturating_generator, non_saturating_rejection
    ),
}

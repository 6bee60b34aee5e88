"""The loss of each network, given its normalised parameters.

These functions run on one device, inside the training step. They see this device's b images of the
global batch, and average over devices only the batch statistics, which all devices must share.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import lax

from sagan_jax import losses, models, optimizers
from sagan_jax.augmentation import augment
from sagan_jax.configuration import checks
from sagan_jax.models import Variables
from sagan_jax.system.replicas import AXIS

Metrics = dict[str, jax.Array]
Outputs = tuple[jax.Array, jax.Array | None]  # logits; class logits with AC-GAN
Pair = Sequence[jax.Array]  # two arrays: of real and of generated images


class Examples(NamedTuple):
    """What the discriminator is shown.

    Attributes:
      images: float32 [b, H, W, 3] in [-1, 1].
      labels: int32 [b], or [b, K] for K labels per image.
      numbers: float32 [b, augmentation.NUMBERS], by which the images are augmented with
        `diff_augment`; None without it.
    """

    images: jax.Array
    labels: jax.Array
    numbers: jax.Array | None = None


class Game(NamedTuple):
    """What does not change during a run.

    Attributes:
      config: see configuration/defaults.py.
      generator, discriminator: see `models.Network`.
      generator_optimizer, discriminator_optimizer: see optimizers.py.
      loss: see `losses.Loss`.
      scan: `lax.scan`, unrolled on a CPU.
      local_batch: images of each batch on one device, b.
    """

    config: ml_collections.ConfigDict
    generator: models.Network
    discriminator: models.Network
    generator_optimizer: optax.GradientTransformation
    discriminator_optimizer: optax.GradientTransformation
    loss: losses.Loss
    scan: Callable[..., tuple[Any, Any]]
    local_batch: int


def create_game(config: ml_collections.ConfigDict, devices: list[jax.Device]) -> Game:
    """Creates the game that a configuration describes.

    Args:
      config: one that `checks.check` accepts.
      devices: the devices that share each batch, of all processes.

    Raises:
      UserError: if the batch cannot be divided among the devices, see `checks.check_batch`.
    """
    checks.check_batch(config, len(devices))
    generator, discriminator = models.create(
        config, AXIS if config.batch_norm.cross_replica else None
    )
    generator_optimizer, discriminator_optimizer = optimizers.create(config)
    # XLA runs a convolution inside a loop on one CPU thread, about twenty times slower.
    unroll = 0 if devices[0].platform == 'cpu' else 1  # 0 unrolls the whole loop
    return Game(
        config,
        generator,
        discriminator,
        generator_optimizer,
        discriminator_optimizer,
        loss=losses.LOSSES[config.loss],
        scan=partial(lax.scan, unroll=unroll),
        local_batch=config.batch_size // len(devices),
    )


# ---- The losses of both networks. --------------------------------------------------------------


def discriminator_loss(
    game: Game,
    weights: Variables,
    batch_stats: Variables,
    reals: Examples,
    fakes: Examples,
    logit_averages: Variables | None = None,
) -> tuple[jax.Array, tuple[Variables, Metrics]]:
    """The discriminator's loss on real and on generated images, float32 [].

    With `mismatch_weight`, each real image has two labels, int32 [b, 2]: its own, and a wrong one
    with which it should be rejected (Reed et al. 2016). With AC-GAN, the discriminator also
    classifies real and generated images (Odena et al. 2017).

    Args:
      weights: the discriminator's normalised parameters.
      batch_stats: its batch statistics.
      reals: real images.
      fakes: generated images.
      logit_averages: with `lecam_weight`, those before this update, see `losses.lecam`.

    Returns:
      The loss, and a pair of the next batch statistics and metrics, each float32 [].
    """
    config = game.config
    real_labels, fake_labels = reals.labels, fakes.labels
    if config.mismatch_weight:  # all images of a pass need the same number of labels
        fakes = fakes._replace(labels=jnp.stack([fake_labels, fake_labels], 1))
    (logits, class_logits), batch_stats = discriminate_both(
        game, weights, batch_stats, reals, fakes
    )
    real_logits, fake_logits = logits
    if config.mismatch_weight:
        (real_logits, wrong_logits), fake_logits = real_logits.T, fake_logits[:, 0]
    metrics = {'real_logit': real_logits.mean(), 'fake_logit': fake_logits.mean()}
    loss = game.loss.discriminator(real_logits, fake_logits)
    if config.mismatch_weight:
        loss += config.mismatch_weight * game.loss.rejection(wrong_logits)
        metrics['mismatch_logit'] = wrong_logits.mean()
    if logit_averages is not None:  # LeCam
        metrics['lecam_penalty'] = losses.lecam(real_logits, fake_logits, logit_averages)
        loss += config.lecam_weight * metrics['lecam_penalty']
    if class_logits is not None:  # AC-GAN
        real_classes, fake_classes = class_logits
        loss += config.model.acgan_weight * losses.classification(real_classes, real_labels)
        loss += config.model.acgan_weight * losses.classification(fake_classes, fake_labels)
        metrics['real_accuracy'] = (real_classes.argmax(-1) == real_labels).mean()
        metrics['fake_accuracy'] = (fake_classes.argmax(-1) == fake_labels).mean()
    return loss, (batch_stats, metrics | {'discriminator_loss': loss})


def generator_loss(
    game: Game,
    weights: Variables,
    batch_stats: Variables,
    discriminator_weights: Variables,
    discriminator_stats: Variables,
    z: jax.Array,
    labels: jax.Array,
    numbers: jax.Array | None = None,
) -> tuple[jax.Array, tuple[Variables, Metrics]]:
    """The generator's loss, float32 [].

    Args:
      weights, discriminator_weights: the networks' normalised parameters.
      batch_stats, discriminator_stats: their batch statistics; only the generator's advance.
      z: float32 [b, z_dim].
      labels: int32 [b].
      numbers: see `Examples`.

    Returns:
      The loss, and a pair of the next batch statistics and metrics, each float32 [].
    """
    config = game.config
    if config.mode_seeking_weight:
        labels = jnp.repeat(labels[::2], 2)  # both images of a pair have the label of the first
    fakes, batch_stats = generate(game, weights, batch_stats, z, labels)
    (logits, class_logits), _ = discriminate(
        game, discriminator_weights, discriminator_stats, Examples(fakes, labels, numbers)
    )
    loss = game.loss.generator(logits)
    if class_logits is not None:  # AC-GAN
        loss += config.model.acgan_weight * losses.classification(class_logits, labels)
    if config.mode_seeking_weight:
        loss += config.mode_seeking_weight * losses.mode_seeking(fakes, z)
    return loss, (batch_stats, {'generator_loss': loss})


def gradient_penalty(
    game: Game, weights: Variables, batch_stats: Variables, reals: Examples
) -> jax.Array:
    """E[‖∇D(x)‖²] over real images x, float32 [] (R1: Mescheder et al. 2018, equation 9).

    The gradient is with respect to the images before they are augmented. Batch statistics, if D has
    any, are those of the images and do not advance.
    """

    def total_logit(images: jax.Array) -> jax.Array:
        shown = reals._replace(images=images)
        (logits, _), _ = discriminate(game, weights, batch_stats, shown)
        return logits.sum()

    return jnp.square(jax.grad(total_logit)(reals.images)).sum((1, 2, 3)).mean()


# ---- The networks in training. -----------------------------------------------------------------


def generate(
    game: Game, weights: Variables, batch_stats: Variables, z: jax.Array, labels: jax.Array
) -> tuple[jax.Array, Variables]:
    """Returns images, float32 [b, H, W, 3] in [-1, 1], and the next batch statistics."""
    variables = {'params': weights, 'batch_stats': batch_stats}
    images, batch_stats = game.generator.apply(variables, z, labels, train=True)
    return images, _averaged(game, batch_stats)


def discriminate(
    game: Game, weights: Variables, batch_stats: Variables, shown: Examples
) -> tuple[Outputs, Variables]:
    """Returns logits and class logits, as a pair, and the next batch statistics.

    With `diff_augment` the discriminator sees the images augmented.

    Logits are float32 [b], or [b, K] for K labels per image. Class logits are float32 [b, classes]
    with AC-GAN and None otherwise.
    """
    images, labels, numbers = shown
    if numbers is not None:
        images = augment(images, numbers, game.config.diff_augment)
    variables = {'params': weights, 'batch_stats': batch_stats}
    outputs, batch_stats = game.discriminator.apply(variables, images, labels, train=True)
    logits, class_logits = outputs if game.config.model.conditioning == 'acgan' else (outputs, None)
    return (logits, class_logits), _averaged(game, batch_stats)


def discriminate_both(
    game: Game, weights: Variables, batch_stats: Variables, reals: Examples, fakes: Examples
) -> tuple[tuple[Pair, Pair | None], Variables]:
    """As `discriminate`, with a pair in place of each output: for real and for generated images.

    Both kinds of images share one pass, unless batch norm would mix their moments.
    """
    if batch_stats:
        of_reals, batch_stats = discriminate(game, weights, batch_stats, reals)
        of_fakes, batch_stats = discriminate(game, weights, batch_stats, fakes)
        return jax.tree.map(lambda *pair: pair, of_reals, of_fakes), batch_stats
    both = jax.tree.map(lambda *pair: jnp.concatenate(pair), reals, fakes)
    outputs, batch_stats = discriminate(game, weights, batch_stats, both)
    return jax.tree.map(lambda output: jnp.split(output, 2), outputs), batch_stats


def _averaged(game: Game, batch_stats: Variables) -> Variables:
    """Averages over devices what came from each device's own moments, so that replicas agree."""
    return batch_stats if game.config.batch_norm.cross_replica else lax.pmean(batch_stats, AXIS)

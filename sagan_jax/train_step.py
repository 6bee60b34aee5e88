"""One synchronous training step, as one device runs it; parallel.py runs it on all of them.

A step is `discriminator_steps` updates of the discriminator and then one of the generator.
Gradients, metrics and batch moments are means over the devices, by collectives over the axis
`AXIS`. All randomness is a function of the configuration's seed and the step number: noise is
drawn for the global batch and each device takes its rows, so the number of devices changes nothing
but the order of additions.

In the shapes below B is the global batch, b one device's part of it, and D is
`discriminator_steps`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import traverse_util
from jax import lax

from sagan_jax import losses, models, spectral_norm
from sagan_jax.state import TrainState
from sagan_jax.streams import Stream, draw_noise, stream_key
from sagan_jax.system.replicas import AXIS

Metrics = dict[str, jax.Array]
Examples = tuple[jax.Array, jax.Array]  # images [b, H, W, 3] and labels [b]


class Game(NamedTuple):
    """What does not change during a run.

    Attributes:
      config: see configuration/defaults.py.
      generator, discriminator: the networks.
      generator_optimizer, discriminator_optimizer: Adam, each with its own learning rate.
      loss: the pair of adversarial losses.
      local_batch: b, the examples that each device takes of a batch.
      scan: `lax.scan`, on a CPU `unrolled_scan`.
    """

    config: ml_collections.ConfigDict
    generator: models.Network
    discriminator: models.Network
    generator_optimizer: optax.GradientTransformation
    discriminator_optimizer: optax.GradientTransformation
    loss: losses.Loss
    local_batch: int
    scan: Callable


# ---- The step. -----------------------------------------------------------------------------------


def train_step(
    game: Game, state: TrainState, images: jax.Array, labels: jax.Array
) -> tuple[TrainState, Metrics]:
    """One step on one device: images uint8 [D, b, H, W, 3], labels int32 [D, b].

    Parameters are normalised once for each of their updates. The gradient with respect to the
    normalised weights is pulled back through that normalisation. Metrics are float32 [].
    """
    config = game.config
    weights, pull_back, spectral_stats = normalise_once(config, state.generator)

    numbers = state.step * config.discriminator_steps + jnp.arange(config.discriminator_steps)
    state, metrics = game.scan(
        lambda state, batch: update_discriminator(game, state, weights, *batch),
        state,
        (numbers, images, labels),
    )
    metrics = jax.tree.map(jnp.mean, metrics)

    state, found = update_generator(game, state, weights, pull_back, spectral_stats)
    return state._replace(step=state.step + 1), metrics | found


def update_discriminator(
    game: Game,
    state: TrainState,
    generator_weights: Any,
    number: jax.Array,
    images: jax.Array,
    labels: jax.Array,
) -> tuple[TrainState, Metrics]:
    """The discriminator's update `number`, counted over the run; its u advances once."""
    config, variables = game.config, state.discriminator
    weights, pull_back, spectral_stats = normalise_once(config, variables)
    if config.mismatch_weight:
        labels = with_wrong_labels(game, labels, number)

    def gradients(batch_stats, batch):
        images, labels, z, fake_labels = batch
        fakes, generator_stats = generate(game, generator_weights, batch_stats[0], z, fake_labels)
        reals, fakes = (images, labels), (fakes, fake_labels)
        grads, (discriminator_stats, metrics) = jax.grad(discriminator_loss, has_aux=True)(
            weights, game, batch_stats[1], reals, fakes
        )
        return (generator_stats, discriminator_stats), (metrics, grads)

    batch_stats, means = accumulate(
        game,
        gradients,
        (state.generator['batch_stats'], variables['batch_stats']),
        (
            real_images(game, images, number),
            labels,
            *draw(game, Stream.DISCRIMINATOR_NOISE, number, state.restarts),
        ),
    )
    metrics, weight_grads = lax.pmean(means, AXIS)
    (grads,) = pull_back(weight_grads)
    params, opt_state = apply_gradients(
        game.discriminator_optimizer,
        grads,
        state.discriminator_opt,
        variables['params'],
        rate_factor(config, number // config.discriminator_steps),
    )
    state = state._replace(
        generator=state.generator | {'batch_stats': batch_stats[0]},
        discriminator=collections(params, batch_stats[1], spectral_stats),
        discriminator_opt=opt_state,
    )
    return state, metrics | {'discriminator_grad_norm': optax.tree.norm(grads)}


def update_generator(
    game: Game, state: TrainState, weights: Any, pull_back: Callable, spectral_stats: Any
) -> tuple[TrainState, Metrics]:
    """The generator's update, through the discriminator as its own updates have left it.

    Takes the result of `normalise_once` for the generator. The discriminator's u stays.
    """
    config, discriminator = game.config, state.discriminator
    discriminator_weights, _ = normalise(
        config, discriminator['params'], discriminator['spectral_stats']
    )
    discriminator_variables = discriminator_weights, discriminator['batch_stats']

    def gradients(batch_stats, batch):
        (value, batch_stats), grads = jax.value_and_grad(generator_loss, has_aux=True)(
            weights, game, batch_stats, discriminator_variables, *batch
        )
        return batch_stats, (value, grads)

    batch_stats, means = accumulate(
        game,
        gradients,
        state.generator['batch_stats'],
        draw(game, Stream.GENERATOR_NOISE, state.step, state.restarts),
    )
    value, weight_grads = lax.pmean(means, AXIS)
    (grads,) = pull_back(weight_grads)
    params, opt_state = apply_gradients(
        game.generator_optimizer,
        grads,
        state.generator_opt,
        state.generator['params'],
        rate_factor(config, state.step),
    )
    decay = jnp.where(state.step < config.ema.start_step, 0.0, config.ema.decay)
    state = state._replace(
        generator=collections(params, batch_stats, spectral_stats),
        generator_opt=opt_state,
        ema_params=optax.incremental_update(params, state.ema_params, 1 - decay),
    )
    return state, {
        'generator_loss': value,
        'generator_grad_norm': optax.tree.norm(grads),
        'generator_sigma': spectral_norm.largest_sigma(spectral_stats),
        'discriminator_sigma': spectral_norm.largest_sigma(discriminator['spectral_stats']),
        **gammas('generator', params),
        **gammas('discriminator', discriminator['params']),
    }


# ---- The losses of both networks. ----------------------------------------------------------------


def discriminator_loss(
    weights: Any, game: Game, batch_stats: Any, reals: Examples, fakes: Examples
) -> tuple[jax.Array, tuple[Any, Metrics]]:
    """The discriminator's loss, float32 [], its next batch statistics and metrics.

    With `mismatch_weight` the labels of the reals are [b, 2]: their own and a wrong one.
    """
    config = game.config
    if config.mismatch_weight:  # in one pass with reals, fakes need two labels too
        fakes = fakes[0], jnp.stack([fakes[1], fakes[1]], 1)
    logits, class_logits, batch_stats = discriminate_both(game, weights, batch_stats, reals, fakes)
    real_logits, fake_logits = logits
    metrics = {}
    if config.mismatch_weight:
        (real_logits, wrong_logits), fake_logits = real_logits.T, fake_logits[:, 0]
        metrics['mismatch_logit'] = wrong_logits.mean()
    value = game.loss.discriminator(real_logits, fake_logits)
    if config.mismatch_weight:
        value += config.mismatch_weight * game.loss.rejection(wrong_logits)
    metrics |= {'real_logit': real_logits.mean(), 'fake_logit': fake_logits.mean()}
    if config.model.conditioning == 'acgan':
        for name, guesses, labels in (
            ('real_accuracy', class_logits[0], reals[1]),
            ('fake_accuracy', class_logits[1], fakes[1]),
        ):
            value += config.model.acgan_weight * losses.classification(guesses, labels)
            metrics[name] = (guesses.argmax(-1) == labels).mean()
    return value, (batch_stats, metrics | {'discriminator_loss': value})


def generator_loss(
    weights: Any,
    game: Game,
    batch_stats: Any,
    discriminator: tuple[Any, Any],
    z: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, Any]:
    """The generator's loss, float32 [], and its next batch statistics.

    `discriminator` is its normalised weights and its batch statistics.
    """
    fakes, batch_stats = generate(game, weights, batch_stats, z, labels)
    logits, class_logits, _ = discriminate(game, *discriminator, fakes, labels)
    value = game.loss.generator(logits)
    if game.config.model.conditioning == 'acgan':
        value += game.config.model.acgan_weight * losses.classification(class_logits, labels)
    return value, batch_stats


# ---- The networks, in training. ------------------------------------------------------------------


def generate(
    game: Game, weights: Any, batch_stats: Any, z: jax.Array, labels: jax.Array
) -> tuple[jax.Array, Any]:
    """Images float32 [b, H, W, 3] from z float32 [b, z_dim], and the next batch statistics."""
    variables = {'params': weights, 'batch_stats': batch_stats}
    images, stats = game.generator.apply(variables, z, labels, train=True)
    return images, shared(game.config, stats['batch_stats'])


def discriminate(
    game: Game, weights: Any, batch_stats: Any, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array | None, Any]:
    """Logits [b], class logits [b, classes] (AC-GAN's; else None), the next batch statistics."""
    variables = {'params': weights, 'batch_stats': batch_stats}
    outputs, stats = game.discriminator.apply(variables, images, labels, train=True)
    acgan = game.config.model.conditioning == 'acgan'
    logits, class_logits = outputs if acgan else (outputs, None)
    return logits, class_logits, shared(game.config, stats['batch_stats'])


def discriminate_both(
    game: Game, weights: Any, batch_stats: Any, reals: Examples, fakes: Examples
) -> tuple[tuple, tuple, Any]:
    """`discriminate` for real and fake images: a pair of logits, one of class logits, statistics.

    Both halves go through in one pass, or in two where batch moments would mix them.
    """
    if batch_stats:
        real_logits, real_classes, batch_stats = discriminate(game, weights, batch_stats, *reals)
        fake_logits, fake_classes, batch_stats = discriminate(game, weights, batch_stats, *fakes)
        return (real_logits, fake_logits), (real_classes, fake_classes), batch_stats
    both = jax.tree.map(lambda *halves: jnp.concatenate(halves), reals, fakes)
    logits, class_logits, _ = discriminate(game, weights, batch_stats, *both)
    classes = (None, None) if class_logits is None else tuple(jnp.split(class_logits, 2))
    return tuple(jnp.split(logits, 2)), classes, batch_stats


def shared(config: ml_collections.ConfigDict, batch_stats: Any) -> Any:
    """The same on all devices: moments of each device alone would let the averages drift apart."""
    return batch_stats if config.batch_norm.cross_replica else lax.pmean(batch_stats, AXIS)


def normalise(config: ml_collections.ConfigDict, params: Any, spectral_stats: Any) -> Any:
    """Normalised weights and the next spectral statistics."""
    return spectral_norm.normalise(params, spectral_stats, config.spectral_norm.epsilon)


def normalise_once(
    config: ml_collections.ConfigDict, variables: models.Variables
) -> tuple[Any, Callable, Any]:
    """Weights, the function that pulls their gradient back to the parameters, next statistics."""
    return jax.vjp(
        lambda params: normalise(config, params, variables['spectral_stats']),
        variables['params'],
        has_aux=True,
    )


def collections(params: Any, batch_stats: Any, spectral_stats: Any) -> models.Variables:
    """A network's variables."""
    return {'params': params, 'batch_stats': batch_stats, 'spectral_stats': spectral_stats}


def gammas(network: str, params: Any) -> Metrics:
    """`{'generator_gamma32': …}`: how far each attention block has opened."""
    return {
        f'{network}_gamma{path[0].removeprefix("attention")}': value
        for path, value in traverse_util.flatten_dict(params).items()
        if path[-1] == 'gamma'
    }


# ---- What one device takes of a global batch. ----------------------------------------------------


def local_part(game: Game, array: jax.Array) -> jax.Array:
    """This device's rows [b, …] of something drawn for the global batch [B, …]."""
    return lax.dynamic_slice_in_dim(
        array, lax.axis_index(AXIS) * game.local_batch, game.local_batch
    )


def draw(
    game: Game, stream: Stream, number: jax.Array, restarts: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """This device's z float32 [b, z_dim] and labels int32 [b]."""
    z, labels = draw_noise(game.config, stream, number, restarts)
    return local_part(game, z), local_part(game, labels)


def real_images(game: Game, images: jax.Array, number: jax.Array) -> jax.Array:
    """uint8 [b, H, W, 3] → float32 in [-1, 1], half of them mirrored if `dataset.flip`."""
    config = game.config
    images = images.astype(jnp.float32) * (2 / 255) - 1
    if not config.dataset.flip:
        return images
    key = stream_key(config.seed, Stream.AUGMENTATION, number)
    mirrored = local_part(game, jax.random.bernoulli(key, shape=(config.batch_size,)))
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def with_wrong_labels(game: Game, labels: jax.Array, number: jax.Array) -> jax.Array:
    """labels int32 [b] → [b, 2]: each image's own, and one of the other classes, uniformly."""
    config, num_classes = game.config, game.config.dataset.num_classes
    key = stream_key(config.seed, Stream.WRONG_LABELS, number)
    ahead = local_part(game, jax.random.randint(key, (config.batch_size,), 1, num_classes))
    return jnp.stack([labels, (labels + ahead) % num_classes], 1)


# ---- Gradients. ----------------------------------------------------------------------------------


def accumulate(game: Game, gradients: Callable, stats: Any, batch: Any) -> tuple[Any, Any]:
    """`gradients(stats, part) -> (stats, results)` of `gradient_accumulation` parts in turn.

    Returns the last batch statistics and the means of all other results.
    """
    count = game.config.gradient_accumulation
    if count == 1:
        return gradients(stats, batch)

    def add(carry, part):
        stats, sums = carry
        stats, results = gradients(stats, part)
        return (stats, jax.tree.map(jnp.add, sums, results)), None

    parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(gradients, stats, first)[1]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (stats, sums), _ = game.scan(add, (stats, zeros), parts)
    return stats, jax.tree.map(lambda x: x / count, sums)


def rate_factor(config: ml_collections.ConfigDict, step: jax.Array) -> jax.Array | None:
    """The factor of both rates in the step after `step`, float32 []; None if they are constant."""
    start = config.optimizer.decay_from
    if start == 1:
        return None
    return jnp.minimum(1.0, (1 - step / config.num_train_steps) / (1 - start))


def apply_gradients(
    optimizer: optax.GradientTransformation,
    grads: Any,
    opt_state: optax.OptState,
    params: Any,
    factor: jax.Array | None,
) -> tuple[Any, optax.OptState]:
    """The next parameters and optimiser state, with the update times `factor` if there is one."""
    updates, opt_state = optimizer.update(grads, opt_state, params)
    if factor is not None:
        updates = optax.tree.scale(factor, updates)
    return optax.apply_updates(params, updates), opt_state

"""One synchronous training step over all devices, and the only use of pmap.

A step is `discriminator_steps` updates of the discriminator and then one of the generator. The
functions of a step are written for one device, with collectives over the axis `AXIS`. Those that
create a step map it over the devices; outside, the state has no device axis and the batch is the
global one. All randomness is a function of the configuration's seed and the step number. It is
drawn for the global batch and each device takes its rows, so that the number of devices only
changes the order of additions.

In shapes, S is `steps_per_call`, D `discriminator_steps`, B `batch_size`, and b the images of a
batch on one device.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import traverse_util
from jax import lax

from sagan_jax import optimizers, spectral_norm
from sagan_jax.game import Game, Metrics, create_game, discriminator_loss, generate, generator_loss
from sagan_jax.models import Variables
from sagan_jax.models.architectures import ARCHITECTURES, first_blocks
from sagan_jax.state import TrainState, state_shapes
from sagan_jax.streams import Stream, draw_noise, stream_key
from sagan_jax.system import distributed
from sagan_jax.system.replicas import AXIS, replicate

PullBack = Callable[[Variables], tuple[Variables]]

# ---- A step on one device. ---------------------------------------------------------------------


def train_step(
    game: Game, state: TrainState, images: jax.Array, labels: jax.Array
) -> tuple[TrainState, Metrics]:
    """Updates the discriminator D times, then the generator once.

    Args:
      images: real images, uint8 [D, b, H, W, 3].
      labels: int32 [D, b].

    Returns:
      The next state, and metrics, each float32 [].
    """
    updates = game.config.discriminator_steps
    weights, pull_back, spectral_stats = normalise(game, state.generator)
    state, d_metrics = game.scan(
        lambda state, batch: update_discriminator(game, state, weights, *batch),
        state,
        (state.step * updates + jnp.arange(updates), images, labels),
    )
    state, g_metrics = update_generator(game, state, weights, pull_back, spectral_stats)
    state = state._replace(step=state.step + 1)
    return state, jax.tree.map(jnp.mean, d_metrics) | g_metrics | measure(state)


def update_discriminator(
    game: Game,
    state: TrainState,
    generator_weights: Variables,
    update: jax.Array,
    images: jax.Array,
    labels: jax.Array,
) -> tuple[TrainState, Metrics]:
    """Updates the discriminator once; its u and the generator's batch statistics advance too.

    Args:
      generator_weights: the generator's normalised parameters.
      update: int32 [], the updates before this one; the noise depends on it.
      images: real images, uint8 [b, H, W, 3].
      labels: int32 [b].
    """
    weights, pull_back, spectral_stats = normalise(game, state.discriminator)
    reals = real_images(game, images, update), real_labels(game, labels, update)
    batch = reals, draw(game, Stream.DISCRIMINATOR_NOISE, update, state.restarts)
    stats = state.generator['batch_stats'], state.discriminator['batch_stats']

    def loss(weights, stats, batch):
        (g_stats, d_stats), (reals, (z, labels)) = stats, batch
        fakes, g_stats = generate(game, generator_weights, g_stats, z, labels)
        value, (d_stats, metrics) = discriminator_loss(
            game, weights, d_stats, reals, (fakes, labels)
        )
        return value, ((g_stats, d_stats), metrics)

    (g_stats, d_stats), metrics, grads = mean_gradients(game, loss, weights, stats, batch)
    (grads,) = pull_back(grads)
    grads = without_frozen(game, grads)
    params, opt_state = state.discriminator['params'], state.discriminator_opt
    params, opt_state = optimizers.apply_gradients(
        game.config, game.discriminator_optimizer, state.step, grads, opt_state, params
    )
    state = state._replace(
        generator=state.generator | {'batch_stats': g_stats},
        discriminator={'params': params, 'batch_stats': d_stats, 'spectral_stats': spectral_stats},
        discriminator_opt=opt_state,
    )
    return state, metrics | {'discriminator_grad_norm': optax.tree.norm(grads)}


def update_generator(
    game: Game,
    state: TrainState,
    weights: Variables,
    pull_back: PullBack,
    spectral_stats: Variables,
) -> tuple[TrainState, Metrics]:
    """Updates the generator and its average; the discriminator's u does not advance.

    Args:
      weights, pull_back, spectral_stats: what `normalise` returned for the generator.
    """
    config, discriminator = game.config, state.discriminator
    d_weights, _, _ = normalise(game, discriminator)

    def loss(weights, batch_stats, noise):
        return generator_loss(
            game, weights, batch_stats, d_weights, discriminator['batch_stats'], *noise
        )

    batch_stats = state.generator['batch_stats']
    noise = draw(game, Stream.GENERATOR_NOISE, state.step, state.restarts)
    batch_stats, metrics, grads = mean_gradients(game, loss, weights, batch_stats, noise)
    (grads,) = pull_back(grads)
    params, opt_state = state.generator['params'], state.generator_opt
    params, opt_state = optimizers.apply_gradients(
        config, game.generator_optimizer, state.step, grads, opt_state, params
    )
    decay = jnp.where(state.step < config.ema.start_step, 0.0, config.ema.decay)
    state = state._replace(
        generator={'params': params, 'batch_stats': batch_stats, 'spectral_stats': spectral_stats},
        generator_opt=opt_state,
        ema_params=optax.incremental_update(params, state.ema_params, 1 - decay),
    )
    return state, metrics | {'generator_grad_norm': optax.tree.norm(grads)}


def measure(state: TrainState) -> Metrics:
    """The largest σ of each network, and every gamma, as in `generator_gamma32`: float32 []."""
    metrics = {}
    for network in ('generator', 'discriminator'):
        variables = getattr(state, network)
        metrics[f'{network}_sigma'] = spectral_norm.largest_sigma(variables['spectral_stats'])
        for path, value in traverse_util.flatten_dict(variables['params']).items():
            if path[-1] == 'gamma':
                metrics[f'{network}_gamma{path[0].removeprefix("attention")}'] = value
    return metrics


def normalise(game: Game, variables: Variables) -> tuple[Variables, PullBack, Variables]:
    """Applies spectral normalisation to a network, once per update of its parameters.

    Returns:
      The normalised parameters; a function that pulls a gradient with respect to them back to the
      parameters; and the next spectral statistics.
    """

    def weights(params: Variables) -> tuple[Variables, Variables]:
        epsilon = game.config.spectral_norm.epsilon
        return spectral_norm.normalise(params, variables['spectral_stats'], epsilon)

    return jax.vjp(weights, variables['params'], has_aux=True)


def without_frozen(game: Game, grads: Variables) -> Variables:
    """The discriminator's gradients, zero for its frozen blocks, which Adam then leaves alone."""
    config, count = game.config, game.config.optimizer.frozen_discriminator_blocks
    if not count:
        return grads
    arch = ARCHITECTURES[config.model.architecture][config.dataset.image_size]
    frozen = first_blocks(arch, config.dataset.image_size, count)
    return {
        name: jax.tree.map(jnp.zeros_like, part) if name in frozen else part
        for name, part in grads.items()
    }


def mean_gradients(
    game: Game, loss: Callable, weights: Variables, stats: Any, batch: Any
) -> tuple[Any, Metrics, Variables]:
    """Gradients of `loss(weights, stats, part) -> (value, (stats, metrics))` over a whole batch.

    This device's batch is divided into `gradient_accumulation` parts, computed one after the other.

    Returns:
      The batch statistics after the last part; the metrics; and the gradients with respect to
      `weights`. Metrics and gradients are means over all parts and devices.
    """

    def gradients(stats: Any, part: Any) -> tuple[Any, tuple[Metrics, Variables]]:
        grads, (stats, metrics) = jax.grad(loss, has_aux=True)(weights, stats, part)
        return stats, (metrics, grads)

    stats, means = accumulate(game, gradients, stats, batch)
    metrics, grads = lax.pmean(means, AXIS)
    return stats, metrics, grads


def accumulate(
    game: Game, function: Callable[[Any, Any], tuple[Any, Any]], stats: Any, batch: Any
) -> tuple[Any, Any]:
    """Runs `function(stats, part) -> (stats, values)` over all parts of a batch in turn.

    Returns:
      The statistics after the last part, and the means of the values over the parts.
    """
    count = game.config.gradient_accumulation
    if count == 1:
        return function(stats, batch)

    def add(carry, part):
        stats, sums = carry
        stats, values = function(stats, part)
        return (stats, jax.tree.map(jnp.add, sums, values)), None

    parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
    _, shapes = jax.eval_shape(function, stats, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (stats, sums), _ = game.scan(add, (stats, zeros), parts)
    return stats, jax.tree.map(lambda x: x / count, sums)


# ---- What a device sees. -----------------------------------------------------------------------


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


# ---- A step on all devices. --------------------------------------------------------------------


def create_train_step(
    config: ml_collections.ConfigDict, devices: list[jax.Device] | None = None
) -> Callable[[TrainState, np.ndarray, np.ndarray], tuple[TrainState, Metrics]]:
    """Builds `train_step(state, images, labels) -> (state, metrics)`, which runs S steps.

    Args:
      config: see configuration/defaults.py.
      devices: the devices to run on; by default the devices of all processes.

    Returns:
      A function of the state, which is donated, and of D batches of real images per step, on the
      host: images uint8 [S·D·B, H, W, 3] and labels int32 [S·D·B]. If there are several processes,
      each passes its `local_rows` of them. The metrics are float32 [S], one value per step: both
      losses, the mean logits on real and on generated images, the norms of both gradients, the
      largest σ of each network and every gamma; with `mismatch_weight`, the mean logit on wrong
      labels; with AC-GAN, the classifier's accuracy on real and on generated images.

    Raises:
      UserError: if the configuration cannot run on these devices, see `create_game`.
    """
    game, run = _create(config, devices or distributed.all_devices())
    return lambda state, images, labels: run(state, _shard(game, images), _shard(game, labels))


def lower_train_step(
    config: ml_collections.ConfigDict,
    devices: list[jax.Device],
    images: jax.ShapeDtypeStruct,
    labels: jax.ShapeDtypeStruct,
) -> jax.stages.Lowered:
    """Lowers the program of `create_train_step` without running anything.

    Args:
      config: as for `create_train_step`.
      devices: may be those of a topology, which are not there, see `jax.experimental.topologies`.
      images, labels: shapes and dtypes of the batches, as for the function that it builds.

    Raises:
      UserError: as `create_train_step`.
    """
    game, run = _create(config, devices)
    batch = jax.eval_shape(lambda *batch: [_shard(game, a) for a in batch], images, labels)
    return run.lower(state_shapes(config), *batch)


def _create(
    config: ml_collections.ConfigDict, devices: list[jax.Device]
) -> tuple[Game, jax.stages.Wrapped]:
    """The game and the mapped program of `create_train_step`."""
    game = create_game(config, devices)

    def steps(state, images, labels):
        return game.scan(
            lambda state, batch: train_step(game, state, *batch), state, (images, labels)
        )

    return game, _on_each(devices, steps, in_axes=(None, 0, 0))


def create_gathering_train_step(
    config: ml_collections.ConfigDict,
    dataset: tuple[np.ndarray, np.ndarray],
    devices: list[jax.Device] | None = None,
) -> Callable[[TrainState, np.ndarray], tuple[TrainState, Metrics]]:
    """Builds `train_step(state, rows) -> (state, metrics)`, which gathers batches on the devices.

    Args:
      config, devices: as for `create_train_step`.
      dataset: images uint8 [N, H, W, 3] and labels int32 [N]; every device keeps a copy.

    Returns:
      As `create_train_step`, except that the function takes rows of the dataset, int32 [S·D·B] on
      the host, in place of images and labels.

    Raises:
      UserError: as `create_train_step`.
    """
    devices = devices or distributed.all_devices()
    game = create_game(config, devices)

    def steps(state, rows, images, labels):
        return game.scan(
            lambda state, rows: train_step(game, state, images[rows], labels[rows]), state, rows
        )

    run = _on_each(devices, steps, in_axes=(None, 0, None, None))
    here = [device for device in devices if device.process_index == jax.process_index()]
    images, labels = replicate(dataset, here)
    return lambda state, rows: run(state, _shard(game, rows), images, labels)


def local_rows(config: ml_collections.ConfigDict) -> np.ndarray:
    """The rows of one call's batches for this process's devices, int [S·D·B / processes]."""
    devices = distributed.all_devices()
    here = [index for index, device in enumerate(devices) if device in jax.local_devices()]
    batches = config.steps_per_call * config.discriminator_steps
    rows = np.arange(batches * config.batch_size).reshape(batches, len(devices), -1)
    return rows[:, here].reshape(-1)


def _on_each(
    devices: list[jax.Device], steps: Callable, in_axes: tuple[int | None, ...]
) -> jax.stages.Wrapped:
    """Maps `steps(state, …) -> (state, metrics)` over the devices. The state is donated."""
    return jax.pmap(
        steps, AXIS, in_axes=in_axes, out_axes=(None, None), devices=devices, donate_argnums=0
    )


def _shard(game: Game, array: np.ndarray) -> np.ndarray:
    """[S·D·n·b, …] → [n, S, D, b, …], for the n devices of this process."""
    steps, updates = game.config.steps_per_call, game.config.discriminator_steps
    parts = array.reshape(steps, updates, -1, game.local_batch, *array.shape[1:])
    return np.moveaxis(parts, 2, 0)

"""One synchronous training step over all devices, and the only use of pmap.

A step is `discriminator_steps` updates of the discriminator and then one of the generator. The
functions of a step are written for one device, with collectives over the axis `AXIS`. Those that
create a step map it over the devices; outside, the state has no device axis and the batch is the
global one. The number of devices only changes the order of additions, see step_inputs.py.

In shapes, S is `steps_per_call`, D `discriminator_steps`, B `batch_size`, and b the images of a
batch on one device.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import traverse_util

from sagan_jax import losses, optimizers, spectral_norm
from sagan_jax.game import (
    Examples,
    Game,
    Metrics,
    create_game,
    discriminator_loss,
    generate,
    generator_loss,
    gradient_penalty,
)
from sagan_jax.gradients import mean_gradients
from sagan_jax.models import Variables
from sagan_jax.models.architectures import ARCHITECTURES, first_blocks
from sagan_jax.state import TrainState, state_shapes
from sagan_jax.step_inputs import augmentation_numbers, draw, real_examples
from sagan_jax.streams import Stream
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
    reals = real_examples(game, images, labels, update)
    noise = draw(game, Stream.DISCRIMINATOR_NOISE, update, state.restarts)
    batch = reals, noise, augmentation_numbers(game, Stream.FAKE_AUGMENTATION, update)
    stats = state.generator['batch_stats'], state.discriminator['batch_stats']
    averages = state.discriminator.get('logit_averages')

    def loss(weights, stats, batch):
        (g_stats, d_stats), (reals, (z, labels), numbers) = stats, batch
        images, g_stats = generate(game, generator_weights, g_stats, z, labels)
        fakes = Examples(images, labels, numbers)
        value, (d_stats, metrics) = discriminator_loss(
            game, weights, d_stats, reals, fakes, averages
        )
        return value, ((g_stats, d_stats), metrics)

    (g_stats, d_stats), metrics, grads = mean_gradients(game, loss, weights, stats, batch)
    state, norm = descend_discriminator(game, state, pull_back, grads)
    after = {'batch_stats': d_stats, 'spectral_stats': spectral_stats}
    if averages:
        after['logit_averages'] = losses.next_logit_averages(
            averages, metrics['real_logit'], metrics['fake_logit'], update
        )
    state = state._replace(
        generator=state.generator | {'batch_stats': g_stats},
        discriminator=state.discriminator | after,
    )
    return state, metrics | {'discriminator_grad_norm': norm}


def penalise_discriminator(
    game: Game, state: TrainState, images: jax.Array, labels: jax.Array
) -> tuple[TrainState, Metrics]:
    """Updates the discriminator by R1 alone, after every `r1_every` steps and that much stronger.

    Lazy regularisation (StyleGAN2: Karras et al. 2020, appendix B). Neither u nor batch statistics
    advance.

    Args:
      images, labels: those of its last update, as for `update_discriminator`.
    """
    config, discriminator = game.config, state.discriminator
    weights, pull_back, _ = normalise(game, discriminator)
    reals = real_examples(game, images, labels, state.step * config.discriminator_steps - 1)
    if reals.labels.ndim == 2:  # with `mismatch_weight`
        reals = reals._replace(labels=reals.labels[:, 0])

    def loss(weights, batch_stats, reals):
        penalty = gradient_penalty(game, weights, batch_stats, reals)
        value = config.r1_weight / 2 * config.r1_every * penalty
        return value, (batch_stats, {'r1_penalty': penalty})

    _, metrics, grads = mean_gradients(game, loss, weights, discriminator['batch_stats'], reals)
    state, _ = descend_discriminator(game, state, pull_back, grads)
    return state, metrics


def descend_discriminator(
    game: Game, state: TrainState, pull_back: PullBack, grads: Variables
) -> tuple[TrainState, jax.Array]:
    """Updates the discriminator's parameters by gradients with respect to its weights.

    Returns:
      The next state, and the norm of the gradients with respect to the parameters.
    """
    (grads,) = pull_back(grads)
    grads = without_frozen(game, grads)
    params, opt_state = state.discriminator['params'], state.discriminator_opt
    params, opt_state = optimizers.apply_gradients(
        game.config, game.discriminator_optimizer, state.step, grads, opt_state, params
    )
    state = state._replace(
        discriminator=state.discriminator | {'params': params}, discriminator_opt=opt_state
    )
    return state, optax.tree.norm(grads)


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
    z, labels = draw(game, Stream.GENERATOR_NOISE, state.step, state.restarts)
    noise = z, labels, augmentation_numbers(game, Stream.GENERATOR_AUGMENTATION, state.step)
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
      labels; with AC-GAN, the classifier's accuracy on real and on generated images; with
      `lecam_weight`, the penalty. With `r1_weight`, a call that ends at a multiple of `r1_every`
      has R1's penalty too, float32 [1]; each call waits for the one before, to know the step.

    Raises:
      UserError: if the configuration cannot run on these devices, see `create_game`.
    """
    devices = devices or distributed.all_devices()
    game = create_game(config, devices)
    run = _in_turn(game, *_programs(game, devices, _as_given))
    return lambda state, images, labels: run(state, (_shard(game, images), _shard(game, labels)))


def lower_train_step(
    config: ml_collections.ConfigDict,
    devices: list[jax.Device],
    images: jax.ShapeDtypeStruct,
    labels: jax.ShapeDtypeStruct,
) -> jax.stages.Lowered:
    """Lowers the program of `create_train_step` without running anything, and without R1's own.

    Args:
      config: as for `create_train_step`.
      devices: may be those of a topology, which are not there, see `jax.experimental.topologies`.
      images, labels: shapes and dtypes of the batches, as for the function that it builds.

    Raises:
      UserError: as `create_train_step`.
    """
    game = create_game(config, devices)
    steps, _ = _programs(game, devices, _as_given)
    batches = jax.eval_shape(lambda *arrays: [_shard(game, a) for a in arrays], images, labels)
    return steps.lower(state_shapes(config), batches, ())


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

    def gather(rows, images, labels):
        return images[rows], labels[rows]

    run = _in_turn(game, *_programs(game, devices, gather))
    here = [device for device in devices if device.process_index == jax.process_index()]
    images, labels = replicate(dataset, here)
    return lambda state, rows: run(state, (_shard(game, rows),), (images, labels))


def local_rows(config: ml_collections.ConfigDict) -> np.ndarray:
    """The rows of one call's batches for this process's devices, int [S·D·B / processes]."""
    devices = distributed.all_devices()
    here = [index for index, device in enumerate(devices) if device in jax.local_devices()]
    batches = config.steps_per_call * config.discriminator_steps
    rows = np.arange(batches * config.batch_size).reshape(batches, len(devices), -1)
    return rows[:, here].reshape(-1)


def _as_given(images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    return images, labels


def steps_on_each(game: Game, batch_of: Callable = _as_given) -> tuple[Callable, Callable]:
    """What each device runs in one call: S steps, and R1's update.

    Both are `(state, batches, dataset) -> (state, metrics)`, with collectives over `AXIS`.

    Args:
      game: see `create_game`.
      batch_of: `batch_of(*batches, *dataset)` returns images and labels. `batches` are those of the
        device, [S, D, b, …], and `dataset` is the whole one.
    """

    def steps(state, batches, dataset):
        return game.scan(
            lambda state, batch: train_step(game, state, *batch_of(*batch, *dataset)),
            state,
            batches,
        )

    def penalise(state, batches, dataset):
        last = [batch[-1, -1] for batch in batches]
        state, metrics = penalise_discriminator(game, state, *batch_of(*last, *dataset))
        return state, jax.tree.map(lambda metric: metric[None], metrics)

    return steps, penalise


def _programs(
    game: Game, devices: list[jax.Device], batch_of: Callable
) -> list[jax.stages.Wrapped]:
    """`steps_on_each` as programs of all devices, whose batches are [n, S, D, b, …].

    R1 is a program of its own, because XLA runs a conditional on one CPU thread, like a loop. The
    same over a mesh is `jax.jit` of `jax.shard_map`, see docs/paper.md and its test.
    """
    return [
        jax.pmap(
            function,
            axis_name=AXIS,
            in_axes=(None, 0, None),
            out_axes=(None, None),
            devices=devices,
            donate_argnums=0,  # the state
        )
        for function in steps_on_each(game, batch_of)
    ]


def _in_turn(
    game: Game, steps: Callable, penalise: Callable
) -> Callable[..., tuple[TrainState, Metrics]]:
    """A function like `steps` that runs `penalise` after it if R1 is due."""
    config = game.config

    def call(state, batches, dataset=()):
        due = config.r1_weight and (int(state.step) + config.steps_per_call) % config.r1_every == 0
        state, metrics = steps(state, batches, dataset)
        if due:
            state, penalty = penalise(state, batches, dataset)
            metrics |= penalty
        return state, metrics

    return call


def _shard(game: Game, array: np.ndarray) -> np.ndarray:
    """[S·D·n·b, …] → [n, S, D, b, …], for the n devices of this process."""
    steps, updates = game.config.steps_per_call, game.config.discriminator_steps
    parts = array.reshape(steps, updates, -1, game.local_batch, *array.shape[1:])
    return np.moveaxis(parts, 2, 0)

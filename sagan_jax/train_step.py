"""One synchronous training step over all devices, and the only place that says pmap.

Inside, the step is written for one device, with collectives over the axis `AXIS`; outside, the
state keeps its plain shapes and the batch is the global one. A step is `discriminator_steps`
updates of the discriminator and then one of the generator. All randomness is a function of the
configuration's seed and the step number: noise is drawn for the global batch and each device
takes its rows, so that the number of devices changes nothing but the order of additions.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import traverse_util
from jax import lax

from sagan_jax import losses, models, spectral_norm
from sagan_jax.configuration import checks
from sagan_jax.errors import UserError
from sagan_jax.state import TrainState, create_optimizers
from sagan_jax.streams import Stream, draw_noise, stream_key
from sagan_jax.system import distributed
from sagan_jax.system.replicas import AXIS, replicate

Metrics = dict[str, jax.Array]


def local_rows(config: ml_collections.ConfigDict) -> np.ndarray:
    """Which rows of one call's batches this process's devices take, int [S·D·B / processes]."""
    devices = distributed.all_devices()
    here = [index for index, device in enumerate(devices) if device in jax.local_devices()]
    batches = config.steps_per_call * config.discriminator_steps
    rows = np.arange(batches * config.batch_size).reshape(batches, len(devices), -1)
    return rows[:, here].reshape(-1)


def create_train_step(
    config: ml_collections.ConfigDict,
    devices: list[jax.Device] | None = None,
    pictures: tuple[np.ndarray, np.ndarray] | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Builds `train_step(state, images, labels) -> (state, metrics)`.

    One call runs `steps_per_call` steps (S), each with `discriminator_steps` (D) batches of
    `batch_size` (B) real images.

    Args:
      config: see configuration/defaults.py.
      devices: the devices to run on; by default all, of all processes.
      pictures: a whole data set, images uint8 [N, H, W, 3] and labels int32 [N], of which every
        device then keeps a copy; batches are gathered there.

    Returns:
      A function of the state, which is donated; images uint8 [S·D·B, H, W, 3] and labels
      int32 [S·D·B] on the host. With `pictures` it is `train_step(state, rows)` instead, where
      int32 [S·D·B] says which of them. One of several processes gives its `local_rows` of each
      alone. The metrics are float32 [S], one value a step: both
      losses, the mean logit on real and on fake images, the norms of both gradients, the largest
      σ of each network and every gamma.

    Raises:
      UserError: for a number out of its range, see configuration/checks.py; if the batch does not
        divide by the devices and by `gradient_accumulation`; for an unknown loss; or for a
        `mismatch_weight` without a projection or classes.
    """
    checks.check(config)
    devices = devices or distributed.all_devices()
    local_devices = [device for device in devices if device.process_index == jax.process_index()]
    divisor = len(devices) * config.gradient_accumulation
    if config.batch_size % divisor:
        parts = f'the {len(devices)} devices'
        if config.gradient_accumulation > 1:
            parts += f' times gradient_accumulation={config.gradient_accumulation}'
        raise UserError(
            f'batch_size={config.batch_size} does not divide by {parts}: '
            f'take a multiple of {divisor}.'
        )
    local_batch = config.batch_size // len(devices)
    loss = losses.get(config.loss)
    mismatch_weight, num_classes = config.mismatch_weight, config.dataset.num_classes
    if mismatch_weight and (config.model.conditioning != 'projection' or num_classes < 2):
        raise UserError(
            f'mismatch_weight={mismatch_weight} needs --config.model.conditioning=projection and '
            'two classes or more: set it to 0.'
        )
    generator_optimizer, discriminator_optimizer = create_optimizers(config)
    cross_replica = config.batch_norm.cross_replica
    generator, discriminator = models.create(config, AXIS if cross_replica else None)
    auxiliary, auxiliary_weight = config.model.conditioning == 'acgan', config.model.acgan_weight
    normalise = partial(spectral_norm.normalise, epsilon=config.spectral_norm.epsilon)

    def rows(array):
        """This device's rows of something drawn for the global batch."""
        return lax.dynamic_slice_in_dim(array, lax.axis_index(AXIS) * local_batch, local_batch)

    def noise(stream, step, restarts):
        """This device's z float32 [b, z_dim] and labels int32 [b]."""
        z, labels = draw_noise(config, stream, step, restarts)
        return rows(z), rows(labels)

    def real_images(images, update):
        """uint8 → float32 in [-1, 1], half of them mirrored if the configuration says so."""
        images = images.astype(jnp.float32) * (2 / 255) - 1
        if not config.dataset.flip:
            return images
        key = stream_key(config.seed, Stream.AUGMENTATION, update)
        mirrored = rows(jax.random.bernoulli(key, shape=(config.batch_size,)))
        return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)

    def with_wrong_labels(labels, update):
        """labels int32 [b] → [b, 2]: each image's own, and one of the other classes, uniformly."""
        key = stream_key(config.seed, Stream.WRONG_LABELS, update)
        ahead = rows(jax.random.randint(key, (config.batch_size,), 1, num_classes))
        return jnp.stack([labels, (labels + ahead) % num_classes], 1)

    def shared(batch_stats):
        """Each device's own moments would leave the replicas with different running averages."""
        return batch_stats if cross_replica else lax.pmean(batch_stats, AXIS)

    def generate(weights, batch_stats, z, labels):
        images, stats = generator.apply(
            {'params': weights, 'batch_stats': batch_stats}, z, labels, train=True
        )
        return images, shared(stats['batch_stats'])

    def discriminate(weights, batch_stats, images, labels):
        """Logits [b], class logits (None but for AC-GAN) and the next batch statistics."""
        variables = {'params': weights, 'batch_stats': batch_stats}
        outputs, stats = discriminator.apply(variables, images, labels, train=True)
        logits, class_logits = outputs if auxiliary else (outputs, None)
        return logits, class_logits, shared(stats['batch_stats'])

    def judge(weights, batch_stats, reals, fakes):
        """`discriminate` for (images, labels) of real and of fake images: a pair of each result.

        In one pass, but where batch moments would mix the two.
        """
        if batch_stats:
            real_logits, real_classes, batch_stats = discriminate(weights, batch_stats, *reals)
            fake_logits, fake_classes, batch_stats = discriminate(weights, batch_stats, *fakes)
            return (real_logits, fake_logits), (real_classes, fake_classes), batch_stats
        if mismatch_weight:  # reals have two labels each, and so must fakes
            fakes = fakes[0], jnp.stack([fakes[1], fakes[1]], 1)
        both = jax.tree.map(lambda *halves: jnp.concatenate(halves), reals, fakes)
        logits, class_logits, _ = discriminate(weights, batch_stats, *both)
        classes = jnp.split(class_logits, 2) if auxiliary else (None, None)
        return jnp.split(logits, 2), classes, batch_stats

    def classify(half, class_logits, labels):
        """AC-GAN's weighted loss and its classifier's accuracy; nothing without one."""
        if not auxiliary:
            return 0.0, {}
        loss = auxiliary_weight * losses.classification(class_logits, labels)
        return loss, {f'{half}_accuracy': (class_logits.argmax(-1) == labels).mean()}

    # XLA runs a convolution inside a loop on one CPU thread, some twenty times slower.
    scan = _unrolled_scan if devices[0].platform == 'cpu' else lax.scan

    def accumulate(gradients, stats, batch):
        """`gradients(stats, part)` of each part of this device's batch in turn.

        Returns the last batch statistics and the means of everything else.
        """
        count = config.gradient_accumulation
        if count == 1:
            return gradients(stats, batch)

        def add(carry, part):
            stats, sums = carry
            stats, found = gradients(stats, part)
            return (stats, jax.tree.map(jnp.add, sums, found)), None

        parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradients, stats, first)[1]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (stats, sums), _ = scan(add, (stats, zeros), parts)
        return stats, jax.tree.map(lambda x: x / count, sums)

    # Parameters are normalised once for each of their updates, and the gradient with respect to
    # the weights is pulled back through that normalisation.
    def normalise_once(variables):
        return jax.vjp(
            lambda params: normalise(params, variables['spectral_stats']),
            variables['params'],
            has_aux=True,
        )

    # ---- The discriminator's update: real and fake images in one pass, u advances once. --------
    def update_discriminator(carry, batch):
        variables, opt_state, batch_stats, generator_weights, restarts = carry
        update, images, labels = batch
        weights, pull_back, spectral_stats = normalise_once(variables)
        if mismatch_weight:
            labels = with_wrong_labels(labels, update)

        def gradients(stats, batch):
            batch_stats, d_batch_stats = stats
            images, labels, z, fake_labels = batch
            fakes, batch_stats = generate(generator_weights, batch_stats, z, fake_labels)

            def loss_fn(weights):
                logits, class_logits, new_stats = judge(
                    weights, d_batch_stats, (images, labels), (fakes, fake_labels)
                )
                real_logits, fake_logits = logits
                metrics = {}
                if mismatch_weight:
                    (real_logits, wrong_logits), fake_logits = real_logits.T, fake_logits[:, 0]
                    metrics['mismatch_logit'] = wrong_logits.mean()
                value = loss.discriminator(real_logits, fake_logits)
                if mismatch_weight:
                    value += mismatch_weight * loss.rejection(wrong_logits)
                metrics |= {'real_logit': real_logits.mean(), 'fake_logit': fake_logits.mean()}
                for half, *pair in zip(
                    ('real', 'fake'), class_logits, (labels, fake_labels), strict=True
                ):
                    extra, accuracy = classify(half, *pair)
                    value, metrics = value + extra, metrics | accuracy
                return value, (new_stats, metrics | {'discriminator_loss': value})

            grads, (d_batch_stats, metrics) = jax.grad(loss_fn, has_aux=True)(weights)
            return (batch_stats, d_batch_stats), (metrics, grads)

        (batch_stats, d_batch_stats), means = accumulate(
            gradients,
            (batch_stats, variables['batch_stats']),
            (
                real_images(images, update),
                labels,
                *noise(Stream.DISCRIMINATOR_NOISE, update, restarts),
            ),
        )
        metrics, weight_grads = lax.pmean(means, AXIS)
        (grads,) = pull_back(weight_grads)
        params, opt_state = _apply_updates(
            discriminator_optimizer,
            grads,
            opt_state,
            variables['params'],
            _decay(config, update // config.discriminator_steps),
        )
        metrics |= {'discriminator_grad_norm': optax.tree.norm(grads)}
        variables = {
            'params': params,
            'batch_stats': d_batch_stats,
            'spectral_stats': spectral_stats,
        }
        return (variables, opt_state, batch_stats, generator_weights, restarts), metrics

    # ---- One step: discriminator_steps updates of D, then one of G. ----------------------------
    def step(state, images, labels):  # [D, b, H, W, 3], [D, b]
        generator_weights, pull_back, generator_spectral_stats = normalise_once(state.generator)

        updates = state.step * config.discriminator_steps + jnp.arange(config.discriminator_steps)
        (d_variables, d_opt, batch_stats, *_), d_metrics = scan(
            update_discriminator,
            (
                state.discriminator,
                state.discriminator_opt,
                state.generator['batch_stats'],
                generator_weights,
                state.restarts,
            ),
            (updates, images, labels),
        )

        d_weights, _ = normalise(d_variables['params'], d_variables['spectral_stats'])

        def gradients(batch_stats, batch):
            def loss_fn(weights):
                fakes, new_stats = generate(weights, batch_stats, *batch)
                logits, class_logits, _ = discriminate(
                    d_weights, d_variables['batch_stats'], fakes, batch[1]
                )
                return loss.generator(logits) + classify('fake', class_logits, batch[1])[
                    0
                ], new_stats

            (value, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(
                generator_weights
            )
            return batch_stats, (value, grads)

        batch_stats, means = accumulate(
            gradients, batch_stats, noise(Stream.GENERATOR_NOISE, state.step, state.restarts)
        )
        value, weight_grads = lax.pmean(means, AXIS)
        (grads,) = pull_back(weight_grads)
        params, g_opt = _apply_updates(
            generator_optimizer,
            grads,
            state.generator_opt,
            state.generator['params'],
            _decay(config, state.step),
        )

        decay = jnp.where(state.step < config.ema.start_step, 0.0, config.ema.decay)
        new_state = TrainState(
            step=state.step + 1,
            generator={
                'params': params,
                'batch_stats': batch_stats,
                'spectral_stats': generator_spectral_stats,
            },
            discriminator=d_variables,
            generator_opt=g_opt,
            discriminator_opt=d_opt,
            ema_params=optax.incremental_update(params, state.ema_params, 1 - decay),
            restarts=state.restarts,
        )
        metrics = jax.tree.map(jnp.mean, d_metrics) | {
            'generator_loss': value,
            'generator_grad_norm': optax.tree.norm(grads),
            'generator_sigma': spectral_norm.largest_sigma(generator_spectral_stats),
            'discriminator_sigma': spectral_norm.largest_sigma(d_variables['spectral_stats']),
            **_gammas('generator', params),
            **_gammas('discriminator', d_variables['params']),
        }
        return new_state, metrics

    # ---- One call: steps_per_call steps, replicated. -------------------------------------------
    def call(state, batch, pictures):
        def gather(state, batch):
            if pictures is not None:
                batch = jax.tree.map(lambda array: array[batch], pictures)
            return step(state, *batch)

        return scan(gather, state, batch)

    run = jax.pmap(
        call,
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=(None, None),
        devices=devices,
        donate_argnums=0,
    )
    leading = (config.steps_per_call, config.discriminator_steps, len(local_devices), local_batch)

    def shard(array):  # [S·D·devices·b, …] → [devices, S, D, b, …], of this process
        return np.moveaxis(array.reshape(*leading, *array.shape[1:]), 2, 0)

    if pictures is not None:
        pictures = replicate(pictures, local_devices)
        return lambda state, rows: run(state, shard(rows), pictures)
    return lambda state, images, labels: run(state, (shard(images), shard(labels)), None)


def _decay(config: ml_collections.ConfigDict, step: jax.Array) -> jax.Array | None:
    """What both rates are multiplied by in the step after `step`, float32 []; None for 1."""
    start = config.optimizer.decay_from
    if start == 1:
        return None
    return jnp.minimum(1.0, (1 - step / config.num_train_steps) / (1 - start))


def _apply_updates(optimizer, grads, opt_state, params, decay):
    updates, opt_state = optimizer.update(grads, opt_state, params)
    if decay is not None:
        updates = optax.tree.scale(decay, updates)
    return optax.apply_updates(params, updates), opt_state


def _gammas(network: str, params) -> Metrics:
    """`{'generator_gamma32': …}`: how far each attention block has opened."""
    return {
        f'{network}_gamma{path[0].removeprefix("attention")}': value
        for path, value in traverse_util.flatten_dict(params).items()
        if path[-1] == 'gamma'
    }


def _unrolled_scan(function, carry, batches):
    """`lax.scan` without a loop in the compiled program."""
    outputs = []
    for i in range(jax.tree.leaves(batches)[0].shape[0]):
        carry, output = function(carry, jax.tree.map(lambda leaf, i=i: leaf[i], batches))
        outputs.append(output)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)

"""A trained generator, frozen, and the images it draws."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sagan_jax import models, spectral_norm
from sagan_jax.models import Variables
from sagan_jax.streams import Stream, draw_noise, stream_key


def create_freeze(config: ml_collections.ConfigDict) -> Callable[[Variables], Variables]:
    """Builds `freeze(variables) -> frozen`, which fixes a generator for good.

    σ is iterated to convergence and folded into the weights. Batch statistics are the running
    averages, or, with `batch_norm.standing_batches`, the mean moments of so many fresh batches
    (BigGAN's standing statistics): averaged parameters need their own.

    `variables` is a generator's, see `models.Network`; the averaged generator is
    `variables | {'params': ema_params}`. `frozen` holds 'params', which are weights now, and
    'batch_stats'.
    """
    # With a decay of 0 the running averages after a pass are the moments of that one batch.
    moments_config = config.copy_and_resolve_references()
    moments_config.batch_norm.decay = moments_config.batch_norm.last_decay = 0.0
    moments_generator, _ = models.create(moments_config)
    batches = config.batch_norm.standing_batches

    @jax.jit
    def fold(params, spectral_stats):
        epsilon = config.spectral_norm.epsilon
        converged = spectral_norm.converge(params, spectral_stats, epsilon)
        return spectral_norm.normalise(params, converged, epsilon)[0]

    @jax.jit
    def moments(weights, batch_stats, index):
        z, labels = draw_noise(config, Stream.STANDING_STATISTICS, index)
        _, stats = moments_generator.apply(
            {'params': weights, 'batch_stats': batch_stats}, z, labels, train=True
        )
        return stats['batch_stats']

    def freeze(variables):
        weights = fold(variables['params'], variables['spectral_stats'])
        batch_stats = variables['batch_stats']
        if batches:
            all_moments = [moments(weights, batch_stats, index) for index in range(batches)]
            batch_stats = jax.tree.map(lambda *leaves: sum(leaves) / batches, *all_moments)
        return {'params': weights, 'batch_stats': batch_stats}

    return freeze


def create_sampler(
    config: ml_collections.ConfigDict,
) -> Callable[[Variables, jax.Array, jax.Array], np.ndarray]:
    """Builds `sample(frozen, z, labels) -> images`.

    `frozen` comes from `create_freeze`, z is float32 [N, z_dim], labels are int32 [N]; the images
    are uint8 [N, S, S, 3], rounded to the nearest.
    """
    generator, _ = models.create(config)

    @jax.jit
    def sample(frozen, z, labels):
        return levels(generator.apply(frozen, z, labels, train=False)[0])

    return lambda frozen, z, labels: np.asarray(sample(frozen, z, labels))


def create_draw(
    config: ml_collections.ConfigDict,
) -> Callable[[Variables, jax.Array], jax.Array]:
    """Builds `draw(frozen, asked) -> images`, a pure function for use within larger programs.

    `asked` int32 [n, 2] holds a number and a label for each image: image i of a run is a function
    of its seed, of i and of the label alone. The images are [n, S, S, 3] from 0 to 255, uint8 or,
    without `evaluation.round_to_uint8`, the generator's floats.
    """
    generator, _ = models.create(config)

    def draw(frozen, asked):
        keys = jax.vmap(lambda i: stream_key(config.seed, Stream.EVALUATION_NOISE, i))(asked[:, 0])
        z = jax.vmap(lambda key: jax.random.normal(key, (config.model.z_dim,)))(keys)
        images, _ = generator.apply(frozen, z, asked[:, 1], train=False)
        return levels(images) if config.evaluation.round_to_uint8 else (images + 1) * 127.5

    return draw


def levels(images: jax.Array) -> jax.Array:
    """Images in [-1, 1] as uint8, rounded to the nearest."""
    return jnp.round((images + 1) * 127.5).astype(jnp.uint8)


def fixed_noise(config: ml_collections.ConfigDict, labels: np.ndarray) -> jax.Array:
    """The noise of a run's sample grids, float32 [N, z_dim]: the same at every step."""
    key = stream_key(config.seed, Stream.SAMPLING)
    return jax.random.normal(key, (len(labels), config.model.z_dim))


def grid_labels(config: ml_collections.ConfigDict, rows: int, columns: int) -> np.ndarray:
    """Labels of a sample grid, int32 [rows · columns]: a row a class.

    Of more than `rows` classes, `rows` are taken that lie evenly among them.
    """
    classes = max(config.dataset.num_classes, 1)
    chosen = np.linspace(0, classes - 1, min(rows, classes)).round().astype(np.int32)
    return np.repeat(chosen, columns)

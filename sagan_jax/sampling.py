"""A trained generator, frozen, and the images it draws."""

import difflib
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util

from sagan_jax import models, spectral_norm
from sagan_jax.errors import UserError
from sagan_jax.models import Variables
from sagan_jax.streams import Stream, draw_noise, stream_key

GRID_ROWS, GRID_COLUMNS = 10, 10  # of a run's sample grids: a row a class


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
    z_dim = config.model.z_dim

    def draw(frozen, asked):
        z = numbered_noise(config.seed, Stream.EVALUATION_NOISE, asked[:, 0], z_dim)
        images, _ = generator.apply(frozen, z, asked[:, 1], train=False)
        return levels(images) if config.evaluation.round_to_uint8 else (images + 1) * 127.5

    return draw


@partial(jax.jit, static_argnames=('stream', 'z_dim'))
def numbered_noise(
    seed: int | jax.Array,
    stream: Stream,
    numbers: jax.Array,
    z_dim: int,
    truncation: float | jax.Array | None = None,
) -> jax.Array:
    """z of images that have numbers: float32 [n, z_dim], each a function of its own number alone.

    Args:
      seed, stream: see `streams`.
      numbers: int32 [n].
      z_dim: numbers in each z.
      truncation: a threshold t: standard normal numbers beyond ±t are drawn again until they are
        within (the truncation trick of BigGAN, Brock et al. 2019, section 3.1), and none is
        rescaled. None for all of the normal distribution.
    """

    def z(number):
        key = stream_key(seed, stream, number)
        if truncation is None:
            return jax.random.normal(key, (z_dim,))
        return jax.random.truncated_normal(key, -truncation, truncation, (z_dim,))

    return jax.vmap(z)(numbers)


def great_circles(start: np.ndarray, end: np.ndarray, steps: int) -> np.ndarray:
    """Ways from each z to another: float32 [n, z_dim] twice → [n, steps, z_dim].

    Along the great circle between them (White 2016, 'Sampling Generative Networks'), since on the
    straight line z becomes shorter than any that a generator is trained on.
    """
    cosine = (start * end).sum(1) / np.linalg.norm(start, axis=1) / np.linalg.norm(end, axis=1)
    angle = np.arccos(np.clip(cosine, -1, 1))[:, None, None]  # [n, 1, 1]
    t = np.linspace(0, 1, steps)[:, None]  # [steps, 1]
    path = np.sin((1 - t) * angle) * start[:, None] + np.sin(t * angle) * end[:, None]
    return (path / np.sin(angle)).astype(np.float32)


def mix_classes(
    config: ml_collections.ConfigDict, frozen: Variables, mixtures: np.ndarray
) -> tuple[models.Network, Variables]:
    """A generator, and what it is frozen to, whose classes are mixtures of the given one's.

    `mixtures` is float32 [k, classes], the share of each class in each new one. The gains and
    biases of conditional batch norm are mixed linearly (Dumoulin et al. 2017).
    """
    flat = traverse_util.flatten_dict(frozen['params'])
    for path, table in flat.items():
        if path[-1] in ('scale', 'bias') and table.ndim == 2:  # [classes, C]
            flat[path] = mixtures @ table
    mixed_config = config.copy_and_resolve_references()
    mixed_config.dataset.num_classes = len(mixtures)
    generator, _ = models.create(mixed_config)
    return generator, frozen | {'params': traverse_util.unflatten_dict(flat)}


def levels(images: jax.Array) -> jax.Array:
    """Images in [-1, 1] as uint8, rounded to the nearest."""
    return jnp.round((images + 1) * 127.5).astype(jnp.uint8)


def fixed_noise(config: ml_collections.ConfigDict, labels: np.ndarray) -> jax.Array:
    """The noise of a run's sample grids, float32 [N, z_dim]: the same at every step."""
    key = stream_key(config.seed, Stream.SAMPLING)
    return jax.random.normal(key, (len(labels), config.model.z_dim))


def class_numbers(classes: Sequence[str | int], class_names: Sequence[str]) -> np.ndarray:
    """Classes by name or by number as labels, int32 [k]; a name goes before a number.

    Raises:
      UserError: for a class that does not exist, with names that are close to what was given.
    """
    found = []
    for given in map(str, classes):
        number = int(given) if given.isdecimal() else -1
        if given in class_names:
            number = class_names.index(given)
        if not 0 <= number < len(class_names):
            close = difflib.get_close_matches(given, class_names) or class_names[:1]
            raise UserError(
                f'There is no class {given!r}: give names such as {", ".join(close)} or numbers '
                f'below {len(class_names)}.'
            )
        found.append(number)
    return np.array(found, np.int32)


def grid_labels(config: ml_collections.ConfigDict, rows: int, columns: int) -> np.ndarray:
    """Labels of a sample grid, int32 [rows · columns]: a row a class.

    Of more than `rows` classes, `rows` are taken that lie evenly among them.
    """
    classes = max(config.dataset.num_classes, 1)
    chosen = np.linspace(0, classes - 1, min(rows, classes)).round().astype(np.int32)
    return np.repeat(chosen, columns)

"""A trained generator, frozen, and the images that it draws."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util

from sagan_jax import models, spectral_norm
from sagan_jax.errors import UserError
from sagan_jax.models import Network, Variables
from sagan_jax.streams import Stream, draw_noise, stream_key
from sagan_jax.system.streaming import on_devices

GRID_ROWS, GRID_COLUMNS = 10, 10  # of a run's sample grids, at most

# ---- A frozen generator. -----------------------------------------------------------------------


def create_freeze(config: ml_collections.ConfigDict) -> Callable[[Variables], Variables]:
    """Builds `freeze(variables) -> frozen`, which fixes a generator permanently.

    σ is iterated to convergence and folded into the weights. Batch statistics are the running
    averages, or, with `batch_norm.standing_batches`, the mean moments of that many fresh batches
    (BigGAN's standing statistics): averaged parameters need their own.

    `variables` is a generator's, see `models.Network`, or the averaged one's, see
    `TrainState.averaged`. `frozen` are weights for `Network.apply`.
    """
    epsilon, batches = config.spectral_norm.epsilon, config.batch_norm.standing_batches
    # Its running averages after a pass are the moments of that batch.
    generator = models.create_generator(config, momentum=0.0)

    @jax.jit
    def fold(params, spectral_stats):
        converged = spectral_norm.converge(params, spectral_stats, epsilon)
        return spectral_norm.normalise(params, converged, epsilon)[0]

    @jax.jit
    def moments(weights, batch_stats, index):
        z, labels = draw_noise(config, Stream.STANDING_STATISTICS, index)
        frozen = {'params': weights, 'batch_stats': batch_stats}
        return generator.apply(frozen, z, labels, train=True)[1]

    def freeze(variables):
        weights = fold(variables['params'], variables['spectral_stats'])
        batch_stats = variables['batch_stats']
        if batches:
            all_moments = [moments(weights, batch_stats, index) for index in range(batches)]
            batch_stats = jax.tree.map(lambda *leaves: sum(leaves) / batches, *all_moments)
        return {'params': weights, 'batch_stats': batch_stats}

    return freeze


def mix_classes(
    config: ml_collections.ConfigDict, frozen: Variables, mixtures: np.ndarray
) -> tuple[Network, Variables]:
    """A generator whose classes are mixtures of those of a frozen one, and its frozen weights.

    `mixtures` is float32 [k, classes], the share of each class in each new one. The gains and
    biases of conditional batch norm are mixed linearly (Dumoulin et al. 2017).
    """
    flat = traverse_util.flatten_dict(frozen['params'])
    for path, table in flat.items():
        if path[-1] in ('scale', 'bias') and table.ndim == 2:  # [classes, C]
            flat[path] = mixtures @ table
    generator = models.create_generator(config, num_classes=len(mixtures))
    return generator, frozen | {'params': traverse_util.unflatten_dict(flat)}


# ---- Noise. ------------------------------------------------------------------------------------


class Randomness(NamedTuple):
    """What an image depends on beside its number and its class, see `indexed_noise`."""

    seed: int | np.uint32
    truncation: np.float32 | None = None


@partial(jax.jit, static_argnames=('stream', 'z_dim'))
def indexed_noise(
    seed: int | jax.Array,
    stream: Stream,
    indices: jax.Array,
    z_dim: int,
    truncation: float | jax.Array | None = None,
) -> jax.Array:
    """z of images that have indices: float32 [n, z_dim], each a function of its own number alone.

    Args:
      seed: see `streams`.
      stream: `EVALUATION_NOISE` for images that are scored, `SAMPLE_NOISE` for all others.
      indices: int32 [n].
      z_dim: length of each z.
      truncation: a threshold t: standard normal numbers beyond ±t are drawn again until they are
        within (the truncation trick of BigGAN, Brock et al. 2019, section 3.1), and none is
        rescaled. None for all of the normal distribution.
    """

    def z(index):
        key = stream_key(seed, stream, index)
        if truncation is None:
            return jax.random.normal(key, (z_dim,))
        return jax.random.truncated_normal(key, -truncation, truncation, (z_dim,))

    return jax.vmap(z)(indices)


def slerp(start: np.ndarray, end: np.ndarray, steps: int) -> np.ndarray:
    """Paths from each z to another: float32 [n, z_dim] twice → [n, steps, z_dim].

    Along the great circle between them (White 2016, 'Sampling Generative Networks'), since on the
    straight line z becomes shorter than any that a generator is trained on.
    """
    cosine = (start * end).sum(1) / np.linalg.norm(start, axis=1) / np.linalg.norm(end, axis=1)
    angle = np.arccos(np.clip(cosine, -1, 1))[:, None, None]  # [n, 1, 1]
    t = np.linspace(0, 1, steps)[:, None]  # [steps, 1]
    path = np.sin((1 - t) * angle) * start[:, None] + np.sin(t * angle) * end[:, None]
    return (path / np.sin(angle)).astype(np.float32)


# ---- Images. -----------------------------------------------------------------------------------

Sample = Callable[[Variables, np.ndarray, np.ndarray, Randomness], Iterator[np.ndarray]]


def create_sample(generator: Network, z_dim: int, batch_size: int) -> Sample:
    """Builds `sample(frozen, indices, labels, randomness) -> images`, on all local devices.

    `frozen` comes from `create_freeze`, indices and labels are integers [n]. The images come
    batch by batch, `batch_size` at a time: uint8 [b, S, S, 3], rounded to the nearest. Image i is
    a function of the randomness, of i and of its label alone, up to rounding.
    """

    def draw(variables, rows):
        (frozen, randomness), (indices, labels) = variables, rows
        seed, truncation = randomness
        z = indexed_noise(seed, Stream.SAMPLE_NOISE, indices, z_dim, truncation)
        return to_uint8(generator.apply(frozen, z, labels, train=False)[0])

    def sample(frozen, indices, labels, randomness):
        rows = np.asarray(indices, np.int32), np.asarray(labels, np.int32)
        return by_rows(draw, batch_size, (frozen, randomness), *rows)

    return sample


def sample_rows(
    sample: Sample, frozen: Variables, classes: np.ndarray, columns: int, seed: int
) -> np.ndarray:
    """Images of a seed in rows, one class per row: uint8 [rows · columns, S, S, 3].

    They are images 0 … n - 1, whose classes are taken in turn: column c of row r shows image
    c · rows + r.

    Args:
      sample: see `create_sample`.
      frozen: see `create_freeze`.
      classes: the label of each row, integers [rows].
      columns: images of each class.
      seed: from 0 to 2³² - 1.
    """
    labels = np.tile(classes, columns)
    images = sample(frozen, np.arange(len(labels)), labels, Randomness(np.uint32(seed)))
    return in_rows(np.concatenate(list(images)), len(classes))


def in_rows(images: np.ndarray, rows: int) -> np.ndarray:
    """Images whose classes are taken in turn, one class per row: [c · rows, …] → [rows · c, …]."""
    columns = len(images) // rows
    return images.reshape(columns, rows, *images.shape[1:]).swapaxes(0, 1).reshape(images.shape)


def create_draw(
    generator: Network, seed: int, z_dim: int, round_to_uint8: bool
) -> Callable[[Variables, jax.Array], jax.Array]:
    """Builds `draw(frozen, asked) -> images`, a pure function that draws images to be scored.

    `asked` int32 [n, 2] holds a number and a label for each image: image i of a run is a function
    of its seed, of i and of the label alone. The images are [n, S, S, 3] from 0 to 255, uint8 or,
    without `round_to_uint8`, the generator's floats.
    """

    def draw(frozen, asked):
        z = indexed_noise(seed, Stream.EVALUATION_NOISE, asked[:, 0], z_dim)
        images, _ = generator.apply(frozen, z, asked[:, 1], train=False)
        return to_uint8(images) if round_to_uint8 else (images + 1) * 127.5

    return draw


def by_rows(
    program: Callable[[Any, Any], jax.Array], batch_size: int, variables: Any, *rows: np.ndarray
) -> Iterator[np.ndarray]:
    """`program(variables, rows)` on all local devices, batch by batch, see `on_devices`."""
    return on_devices(program, min(batch_size, len(rows[0])))(variables, [rows])


def to_uint8(images: jax.Array | np.ndarray) -> jax.Array:
    """Images in [-1, 1] as uint8, rounded to the nearest."""
    return jnp.round((images + 1) * 127.5).astype(jnp.uint8)


# ---- Classes. ----------------------------------------------------------------------------------


def class_indices(classes: Sequence[str | int], class_names: Sequence[str]) -> np.ndarray:
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
                f'There is no class {given!r}: give names such as {", ".join(close)} or indices '
                f'below {len(class_names)}.'
            )
        found.append(number)
    return np.array(found, np.int32)


def grid_classes(num_classes: int, rows: int = GRID_ROWS) -> np.ndarray:
    """The labels of the rows of a sample grid, int32 [at most `rows`].

    All classes, or `rows` of them that lie evenly among all.
    """
    classes = max(num_classes, 1)
    return np.linspace(0, classes - 1, min(rows, classes)).round().astype(np.int32)

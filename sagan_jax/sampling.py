"""Freezes a trained generator and draws its images."""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util
from jax.typing import ArrayLike

from sagan_jax import models, spectral_norm
from sagan_jax.errors import UserError
from sagan_jax.models import Network, Variables
from sagan_jax.streams import Stream, draw_noise, stream_key
from sagan_jax.system.names import canonical
from sagan_jax.system.streaming import on_devices

GRID_ROWS, GRID_COLUMNS = 10, 10  # of a run's sample grids; fewer rows for fewer classes

# ---- A frozen generator. -----------------------------------------------------------------------


def create_freeze(config: ml_collections.ConfigDict) -> Callable[[Variables], Variables]:
    """Builds `freeze(variables) -> frozen`, which makes a generator ready for evaluation.

    It iterates σ to convergence and divides the weights by it. Batch statistics stay the running
    averages. If `batch_norm.standing_batches` is n > 0, they become the mean moments of n new
    batches (the standing statistics of BigGAN), because averaged parameters need their own.

    `variables` are those of a generator, see `models.Network`, or of the averaged generator, see
    `TrainState.averaged`. `frozen` are weights for `Network.apply`.
    """
    epsilon, batches = config.spectral_norm.epsilon, config.batch_norm.standing_batches
    # With momentum 0, the running averages after a pass are the moments of that batch.
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
            # On the host, where nothing is compiled for it.
            batch_stats = jax.tree.map(
                lambda *leaves: sum(leaves) / batches, *jax.device_get(all_moments)
            )
        return {'params': weights, 'batch_stats': batch_stats}

    return freeze


def mix_classes(
    config: ml_collections.ConfigDict, frozen: Variables, mixtures: np.ndarray
) -> tuple[Network, Variables]:
    """Creates a generator of k classes, each a mixture of the classes of a frozen generator.

    The gains and biases of conditional batch norm are mixed linearly (Dumoulin et al. 2017).

    Args:
      config: of the frozen generator.
      frozen: see `create_freeze`.
      mixtures: float32 [k, classes], the share of each class in each mixture.

    Returns:
      The generator and its frozen weights.
    """
    flat = traverse_util.flatten_dict(frozen['params'])
    for path, table in flat.items():
        if path[-1] in ('scale', 'bias') and table.ndim == 2:  # [classes, C]
            flat[path] = mixtures @ table
    generator = models.create_generator(config, num_classes=len(mixtures))
    return generator, frozen | {'params': traverse_util.unflatten_dict(flat)}


# ---- Noise. ------------------------------------------------------------------------------------


class Randomness(NamedTuple):
    """What an image depends on besides its index and its class. See `indexed_noise`."""

    seed: int | np.uint32
    truncation: np.float32 | None = None


@partial(jax.jit, static_argnames=('stream', 'z_dim'))
def indexed_noise(
    seed: ArrayLike,
    stream: Stream,
    indices: ArrayLike,
    z_dim: int,
    truncation: jax.Array | np.floating | float | None = None,
) -> jax.Array:
    """Draws z float32 [n, z_dim] for images by index. Each z depends on its own index only.

    Args:
      seed: see `streams`.
      stream: `EVALUATION_NOISE` for images that are scored, `SAMPLE_NOISE` for all others.
      indices: int32 [n].
      z_dim: length of each z.
      truncation: a threshold t. Entries of z beyond ±t are resampled until they are within, and
        not rescaled (the truncation trick of BigGAN, Brock et al. 2019, section 3.1). None for no
        threshold.
    """

    def z(index):
        key = stream_key(seed, stream, index)
        if truncation is None:
            return jax.random.normal(key, (z_dim,))
        return jax.random.truncated_normal(key, -truncation, truncation, (z_dim,))

    return jax.vmap(z)(indices)


def slerp(start: np.ndarray, end: np.ndarray, steps: int) -> np.ndarray:
    """Interpolates spherically between pairs of z: float32 [n, z_dim] twice → [n, steps, z_dim].

    Each path follows the great circle (White 2016, 'Sampling Generative Networks'). On a straight
    line, z would become shorter than any z of the training.
    """
    cosine = (start * end).sum(1) / np.linalg.norm(start, axis=1) / np.linalg.norm(end, axis=1)
    angle = np.arccos(np.clip(cosine, -1, 1))[:, None, None]  # [n, 1, 1]
    t = np.linspace(0, 1, steps)[:, None]  # [steps, 1]
    path = np.sin((1 - t) * angle) * start[:, None] + np.sin(t * angle) * end[:, None]
    return (path / np.sin(angle)).astype(np.float32)


# ---- Images. -----------------------------------------------------------------------------------

Sample = Callable[[Variables, np.ndarray, np.ndarray, Randomness], Iterator[np.ndarray]]


def create_sample(generator: Network, z_dim: int, batch_size: int) -> Sample:
    """Builds `sample(frozen, indices, labels, randomness)`, which runs on all local devices.

    `frozen` comes from `create_freeze`; indices and labels are integers [n]. `sample` yields
    batches uint8 [b, S, S, 3]. b is `batch_size` for each device, or less in the last batch. Up to
    rounding, an image depends only on the randomness, its index and its label.
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
    """Draws the images 0 … n - 1 of a seed in rows, one class per row.

    Column c of row r shows image c · rows + r.

    Args:
      sample: see `create_sample`.
      frozen: see `create_freeze`.
      classes: the label of each row, integers [rows].
      columns: images per class.
      seed: from 0 to 2³² - 1.

    Returns:
      uint8 [rows · columns, S, S, 3], row by row.
    """
    labels = np.tile(classes, columns)
    images = sample(frozen, np.arange(len(labels)), labels, Randomness(np.uint32(seed)))
    return in_rows(np.concatenate(list(images)), len(classes))


def in_rows(images: np.ndarray, rows: int) -> np.ndarray:
    """Reorders images [c · rows, …], whose classes cycle, to one class per row: [rows · c, …]."""
    columns = len(images) // rows
    return images.reshape(columns, rows, *images.shape[1:]).swapaxes(0, 1).reshape(images.shape)


def create_draw(
    generator: Network, seed: int, z_dim: int, round_to_uint8: bool
) -> Callable[[Variables, jax.Array], jax.Array]:
    """Builds `draw(frozen, rows) -> images`, a pure function that draws images for the scores.

    `rows` int32 [n, 2] holds an index and a label for each image, and an image depends only on
    these two and on the seed. The images are [n, S, S, 3] from 0 to 255, as uint8 if
    `round_to_uint8` holds and otherwise as float32.
    """

    def draw(frozen, rows):
        z = indexed_noise(seed, Stream.EVALUATION_NOISE, rows[:, 0], z_dim)
        images, _ = generator.apply(frozen, z, rows[:, 1], train=False)
        return to_uint8(images) if round_to_uint8 else (images + 1) * 127.5

    return draw


def by_rows(
    program: Callable[[Any, Any], jax.Array], batch_size: int, variables: Any, *rows: np.ndarray
) -> Iterator[np.ndarray]:
    """Runs `program(variables, rows)` on all local devices, batch by batch, see `on_devices`."""
    return on_devices(program, batch_size, total=len(rows[0]))(variables, [rows])


def to_uint8(images: ArrayLike) -> jax.Array:
    """Images in [-1, 1] as uint8, rounded to nearest."""
    return jnp.round((images + 1) * 127.5).astype(jnp.uint8)


# ---- Classes. ----------------------------------------------------------------------------------


def class_indices(classes: Sequence[str | int], class_names: Sequence[str]) -> np.ndarray:
    """The indices of classes that are given by name or by index: int32 [k].

    An integer is an index, counted from 0. A text is a name, or an index if no class has that name.
    Spaces around a name may be left out, as the command line does.

    Raises:
      UserError: if a class does not exist. The message suggests similar names.
    """
    names = [canonical(name) for name in class_names]
    stripped = [name.strip() for name in names]
    found = []
    for given in classes:
        name, index = canonical(str(given)), -1
        if not isinstance(given, str):
            index = int(given)
        elif name in names:
            index = names.index(name)
        elif name in stripped:
            index = stripped.index(name)
        elif re.fullmatch('[0-9]{1,9}', given):
            index = int(given)
        if not 0 <= index < len(class_names):
            close = difflib.get_close_matches(name[:100], class_names) or class_names[:1]
            close = [f'"{name}"' if ',' in name else name for name in close]
            raise UserError(
                f'There is no class {str(given)[:100]!r}: give names such as {", ".join(close)} or '
                f'indices below {len(class_names)}.'
            )
        found.append(index)
    return np.array(found, np.int32)


def grid_classes(num_classes: int, rows: int = GRID_ROWS) -> np.ndarray:
    """The labels of the rows of a sample grid, int32 [at most `rows`].

    If there are more classes than rows, the labels are evenly spaced.
    """
    classes = max(num_classes, 1)
    return np.linspace(0, classes - 1, min(rows, classes)).round().astype(np.int32)

"""The training pictures that are nearest to generated images, to see that none was memorised."""

from typing import NamedTuple

import ml_collections
import numpy as np

from sagan_jax import data
from sagan_jax.evaluation import real_statistics
from sagan_jax.system.streaming import on_devices


class Neighbours(NamedTuple):
    """What lies nearest in feature space, nearest first.

    Attributes:
      images: uint8 [n, k, S, S, 3], of the training split.
      distances: Euclidean, float32 [n, k].
      among_images: the same distance from as many training pictures to the nearest other one
        each, float32 [n]: what is normal for two pictures that are not copies.
    """

    images: np.ndarray
    distances: np.ndarray
    among_images: np.ndarray


def nearest_images(config: ml_collections.ConfigDict, images: np.ndarray, k: int) -> Neighbours:
    """The k training pictures nearest to each image, by the features that `config` scores with.

    Args:
      config: the run's; of `evaluation`, features and batch_size are read.
      images: uint8 [n, S, S, 3].
      k: neighbours for each.

    Raises:
      UserError: if the data or the features' weights cannot be had.
    """
    source = data.load(config.dataset, 'train')
    networks = real_statistics.load_networks(config, source)
    settings, features = config.evaluation, networks.features
    real, _ = real_statistics.load_features(source, networks, settings.batch_size)
    stream = on_devices(features.apply, settings.batch_size)(features.variables, [images])
    fake = np.concatenate([part[features.layer] for part in stream])

    squares = np.einsum('nd,nd->n', real, real)
    rows, distances = _nearest(real, squares, fake, k)
    nearest = [[source.examples[row]['image'] for row in some] for some in rows]
    chosen = np.random.default_rng(0).permutation(len(real))[: len(images)]
    _, among = _nearest(real, squares, real[chosen], 2)  # one of the two is the picture itself
    return Neighbours(np.array(nearest), distances, among.max(1))


def _nearest(
    real: np.ndarray, squares: np.ndarray, points: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `real` [N, d] nearest to each point [n, d], and their distances, both [n, k]."""
    # Of |r - p|² the part that depends on r, so that no copy of `real` is made.
    rows = np.stack([np.argsort(squares - 2 * real @ point)[:k] for point in points])
    return rows, np.linalg.norm(real[rows] - points[:, None], axis=-1)

"""Finds the training images nearest to generated images, to show whether any was memorised."""

import math
from typing import NamedTuple

import ml_collections
import numpy as np

from sagan_jax import data
from sagan_jax.evaluation import real_statistics

BLOCK = 500  # points whose distances to all images are in memory


class Neighbours(NamedTuple):
    """The nearest training images in feature space, nearest first.

    Attributes:
      images: uint8 [n, k, S, S, 3].
      distances: Euclidean, float32 [n, k].
      among_images: for comparison, the distance from each of n training images to the nearest
        other training image, float32 [n].
    """

    images: np.ndarray
    distances: np.ndarray
    among_images: np.ndarray


def nearest_images(
    config: ml_collections.ConfigDict, source: data.Source, images: np.ndarray, k: int
) -> Neighbours:
    """Finds the k training images nearest to each image, in the feature space of the scores.

    Args:
      config: the run's configuration.
      source: the training images, see `training_data.load`.
      images: uint8 [n, S, S, 3].
      k: neighbours of each image.

    Raises:
      UserError: if the weights of the feature network are unavailable.
    """
    networks = real_statistics.load_networks(config, source)
    batch_size = config.evaluation.batch_size
    real, _ = real_statistics.load_features(source, networks, batch_size)
    fake = real_statistics.features_of(networks.features, images, batch_size)

    rows, distances = nearest(real, fake, k)
    found = [[source.examples[row]['image'] for row in neighbours] for neighbours in rows]
    chosen = np.random.default_rng(0).permutation(len(real))[: len(images)]
    _, among = nearest(real, real[chosen], 2)  # one of the two is the image itself
    return Neighbours(np.array(found), distances, among[:, -1])


def nearest(real: np.ndarray, points: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k rows of `real` nearest to each point.

    Args:
      real: float32 [N, d].
      points: float32 [n, d].
      k: rows of each point; at most N are found.

    Returns:
      The rows, int64 [n, k], nearest first, and their Euclidean distances, float32 [n, k].
    """
    squares, k = np.einsum('nd,nd->n', real, real), min(k, len(real))
    parts = np.array_split(points, math.ceil(len(points) / BLOCK))
    # |r - p|² without |p|², which does not depend on r.
    rows = np.concatenate([
        np.argpartition(squares - 2 * part @ real.T, k - 1)[:, :k] for part in parts
    ])  # fmt: skip
    distances = np.linalg.norm(real[rows] - points[:, None], axis=-1)
    order = np.argsort(distances)
    return np.take_along_axis(rows, order, 1), np.take_along_axis(distances, order, 1)

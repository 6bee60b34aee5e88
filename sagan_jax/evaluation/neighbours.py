"""Finds the training images nearest to generated images, to show whether any was memorised."""

from typing import NamedTuple

import ml_collections
import numpy as np

from sagan_jax import data
from sagan_jax.evaluation import real_statistics


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

    squares = np.einsum('nd,nd->n', real, real)
    rows, distances = _nearest(real, squares, fake, k)
    nearest = [[source.examples[row]['image'] for row in neighbours] for neighbours in rows]
    chosen = np.random.default_rng(0).permutation(len(real))[: len(images)]
    _, among = _nearest(real, squares, real[chosen], 2)  # one of the two is the image itself
    return Neighbours(np.array(nearest), distances, among.max(1))


def _nearest(
    real: np.ndarray, squares: np.ndarray, points: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of `real` [N, d] nearest to each point [n, d], and their distances, both [n, k]."""
    # |r - p|² without |p|², which does not depend on r. Needs no copy of `real`.
    rows = np.stack([np.argsort(squares - 2 * real @ point)[:k] for point in points])
    return rows, np.linalg.norm(real[rows] - points[:, None], axis=-1)

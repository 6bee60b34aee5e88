"""Scores from nearest neighbours: precision and recall, density and coverage.

All computations are float64 on the host and in blocks. Memory grows with the number of samples, not
with the number of pairs.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from sagan_jax.metrics.inputs import feature_pair

BLOCK = 2**23  # distances at a time: 64 MiB


def precision_recall(real: ArrayLike, fake: ArrayLike, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al., 2019) of features [N, d] and [M, d].

    Precision is the share of generated samples that are at least as near to some real sample as
    that sample's k-th neighbour among the real samples. Recall is the same with both sides
    exchanged. Raises UserError if a side has fewer than k + 1 samples.
    """
    real, fake, rounding = _prepare('Precision and recall', real, fake, k)
    real_radii, fake_radii = (_radii(x, k) + rounding for x in (real, fake))
    precise, recalled = [], np.zeros(len(real), bool)
    for rows, distances in _squared_distances(fake, real):
        precise.append((distances <= real_radii).any(1))
        recalled |= (distances <= fake_radii[rows, None]).any(0)
    return float(np.concatenate(precise).mean()), float(recalled.mean())


def density_coverage(real: ArrayLike, fake: ArrayLike, k: int = 5) -> tuple[float, float]:
    """Density and coverage (Naeem et al., 2020) of features [N, d] and [M, d].

    A generated sample is in the ball of a real sample if it is nearer to it than its k-th neighbour
    among the real samples (strictly, as in the authors' code). Density is the mean number of balls
    that contain a generated sample, divided by k. Coverage is the share of real samples whose ball
    contains a generated one. Raises UserError if a side has fewer than k + 1 samples.
    """
    real, fake, rounding = _prepare('Density and coverage', real, fake, k)
    radii = _radii(real, k) - rounding
    balls, covered = 0, np.zeros(len(real), bool)
    for _, distances in _squared_distances(fake, real):
        inside = distances < radii
        balls += int(np.count_nonzero(inside))
        covered |= inside.any(0)
    return balls / (k * len(fake)), float(covered.mean())


def _prepare(
    score: str, real: ArrayLike, fake: ArrayLike, k: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Centres both sides in float64, and bounds the rounding error of their squared distances.

    If the same image is on both sides, a distance equals a radius. Whether they compare as equal
    must not depend on the order of additions in a matrix product.
    """
    a, b = feature_pair(score, real, fake, min_samples=k + 1)
    centre = a.mean(0)  # keeps the squares that are subtracted below small
    a, b = a - centre, b - centre
    return a, b, 1e-12 * max(np.square(x).sum(1).max() for x in (a, b))


def _radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance [n] of every sample to its k-th neighbour among the others."""
    blocks = (np.partition(distances, k, axis=1)[:, k] for _, distances in _squared_distances(x, x))
    return np.concatenate(list(blocks))  # index 0 is the sample itself


def _squared_distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Iterates over rows of x: a slice, and squared distances [rows, len(y)] of these rows to y."""
    squares = np.square(y).sum(1)
    step = max(1, BLOCK // len(y))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        distances = x[rows] @ y.T
        distances *= -2
        distances += squares
        distances += np.square(x[rows]).sum(1)[:, None]
        yield rows, distances

"""Scores from nearest neighbours: precision and recall, density and coverage.

Everything here is float64 on the host and works in blocks: memory grows with the number of samples
but not with the number of pairs.
"""

from collections.abc import Iterator

import numpy as np

from sagan_jax.metrics.scores import feature_pair

BLOCK = 2**23  # distances at a time, 64 MiB


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al., 2019) of features [N, d] and [M, d].

    Precision: the share of fakes no farther from some real sample than that one's k-th neighbour
    among the real samples. Recall: the same with the sides exchanged. Raises UserError when a side
    has no more than k samples.
    """
    real, fake, rounding = _prepare('Precision and recall', real, fake, k)
    real_radii, fake_radii = (_radii(x, k) + rounding for x in (real, fake))
    precise, recalled = [], np.zeros(len(real), bool)
    for rows, distances in _squared_distances(fake, real):
        precise.append((distances <= real_radii).any(1))
        recalled |= (distances <= fake_radii[rows, None]).any(0)
    return float(np.concatenate(precise).mean()), float(recalled.mean())


def density_coverage(real: np.ndarray, fake: np.ndarray, k: int = 5) -> tuple[float, float]:
    """Density and coverage (Naeem et al., 2020) of features [N, d] and [M, d].

    A fake lies in the ball of a real sample if it is nearer than that one's k-th neighbour among
    the real samples (strictly, as in the authors' code). Density: the mean number of balls around a
    fake, over k. Coverage: the share of real samples whose ball holds a fake. Raises UserError when
    a side has no more than k samples.
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
    score: str, real: np.ndarray, fake: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Both sides centred in float64, and how far rounding can move a squared distance of theirs.

    Where the same picture is on both sides a distance equals a radius exactly; what counts as equal
    must not hang on the order in which a matrix product adds.
    """
    real, fake = feature_pair(score, real, fake, least=k + 1)
    centre = real.mean(0)  # keeps the squares small that are subtracted below
    real, fake = real - centre, fake - centre
    return real, fake, 1e-12 * max(np.square(x).sum(1).max() for x in (real, fake))


def _radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance [n] of every sample to its k-th neighbour among the others."""
    blocks = (np.partition(distances, k, axis=1)[:, k] for _, distances in _squared_distances(x, x))
    return np.concatenate(list(blocks))  # place 0 is the sample itself


def _squared_distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Some rows of x at a time: which, and their squared distances [rows, len(y)] to all of y."""
    squares = np.square(y).sum(1)
    step = max(1, BLOCK // len(y))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        distances = x[rows] @ y.T
        distances *= -2
        distances += squares
        distances += np.square(x[rows]).sum(1)[:, None]
        yield rows, distances

"""Checks of the arrays that scores are computed from."""

import numpy as np
from numpy.typing import ArrayLike

from sagan_jax.errors import UserError


def feature_pair(
    score: str, real: ArrayLike, fake: ArrayLike, min_samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Checks both sides of a score and returns them as float64.

    Raises:
      UserError: if they are not [N, d] and [M, d], have fewer than `min_samples` rows, or values
        that are not finite. `score` names the score in the error.
    """
    real, fake = numbers(score, real), numbers(score, fake)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise UserError(
            f'{score} compares features [N, d] and [M, d], not {list(real.shape)} and '
            f'{list(fake.shape)}: take both from the same layer of the same network.'
        )
    if min(len(real), len(fake)) < min_samples:
        raise UserError(too_few(score, min_samples, len(real), len(fake)))
    return finite(real), finite(fake)


def too_few(score: str, min_samples: int, real: int, fake: int) -> str:
    """The sentence about too few samples."""
    return (
        f'{score} needs at least {min_samples} samples on either side, got {real} real and {fake} '
        'fake: use more samples.'
    )


def rows(score: str, values: ArrayLike) -> np.ndarray:
    """Values [n, d] as float64. Raises UserError for another shape."""
    array = numbers(score, values)
    if array.ndim != 2:
        raise UserError(
            f'{score} needs an array [samples, values], not one of shape {list(array.shape)}: pass '
            'one row for each sample.'
        )
    return array


def numbers(score: str, values: ArrayLike) -> np.ndarray:
    """Values of any shape as float64. Raises UserError for anything but numbers."""
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(
            f'{score} needs an array of numbers with rows of one length ({error}): pass one row '
            'for each sample.'
        ) from error


def class_labels(features: np.ndarray, labels: ArrayLike) -> np.ndarray:
    """Labels [n] of features [n, d]. Raises UserError for another shape."""
    labels = np.asarray(labels)
    if labels.shape != features.shape[:1]:
        raise UserError(
            f'Intra FID got labels of shape {list(labels.shape)} for {len(features)} samples: pass '
            'one label for each sample.'
        )
    return labels


def finite(values: ArrayLike) -> np.ndarray:
    """Values as float64. Raises UserError if one is not finite."""
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        raise UserError(
            'The features have values that are not finite and cannot be scored: check the images '
            'and the generator that they come from.'
        )
    return values

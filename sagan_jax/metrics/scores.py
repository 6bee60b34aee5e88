"""Scores from features: FID and its variants, the Inception Score and KID.

Features, logits and labels may be anything that NumPy makes arrays of, such as lists.

All computations are float64 on the host. FID and the Inception Score are streaming: the size of
`Moments` and `SplitSums` does not depend on the number of samples.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike
from scipy.special import log_softmax, xlogy

from sagan_jax.errors import UserError
from sagan_jax.metrics.inputs import class_labels, feature_pair, finite, rows, too_few


class Moments(NamedTuple):
    """Mean and scatter of the samples seen so far, in float64."""

    count: int  # type: ignore[assignment]  # a tuple has a method of this name
    mean: np.ndarray  # [d]
    scatter: np.ndarray  # [d, d] sum over samples of (x − mean)(x − mean)ᵀ

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance, [d, d]."""
        return self.scatter / (self.count - 1)


def moments(features: ArrayLike) -> Moments:
    """Moments of features [n, d], n ≥ 1.

    Raises UserError for another shape and for values that are not finite.
    """
    features = finite(rows('Moments', features))
    mean = features.mean(0)
    centred = features - mean
    return Moments(len(features), mean, centred.T @ centred)


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two sets of samples (Chan, Golub & LeVeque, 1979)."""
    count = a.count + b.count
    step = b.mean - a.mean
    scatter = a.scatter + b.scatter
    scatter += np.outer(step, step * (a.count * b.count / count))
    return Moments(count, a.mean + step * (b.count / count), scatter)


def fid(real: ArrayLike, fake: ArrayLike) -> float:
    """Fréchet Inception Distance (Heusel et al., 2017) of features [N, d] and [M, d].

    Warns if either side has at most as many samples as features. Its covariance is then singular,
    and the value, though well defined, depends strongly on the number of samples. Raises UserError
    for fewer than two samples and for values that are not finite.
    """
    real, fake = feature_pair('FID', real, fake, min_samples=2)
    _warn_of_few(len(real), len(fake), real.shape[1])
    return _frechet(_gaussian(real), _gaussian(fake))


def frechet_distance(real: Moments, fake: Moments) -> float:
    """FID from moments: ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½).

    Warns and raises as `fid`. Raises TypeError for features, which `moments` summarises.
    """
    if not isinstance(real, Moments) or not isinstance(fake, Moments):
        raise TypeError('frechet_distance takes moments(features): use fid for features')
    if min(real.count, fake.count) < 2:
        raise UserError(too_few('FID', 2, real.count, fake.count))
    _warn_of_few(real.count, fake.count, len(real.mean))
    return _frechet(_gaussian(real), _gaussian(fake))


class _Gaussian(NamedTuple):
    mean: np.ndarray  # [d]
    root: np.ndarray  # [r, d] with rootᵀ root = Σ, where r is at most the rank


def _gaussian(source: Moments | np.ndarray) -> _Gaussian:
    if not isinstance(source, Moments):
        if len(source) <= source.shape[1]:  # the samples themselves are a small, exact root
            mean = source.mean(0)
            return _Gaussian(mean, (source - mean) / np.sqrt(len(source) - 1))
        source = moments(source)
    # Pivoted Cholesky, because Σ may be singular: it stops when only rounding errors are left.
    upper, pivots, rank, _ = scipy.linalg.lapack.dpstrf(source.covariance)
    root = np.empty((rank, len(upper)))
    root[:, pivots - 1] = np.triu(upper)[:rank]
    return _Gaussian(source.mean, root)


def _frechet(real: _Gaussian, fake: _Gaussian) -> float:
    # tr (Σ₁Σ₂)^½ is the sum of the square roots of the eigenvalues of Σ₁^½ Σ₂ Σ₁^½. For any roots
    # AᵀA = Σ these are the eigenvalues of (A₁A₂ᵀ)(A₁A₂ᵀ)ᵀ, which is symmetric, so that they are
    # real, and whose size is the smaller rank.
    a, b = sorted((real.root, fake.root), key=len)
    product = a @ b.T
    shared = np.sqrt(np.linalg.eigvalsh(product @ product.T).clip(0)).sum()
    spread = np.square(a).sum() + np.square(b).sum() - 2 * shared
    return max(0.0, float(np.square(real.mean - fake.mean).sum() + spread))


def intra_fid(
    real: ArrayLike, real_labels: ArrayLike, fake: ArrayLike, fake_labels: ArrayLike
) -> tuple[float, dict[int, float]]:
    """FID within each class, and their mean (Miyato & Koyama, 2018).

    Args:
      real: features [N, d].
      real_labels: int [N].
      fake: features [M, d].
      fake_labels: int [M].

    Returns:
      The mean, and the FID of each class. Warns once if a class has at most as many samples as
      features.

    Raises:
      UserError: if a class has fewer than two samples on either side, or if there is not one label
        for each sample.
    """
    real, fake = feature_pair('Intra FID', real, fake, min_samples=2)
    real_labels, fake_labels = class_labels(real, real_labels), class_labels(fake, fake_labels)
    classes = np.union1d(real_labels, fake_labels)
    counts = {int(c): (np.sum(real_labels == c), np.sum(fake_labels == c)) for c in classes}
    for c, (n, m) in counts.items():
        if min(n, m) < 2:
            raise UserError(f'Class {c}: ' + too_few('intra FID', 2, n, m))
    _warn_of_few(
        min(n for n, _ in counts.values()), min(m for _, m in counts.values()), real.shape[1]
    )
    per_class = {
        c: _frechet(_gaussian(real[real_labels == c]), _gaussian(fake[fake_labels == c]))
        for c in counts
    }
    return float(np.mean(list(per_class.values()))), per_class


def fid_infinity(real: Moments | ArrayLike, fake: ArrayLike, seed: int = 0) -> float:
    """FID extrapolated to infinitely many generated samples (Chong & Forsyth, 2020).

    FID is computed for 15 counts, from a tenth to all of the generated features [M, d], each over
    another random subset. A line in 1 / count is fitted to them, and the value is its intercept.
    All real samples are used, given as features [N, d] or their moments. Warns as `fid`. Raises
    UserError for fewer than 30 samples and for values that are not finite.
    """
    points = 15
    if not isinstance(real, Moments):
        real = moments(real)
    fake = finite(rows('FID∞', fake))
    if min(real.count, len(fake)) < 2 * points:
        raise UserError(too_few('FID∞', 2 * points, real.count, len(fake)))
    counts = np.linspace(len(fake) // 10, len(fake), points).astype(int)
    _warn_of_few(real.count, counts[0], fake.shape[1])
    gaussian, rng = _gaussian(real), np.random.default_rng(seed)
    values = [
        _frechet(gaussian, _gaussian(fake[rng.choice(len(fake), n, replace=False)])) for n in counts
    ]
    return float(np.polynomial.Polynomial.fit(1 / counts, values, 1)(0))


def inception_score(logits: ArrayLike, splits: int = 10) -> tuple[float, float]:
    """Inception Score (Salimans et al., 2016): mean and standard deviation over the splits.

    Takes `logits` [N, classes] without the bias of the softmax layer, not probabilities. Splits are
    consecutive, so samples should be in random order and not sorted by class.

    Raises:
      ValueError: for probabilities, whose score would be far too low: rows without a negative value
        that sum to 1.
      UserError: if there are fewer samples than splits, or for another shape.
    """
    logits = rows('The Inception Score', logits)
    if (logits >= 0).all() and np.allclose(logits.sum(1), 1, atol=0.01):  # 0.01 for half precision
        raise ValueError(
            'the Inception Score takes logits, but these are probabilities, each row without a '
            'negative value and with the sum 1: pass the values before the softmax, or log(p)'
        )
    return score_of_splits(add_logits(split_sums(len(logits), splits), logits))


class SplitSums(NamedTuple):
    """The sums that the Inception Score needs of `total` samples in consecutive splits."""

    total: int
    seen: int
    probabilities: np.ndarray  # [splits, classes] sums of p(y|x)
    negentropy: np.ndarray  # [splits] sums of Σ_y p(y|x) log p(y|x)


def split_sums(total: int, splits: int) -> SplitSums:
    """The sums before the first of `total` samples. Raises UserError if a split would be empty."""
    if not 1 <= splits <= total:
        raise UserError(
            f'The Inception Score over {splits} splits needs at least one sample in each, got '
            f'{total}: use more samples, or between 1 and {total} splits.'
        )
    return SplitSums(total, 0, np.zeros((splits, 1)), np.zeros(splits))


def add_logits(sums: SplitSums, logits: np.ndarray) -> SplitSums:
    """Adds the next n samples, given by their logits [n, classes]."""
    samples = np.arange(sums.seen, sums.seen + len(logits))
    bounds = _split_bounds(sums)[:, None]
    member = ((bounds[:-1] <= samples) & (samples < bounds[1:])).astype(np.float64)  # [splits, n]
    log_p = log_softmax(finite(logits), axis=1)
    p = np.exp(log_p)
    return sums._replace(
        seen=sums.seen + len(logits),
        probabilities=sums.probabilities + member @ p,
        negentropy=sums.negentropy + member @ (p * log_p).sum(1),
    )


def score_of_splits(sums: SplitSums) -> tuple[float, float]:
    """The Inception Score of all samples. Raises ValueError if some are not added yet."""
    if sums.seen != sums.total:
        raise ValueError(f'sums of {sums.seen} samples, expected {sums.total}')
    counts = np.diff(_split_bounds(sums))
    p = sums.probabilities / counts[:, None]
    scores = np.exp(sums.negentropy / counts - xlogy(p, p).sum(1))
    return float(scores.mean()), float(scores.std())


def _split_bounds(sums: SplitSums) -> np.ndarray:
    splits = len(sums.negentropy)
    return np.arange(splits + 1) * sums.total // splits


def kid(
    real: ArrayLike, fake: ArrayLike, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Kernel Inception Distance (Bińkowski et al., 2018): mean and deviation over random subsets.

    The unbiased estimate of the squared maximum mean discrepancy with the kernel (x·y / d + 1)³.
    Each subset has `subset_size` rows of each side, features [N, d] and [M, d], drawn without
    replacement. Raises UserError if a side has fewer rows.

    The deviation is NaN, with a warning, if there is one subset, or if a side has no more rows than
    a subset. The subsets of that side are then all the same.
    """
    real, fake = feature_pair('KID', real, fake, min_samples=max(2, subset_size))
    rng = np.random.default_rng(seed)
    values = [
        _squared_discrepancy(
            real[rng.choice(len(real), subset_size, replace=False)],
            fake[rng.choice(len(fake), subset_size, replace=False)],
        )
        for _ in range(subsets)
    ]
    if subsets > 1 and min(len(real), len(fake)) > subset_size:
        return float(np.mean(values)), float(np.std(values))
    warnings.warn(
        f'KID over {subsets} subsets of {subset_size} of {len(real)} real and {len(fake)} fake '
        'samples has no error bar: it needs two subsets, and more samples on either side than in '
        'a subset',
        stacklevel=2,
    )
    return float(np.mean(values)), math.nan


def _squared_discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(products):
        return (products / x.shape[1] + 1) ** 3

    def total(a, b, rows=1024):  # in blocks, so that memory does not grow with the product
        return sum(kernel(a[i : i + rows] @ b.T).sum() for i in range(0, len(a), rows))

    n = len(x)
    within = sum(total(a, a) - kernel(np.square(a).sum(1)).sum() for a in (x, y))
    return within / (n * (n - 1)) - 2 * total(x, y) / n**2


def score_name(score: str, count: int) -> str:
    """The name of a score with its number of generated samples: 'fid50k' for 'fid' and 50000."""
    return f'{score}{count // 1000}k' if count % 1000 == 0 else f'{score}{count}'


def _warn_of_few(real: int, fake: int, features: int) -> None:
    if min(real, fake) <= features:
        warnings.warn(
            f'FID from {real} real and {fake} fake samples of {features} features: with at most '
            f'{features} samples a covariance is singular and the value depends mostly on the '
            'number of samples, so compare it only with values from the same number',
            stacklevel=3,
        )

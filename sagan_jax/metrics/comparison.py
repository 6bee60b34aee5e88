"""All scores of one set of images against another, from what was collected of both."""

from typing import Any, NamedTuple

from sagan_jax.metrics import manifold, scores
from sagan_jax.metrics.features import Collected

PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000


class Score(NamedTuple):
    """One score and what it was taken from.

    Attributes:
      name: 'fid', 'is', 'kid', 'precision', 'recall', 'density', 'coverage'.
      num_real, num_fake: samples on either side.
      details: its own settings and by-products, such as the standard deviation over splits.
    """

    name: str
    value: float
    num_real: int
    num_fake: int
    details: dict[str, Any]


def compare(real: Collected, fake: Collected, seed: int) -> list[Score]:
    """FID and Inception Score, and where features were kept the scores over pairs of samples.

    Warns and raises as the scores themselves do; `seed` chooses the subsets of KID.
    """
    counts = real.moments.count, fake.moments.count
    value, deviation = scores.score_of_splits(fake.splits)
    splits = len(fake.splits.negentropy)
    found = [
        Score('fid', scores.frechet_distance(real.moments, fake.moments), *counts, {}),
        Score('is', value, *counts, {'std': deviation, 'splits': splits}),
    ]
    pairs = len(real.features), len(fake.features)
    if not min(pairs):
        return found

    subset = min(KID_SUBSET_SIZE, *pairs)
    kid, deviation = scores.kid(real.features, fake.features, KID_SUBSETS, subset, seed)
    subsets = {'std': deviation, 'subsets': KID_SUBSETS, 'subset_size': subset}
    found.append(Score('kid', kid, *pairs, subsets))
    for names, function, k in (
        (('precision', 'recall'), manifold.precision_recall, PRECISION_NEIGHBOURS),
        (('density', 'coverage'), manifold.density_coverage, DENSITY_NEIGHBOURS),
    ):
        values = function(real.features, fake.features, k)
        found += [Score(n, v, *pairs, {'k': k}) for n, v in zip(names, values, strict=True)]
    return found

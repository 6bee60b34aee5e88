"""All scores of one set of images against another, from their collected features."""

import math
from typing import Any, NamedTuple

from sagan_jax.metrics import manifold, scores
from sagan_jax.metrics.features import Collected

PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000


class Score(NamedTuple):
    """A score and the number of samples behind it.

    Attributes:
      name: 'fid', 'is', 'kid', 'precision', 'recall', 'density' or 'coverage'.
      num_real, num_fake: real and generated samples.
      details: settings of this score, and further results such as the deviation over splits,
        'std', which is missing if there is only one split, or if all subsets are the same.
    """

    name: str
    value: float
    num_real: int
    num_fake: int
    details: dict[str, Any]


def compare(real: Collected, fake: Collected, seed: int) -> list[Score]:
    """Computes FID and Inception Score and, if features were kept, scores over pairs of samples.

    Warns and raises as the functions of each score. `seed` chooses the subsets of KID.
    """
    counts = real.moments.count, fake.moments.count
    value, deviation = scores.score_of_splits(fake.splits)
    splits = len(fake.splits.negentropy)
    error_bar = {'std': deviation} if splits > 1 else {}
    found = [
        Score('fid', scores.frechet_distance(real.moments, fake.moments), *counts, {}),
        Score('is', value, *counts, {**error_bar, 'splits': splits}),
    ]
    pairs = len(real.features), len(fake.features)
    if not min(pairs):
        return found

    subset = min(KID_SUBSET_SIZE, *pairs)
    kid, deviation = scores.kid(real.features, fake.features, KID_SUBSETS, subset, seed)
    error_bar = {} if math.isnan(deviation) else {'std': deviation}
    subsets = {**error_bar, 'subsets': KID_SUBSETS, 'subset_size': subset}
    found.append(Score('kid', kid, *pairs, subsets))
    for names, function, k in (
        (('precision', 'recall'), manifold.precision_recall, PRECISION_NEIGHBOURS),
        (('density', 'coverage'), manifold.density_coverage, DENSITY_NEIGHBOURS),
    ):
        values = function(real.features, fake.features, k)
        found += [Score(n, v, *pairs, {'k': k}) for n, v in zip(names, values, strict=True)]
    return found

"""Scores for generated images, as plain functions on arrays and for any model.

    features = metrics.inception.load(path)      # uint8 [N, H, W, 3] → {'2048': [N, 2048], …}
    metrics.fid(features(real)['2048'], features(fake)['2048'])

Nothing here knows of training, models or data sets.
"""

from sagan_jax.metrics import inception
from sagan_jax.metrics.manifold import density_coverage, precision_recall
from sagan_jax.metrics.scores import (
    Moments,
    fid,
    fid_infinity,
    frechet_distance,
    inception_score,
    intra_fid,
    kid,
    merge,
    moments,
)

__all__ = [
    'Moments',
    'density_coverage',
    'fid',
    'fid_infinity',
    'frechet_distance',
    'inception',
    'inception_score',
    'intra_fid',
    'kid',
    'merge',
    'moments',
    'precision_recall',
]

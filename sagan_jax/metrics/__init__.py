"""Scores of generated images, as plain functions of arrays from any model.

    features = metrics.inception.load(path)      # uint8 [N, H, W, 3] → {'2048': [N, 2048], …}
    metrics.fid(features(real)['2048'], features(fake)['2048'])

This package does not depend on training, models or data sets.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        # Imported on first use, because `python -m sagan_jax.metrics` imports this module before it
        # can handle Ctrl-C, and the scores import JAX.
        if name not in __all__:
            raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
        if name == 'inception':
            return importlib.import_module(f'{__name__}.inception')
        home = 'manifold' if name in ('density_coverage', 'precision_recall') else 'scores'
        return getattr(importlib.import_module(f'{__name__}.{home}'), name)

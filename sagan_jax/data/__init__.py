"""Images and labels: prepared once, then batches as a function of (seed, step)."""

from sagan_jax.data.inspection import warnings
from sagan_jax.data.loading import Source, count_classes, count_images, load
from sagan_jax.data.reading import (
    Summary,
    all_examples,
    batches,
    identity,
    index_batches,
    one_pass,
    summary,
)

__all__ = [
    'Source',
    'Summary',
    'all_examples',
    'batches',
    'count_classes',
    'count_images',
    'identity',
    'index_batches',
    'load',
    'one_pass',
    'summary',
    'warnings',
]

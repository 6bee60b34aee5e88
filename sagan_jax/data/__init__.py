"""Pictures and labels: prepared once, then batches as a function of (seed, step)."""

from sagan_jax.data.loading import Source, load
from sagan_jax.data.reading import (
    Summary,
    batches,
    everything,
    fingerprint,
    index_batches,
    once,
    summary,
)

__all__ = [
    'Source',
    'Summary',
    'batches',
    'everything',
    'fingerprint',
    'index_batches',
    'load',
    'once',
    'summary',
]

"""Batches as a pure function of the seed and the step."""

import os
import sys
from collections.abc import Iterator
from typing import NamedTuple

import grain
import jax
import numpy as np

from sagan_jax.data.loading import Source
from sagan_jax.streams import Stream, stream_key


class Summary(NamedTuple):
    """What the first pictures of a run are like, to be looked at before training on them."""

    count: int  # pictures that were looked at
    label_counts: np.ndarray  # int64 [classes]
    minimum: int  # of all pixels
    maximum: int
    images: tuple[np.ndarray, ...]  # of each class the first ones, uint8 [n, S, S, 3]


def batches(
    source: Source, seed: int, batch_size: int, start: int = 0, stop: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches `start`, `start + 1`, … of an endless stream, read ahead by threads.

    The stream goes through the data set again and again, each time in another order that `seed`
    decides, and batch t is its rows t·B … (t+1)·B. So batch t depends on the seed and t only, and
    a batch may span two epochs: no picture is left out.

    Args:
      source: what `load` returns.
      seed: of the run.
      batch_size: B.
      start: the first batch.
      stop: the batch to end before; None for an endless iterator.

    Yields:
      images uint8 [B, S, S, 3] and labels int32 [B].
    """
    # Shuffling rows, and reading pictures only then and a batch at a time, is half the work of
    # letting Grain carry every picture through its stages.
    rows = _rows(source, seed, batch_size, start, stop)
    return _in_threads(rows.map(lambda rows: _stack([source.examples[row] for row in rows])))


def row_batches(
    source: Source, seed: int, batch_size: int, start: int = 0, stop: int | None = None
) -> Iterator[tuple[np.ndarray]]:
    """The same stream as `batches`, but which rows of `everything(source)`: (int32 [B],)."""
    rows = _rows(source, seed, batch_size, start, stop)
    return _in_threads(rows.map(lambda rows: (np.array(rows, np.int32),)))


def everything(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """The whole data set: images uint8 [N, S, S, 3] and labels int32 [N]."""
    images, labels = zip(*once(source, 256), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def once(source: Source, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The whole data set in its own order: batches as above, the last as long as it comes."""

    def read(start: int) -> tuple[np.ndarray, np.ndarray]:
        rows = range(start, min(start + batch_size, len(source)))
        return _stack([source.examples[row] for row in rows])

    return _in_threads(grain.MapDataset.range(0, len(source), batch_size).map(read))


def summary(source: Source, seed: int, per_class: int, count: int = 2000) -> Summary:
    """Describes the first `count` pictures that a run with `seed` trains on, and keeps a few."""
    count = min(count, len(source))
    size = min(count, 100)
    images, labels = map(
        np.concatenate, zip(*batches(source, seed, size, stop=-(-count // size)), strict=True)
    )
    images, labels = images[:count], labels[:count]
    return Summary(
        count=count,
        label_counts=np.bincount(labels, minlength=len(source.class_names)),
        minimum=int(images.min()),
        maximum=int(images.max()),
        images=tuple(
            images[labels == label][:per_class] for label in range(len(source.class_names))
        ),
    )


def _rows(
    source: Source, seed: int, batch_size: int, start: int, stop: int | None
) -> grain.MapDataset:
    """Which examples are in each batch."""
    order_seed = int(jax.random.bits(stream_key(seed, Stream.DATA_ORDER), dtype='uint32'))
    order = grain.MapDataset.range(len(source)).shuffle(order_seed).repeat()
    steps = grain.MapDataset.range(start, sys.maxsize // batch_size if stop is None else stop)
    return steps.map(
        lambda step: [order[row] for row in range(step * batch_size, (step + 1) * batch_size)]
    )


def _stack(examples: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    images = np.stack([example['image'] for example in examples])
    return images, np.array([example['label'] for example in examples], np.int32)


def _in_threads(dataset: grain.MapDataset) -> Iterator:
    threads = max(2, min(16, os.cpu_count() or 1))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    return iter(dataset.to_iter_dataset(options))

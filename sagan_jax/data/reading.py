"""Batches as a pure function of the seed and the step."""

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from sagan_jax.data.loading import Source
from sagan_jax.errors import UserError
from sagan_jax.streams import Stream, stream_key


class Summary(NamedTuple):
    """What the first pictures of a run are like, to be looked at before training on them."""

    count: int  # pictures that were looked at
    label_counts: np.ndarray  # int64 [classes]
    minimum: int  # of all pixels
    maximum: int
    images: tuple[np.ndarray, ...]  # of each class the first ones, uint8 [n, S, S, 3]


def batches(
    source: Source,
    seed: int,
    batch_size: int,
    start: int = 0,
    stop: int | None = None,
    rows: np.ndarray | None = None,
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
      rows: which rows of each batch are read, int [b]; None for all.

    Yields:
      images uint8 [b, S, S, 3] and labels int32 [b].

    Raises:
      UserError: naming an example that cannot be read, when its batch comes.
    """
    # Shuffling rows, and reading pictures only then and a batch at a time, is half the work of
    # letting Grain carry every picture through its stages.
    indices = _indices(source, seed, batch_size, start, stop, rows)
    return _in_threads(indices.map(lambda indices: _read(source, indices)))


def index_batches(
    source: Source,
    seed: int,
    batch_size: int,
    start: int = 0,
    stop: int | None = None,
    rows: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray]]:
    """The same stream as `batches`, but as indices into `all_examples(source)`: (int32 [b],)."""
    indices = _indices(source, seed, batch_size, start, stop, rows)
    return _in_threads(indices.map(lambda indices: (np.array(indices, np.int32),)))


def all_examples(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """The whole data set: images uint8 [N, S, S, 3] and labels int32 [N]."""
    images, labels = zip(*one_pass(source, 256), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def one_pass(source: Source, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The whole data set in its own order: batches as above, the last as long as it comes."""

    def read(start: int) -> tuple[np.ndarray, np.ndarray]:
        return _read(source, range(start, min(start + batch_size, len(source))))

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


def fingerprint(source: Source, count: int = 64) -> str:
    """SHA-256 of some examples that lie evenly in a data set: another one for other pictures."""
    indices = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
    images, labels = _read(source, indices.tolist())
    return hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()


def _indices(
    source: Source,
    seed: int,
    batch_size: int,
    start: int,
    stop: int | None,
    rows: np.ndarray | None,
) -> grain.MapDataset:
    """Which examples are in each batch."""
    order_seed = int(jax.random.bits(stream_key(seed, Stream.DATA_ORDER), dtype='uint32'))
    order = grain.MapDataset.range(len(source)).shuffle(order_seed).repeat()
    rows = list(range(batch_size)) if rows is None else rows.tolist()
    steps = grain.MapDataset.range(start, sys.maxsize // batch_size if stop is None else stop)
    return steps.map(lambda step: [order[step * batch_size + row] for row in rows])


def _read(source: Source, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    examples = [_example(source, index) for index in indices]
    images = np.stack([example['image'] for example in examples])
    return images, np.array([example['label'] for example in examples], np.int32)


def _example(source: Source, index: int) -> dict[str, Any]:
    try:
        return source.examples[index]
    except UserError:
        raise
    except Exception as error:  # whatever the formats' readers raise at damaged files
        reason = ' '.join(str(error).split())
        raise UserError(
            f'Example {index} of {source.name}, {source.split}, cannot be read ({reason:.200}): '
            f'remove {source.folder}, and it is prepared again.'
        ) from error


def _in_threads(dataset: grain.MapDataset) -> Iterator:
    threads = max(2, min(16, os.cpu_count() or 1))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    return iter(dataset.to_iter_dataset(options))

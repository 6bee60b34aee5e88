"""Batches as a pure function of the seed and the step."""

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from sagan_jax.data import pixels, stored
from sagan_jax.data.loading import Source
from sagan_jax.streams import Stream, stream_key

_BYTES = 2**29  # of the images that are summarised, at most


class Summary(NamedTuple):
    """The first images of a run, summarised before training on them."""

    num_images: int  # images that the summary is about
    label_counts: np.ndarray  # int64 [classes]
    minimum: int  # of all pixels
    maximum: int
    num_grey: int  # images without any colour
    num_alike: int  # images that are nearly the same as another, but not equal
    images: tuple[np.ndarray, ...]  # for each class its first images, uint8 [n, S, S, 3]


def batches(
    source: Source,
    seed: int,
    batch_size: int,
    start: int = 0,
    stop: int | None = None,
    rows: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Iterates over batches `start`, `start + 1`, …, read ahead by threads.

    The data set is repeated endlessly, each epoch in another order that depends on `seed`. Batch t
    is examples t·B … (t+1)·B of this stream, so it depends only on the seed and t. A batch may span
    two epochs: no image is left out.

    Args:
      source: what `load` returns.
      seed: of the run.
      batch_size: B.
      start: the first batch.
      stop: the batch to end before; None for an endless iterator.
      rows: the rows of each batch to read, int [b]; None for all.

    Yields:
      images uint8 [b, S, S, 3] and labels int32 [b].

    Raises:
      UserError: when a batch has an example that cannot be read; names the example.
    """
    # Shuffling indices and then reading a batch at a time takes half the time of passing every
    # image through Grain's stages.
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
    """As `batches`, but yields indices into `all_examples(source)`: (int32 [b],)."""
    indices = _indices(source, seed, batch_size, start, stop, rows)
    return _in_threads(indices.map(lambda indices: (np.array(indices, np.int32),)))


def all_examples(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Reads the whole data set: images uint8 [N, S, S, 3] and labels int32 [N]."""
    images, labels = zip(*one_pass(source, 256), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def one_pass(source: Source, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Iterates once over the whole data set in stored order. The last batch may be smaller."""

    def read(start: int) -> tuple[np.ndarray, np.ndarray]:
        return _read(source, range(start, min(start + batch_size, len(source))))

    return _in_threads(grain.MapDataset.range(0, len(source), batch_size).map(read))


def summary(source: Source, seed: int, per_class: int, num_images: int = 2000) -> Summary:
    """Summarises the first images of a run with `seed`; keeps `per_class` images of each class."""
    num_images = min(num_images, len(source), max(1, _BYTES // (3 * source.image_size**2)))
    size = min(num_images, 100)
    images, labels = map(
        np.concatenate, zip(*batches(source, seed, size, stop=-(-num_images // size)), strict=True)
    )
    images, labels = images[:num_images], labels[:num_images]
    return Summary(
        num_images=num_images,
        label_counts=np.bincount(labels, minlength=len(source.class_names)),
        minimum=int(images.min()),
        maximum=int(images.max()),
        num_grey=pixels.count_grey(images),
        num_alike=pixels.count_alike(images),
        images=tuple(
            images[labels == label][:per_class] for label in range(len(source.class_names))
        ),
    )


def identity(source: Source) -> dict[str, Any]:
    """What a run records of its training data: JSON values that identify all examples.

    The name is for people. The other values are the same wherever the examples come from, except
    `sha256_as_stored`, which is there to be compared with records of older versions.
    """
    return {
        'name': source.name,
        'count': len(source),
        'class_names': list(source.class_names),
        'sha256': source.content.sha256,
        'sha256_in_any_order': source.content.sha256_in_any_order,
        'sha256_as_stored': source.content.sha256_as_stored,
        'sha256_of_some': _sha256_of_some(source),
    }


def _sha256_of_some(source: Source, num_examples: int = 64) -> str:
    """SHA-256 of evenly spaced examples: what version 0.1 recorded."""
    indices = np.linspace(0, len(source) - 1, min(num_examples, len(source))).round().astype(int)
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
    """The indices of the examples in each batch."""
    order_seed = int(jax.random.bits(stream_key(seed, Stream.DATA_ORDER), dtype='uint32'))
    order = grain.MapDataset.range(len(source)).shuffle(order_seed).repeat()
    chosen = list(range(batch_size)) if rows is None else rows.tolist()
    steps = grain.MapDataset.range(start, sys.maxsize // batch_size if stop is None else stop)
    return steps.map(lambda step: [order[step * batch_size + row] for row in chosen])


def _read(source: Source, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    name = f'{source.name}, {source.split},'
    examples = [stored.read(source.examples, index, name, source.folder) for index in indices]
    images = np.stack([example['image'] for example in examples])
    return images, np.array([example['label'] for example in examples], np.int32)


def _in_threads(dataset: grain.MapDataset) -> Iterator[Any]:
    threads = max(2, min(16, os.cpu_count() or 1))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    return iter(dataset.to_iter_dataset(options))

"""Prepares this project's TFDS builders once, all or nothing."""

import contextlib
import functools
import hashlib
import io
import itertools
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from sagan_jax.system.failures import writing
from sagan_jax.system.files import locked, partial_path, remove_partial

T = TypeVar('T')
R = TypeVar('R')
Shard = Callable[[], Iterator[tuple[Any, dict]]]  # opens the (key, example) pairs of one file


def prepared(make_builder: Callable[..., tfds.core.DatasetBuilder]) -> tfds.core.DatasetBuilder:
    """Calls `make_builder`, and prepares the builder's data on first use.

    The data are written into a folder with a name of `files.partial_path` and renamed into place at
    the end, so an interrupted or failed preparation leaves nothing that looks prepared. The remains
    of a killed one are removed here. One process prepares at a time; others that need the same data
    wait for it.

    Args:
      make_builder: takes `data_dir`, a folder to use in place of its own.

    Raises:
      UserError: if the data folder cannot be written or holds something else.
    """
    builder = make_builder()
    if builder.is_prepared():
        return builder
    folder = Path(builder.data_dir_root) / builder.name
    with (
        writing(folder, 'another folder for prepared data with --config.dataset.data_dir=FOLDER'),
        locked(folder / '.lock', lambda: _tell_waiting(folder)),
    ):
        builder = make_builder()  # another process may have prepared it in the meantime
        if builder.is_prepared():
            return builder
        _prepare(make_builder, folder, Path(builder.data_dir))
    return make_builder()


def shards(examples: Iterator[tuple[Any, dict]], count: int, example_bytes: int) -> list[Shard]:
    """Divides `count` examples among files, for `ShardBasedBuilder`.

    One iterator fills the files one after the other. TFDS writes them in order.
    """
    # Reading is slower from files with many records (16 µs with 4,000, 107 µs with 50,000,
    # ArrayRecord 0.8), and TFDS keeps all examples of a file in memory while it writes them.
    per_file = max(1, min(4096, 2**29 // example_bytes))
    files = -(-count // per_file)
    # The last file takes the rest, so that the iterator is exhausted.
    lengths: list[int | None] = [per_file] * (files - 1) + [None]
    return [functools.partial(itertools.islice, examples, length) for length in lengths]


def features(image_size: int, class_names: Sequence[str]) -> tfds.features.FeaturesDict:
    """Images as raw bytes, and their classes: what all builders of this project store."""
    shape = (image_size, image_size, 3)
    return tfds.features.FeaturesDict(
        {
            'image': tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding='bytes'),
            'label': tfds.features.ClassLabel(names=class_names),
        }
    )


def tfds_order(split: str, count: int) -> list[int]:
    """The order in which TFDS stores a split whose examples it numbers as its files have them.

    It is that of the hashes of the numbers. So the data that this project prepares from the same
    files without TensorFlow are the same, and any part of them has all classes.
    """

    def key(index: int) -> bytes:
        return hashlib.md5(f'{split}{index}'.encode(), usedforsecurity=False).digest()

    return sorted(range(count), key=key)


def in_threads(apply: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Applies a function on all cores, in order, with a bounded number of items ahead."""
    group = 16  # reading one small image takes less time than submitting a task
    workers = os.cpu_count() or 1
    waiting = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[list[R]]] = deque()
        while chunk := list(itertools.islice(waiting, group)):
            ahead.append(pool.submit(lambda items: [apply(item) for item in items], chunk))
            if len(ahead) > 2 * workers:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()


def downloads(data_dir: str | None) -> Path:
    """Where files are kept that data are prepared from, as TFDS does: beside the prepared data."""
    return Path(data_dir or tfds.core.constants.DATA_DIR).expanduser() / 'downloads'


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences TFDS on standard output and in absl's log."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _prepare(
    make_builder: Callable[..., tfds.core.DatasetBuilder], folder: Path, wanted: Path
) -> None:
    remove_partial(folder)  # no other process is preparing in it
    temporary = partial_path(folder / 'prepared')
    try:
        builder = make_builder(data_dir=str(temporary))
        builder.download_and_prepare()
        wanted.parent.mkdir(exist_ok=True)
        Path(builder.data_dir).rename(wanted)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _tell_waiting(folder: Path) -> None:
    print(f'Another process is preparing data in {folder}: waiting.', file=sys.stderr)

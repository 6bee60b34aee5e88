"""Prepares this project's TFDS builders once, all or nothing."""

import contextlib
import functools
import io
import itertools
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging

from sagan_jax.errors import UserError
from sagan_jax.system.files import locked

Shard = Callable[[], Iterator[tuple[Any, dict]]]  # opens the (key, example) pairs of one file


def prepared(make_builder: Callable[[], tfds.core.DatasetBuilder]) -> tfds.core.DatasetBuilder:
    """Calls `make_builder`, and prepares the builder's data on first use.

    TFDS writes into a folder `incomplete.…` and renames it at the end, so an interrupted or failed
    preparation leaves nothing that looks prepared. The remains of a killed one are removed here.
    One process prepares at a time; others that need the same data wait for it.

    Raises:
      UserError: if the data folder cannot be written or holds something else.
    """
    builder = make_builder()
    if builder.is_prepared():
        return builder
    folder = Path(builder.data_dir_root) / builder.name
    try:
        with locked(folder / '.lock', lambda: _tell_waiting(folder)):
            builder = make_builder()  # another process may have prepared it in the meantime
            if not builder.is_prepared():
                _prepare(builder, folder)
    except OSError as error:
        raise UserError(
            f'Cannot write prepared data to {folder} ({error.strerror or error}): choose another '
            'folder with --config.dataset.data_dir=FOLDER.'
        ) from error
    return builder


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


def _prepare(builder: tfds.core.DatasetBuilder, folder: Path) -> None:
    # No other process is preparing in this folder, so these are remains.
    for remains in list(folder.rglob('incomplete.*')):
        shutil.rmtree(remains)
        _remove_if_empty(remains.parent)
    try:
        builder.download_and_prepare()
    finally:
        _remove_if_empty(Path(builder.data_dir).parent)  # after a failure


def _tell_waiting(folder: Path) -> None:
    print(f'Another process is preparing data in {folder}: waiting.', file=sys.stderr)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()

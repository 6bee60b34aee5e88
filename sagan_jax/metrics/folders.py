"""Reads folders of images as batches of arrays."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sagan_jax.errors import UserError
from sagan_jax.images import SUFFIXES, read


def find(folder: str | os.PathLike, seed: int) -> list[Path]:
    """Lists all images below `folder`, by suffix, in a random order.

    The order depends on `seed` and the names. It is random because folders are often sorted by
    class, and splits and subsets are taken in order.

    Raises:
      UserError: if there is no such folder or it has no images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f'There is no folder {folder}: give two folders of images.')
    paths = sorted(p for p in folder.rglob('*') if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise UserError(
            f'The folder {folder} has no images: give a folder with files that end in '
            f'{", ".join(sorted(SUFFIXES))}.'
        )
    return [paths[i] for i in np.random.default_rng(seed).permutation(len(paths))]


def batches(paths: list[Path], batch_size: int, same_size_as: Path) -> Iterator[np.ndarray]:
    """Reads images in order, uint8 [n, H, W, 3], where n is `batch_size` except in the last batch.

    Threads read at most two batches ahead.

    Raises:
      UserError: if an image cannot be read or has another size than the image `same_size_as`.
    """
    shape = read(same_size_as).shape

    def read_same_size(path: Path) -> np.ndarray:
        image = read(path)
        if image.shape != shape:
            raise UserError(
                f'{path} is {image.shape[1]}×{image.shape[0]} pixels but {same_size_as} is '
                f'{shape[1]}×{shape[0]}: resize all images of both folders in the same way first, '
                'because resizing changes every score.'
            )
        return image

    with ThreadPoolExecutor() as pool:
        ahead: deque[list[Future[np.ndarray]]] = deque()
        for start in range(0, len(paths), batch_size):
            ahead.append(
                [pool.submit(read_same_size, p) for p in paths[start : start + batch_size]]
            )
            if len(ahead) > 2:
                yield np.stack([future.result() for future in ahead.popleft()])
        for batch in ahead:
            yield np.stack([future.result() for future in batch])

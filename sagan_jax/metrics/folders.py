"""Reading folders of pictures as batches of arrays."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sagan_jax.errors import UserError
from sagan_jax.images import SUFFIXES, read


def find(folder: str | os.PathLike, seed: int) -> list[Path]:
    """All pictures below `folder`, by suffix, in a random order that `seed` and the names decide.

    Random, because folders are often sorted by class, while splits and subsets are taken in order.
    Raises UserError when there is no such folder or no picture in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f'There is no folder {folder}: give two folders of pictures.')
    paths = sorted(p for p in folder.rglob('*') if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise UserError(
            f'The folder {folder} holds no pictures: it should hold files that end in '
            f'{", ".join(sorted(SUFFIXES))}.'
        )
    return [paths[i] for i in np.random.default_rng(seed).permutation(len(paths))]


def batches(paths: list[Path], batch_size: int, like: Path) -> Iterator[np.ndarray]:
    """The pictures in order, uint8 [n, H, W, 3] with n = `batch_size` but for the last batch.

    Threads read at most two batches ahead. Raises UserError for a picture that cannot be read or is
    not of the size of the picture `like`.
    """
    shape = read(like).shape

    def picture(path: Path) -> np.ndarray:
        image = read(path)
        if image.shape != shape:
            raise UserError(
                f'{path} is {image.shape[1]}×{image.shape[0]} pixels but {like} is '
                f'{shape[1]}×{shape[0]}: bring all pictures of both folders to one size in the '
                'same way first, since how that is done changes every score.'
            )
        return image

    with ThreadPoolExecutor() as pool:
        ahead = deque()
        for start in range(0, len(paths), batch_size):
            ahead.append([pool.submit(picture, p) for p in paths[start : start + batch_size]])
            if len(ahead) > 2:
                yield np.stack([future.result() for future in ahead.popleft()])
        for batch in ahead:
            yield np.stack([future.result() for future in batch])

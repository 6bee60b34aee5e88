"""Reads folders of images as batches of arrays."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sagan_jax.errors import UserError
from sagan_jax.image_scan import describe, images_below, suffixes
from sagan_jax.images import UnreadableImage, read, unreadable


class Found(NamedTuple):
    """The images below a folder."""

    paths: list[Path]
    passed_over: list[str]  # what is not an image, in lines


def find(folder: str | os.PathLike, seed: int) -> Found:
    """Lists all images below `folder`, by suffix, in a random order.

    The order depends on `seed` and the names. It is random because folders are often sorted by
    class, and splits and subsets are taken in order.

    Raises:
      UserError: if there is no such folder or it has no images.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise UserError(f'There is no folder {folder}: give two folders of images.')
    images, passed_over = images_below(folder)
    if not images:
        raise UserError(
            f'The folder {folder} has no images: give a folder with files that end in {suffixes()}.'
        )
    order = np.random.default_rng(seed).permutation(len(images))
    images.sort()
    return Found([images[i] for i in order], describe(passed_over, folder))


def batches(paths: Sequence[Path], batch_size: int, same_size_as: Path) -> Iterator[np.ndarray]:
    """Reads images in order, uint8 [n, H, W, 3], where n is `batch_size` except in the last batch.

    Threads read at most two batches ahead.

    Raises:
      UserError: if images cannot be read or have another size than the image `same_size_as`; names
        up to ten of all of them.
    """
    try:
        yield from _batches(paths, batch_size, same_size_as)
    except UserError as error:
        raise _all_errors(paths, same_size_as, error) from error


def _batches(paths: Sequence[Path], batch_size: int, same_size_as: Path) -> Iterator[np.ndarray]:
    shape = read(same_size_as).shape

    def read_same_size(path: Path) -> np.ndarray:
        image = read(path)
        if image.shape != shape:
            raise UserError(_other_sizes([(path, image.shape)], same_size_as, shape))
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


def _all_errors(paths: Sequence[Path], same_size_as: Path, first: UserError) -> UserError:
    """One error about all images that cannot be used; those that cannot be read come first."""

    def look(path: Path) -> tuple[int, ...] | UnreadableImage:
        try:
            return read(path).shape
        except UnreadableImage as error:
            return error

    with ThreadPoolExecutor() as pool:
        shape = look(same_size_as)
        looks = dict(zip(paths, pool.map(look, paths), strict=True))
    failed = [seen for _, seen in sorted(looks.items()) if isinstance(seen, UnreadableImage)]
    if failed:
        return unreadable(failed)
    if isinstance(shape, UnreadableImage):
        return shape
    others = [
        (path, seen)
        for path, seen in sorted(looks.items())
        if not isinstance(seen, UnreadableImage) and seen != shape
    ]
    return UserError(_other_sizes(others, same_size_as, shape)) if others else first


def _other_sizes(
    others: Sequence[tuple[Path, tuple[int, ...]]], first: Path, shape: tuple[int, ...]
) -> str:
    named = ', '.join(f'{path} is {_pixels(other)} pixels' for path, other in others[:10])
    more = f' and {len(others) - 10:,} more have other sizes' if len(others) > 10 else ''
    total = f'{len(others):,} images have another size: ' if len(others) > 1 else ''
    return (
        f'{total}{named}{more} but {first} is {_pixels(shape)}: resize all images of both folders '
        'in the same way first, because resizing changes every score.'
    )


def _pixels(shape: tuple[int, ...]) -> str:
    return f'{shape[1]}×{shape[0]}'

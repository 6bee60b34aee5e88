"""Prepared examples as they are stored: how one is read, and what identifies all of them.

A data set is identified by a hash over all of its examples, wherever and whenever they were
prepared, and whether as pixels or as PNG. The hash is computed once and kept beside them. The sizes
and times of their files only say whether it has to be computed again.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import grain
import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from sagan_jax.errors import UserError
from sagan_jax.images import open_image, upright_rgb
from sagan_jax.system import failures
from sagan_jax.system.files import atomic_path, stamp
from sagan_jax.system.untrusted import read_json

T = TypeVar('T')

_CHUNK = 256  # examples that a thread reads at a time


class Content(NamedTuple):
    """What one pass over the examples of a split finds. The hashes identify them."""

    sha256: str  # over all images and labels in the order in which they are stored
    sha256_in_any_order: str
    sha256_as_stored: str  # of bytes as they are stored, which older versions recorded
    label_counts: list[int]  # of the classes, up to the last that has examples
    copies: int  # examples that are equal to an earlier one


def read(examples: Sequence[T], index: int, name: str, folder: Path) -> T:
    """Reads an example. Raises UserError about the data set `name` in `folder` if it is damaged."""
    try:
        return examples[index]
    except UserError:
        raise
    except Exception as error:  # what a reader raises on a damaged file depends on the format
        if failures.is_passing(error):
            raise
        reason = ' '.join(str(error).split())
        raise UserError(
            f'Example {index} of {name} cannot be read ({reason:.200}): remove {folder} to prepare '
            'it again.'
        ) from error


def content(
    builder: tfds.core.DatasetBuilder,
    split: str,
    examples: Sequence[dict[str, Any]],
    labelled: bool,
) -> Content:
    """Reads what identifies a split, or computes it over all examples and stores it beside them.

    An example counts with its image and its label. The image is its pixels, whether it is stored as
    they are or as a PNG, which gives back the same. Another encoded image is its bytes, because its
    pixels depend on the decoder.

    Args:
      builder: of a prepared data set.
      split: its name.
      examples: those of the split as they are stored, with 'image' and 'label'.
      labelled: whether labels count; if not, they may be missing.

    Raises:
      UserError: if an example cannot be read.
    """
    folder = Path(builder.data_dir)
    path = folder / 'sagan_jax' / f'content_{split}.json'
    files = [Path(name) for name in builder.info.splits[split].filepaths]
    stamps = {file.name: list(stamp(os.stat(file))) for file in files}
    try:
        stored = read_json(path)
        if stored.pop('files') == stamps:
            return Content(**stored)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass  # not computed yet, or damaged
    name = f'{builder.info.full_name}, {split},'

    with_pixels = grain.MapDataset.source(examples).map(
        lambda e: e | {'pixels': _pixels(e['image'])}
    )

    def digest(index: int) -> _Digest:
        example = read(with_pixels, index, name, folder)
        pixels, stored = example['pixels'], example['image']
        label = int(example['label']) if labelled else 0
        sha256 = _digest(pixels, label)
        as_stored = sha256 if pixels is stored else _digest(stored, label)
        return _Digest(sha256, as_stored, max(label, 0))

    found = _compute(digest, len(examples))
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps({'files': stamps} | found._asdict()) + '\n')
    except OSError as error:
        print(f'warning        {path} cannot be written: {error.strerror or error}')
    return found


class _Digest(NamedTuple):
    """Of an example."""

    sha256: bytes
    as_stored: bytes
    label: int


def _compute(digest: Callable[[int], _Digest], count: int) -> Content:
    """The content of examples from the digest of each."""

    def digests_from(start: int) -> list[_Digest]:
        return [digest(index) for index in range(start, min(start + _CHUNK, count))]

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        chunks = pool.map(digests_from, range(0, count, _CHUNK))
        total = -(-count // _CHUNK)
        bar = tqdm(chunks, desc='Hashing', total=total, delay=2)  # silent for small data sets
        found = [each for chunk in bar for each in chunk]
    digests = [each.sha256 for each in found]
    return Content(
        sha256=_joined(digests),
        sha256_in_any_order=_joined(sorted(digests)),
        sha256_as_stored=_joined([each.as_stored for each in found]),
        label_counts=np.bincount([each.label for each in found]).tolist() if found else [],
        copies=count - len({*digests}),
    )


def _pixels(image: bytes | np.ndarray) -> bytes | np.ndarray:
    """The pixels of an image, uint8 [H, W, 3], if it is stored as they are or as a PNG."""
    if isinstance(image, bytes) and image.startswith(b'\x89PNG'):
        return np.asarray(upright_rgb(open_image(io.BytesIO(image))))
    return image


def _digest(image: bytes | np.ndarray, label: int) -> bytes:
    kind, content = (
        ('encoded', image) if isinstance(image, bytes) else (image.shape, image.tobytes())
    )
    return hashlib.sha256(f'{label} {kind}\0'.encode() + content).digest()


def _joined(digests: list[bytes]) -> str:
    return hashlib.sha256(b''.join(digests)).hexdigest()

"""Reads files of `torch.save` without PyTorch, tensor by tensor, and runs nothing of theirs.

Both formats: a zip archive, which PyTorch writes since 1.6, and before that a row of pickles with
the storages behind them. See `pickles` for what becomes of the names in a pickle.
"""

import contextlib
import dataclasses
import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sagan_jax.errors import UserError
from sagan_jax.published import pickles
from sagan_jax.published.pickles import Unknown
from sagan_jax.system.untrusted import open_file

MAX_PICKLE = 2**24  # bytes of what is not tensors; a checkpoint with its configuration has 2**20
_MAX_AXES = 8
_DAMAGED = (ValueError, EOFError, zipfile.BadZipFile, zlib.error, struct.error)
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the format before zip

# Storage class → dtype on disk, little-endian. bfloat16 is the upper half of a float32.
_DTYPES = {
    'DoubleStorage': '<f8',
    'FloatStorage': '<f4',
    'HalfStorage': '<f2',
    'BFloat16Storage': 'bfloat16',
    'LongStorage': '<i8',
    'IntStorage': '<i4',
    'ShortStorage': '<i2',
    'CharStorage': '<i1',
    'ByteStorage': '<u1',
    'BoolStorage': '|b1',
}


@dataclasses.dataclass(frozen=True)
class Storage:
    """A row of numbers that tensors may share.

    Attributes:
      key: its name in the file.
      dtype: a numpy dtype, or 'bfloat16'.
      count: of the numbers.
      read: `read(storage)` returns its bytes.
    """

    key: str
    dtype: str
    count: int
    read: Callable[['Storage'], bytes] = dataclasses.field(repr=False)

    @property
    def size(self) -> int:
        """In bytes."""
        return self.count * (2 if self.dtype == 'bfloat16' else np.dtype(self.dtype).itemsize)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that is still on disk.

    Attributes:
      storage: where its numbers are.
      offset: of the first number, counted in numbers.
      shape: its length along each axis.
      strides: numbers from one entry to the next along each axis.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """Reads the tensor, while its file is open. bfloat16 becomes float32.

        Raises:
          UserError: if the file is damaged.
        """
        content = self.storage.read(self.storage)
        if self.storage.dtype == 'bfloat16':
            numbers = (np.frombuffer(content, '<u2').astype('<u4') << 16).view('<f4')
        else:
            numbers = np.frombuffer(content, self.storage.dtype)
        strides = [stride * numbers.itemsize for stride in self.strides]
        view = np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides)
        return np.array(view, view.dtype.newbyteorder('='))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Opens a file for the block and yields what it holds, as `pickles.load` reads it.

    Each `torch.Tensor` is a `Tensor`. Tensors of kinds that numpy lacks are `Unknown`.

    Raises:
      UserError: if the file cannot be read, is not one of PyTorch's, or claims what it does not
        hold. `Tensor.array` raises it too.
    """
    with _explained(path):
        file = _Limited(open_file(path).detach())  # type: ignore[attr-defined]
    with file:
        with _explained(path):
            read = _read_zip if file.peek(4)[:4] == b'PK\x03\x04' else _read_legacy
            content = read(file, path)
        yield content


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns what the readers raise into a sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror or error}): check it.') from error
    except (*_DAMAGED, RuntimeError) as error:  # a RuntimeError for an encrypted archive
        raise UserError(
            f'{path} is not a file of torch.save that can be read here ({error!s:.200}): give a '
            '.pth file, or download it again.'
        ) from error


class _Limited(io.BufferedReader):
    """A file of which at most `limit` bytes are read at a time."""

    limit = MAX_PICKLE

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.limit:
            raise ValueError(f'it claims {size:,} bytes in one piece')
        return super().read(size)


# ---- Zip archives. -----------------------------------------------------------------------------


def _read_zip(file: _Limited, path: Path) -> Any:
    archive = zipfile.ZipFile(file)  # reads no more than `MAX_PICKLE` bytes of names
    entries = {info.filename: info for info in archive.infolist()}
    roots = [name.removesuffix('data.pkl') for name in entries if name.endswith('/data.pkl')]
    if len(roots) != 1:
        raise ValueError('its archive has no data.pkl')
    (root,) = roots

    def entry(name: str, size: int | None = None) -> bytes:
        info = entries.get(root + name)
        if info is None:
            raise ValueError(f'its archive lacks {name}')
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise ValueError(f'{name} in its archive is compressed')
        if size is not None and info.file_size != size:
            raise ValueError(f'{name} in its archive has {info.file_size:,} bytes')
        return archive.read(info)

    def read(storage: Storage) -> bytes:
        with _explained(path):
            return entry(f'data/{storage.key}', storage.size)

    if f'{root}byteorder' in entries and entry('byteorder') != b'little':
        raise ValueError('its numbers are big-endian')
    pickle = io.BytesIO(entry('data.pkl'))
    file.limit = _size(file)
    return pickles.load(pickle, _build, lambda identity: _storage(identity, read))


# ---- The format before. ------------------------------------------------------------------------


def _read_legacy(file: _Limited, path: Path) -> Any:
    begin = io.BytesIO(file.read(MAX_PICKLE))
    if pickles.load(begin) != _MAGIC:
        raise ValueError('it begins like no file of PyTorch')
    if pickles.load(begin) != _PROTOCOL:
        raise ValueError('its protocol is unknown')
    system = pickles.load(begin)
    if not (isinstance(system, dict) and system.get('little_endian') is True):
        raise ValueError('its numbers are big-endian')
    storages: dict[str, Storage] = {}
    positions: dict[str, int] = {}

    def read(storage: Storage) -> bytes:
        with _explained(path):
            file.seek(positions[storage.key])
            return file.read(storage.size)

    def remember(identity: Any) -> Any:
        storage = _storage(identity, read)
        if isinstance(storage, Storage) and storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f'it has two storages {storage.key}')
        return storage

    content, keys = pickles.load(begin, _build, remember), pickles.load(begin)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError('its list of storages is damaged')
    position, end = begin.tell(), _size(file)
    file.limit = end
    for key in keys:
        if key not in storages:
            raise ValueError(f'it has a storage of a kind unknown here, {key}')
        file.seek(position)
        count = int.from_bytes(file.read(8), 'little')
        positions[key] = position + 8
        position += 8 + storages[key].size
        if count != storages[key].count or position > end:
            raise ValueError(f'its storage {key} ends early or has another length')
    if missing := storages.keys() - positions.keys():
        raise ValueError(f'it lacks the storage {min(missing)}')
    return content


def _size(file: _Limited) -> int:
    return os.fstat(file.fileno()).st_size


# ---- What the pickles name. --------------------------------------------------------------------


def _storage(identity: Any, read: Callable[[Storage], bytes]) -> Any:
    """What a persistent identity stands for: a storage, or `Unknown` if its numbers are."""
    if not (isinstance(identity, tuple) and len(identity) in (5, 6) and identity[0] == 'storage'):
        raise ValueError('its pickle refers to something other than a storage')
    _, kind, key, _, count, *view = identity
    if not (isinstance(kind, Unknown) and isinstance(key, str) and _is_count(count)):
        raise ValueError('its pickle refers to a storage without a name or a length')
    dtype = _DTYPES.get(kind.name.removeprefix('torch '))
    if dtype is None:
        return Unknown(kind.name, ())
    if view not in ([], [None]):
        raise ValueError('its storages are views of others')
    return Storage(key, dtype, count, read)


def _build(name: str, arguments: tuple) -> Any:
    """What a call in a pickle stands for: a tensor, or `Unknown`."""
    if name == 'torch._utils _rebuild_parameter':
        return arguments[0]
    if name not in ('torch._utils _rebuild_tensor', 'torch._utils _rebuild_tensor_v2'):
        return Unknown(name, arguments)
    storage, offset, shape, strides, *_ = arguments
    if isinstance(storage, Unknown):
        return Unknown(name, arguments)
    if not (isinstance(storage, Storage) and _is_count(offset)):
        raise ValueError('a tensor has no storage')
    if not (_are_counts(shape) and _are_counts(strides) and len(shape) == len(strides)):
        raise ValueError('a tensor has no shape')
    if not all(shape):
        return Unknown(name, arguments)  # holds nothing
    # A stride along an axis of one entry has no meaning.
    strides = tuple(stride if n > 1 else 0 for n, stride in zip(shape, strides, strict=True))
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # The second condition is for strides of 0, with which a number stands for many.
    if last >= storage.count or math.prod(shape) > storage.count:
        raise ValueError(f'a tensor of shape {shape} exceeds its {storage.count} numbers')
    return Tensor(storage, offset, shape, strides)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _are_counts(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) <= _MAX_AXES and all(map(_is_count, values))

"""Images in a zip or tar archive, listed and read as those of the unpacked folder would be.

The path of a file is that of the archive, followed by its path in the archive. Nothing is unpacked.
"""

import dataclasses
import functools
import io
import os
import posixpath
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from sagan_jax.errors import UserError, printable
from sagan_jax.image_scan import Contents, PassedOver, Storage, ignored, is_image
from sagan_jax.system import failures
from sagan_jax.system.untrusted import open_file, reason

LARGEST_FILE = 2**28  # bytes of one file
EXPANSION = 100  # times the size of an archive that its files may have together …
ALWAYS_ALLOWED = 2**30  # … if they have more bytes than this

# Kinds of entries. Those that are not used are named as `PassedOver` is.
_FOLDERS, _FILES = 'folders', 'files that are not images'
_LINKS, _SPECIAL = 'links in an archive', 'special files'

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_BLOCK, _PADDING = tarfile.BLOCKSIZE, 2**24  # bytes


class Entry(NamedTuple):
    """An image in an archive, in the place of an `os.DirEntry`."""

    path: str
    status: os.stat_result  # of the archive, whose times change with any of its images

    def stat(self) -> os.stat_result:
        return self.status


@dataclasses.dataclass(frozen=True)
class Archive:
    """The index of an archive, and how a file is read with it."""

    path: Path
    status: os.stat_result
    tree: Mapping[str, Mapping[str, str]]  # of each folder: name → kind
    places: Mapping[str, Any]  # of each file, for `read`
    read: Callable[[Any], bytes]
    sequential: bool  # each `read` starts at the beginning: see `unpacked`

    def contents(self, folder: Path) -> Contents:
        """Lists a folder as `image_scan.contents` does."""
        images: list[Entry] = []
        folders: list[Path] = []
        others: list[PassedOver] = []
        for name, kind in sorted(self.tree[str(folder)].items()):
            if ignored(name):
                continue
            if kind == _FOLDERS:
                folders.append(folder / name)
            elif kind == _FILES and is_image(name):
                images.append(Entry(str(folder / name), self.status))
            else:
                others.append(PassedOver(kind, folder / name))
        return Contents(folder, tuple(images), tuple(folders), tuple(others), self.storage)

    def open(self, path: Path) -> IO[bytes]:
        """Opens a file. Raises what the format's reader raises if it is damaged."""
        return io.BytesIO(self.read(self.places[str(path)]))

    @property
    def storage(self) -> Storage:
        return Storage(self.contents, self.open)

    def unpacked(self, folder: Path) -> 'Archive':
        """The archive for reading files in any order.

        A compressed tar is expanded into a file without a name in `folder`, which ends with the
        process. Any other archive is returned as it is.
        """
        if not self.sequential:
            return self
        expanded = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, closed with the archive
        with open_file(self.path) as file, tarfile.open(fileobj=file) as tar:
            tar.fileobj.seek(0)
            while chunk := tar.fileobj.read(2**20):
                expanded.write(chunk)
        expanded.flush()
        return dataclasses.replace(
            self, read=functools.partial(_read_at, expanded), sequential=False
        )


def open_archive(path: Path, inner_tars: bool = False) -> Archive:
    """Reads the index of an archive: zip, tar, or tar compressed by gzip, bzip2 or xz.

    Args:
      path: absolute, of the archive.
      inner_tars: whether a tar in an uncompressed tar is a folder.

    Raises:
      UserError: if the archive cannot be read, is damaged, incomplete or encrypted, has a name that
        leads out of it, or expands to far more than images do.
    """
    try:
        file = open_file(path)
        status = os.fstat(file.fileno())
        is_zip = file.read(2) == b'PK'
        file.seek(0)
        if is_zip:
            packed = zipfile.ZipFile(file)
            return _index(path, status, _zip_members(path, packed), packed.read, sequential=False)
        with tarfile.open(fileobj=file) as tar:
            sequential = tar.fileobj is not file
            members = _tar_members(path, tar, inner_tars and not sequential)
            read: Callable[[Any], bytes] = (
                functools.partial(_read_compressed, path)
                if sequential
                else functools.partial(_read_at, file)
            )
            return _index(path, status, members, read, sequential)
    except UserError:
        raise
    except Exception as error:  # what is raised for a damaged archive depends on the damage
        if failures.is_passing(error):
            raise
        why = 'neither a zip nor a tar' if _is_unknown(error) else reason(error)
        raise UserError(
            f'The archive {path} cannot be read ({why}): replace it by a complete zip or tar, or '
            'give a folder of images.'
        ) from error


def joined(*archives: Archive) -> Archive:
    """The files of several archives that can be read in any order. Lists only the first one."""
    places = {
        path: functools.partial(archive.read, place)
        for archive in archives
        for path, place in archive.places.items()
    }
    return dataclasses.replace(archives[0], places=places, read=lambda read: read())


_Member = tuple[str, str, Any]  # name, kind, place


def _index(
    path: Path,
    status: os.stat_result,
    members: Iterator[_Member],
    read: Callable[[Any], bytes],
    sequential: bool,
) -> Archive:
    tree: dict[str, dict[str, str]] = {str(path): {}}
    places: dict[str, Any] = {}
    limit = max(ALWAYS_ALLOWED, EXPANSION * status.st_size)
    total = 0
    for name, kind, place in members:
        parts = _parts(path, name)
        folder = str(path)
        for part in parts if kind == _FOLDERS else parts[:-1]:
            _add(path, name, tree[folder], part, _FOLDERS)
            folder = f'{folder}/{part}'
            tree.setdefault(folder, {})
        if kind == _FOLDERS or not parts:
            continue
        _add(path, name, tree[folder], parts[-1], kind)
        if kind == _FILES:
            places[f'{folder}/{parts[-1]}'] = place
            size = place.file_size if isinstance(place, zipfile.ZipInfo) else place[1]
            total += size
            if (is_image(name) and size > LARGEST_FILE) or total > limit:
                raise UserError(
                    f'The archive {path} expands to far more than images do, at '
                    f'{printable(name)}: unpack it if you trust it, and give the folder.'
                )
    return Archive(path, status, tree, places, read, sequential)


def _add(path: Path, name: str, folder: dict[str, str], part: str, kind: str) -> None:
    """A file may come twice, when the later one counts, but not be a folder too."""
    if (folder.setdefault(part, kind) == _FOLDERS) != (kind == _FOLDERS):
        raise UserError(
            f'The archive {path} has both a file and a folder for {printable(name)}: unpack it, '
            'and give the folder.'
        )
    folder[part] = kind


def _parts(path: Path, name: str) -> list[str]:
    parts = [part for part in name.split('/') if part not in ('', '.')]
    if name.startswith('/') or '..' in parts or '\0' in name:
        raise UserError(
            f'The archive {path} has a file outside of itself, {printable(name)}: pack the images '
            'again, by paths relative to their folder.'
        )
    return parts


def _zip_members(path: Path, packed: zipfile.ZipFile) -> Iterator[_Member]:
    for info in packed.infolist():
        name = info.filename
        if '/' not in name:  # Windows' own paths, against the standard
            name = name.replace('\\', '/')
        if info.is_dir() or name.endswith('/'):
            yield name, _FOLDERS, None
        elif stat.S_ISLNK(info.external_attr >> 16):
            yield name, _LINKS, None
        elif info.flag_bits & 1:
            raise UserError(
                f'The archive {path} is encrypted: unpack it with its password, and give the '
                'folder.'
            )
        elif info.compress_type not in _METHODS:
            raise UserError(
                f'The archive {path} is compressed by method {info.compress_type} of zip, which '
                'cannot be read: unpack it, and give the folder.'
            )
        else:
            yield name, _FILES, info


def _tar_members(path: Path, tar: tarfile.TarFile, inner_tars: bool) -> Iterator[_Member]:
    """Places are pairs (offset in the expanded tar, size)."""
    stream = tar.fileobj
    assert stream  # of a tar that is open
    places: dict[str, tuple[int, int]] = {}
    for member in tar:
        tar.members.clear()  # type: ignore[attr-defined]  # would take more memory than the index
        name, place = member.name, (member.offset_data, member.size)
        if member.isdir():
            yield name, _FOLDERS, None
        elif member.isreg() and inner_tars and name.endswith('.tar'):
            yield name, _FOLDERS, None
            with tarfile.open(fileobj=tar.extractfile(member), mode='r:') as inner:
                for inside, kind, within in _tar_members(path, inner, False):
                    moved = within and (member.offset_data + within[0], within[1])
                    yield f'{name}/{inside}', kind, moved
        elif member.isreg() and not member.issparse():
            places[posixpath.normpath(name)] = place
            yield name, _FILES, place
        elif member.islnk() and posixpath.normpath(member.linkname) in places:
            yield name, _FILES, places[posixpath.normpath(member.linkname)]
        else:
            yield name, _LINKS if member.issym() or member.islnk() else _SPECIAL, None
    stream.seek(tar.offset)
    end = stream.read(_BLOCK)
    if len(end) < _BLOCK or any(end):  # which `tarfile` takes for the end
        raise tarfile.ReadError('it is damaged or incomplete')
    stream.read(_PADDING)  # compressed data end with their checksum


def _read_at(file: IO[bytes], place: tuple[int, int]) -> bytes:
    """By any thread."""
    offset, size = place
    return _complete(os.pread(file.fileno(), size, offset), size)


def _read_compressed(path: Path, place: tuple[int, int]) -> bytes:
    offset, size = place
    with open_file(path) as file, tarfile.open(fileobj=file) as tar:
        tar.fileobj.seek(offset)
        return _complete(tar.fileobj.read(size), size)


def _complete(content: bytes, size: int) -> bytes:
    if len(content) < size:
        raise EOFError('the archive ends before it')
    return content


def _is_unknown(error: Exception) -> bool:
    return isinstance(error, tarfile.ReadError) and 'could not be opened' in str(error)

"""What of a run's folder is copied to a bucket, and the manifests that list it there."""

import dataclasses
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from sagan_jax.errors import UserError
from sagan_jax.system.files import atomic_path, is_partial
from sagan_jax.system.untrusted import parse_json, read_json

LOCK, STATE = '.bucket.lock', '.bucket.json'
NOTHING = ''  # the id of the manifest of an empty bucket
_NOT_COPIED = (LOCK, STATE, 'run.lock')

Stamp = tuple[int, int, int]  # size, time and inode of a file


class Part(NamedTuple):
    """An object that holds a file or a part of it, and its size in bytes."""

    object: str
    size: int


class Entry(NamedTuple):
    """A file as it was copied: its parts in order, and its size, time and inode here."""

    parts: tuple[Part, ...]
    stamp: Stamp


class Manifest(NamedTuple):
    """What a bucket holds: the files of a run by path, and an id drawn when it was written."""

    id: str
    files: dict[str, tuple[Part, ...]]


@dataclasses.dataclass
class Copy:
    """What is known of the copy of a folder.

    Attributes:
      folder: the folder of the run.
      ids: of manifests that were read or written here: the last one, and one of which it is not
        known whether it was written.
      files: the files that were copied, by path.
      rounds: the number of rounds so far.
      is_complete: whether the last round came to its end.
    """

    folder: Path
    ids: tuple[str, ...] = (NOTHING,)
    files: dict[str, Entry] = dataclasses.field(default_factory=dict)
    rounds: int = 0
    is_complete: bool = False


# ---- The folder. -------------------------------------------------------------------------------


def scan(folder: Path) -> dict[str, Stamp]:
    """Stamps of the files of a run by path, without temporary ones.

    Checkpoints come first: what a run writes before a checkpoint is there when that is found.
    """
    return {
        os.path.relpath(path, folder): stamp(status)
        for first in ('checkpoints', 'best', '')
        for path, status in _walk(folder / first)
        if first or not path.startswith((f'{folder}/checkpoints/', f'{folder}/best/'))
    }


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    for above, names, files in os.walk(folder):
        names[:] = [name for name in names if not _is_temporary(name)]
        for name in files:
            path = os.path.join(above, name)
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue
            is_own = name in _NOT_COPIED and Path(above) == folder
            if stat.S_ISREG(status.st_mode) and not _is_temporary(name) and not is_own:
                yield path, status


def _is_temporary(name: str) -> bool:
    return is_partial(name) or 'orbax-checkpoint-tmp' in name


def stamp(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns, status.st_ino


# ---- Manifests and states. ---------------------------------------------------------------------


def serialise(manifest: Manifest) -> bytes:
    files = {quoted(path): parts for path, parts in manifest.files.items()}
    return json.dumps({'id': manifest.id, 'files': files}).encode()


def parse(name: str, content: bytes) -> Manifest:
    """A manifest. Raises UserError if it is none, or has paths outside a folder."""
    try:
        found = parse_json(content)
        files = {
            unquoted(path): tuple(Part(str(object), int(size)) for object, size in parts)
            for path, parts in found['files'].items()
        }
        if any({'', '.', '..'} & {*path.split('/')} or '\0' in path for path in files):
            raise ValueError('a path outside')
        return Manifest(str(found['id']), files)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(
            f'{name} is not as this program wrote it: remove it from the bucket, or choose another '
            '--workdir.'
        ) from error


def read_state(folder: Path) -> Copy:
    """What `.bucket.json` says; as of a folder that was never copied if it cannot be read."""
    try:
        found = read_json(folder / STATE)
        files = {
            unquoted(path): Entry(tuple(Part(*part) for part in parts), tuple(stamp))
            for path, (parts, stamp) in found['files'].items()
        }
        return Copy(folder, tuple(found['ids']), files)
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return Copy(folder)


def write_state(copy: Copy) -> None:
    with atomic_path(copy.folder / STATE) as temporary:
        files = {quoted(path): entry for path, entry in copy.files.items()}
        temporary.write_text(json.dumps({'ids': copy.ids, 'files': files}))


def quoted(path: str) -> str:
    """A path as URLs write it, in ASCII, whatever bytes it has."""
    return quote(os.fsencode(path))


def unquoted(path: str) -> str:
    return os.fsdecode(unquote_to_bytes(path))

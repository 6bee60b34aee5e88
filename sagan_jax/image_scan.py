"""Finds image files in folders, and names everything that is passed over.

A file is an image if its name ends in one of `images.SUFFIXES`. Links to files and folders are
followed. Hidden entries, and what archives and systems add, are ignored.
"""

import os
import stat
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from sagan_jax.errors import UserError, printable
from sagan_jax.images import SUFFIXES
from sagan_jax.system.untrusted import open_file

NAMED = 10  # entries of one kind that are named; the others are only counted

_IGNORED = frozenset({  # in lower case
    '__macosx', 'desktop.ini', 'thumbs.db', 'ehthumbs.db', 'icon\r', '@eadir', '$recycle.bin',
    'system volume information', 'lost+found',
})  # fmt: skip


class PassedOver(NamedTuple):
    """A file or folder that is not used."""

    kind: str  # in the plural, such as 'broken links'
    path: Path
    remark: str = ''


class Storage(NamedTuple):
    """What holds folders: a disk or an archive."""

    contents: Callable[[Path], 'Contents']  # lists a folder
    open: Callable[[Path], IO[bytes]]  # a file, for reading


class Entry(Protocol):
    """An image, such as an `os.DirEntry`."""

    @property
    def path(self) -> str: ...

    def stat(self) -> os.stat_result: ...


class Contents(NamedTuple):
    """The entries of one folder, sorted by name."""

    path: Path
    images: tuple[Entry, ...]
    folders: tuple[Path, ...]
    others: tuple[PassedOver, ...]
    storage: Storage


def contents(folder: Path) -> Contents:
    """Lists a folder on disk. Raises UserError if it cannot be read."""
    images: list[os.DirEntry[str]] = []
    folders: list[Path] = []
    others: list[PassedOver] = []
    for entry in _entries(folder):
        if ignored(entry.name):
            continue
        try:
            mode = entry.stat().st_mode
        except OSError as error:  # also for a link to itself
            kind = 'broken links' if entry.is_symlink() else 'unreadable files'
            others.append(PassedOver(kind, Path(entry.path), error.strerror or ''))
            continue
        if stat.S_ISDIR(mode):
            folders.append(Path(entry.path))
        elif not stat.S_ISREG(mode):
            others.append(PassedOver('special files', Path(entry.path)))
        elif is_image(entry.name):
            images.append(entry)
        else:
            others.append(PassedOver('files that are not images', Path(entry.path)))
    return Contents(folder, tuple(images), tuple(folders), tuple(others), DISK)


DISK = Storage(contents, open_file)


def ignored(name: str) -> bool:
    """Whether an entry is hidden, or one that archives and systems add."""
    return name.startswith('.') or name.lower() in _IGNORED


def is_image(name: str) -> bool:
    """Whether a file is an image by its name."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def images_below(folder: Path, storage: Storage = DISK) -> tuple[list[Path], list[PassedOver]]:
    """All images in a folder and its subfolders, in no particular order, and what is passed over.

    Reads each folder once, however many links lead to it. Raises UserError if a folder cannot be
    read.
    """
    found: list[Path] = []
    passed_over: list[PassedOver] = []
    seen: set[str] = set()
    pending = deque([folder])
    while pending:
        path = pending.pop()
        real = os.path.realpath(path)
        if real in seen:
            passed_over.append(PassedOver('links to folders that are read already', path))
            continue
        seen.add(real)
        here = storage.contents(path)
        found += [Path(entry.path) for entry in here.images]
        passed_over += here.others
        for inner in here.folders:
            # Links last, so that an image has the path that it has without them.
            pending.appendleft(inner) if inner.is_symlink() else pending.append(inner)
    return found, passed_over


def describe(passed_over: Sequence[PassedOver], folder: Path) -> list[str]:
    """One line for each kind of entry that is passed over: the count, and up to `NAMED` names."""
    lines = []
    for kind in dict.fromkeys(entry.kind for entry in passed_over):
        entries = sorted(entry for entry in passed_over if entry.kind == kind)
        names = [_name(entry, folder) for entry in entries[:NAMED]]
        if len(entries) > NAMED:
            names.append('…')
        lines.append(f'{len(entries):,} not used, {kind}: {", ".join(names)}')
    return lines


def suffixes() -> str:
    """The suffixes of images, in words."""
    return ', '.join(sorted(SUFFIXES))


def _name(entry: PassedOver, folder: Path) -> str:
    path = entry.path.relative_to(folder) if entry.path.is_relative_to(folder) else entry.path
    return printable(str(path)) + (f' ({entry.remark})' if entry.remark else '')


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f'Cannot read the folder {folder} ({error.strerror}): check its permissions.'
        ) from error

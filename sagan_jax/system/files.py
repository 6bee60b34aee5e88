"""Writes files atomically: a reader never sees half of one."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which replaces `path` when the block succeeds.

    If the block raises, the temporary file is removed and `path` is unchanged. Both have the same
    suffix, because some writers choose the format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The writer creates the file, so that it has the usual permissions. `tempfile` ignores the
    # umask, and reading the umask means changing it for a moment, which is not safe with threads.
    temporary = path.with_name(f'.{uuid.uuid4().hex}.partial{path.suffix}')
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(*folders: Path) -> None:
    """Removes the files that `atomic_path` leaves in folders when its process is killed."""
    for folder in folders:
        for path in folder.glob('.*.partial*'):
            path.unlink()

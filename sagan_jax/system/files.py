"""Writing files so that a reader never meets half of one."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place when the block ends well.

    If the block raises, the temporary file is removed and whatever stood at `path` before stays.
    The temporary name ends like `path`, so that writers which go by the suffix know the format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The writer makes the file, with the permissions of any other: to ask for the umask that
    # `tempfile` ignores is to change it for a moment, and so not for threads.
    temporary = path.with_name(f'.{uuid.uuid4().hex}.partial{path.suffix}')
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(*folders: Path) -> None:
    """Removes what `atomic_path` leaves in folders when its process is killed."""
    for folder in folders:
        for path in folder.glob('.*.partial*'):
            path.unlink()

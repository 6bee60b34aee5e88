"""Files that a reader never sees half of, and locks that end with their process."""

import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_PARTIAL = re.compile(r'\.sagan_jax-[0-9a-f]{32}\.partial(\..*)?', re.DOTALL)


def partial_path(path: Path) -> Path:
    """A new temporary path beside `path`, under a name that only this project gives.

    Both have the same suffix, because some writers choose the format by it.
    """
    return path.with_name(f'.sagan_jax-{uuid.uuid4().hex}.partial{path.suffix}')


def is_partial(name: str) -> bool:
    """Whether a name is one of those that `partial_path` gives."""
    return _PARTIAL.fullmatch(name) is not None


@contextmanager
def atomic_path(path: str | os.PathLike, durable: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which replaces `path` when the block succeeds.

    If the block raises, the temporary file is removed and `path` is unchanged. The temporary path
    is that of `partial_path`. If `durable`, the file is on disk when the block is left, so that it
    is there after a power failure.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The writer creates the file, so that it has the usual permissions. `tempfile` ignores the
    # umask, and reading the umask means changing it for a moment, which is not safe with threads.
    temporary = partial_path(path)
    try:
        yield temporary
        if durable:
            _flush(temporary)
        temporary.replace(path)
        if durable:
            _flush(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and not error.filename:
            error.filename = str(path)  # a failed write does not name its file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Waits until a file or the names in a folder are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partial(*folders: Path) -> None:
    """Removes what a killed process leaves in folders under the names of `partial_path`.

    Files and folders of similar names that others made stay.
    """
    for folder in folders:
        for path in folder.glob('.sagan_jax-*'):
            if not is_partial(path.name):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def stamp(status: os.stat_result) -> tuple[int, int, int]:
    """Size and times of a file. They change whenever its content does; nobody can set the last."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def take_lock(path: Path, wait: bool = False) -> int | None:
    """Locks a file, which is created if it does not exist.

    The lock lasts until the descriptor is closed here and in every process that inherited it, even
    if they are killed. The file stays.

    Args:
      path: of the file, by custom `.lock` in the folder that the lock is about.
      wait: whether to wait while another process has the lock.

    Returns:
      A file descriptor; None if another process has the lock and `wait` is False.

    Raises:
      OSError: if the file cannot be written or locked.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def locked(path: Path, when_busy: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds `take_lock` during the block.

    If another process has the lock, `when_busy` is called, which may raise; then this waits.
    """
    descriptor = take_lock(path)
    if descriptor is None:
        when_busy()
        descriptor = take_lock(path, wait=True)
    assert descriptor is not None  # waiting ends with the lock
    try:
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a process has the lock of a file; False for a file that cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False

"""One process at a time changes a run's folder.

The file `run.lock` of a workdir holds a record of the process that uses it, or used it last. Two
things keep others out: `flock` on the file, where the filesystem has it, and the record, on
filesystems without locks and across hosts.

- A record of this machine counts as long as its process lives. It is stale as soon as that process
  is gone.
- A record of another machine counts as long as the file is touched, which its process does every
  `BEAT` seconds. It is stale after `PATIENCE` seconds without a touch. These are measured here,
  while waiting, so that clocks need not agree.

A stale record is taken over. Its process, if it was only suspended, finds out through `confirm`.
"""

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sagan_jax.errors import UserError
from sagan_jax.run import owners
from sagan_jax.run.folder import RunFolder
from sagan_jax.run.owners import DAMAGED, Record, describe, is_alive, is_here, parse, refusal
from sagan_jax.system.untrusted import open_file

BEAT = 10.0  # seconds between two touches
PATIENCE = 90.0  # seconds without a touch after which a process on another machine counts as gone
_GRACE = 5.0  # seconds in which a process that was killed closes its files
_POLL = 0.2
_SIZE = 1024  # bytes of a record, padded so that one write replaces another


@contextlib.contextmanager
def owned(run: RunFolder, instead: str = 'another --workdir') -> Iterator[Callable[[], None]]:
    """Owns a run's folder during the block, which only one process can.

    Yields `confirm()`, to be called before writing: it raises UserError if another process has
    taken the folder over. Leaves nothing behind if no run has begun in the folder.

    Args:
      run: the run's folder, created if it does not exist.
      instead: what a user can choose if the folder is in use, for the message.

    Raises:
      UserError: if another process uses the folder, which is then unchanged, or if the folder
        cannot be written.
    """
    missing = [path for path in (run.path, *run.path.parents) if not path.exists()]
    descriptor = _open(run)
    try:
        record = _take(run, descriptor, instead)
        ended = threading.Event()
        threading.Thread(target=_beat, args=(run, record, ended), daemon=True).start()
        try:
            yield lambda: _confirm(run, record)
        finally:
            ended.set()
            _release(run, record, missing)
    finally:
        os.close(descriptor)


def hand_over(run: RunFolder, other: Record) -> None:
    """Has `confirm` of this process's owner report that `other` has taken the folder over.

    For a run that has been taken over where its folder is copied to. Does nothing in a folder that
    no process owns.
    """
    if owner(run):
        with contextlib.suppress(OSError):
            _write(run, other)


def forget(run: RunFolder, other: Record) -> None:
    """Removes the record that `hand_over` wrote."""
    if _read(run) == other:
        run.lock.unlink(missing_ok=True)


def owner(run: RunFolder) -> Record | None:
    """The record of the process that uses a run's folder, for display; None if there is none.

    About another machine, only the clocks of both can tell it at once: it counts if it has touched
    the file within `PATIENCE` seconds.
    """
    record = _read(run)
    if record is None or record.released:
        return None
    if is_here(record):
        return record if is_alive(record) else None
    return record if time.time() - _stamp(run)[0] / 1e9 < PATIENCE else None


# ---- Taking and releasing. ---------------------------------------------------------------------


def _open(run: RunFolder) -> int:
    existing = run.path.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f'The workdir {run.path} cannot be written, because of {existing}: '
            'choose another --workdir.'
        )
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        return os.open(run.lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise run.unwritable(error) from error


def _take(run: RunFolder, descriptor: int, instead: str) -> Record:
    """Writes a record of this process, unless the folder is in use."""
    before = _read(run)
    is_free = _flock(descriptor)
    if before is None or before.released or (before == DAMAGED and not is_free):
        in_use = not is_free
    elif is_here(before):
        in_use = is_alive(before) or not (is_free or _flock(descriptor, _GRACE))
    else:
        print(
            f'workdir        in use by {describe(before)}, or left by it: waiting up to '
            f'{PATIENCE:.0f} s for a sign of it'
        )
        in_use = _is_touched(run) and _is_held(run)
        _flock(descriptor)  # the other one may have had it until now
    if in_use:
        raise refusal(run.path, _read(run), instead)
    if before is not None and not before.released:
        print(f'workdir        taken over from {describe(before)}, which is gone')
    record = owners.of_this_process()
    try:
        _write(run, record)
    except OSError as error:
        raise run.unwritable(error) from error
    return record


def _flock(descriptor: int, patience: float = 0) -> bool:
    """Locks a file until it is closed; False if another process has the lock, even after a while.

    True on a filesystem without locks, where the record alone decides.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL)
        except OSError:
            return True
        else:
            return True


def _confirm(run: RunFolder, record: Record) -> None:
    found = _read(run)
    if found in (None, DAMAGED):  # removed, perhaps with the folder
        with contextlib.suppress(OSError):
            _write(run, record)
    elif found != record:
        raise owners.taken_over(run.path, found)


def _beat(run: RunFolder, record: Record, ended: threading.Event) -> None:
    """Touches the file as long as it is this process's."""
    while not ended.wait(BEAT):
        if _read(run) == record:
            with contextlib.suppress(OSError):
                os.utime(run.lock)


def _release(run: RunFolder, record: Record, missing: list[Path]) -> None:
    """Marks the record as released; without a run, removes it and the folders made for it."""
    if _read(run) != record:
        return
    with contextlib.suppress(OSError):
        if run.config_json.exists():
            _write(run, record._replace(released=True))
            return
        run.lock.unlink()
        for path in missing:
            path.rmdir()


# ---- Records. ----------------------------------------------------------------------------------


def _read(run: RunFolder) -> Record | None:
    """The record of a folder; None without one, and `DAMAGED` for one that cannot be read."""
    try:
        with open_file(run.lock) as file:
            text = file.read(_SIZE + 1)
    except OSError:
        return None
    return parse(text)


def _is_held(run: RunFolder) -> bool:
    record = _read(run)
    return record is not None and not record.released


def _write(run: RunFolder, record: Record) -> None:
    """Writes a record in place, so that the lock on the file stays."""
    descriptor = os.open(run.lock, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.pwrite(descriptor, owners.serialise(record).ljust(_SIZE - 1) + b'\n', 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_touched(run: RunFolder) -> bool:
    """Whether the file is touched or written within `PATIENCE` seconds."""
    before, deadline = _stamp(run), time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        time.sleep(_POLL)
        if _stamp(run) != before:
            return True
    return False


def _stamp(run: RunFolder) -> tuple[int, Record | None]:
    try:
        with run.lock.open('rb') as file:  # opened, because NFS then asks the server
            return os.fstat(file.fileno()).st_mtime_ns, _read(run)
    except OSError:
        return 0, None

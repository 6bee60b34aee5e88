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
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from sagan_jax.errors import UserError, printable
from sagan_jax.run.folder import RunFolder
from sagan_jax.system.failures import RETRY
from sagan_jax.system.untrusted import open_file, parse_json

BEAT = 10.0  # seconds between two touches
PATIENCE = 90.0  # seconds without a touch after which a process on another machine counts as gone
_GRACE = 5.0  # seconds in which a process that was killed closes its files
_POLL = 0.2
_SIZE = 1024  # bytes of a record, padded so that one write replaces another


class Record(NamedTuple):
    """Which process uses a folder, or used it last, as `run.lock` holds it.

    Attributes:
      process: its id.
      host: its machine's name, for people.
      machine: see `_machine`.
      started: see `_started`.
      since: when it took the folder, for people.
      token: drawn at random, so that no other record is equal.
      released: whether it no longer uses the folder.
      job: its job of SLURM, if any.
    """

    process: int
    host: str
    machine: str
    started: str
    since: str
    token: str
    released: bool = False
    job: str = ''


_DAMAGED = Record(0, *('unknown',) * 5)


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


def owner(run: RunFolder) -> Record | None:
    """The record of the process that uses a run's folder, for display; None if there is none.

    About another machine, only the clocks of both can tell it at once: it counts if it has touched
    the file within `PATIENCE` seconds.
    """
    record = _read(run)
    if record is None or record.released:
        return None
    if _is_here(record):
        return record if _is_alive(record) else None
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
    if before is None or before.released or (before == _DAMAGED and not is_free):
        in_use = not is_free
    elif _is_here(before):
        in_use = _is_alive(before) or not (is_free or _flock(descriptor, _GRACE))
    else:
        print(
            f'workdir        in use by {describe(before)}, or left by it: waiting up to '
            f'{PATIENCE:.0f} s for a sign of it'
        )
        in_use = _is_touched(run) and _is_held(run)
        _flock(descriptor)  # the other one may have had it until now
    if in_use:
        raise _refusal(run, _read(run), instead)
    if before is not None and not before.released:
        print(f'workdir        taken over from {describe(before)}, which is gone')
    record = Record(
        process=os.getpid(),
        host=platform.node(),
        machine=_machine(),
        started=_started(os.getpid()),
        since=datetime.now().astimezone().isoformat(' ', 'seconds'),
        token=uuid.uuid4().hex,
        job=_job(),
    )
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
    if found in (None, _DAMAGED):  # removed, perhaps with the folder
        with contextlib.suppress(OSError):
            _write(run, record)
    elif found != record:
        raise UserError(
            f'The workdir {run.path} was taken over by {describe(found)}, because this process '
            'gave no sign of life: look there for the run.'
        )


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


def _refusal(run: RunFolder, record: Record | None, instead: str) -> UserError:
    who = describe(record) if record and record != _DAMAGED else 'another process'
    is_requeued = os.environ.get('SLURM_RESTART_COUNT', '0') != '0'
    if is_requeued and record and record.job and record.job == _job():
        return UserError(
            f'The workdir {run.path} is still in use by {who}, of this job {record.job} before it '
            'was requeued: try again when that has ended.',
            RETRY,
        )
    return UserError(
        f'The workdir {run.path} is in use by {who}: wait, end it, or choose {instead}.'
    )


def _job() -> str:
    return os.environ.get('SLURM_JOB_ID', '')


# ---- Records. ----------------------------------------------------------------------------------


def _read(run: RunFolder) -> Record | None:
    """The record of a folder; None without one, and `_DAMAGED` for one that cannot be read."""
    try:
        with open_file(run.lock) as file:
            text = file.read(_SIZE + 1)
    except OSError:
        return None
    if not text.strip():
        return None
    try:
        record = Record(**parse_json(text))
    except (ValueError, TypeError):
        return _DAMAGED
    names = (*record[1:6], record.job)
    is_whole = all(isinstance(name, str) for name in names) and type(record.released) is bool
    return record if is_whole and type(record.process) is int and record.process > 0 else _DAMAGED


def _is_held(run: RunFolder) -> bool:
    record = _read(run)
    return record is not None and not record.released


def _write(run: RunFolder, record: Record) -> None:
    """Writes a record in place, so that the lock on the file stays."""
    descriptor = os.open(run.lock, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.pwrite(descriptor, json.dumps(record._asdict()).encode().ljust(_SIZE - 1) + b'\n', 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe(record: Record) -> str:
    """A process for messages: its id, its host and since when it uses the folder."""
    return printable(f'process {record.process} on {record.host} since {record.since}')


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


# ---- Processes. --------------------------------------------------------------------------------


def _machine() -> str:
    """The host, its boot and its namespace of process ids: within these a process id is unique."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path('/proc/sys/kernel/random/boot_id').read_text().strip())
        parts.append(os.readlink('/proc/self/ns/pid'))
    return ' '.join(parts)


def _is_here(record: Record) -> bool:
    return record.machine == _machine()


def _is_alive(record: Record) -> bool:
    """Whether the process of a record of this machine still runs."""
    try:
        os.kill(record.process, 0)
    except PermissionError:
        pass  # another user's
    except (OSError, OverflowError):
        return False
    return _started(record.process) in (record.started, 'unknown')


def _started(process: int) -> str:
    """When a process started, in ticks of the kernel, so that a reused id is noticed.

    'unknown' on systems without /proc, and 'ended' for a process that nobody has waited for.
    """
    try:
        fields = Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        return 'unknown'
    return 'ended' if fields[0] in 'ZX' else fields[19]

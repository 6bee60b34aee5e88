"""Records of the process that uses a run: who it is, and whether it still runs."""

import contextlib
import json
import os
import platform
import uuid
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from sagan_jax.errors import UserError, printable
from sagan_jax.system.failures import RETRY
from sagan_jax.system.untrusted import parse_json


class Record(NamedTuple):
    """Which process uses a run, or used it last, as a record of it holds.

    Attributes:
      process: its id.
      host: its machine's name, for people.
      machine: see `machine`.
      started: see `started`.
      since: when it took the run, for people.
      token: drawn at random, so that no other record is equal.
      released: whether it no longer uses the run.
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


DAMAGED = Record(0, *('unknown',) * 5)


def of_this_process() -> Record:
    """A new record of this process."""
    return Record(
        process=os.getpid(),
        host=platform.node(),
        machine=machine(),
        started=started(os.getpid()),
        since=datetime.now().astimezone().isoformat(' ', 'seconds'),
        token=uuid.uuid4().hex,
        job=_job(),
    )


def parse(text: bytes) -> Record | None:
    """The record that a file holds; None for an empty one, and `DAMAGED` for any other text."""
    if not text.strip():
        return None
    try:
        record = Record(**parse_json(text))
    except (ValueError, TypeError):
        return DAMAGED
    names = (*record[1:6], record.job)
    is_whole = all(isinstance(name, str) for name in names) and type(record.released) is bool
    return record if is_whole and type(record.process) is int and record.process > 0 else DAMAGED


def serialise(record: Record) -> bytes:
    """What `parse` reads."""
    return json.dumps(record._asdict()).encode()


# ---- Messages. ---------------------------------------------------------------------------------


def describe(record: Record) -> str:
    """A process for messages: its id, its host and since when it uses the folder."""
    return printable(f'process {record.process} on {record.host} since {record.since}')


def refusal(place: str | os.PathLike, record: Record | None, instead: str) -> UserError:
    """The error that reports that a run is in use.

    Args:
      place: the run's workdir.
      record: of the process that uses it; None or `DAMAGED` if that is unknown.
      instead: what a user can choose instead.
    """
    who = describe(record) if record and record != DAMAGED else 'another process'
    is_requeued = os.environ.get('SLURM_RESTART_COUNT', '0') != '0'
    if is_requeued and record and record.job and record.job == _job():
        return UserError(
            f'The workdir {place} is still in use by {who}, of this job {record.job} before it '
            'was requeued: try again when that has ended.',
            RETRY,
        )
    return UserError(f'The workdir {place} is in use by {who}: wait, end it, or choose {instead}.')


def taken_over(place: str | os.PathLike, record: Record) -> UserError:
    """The error that reports that another process has taken a run over."""
    return UserError(
        f'The workdir {place} was taken over by {describe(record)}, because this process '
        'gave no sign of life: look there for the run.'
    )


def _job() -> str:
    return os.environ.get('SLURM_JOB_ID', '')


# ---- Processes. --------------------------------------------------------------------------------


def machine() -> str:
    """The host, its boot and its namespace of process ids: within these a process id is unique."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path('/proc/sys/kernel/random/boot_id').read_text().strip())
        parts.append(os.readlink('/proc/self/ns/pid'))
    return ' '.join(parts)


def is_here(record: Record) -> bool:
    return record.machine == machine()


def is_alive(record: Record) -> bool:
    """Whether the process of a record of this machine still runs."""
    try:
        os.kill(record.process, 0)
    except PermissionError:
        pass  # another user's
    except (OSError, OverflowError):
        return False
    return started(record.process) in (record.started, 'unknown')


def started(process: int) -> str:
    """When a process started, in ticks of the kernel, so that a reused id is noticed.

    'unknown' on systems without /proc, and 'ended' for a process that nobody has waited for.
    """
    try:
        fields = Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        return 'unknown'
    return 'ended' if fields[0] in 'ZX' else fields[19]

"""One process at a time writes a run in a bucket, where nothing can be locked or renamed.

Records of processes are objects with numbers, `owner/000001.json` and so on, and the highest number
owns the run. A process takes the run by creating the next number, which only one can. A record
counts as in `lock`: one of this machine as long as its process lives, another as long as it is
rewritten, which its process does every `BEAT` seconds; it is stale after `PATIENCE` seconds without
that, measured here. A process that was only suspended finds a higher number in its next look.
"""

import contextlib
import dataclasses
import re
import threading
import time
from collections.abc import Iterable

from sagan_jax.errors import UserError
from sagan_jax.run import owners
from sagan_jax.run.owners import DAMAGED, Record
from sagan_jax.system.buckets import Address, BucketError, Store

BEAT = 60.0  # seconds between two times that a record is written
PATIENCE = 180.0  # seconds without that after which a process on another machine counts as gone
_POLL = 5.0
_NUMBER = re.compile(r'(?:owner|manifests|files)/(\d{6,})[-.]')


@dataclasses.dataclass
class Ownership:
    """What this process knows of its own record.

    Attributes:
      store: where the run is.
      number: of the record.
      record: the record.
      lost: the record of the process that has taken the run over; None as long as it is this one's.
    """

    store: Store
    number: int
    record: Record
    lost: Record | None = None


def take(store: Store) -> Ownership:
    """Takes the run of a bucket for this process.

    Raises:
      UserError: if another process uses it, or the bucket cannot be used.
    """
    record = owners.of_this_process()
    before = highest(store.list(''))
    name = name_of(before)
    content = store.read(name) if before else None
    other = owners.parse(content or b'')
    if other is not None and not other.released:
        if _is_in_use(store, name, content, other):
            raise _refusal(store.address, other)
        print(f'workdir        taken over from {owners.describe(other)}, which is gone')
    number = before + 1
    if not store.create(name_of(number), _content(record, 0)):
        winner = owners.parse(store.read(name_of(number)) or b'')
        # An answer may have been lost, after which the request was made again.
        if winner is None or winner.token != record.token:
            raise _refusal(store.address, winner)
    if before:
        store.remove(name)
    return Ownership(store, number, record)


def check(ownership: Ownership, names: Iterable[str]) -> None:
    """Notices in a listing of the bucket whether another process has taken the run over.

    Raises:
      UserError: if it has. `ownership.lost` is set then.
    """
    number = max((of(name) for name in names if name.startswith('owner/')), default=0)
    if number > ownership.number:
        found = owners.parse(ownership.store.read(name_of(number)) or b'') or DAMAGED
        ownership.lost = found
        raise owners.taken_over(str(ownership.store.address), found)


def beat(ownership: Ownership, ended: threading.Event) -> None:
    """Writes the record again every `BEAT` seconds until `ended`, or another owns the run."""
    beats = 0
    while not ended.wait(BEAT):
        beats += 1
        with contextlib.suppress(BucketError):
            try:
                check(ownership, ownership.store.list('owner'))
            except BucketError:
                raise
            except UserError:
                return
            ownership.store.write(name_of(ownership.number), _content(ownership.record, beats))


def release(ownership: Ownership, has_run: bool) -> None:
    """Marks the record as released, if the bucket answers; removes it if no run is there."""
    if ownership.lost:
        return
    name, released = name_of(ownership.number), ownership.record._replace(released=True)
    with contextlib.suppress(BucketError):
        if has_run:
            ownership.store.write(name, owners.serialise(released))
        else:
            ownership.store.remove(name)


def highest(names: Iterable[str]) -> int:
    """The highest number of an owner that a listing has a trace of; 0 for none."""
    return max(map(of, names), default=0)


def name_of(number: int) -> str:
    """The name of an owner's record."""
    return f'owner/{number:06d}.json'


def of(name: str) -> int:
    """The number of the owner that wrote an object; 0 for an object of another kind."""
    found = _NUMBER.match(name)
    return int(found[1]) if found else 0


def _content(record: Record, beats: int) -> bytes:
    """A record, with blanks that make it differ from the one before."""
    return owners.serialise(record) + b' ' * (beats % 1000)


def _is_in_use(store: Store, name: str, content: bytes | None, record: Record) -> bool:
    if owners.is_here(record):
        return owners.is_alive(record)
    print(
        f'workdir        in use by {owners.describe(record)}, or left by it: waiting up to '
        f'{PATIENCE:.0f} s for a sign of it'
    )
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        time.sleep(_POLL)
        found = store.read(name)
        if found != content:
            now = owners.parse(found or b'')
            return now is None or not now.released  # removed: by one that has taken it
    return False


def _refusal(address: Address, record: Record | None) -> UserError:
    return owners.refusal(str(address), record, 'another --workdir')

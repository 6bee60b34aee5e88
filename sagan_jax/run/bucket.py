"""Runs in buckets: a folder of this machine, copied to the bucket while it is used."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from sagan_jax.errors import UserError
from sagan_jax.run import bucket_copy, bucket_files, bucket_owner, lock, owners
from sagan_jax.run.bucket_files import Copy
from sagan_jax.run.bucket_owner import Ownership
from sagan_jax.run.folder import RunFolder
from sagan_jax.system import buckets
from sagan_jax.system.buckets import Address, BucketError
from sagan_jax.system.failures import RETRY
from sagan_jax.system.files import locked
from sagan_jax.system.untrusted import reason

EVERY = 30.0  # seconds between two rounds of copying
_LONGEST = 600.0  # seconds between two attempts while the bucket does not answer
_LAST_PAUSES = (0, 2, 10, 30)  # seconds before each attempt of the last round


@contextlib.contextmanager
def mirrored(address: Address) -> Iterator[Path]:
    """Owns the run in a bucket during the block, and copies what changes in its folder.

    Yields the folder, which is equal to the bucket at first, or newer if nobody has written there
    since. Failures of the network are warnings during the block. If another process takes the run
    over, nothing more is copied, and `confirm` of `lock.owned` raises in the block.

    Raises:
      UserError: if another process uses the run; if the bucket cannot be used at the beginning; if
        the last changes cannot be copied; or if another process has taken the run over.
    """
    store, folder = buckets.open_store(address), address.folder
    ownership, ended, copy = bucket_owner.take(store), threading.Event(), Copy(folder)
    threading.Thread(target=bucket_owner.beat, args=(ownership, ended), daemon=True).start()
    try:
        with _syncing(folder):
            user = lock.owner(RunFolder(folder))
            if user:
                raise owners.refusal(folder, user, 'another --workdir')
            copy = bucket_copy.fetch(store, folder)
        print(f'workdir        {address}, kept in {folder} and copied every {EVERY:.0f} s')
        with _copied(ownership, copy):
            yield folder
    finally:
        ended.set()
        bucket_owner.release(ownership, has_run=bool(copy.ids[-1]))


@contextlib.contextmanager
def fetched(address: Address) -> Iterator[Path]:
    """Yields a folder with the run of a bucket, to be read.

    If a process of this machine uses the folder, it is left as it is.

    Raises:
      UserError: if the bucket cannot be read.
    """
    store, folder = buckets.open_store(address), address.folder
    with _syncing(folder):
        user = lock.owner(RunFolder(folder))
        if user is None:
            bucket_copy.fetch(store, folder)
    how = f'written there by {owners.describe(user)}' if user else 'read from there'
    print(f'workdir        {address}, kept in {folder} and {how}')
    yield folder


@contextlib.contextmanager
def _syncing(folder: Path) -> Iterator[None]:
    """One process at a time downloads into a folder."""
    try:
        with locked(folder / bucket_files.LOCK):
            yield
    except OSError as error:
        raise RunFolder(folder).unwritable(error) from error


@contextlib.contextmanager
def _copied(ownership: Ownership, copy: Copy) -> Iterator[None]:
    """Copies changes during the block, and the last ones at its end."""
    ended = threading.Event()
    copying = threading.Thread(target=_copy_often, args=(ownership, copy, ended), daemon=True)
    copying.start()
    failed = True
    try:
        yield
        failed = False
    finally:
        ended.set()
        copying.join()
        problem = _copy_last(ownership, copy)
        if problem and failed:
            print(f'warning        {problem}')
    if problem:
        raise problem


def _copy_often(ownership: Ownership, copy: Copy, ended: threading.Event) -> None:
    """Copies changes until `ended`. Waits longer after each failure in a row."""
    failures = 0
    while not ended.wait(min(EVERY * 2**failures, _LONGEST)):
        try:
            bucket_copy.copy_changes(ownership, copy)
        except (UserError, OSError) as error:
            if not ownership.lost and not failures:
                print(
                    f'warning        {ownership.store.address} is not up to date '
                    f'({_why(error)}): this continues, and copying is tried again'
                )
            failures += 1
        else:
            if failures:
                print(f'workdir        {ownership.store.address} is up to date again')
            failures = 0
        if ownership.lost:
            return lock.hand_over(RunFolder(copy.folder), ownership.lost)
    return None


def _copy_last(ownership: Ownership, copy: Copy) -> UserError | None:
    """Copies the last changes. What to do if they cannot be copied."""
    why, address = '', ownership.store.address
    for pause in _LAST_PAUSES:
        time.sleep(pause)
        try:
            bucket_copy.copy_changes(ownership, copy)
        except (UserError, OSError) as error:
            why = _why(error)
        else:
            why = ''
        if ownership.lost:
            lock.forget(RunFolder(copy.folder), ownership.lost)
            return owners.taken_over(str(address), ownership.lost)
        if not why:
            return None
        print(f'warning        the last changes are not in {address} yet: {why}')
    return UserError(
        f'The last changes of the run could not be copied to {address} ({why}) and are in '
        f'{copy.folder}: give the same command again on this machine, which copies them.',
        RETRY,
    )


def _why(error: Exception) -> str:
    return error.why if isinstance(error, BucketError) else reason(error)

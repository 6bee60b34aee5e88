"""Copies a run's folder to a bucket and back, so that a reader sees a whole run or the one before.

The bucket holds three kinds of objects. No object is written twice, except the owner's record.

- `files/OWNER-ROUND/PATH` has what a file of the run held in one round of copying, or, with
  `@OFFSET` behind it, what follows from there on. Curves only grow, so only their ends are copied.
- `manifests/OWNER-ROUND.json` lists the files of the run with their objects. It is written when all
  of these are there. The highest one counts, so that an owner that was suspended changes nothing.
- `owner/OWNER.json`, see `bucket_owner`.

What the counting manifest does not list is removed after the next one is written.

`.bucket.json` in the folder says what was copied, so that only changes are.
"""

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from sagan_jax.errors import UserError
from sagan_jax.run import bucket_files, bucket_owner
from sagan_jax.run.bucket_files import Copy, Entry, Manifest, Part, Stamp, quoted, scan, stamp
from sagan_jax.run.bucket_owner import Ownership
from sagan_jax.system.buckets import BucketError, Store, each
from sagan_jax.system.failures import RETRY
from sagan_jax.system.files import atomic_path

_PART = 2**25  # bytes of the largest object, which a thread holds in memory
_ATTEMPTS, _PAUSE = 5, 0.1  # while files or objects vanish; seconds between two


class _VanishedError(Exception):
    """A file or an object is gone since it was listed."""


# ---- From the bucket. --------------------------------------------------------------------------


def fetch(store: Store, folder: Path) -> Copy:
    """Makes a folder equal to the run in a bucket.

    If nobody has written to the bucket since this folder was last copied, the folder stays as it
    is, which may be newer.

    Raises:
      UserError: if the bucket cannot be read, or is empty while the folder is a copy of a run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(_ATTEMPTS):
        copy, manifest = bucket_files.read_state(folder), _newest(store)
        if manifest.id in copy.ids:
            return copy
        if manifest.id == bucket_files.NOTHING:
            raise UserError(
                f'{store.address} is empty, and {folder} has a copy of the run that was there: '
                f'remove {folder} to begin again, or choose another --workdir.'
            )
        found = scan(folder)
        if any(path not in copy.files or copy.files[path].stamp != found[path] for path in found):
            print(
                f'workdir        {store.address} was written elsewhere since: it replaces what '
                f'{folder} has'
            )
        try:
            copy = _replace(store, copy, found, manifest)
        except _VanishedError:  # a new manifest was written, and objects of this one are removed
            continue
        bucket_files.write_state(copy)
        return copy
    raise BucketError(
        f'{store.address} lacks objects that its manifest lists, or changes too fast: give the '
        'same command again.',
        RETRY,
    )


def _newest(store: Store) -> Manifest:
    for _ in range(_ATTEMPTS):
        names = store.list('manifests')
        if not names:
            return Manifest(bucket_files.NOTHING, {})
        name = max(names, key=_order)
        content = store.read(name)
        if content is not None:
            return bucket_files.parse(f'{store.address}/{name}', content)
    raise BucketError(f'{store.address} changes too fast: give the same command again.', RETRY)


def _order(name: str) -> tuple[int, ...]:
    owner, _, number = Path(name).stem.partition('-')
    return (int(owner), int(number)) if owner.isdecimal() and number.isdecimal() else (0, 0)


def _replace(store: Store, copy: Copy, found: dict[str, Stamp], manifest: Manifest) -> Copy:
    """Downloads what differs, and removes what the manifest does not list."""
    folder = copy.folder
    kept = {
        path: Entry(parts, found[path])
        for path, parts in manifest.files.items()
        if path in found and copy.files.get(path) == Entry(parts, found[path])
    }
    for path in found.keys() - manifest.files.keys():
        (folder / path).unlink(missing_ok=True)
    for above, _, _ in os.walk(folder, topdown=False):
        if Path(above) != folder and not os.listdir(above):
            os.rmdir(above)

    def download(path: str) -> tuple[str, Entry]:
        parts = manifest.files[path]
        with atomic_path(folder / path) as temporary, temporary.open('wb') as file:
            for part in parts:
                content = store.read(part.object)
                if content is None or len(content) != part.size:
                    raise _VanishedError
                file.write(content)
        return path, Entry(parts, stamp((folder / path).stat()))

    missing = manifest.files.keys() - kept.keys()
    return Copy(folder, (manifest.id,), kept | dict(each(download, sorted(missing))))


# ---- To the bucket. ----------------------------------------------------------------------------


def copy_changes(ownership: Ownership, copy: Copy) -> None:
    """Copies what has changed in the folder, if anything has; then removes what is not used.

    What was copied before an error is not copied again.

    Raises:
      UserError: if another process has taken the run over, or the bucket cannot be used.
    """
    for _ in range(_ATTEMPTS):
        found = scan(copy.folder)
        is_known = copy.files.keys() == found.keys() and all(
            copy.files[path].stamp == found[path] for path in found
        )
        if is_known and copy.is_complete:
            return
        if not found and copy.ids == (bucket_files.NOTHING,):
            return  # no run has begun
        try:
            return _copy_round(ownership, copy, found)
        except _VanishedError:
            time.sleep(_PAUSE)
    raise UserError(
        f'Files in {copy.folder} vanish while they are copied: let nothing remove them.'
    )


def _copy_round(ownership: Ownership, copy: Copy, found: dict[str, Stamp]) -> None:
    store = ownership.store
    copy.rounds, copy.is_complete = copy.rounds + 1, False
    version = f'{ownership.number:06d}-{copy.rounds:06d}'
    present = store.list('')
    bucket_owner.check(ownership, present)

    def is_there(entry: Entry) -> bool:
        return all(present.get(part.object) == part.size for part in entry.parts)

    def upload(path: str) -> None:
        copy.files[path] = _upload(store, copy, path, version, is_there)

    changed = [
        path
        for path in found
        if path not in copy.files
        or copy.files[path].stamp != found[path]
        or not is_there(copy.files[path])
    ]
    each(upload, changed)
    if not found.keys() <= scan(copy.folder).keys():
        raise _VanishedError  # a checkpoint that is being removed may be listed in part
    copy.files = {path: copy.files[path] for path in found}
    manifest = Manifest(uuid.uuid4().hex, {path: copy.files[path].parts for path in found})
    copy.ids = (*copy.ids, manifest.id)
    bucket_files.write_state(copy)  # first: killed in between, it knows the manifest as its own
    name = f'manifests/{version}.json'
    store.write(name, bucket_files.serialise(manifest))
    copy.ids = (manifest.id,)
    bucket_files.write_state(copy)
    used = {name} | {part.object for parts in manifest.files.values() for part in parts}
    used.add(bucket_owner.name_of(ownership.number))
    older = (other for other in present if 0 < bucket_owner.of(other) <= ownership.number)
    each(store.remove, [other for other in older if other not in used])
    copy.is_complete = True


def _upload(
    store: Store, copy: Copy, path: str, version: str, is_there: Callable[[Entry], bool]
) -> Entry:
    """Copies a file, or what was appended to it."""
    before = copy.files.get(path)
    try:
        file = (copy.folder / path).open('rb')
    except FileNotFoundError as error:
        raise _VanishedError from error
    with file:
        now = stamp(os.fstat(file.fileno()))
        is_known = before and is_there(before) and _has_grown(path, before.stamp, now)
        parts = list(before.parts) if before and is_known else []
        size, start = now[0], sum(part.size for part in parts)
        # A part joins what follows it if that is half as large: so there are few parts.
        while (
            parts and parts[-1].size < 2 * (size - start) and parts[-1].size + size - start <= _PART
        ):
            start -= parts.pop().size
        for offset in range(start, max(size, 1 - len(parts)), _PART):
            file.seek(offset)
            content = file.read(min(_PART, size - offset))
            if len(content) != min(_PART, size - offset):
                raise _VanishedError  # it was cut
            name = f'files/{version}/{quoted(path)}' + f'@{offset}' * (offset > 0)
            store.write(name, content)
            parts.append(Part(name, len(content)))
    return Entry(tuple(parts), now)


def _has_grown(path: str, before: Stamp, now: Stamp) -> bool:
    """Whether a file was only appended to, as curves are."""
    is_curve = path == 'metrics.jsonl' or path.startswith('tensorboard/')
    return is_curve and before[2] == now[2] and before[0] <= now[0]

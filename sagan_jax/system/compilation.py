"""Compiled programs kept on disk, so that only the first start of a command compiles.

JAX reads and writes them. Its key of a program has the versions, the flags of XLA and the device
with, for a CPU, its instructions, so that different hosts can share a folder.
"""

import contextlib
import functools
import os
import re
import stat
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import jaxlib

from sagan_jax.system import distributed, paths
from sagan_jax.system.files import partial_path
from sagan_jax.system.untrusted import reason

# Versions of jaxlib before this one print two long, false errors for each program that a CPU with
# AVX-512 reads.
_QUIET_ON_CPU = (0, 10, 2)
_LIMIT = 2 * 2**30  # bytes of all programs
_SHORTEST = 0.2  # seconds of compilation that are worth a file
_FAILED = re.compile(r"Error (\w+) persistent compilation cache entry for '([^']+)': (.*)")


def use_cache() -> None:
    """Keeps compiled programs in the user's cache folder and reads them from there.

    Does nothing if the user has chosen with JAX's own settings: `JAX_COMPILATION_CACHE_DIR` names
    another folder, and `JAX_ENABLE_COMPILATION_CACHE=0` turns the cache off. Nor on a CPU before
    jaxlib 0.10.2. Prints a line if the folder cannot be written. All processes of a run call it,
    after `distributed.joined`.
    """
    folder = _choose_folder()
    if jax.process_count() > 1 and not _is_shared(folder):
        folder = None
    if folder is None:
        return
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', _SHORTEST)
    jax.config.update('jax_compilation_cache_dir', str(folder))
    _handle_failures(folder)


def programs_read() -> int:
    """The number of programs that JAX has read instead of compiling them, since the first call."""
    return len(_hits())


@functools.cache
def _hits() -> list[str]:
    hits: list[str] = []

    def note(event: str, **_: Any) -> None:
        if event == '/jax/compilation_cache/cache_hits':
            hits.append(event)

    jax.monitoring.register_event_listener(note)
    return hits


def _choose_folder() -> Path | None:
    """The default folder, created and within its limit; None if it is unwritable or not wanted."""
    values = jax.config.values
    if (
        values['jax_compilation_cache_dir'] is not None
        or not values['jax_enable_compilation_cache']
    ):
        return None
    if jax.default_backend() == 'cpu' and jaxlib.version.__version_info__ < _QUIET_ON_CPU:
        return None
    try:
        folder = paths.cache_folder() / 'compiled'
        # Programs of others are others' code, so nobody else may write here.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            trim(folder, _LIMIT)
    except (OSError, RuntimeError) as error:  # there may be no home
        print(
            f'warning        compiled programs cannot be kept ({reason(error)}), so each start '
            'compiles again: set JAX_COMPILATION_CACHE_DIR to a folder for them'
        )
        return None
    return folder


def trim(folder: Path, limit: int) -> None:
    """Removes the files below a folder that were unused for longest, beyond `limit` bytes."""
    files = []
    for path in folder.rglob('*'):
        with contextlib.suppress(OSError):  # other processes trim it too
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                files.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size


def _is_shared(folder: Path | None) -> bool:
    """Whether all processes of the run see the same folder.

    Otherwise one could read a program while the others compile it, and on GPUs these would wait for
    it, because processes divide the tuning of a program's kernels.
    """

    def mark() -> str | None:
        if folder is None:
            return None
        path = partial_path(folder / 'shared')
        with contextlib.suppress(OSError):
            path.touch()
        return path.name

    name = distributed.on_first(mark)
    is_missing = folder is None or name is None or not (folder / name).exists()
    is_missing_somewhere = distributed.vote(is_missing)()
    if folder and name and distributed.is_first():
        (folder / name).unlink(missing_ok=True)
    return not is_missing_somewhere


def _handle_failures(folder: Path) -> None:
    """Reports in a line that a program could not be read or written, and removes its files.

    JAX replaces no file, and leaves half of one if the process is killed or the disk is full.
    """
    show = warnings.showwarning

    def handle(message: Warning | str, *details: Any, **more: Any) -> None:
        failed = _FAILED.match(str(message))
        if failed is None:
            return show(message, *details, **more)
        doing, program, why = failed.groups()
        for path in folder.glob(f'{program}-*'):
            with contextlib.suppress(OSError):
                path.unlink()
        what = f'{doing} the compiled program {program} in {folder}'
        print(f'warning        {what} failed ({why:.200}), it is compiled again')

    warnings.showwarning = handle

"""Files that may be damaged, or come from somebody else."""

import errno
import functools
import json
import os
import stat
from pathlib import Path
from typing import IO, Any

from sagan_jax.errors import printable

_LARGEST = 2**26  # bytes of a JSON file; this project writes far smaller ones


def open_file(path: Path) -> IO[bytes]:
    """Opens a file for reading; never waits, as for the writer of a pipe.

    Raises:
      OSError: if it cannot be read or is not a file. FileNotFoundError means that nothing is there,
        not even a broken link.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        if path.is_symlink():
            raise OSError(errno.ELOOP, 'a broken link', str(path)) from None
        raise
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, 'not a file', str(path))
        return os.fdopen(descriptor, 'rb')
    except BaseException:
        os.close(descriptor)
        raise


def read_json(path: Path) -> Any:
    """Reads a JSON file. Raises OSError as `open_file`, and ValueError as `parse_json`."""
    with open_file(path) as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(f'larger than {_LARGEST >> 20} MiB')
    return parse_json(content)


def parse_json(content: bytes) -> Any:
    """Parses JSON in UTF-8. Raises ValueError if it is anything else, or no text could hold it."""
    try:
        found = json.loads(content.decode())
        if b'\\u' in content:  # may stand for half a character
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeError as error:
        raise ValueError('not UTF-8') from error
    except RecursionError as error:
        raise ValueError('nested too deeply') from error
    return found


def reason(error: Exception) -> str:
    """Why something cannot be read or written, in a line."""
    text = getattr(error, 'strerror', None) or str(error) or type(error).__name__
    return ' '.join(text.split())[:200]


@functools.cache
def warn_once(text: str) -> None:
    """Prints a warning, unless this process has printed the same one."""
    print(f'warning        {printable(text)}')

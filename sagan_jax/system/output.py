"""Standard output of programs whose results are files."""

import errno
import io
import os
import sys
from typing import Any

_GONE = (errno.EPIPE, errno.EIO)  # of a pipe that nobody reads, and of a closed terminal


def drop_what_cannot_be_written() -> None:
    """Lets the program continue without output if its terminal, pipe or log file fails.

    Text is dropped then. A warning on standard error says so, unless nobody can read it.
    """
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            raw = getattr(stream.buffer, 'raw', stream.buffer)
            lenient = io.TextIOWrapper(
                io.BufferedWriter(_Lenient(raw, name)),
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=True,
            )
            setattr(sys, name, lenient)


class _Lenient(io.RawIOBase):
    """A stream that drops what the stream below it cannot write."""

    def __init__(self, below: Any, name: str):
        self.below, self.title = below, name
        self.has_failed = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.below.fileno()

    def isatty(self) -> bool:
        return self.below.isatty()

    def write(self, data: Any) -> int | None:
        try:
            return self.below.write(data)
        except OSError as error:
            if not self.has_failed and error.errno not in _GONE and self.title == 'stdout':
                reason = os.strerror(error.errno or 0)
                print(f'warning        standard output is lost ({reason})', file=sys.stderr)
            self.has_failed = True
            return len(data)

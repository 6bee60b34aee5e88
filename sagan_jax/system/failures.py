"""Failures of a disk, a network or memory, whatever type a library gives them.

TensorStore, ArrayRecord, Orbax and JAX raise ValueError, RuntimeError and others for them, with the
text of the system in their own.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sagan_jax.errors import UserError
from sagan_jax.system.untrusted import reason as said_by

RETRY = 75  # exit status of a failure that may be gone at the next attempt: EX_TEMPFAIL

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_PASSING = (
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED),
)
_MEMORY = ('RESOURCE_EXHAUSTED', 'Out of memory', 'out of memory', os.strerror(errno.ENOMEM))


def explain(error: BaseException) -> tuple[str, int] | None:
    """The sentence and the exit status for an exception that ends a program; None for a bug.

    The status is 2 if the same command would fail again, and `RETRY` otherwise.
    """
    if isinstance(error, UserError):
        return str(error), error.status
    if not isinstance(error, Exception):
        return None
    what, text = getattr(error, 'filename', None), said_by(error)
    if reason := _of_system(error, _FULL):
        reason = reason if what or reason == text else f'{reason}: {text}'
        return (
            f'{what or "The output"} cannot be written ({reason}): free disk space, or choose '
            'another folder.',
            2,
        )
    if is_of_memory(error):
        return (
            f'There is not enough memory ({text}): choose a smaller batch size, or a '
            'device with more memory.',
            2,
        )
    if reason := _of_system(error, _PASSING):
        reason = reason if what or reason == text else f'{reason}: {text}'
        return (
            f'{what or "A disk or the network"} has failed ({reason}): check it, and give the same '
            'command again.',
            RETRY,
        )
    return None


def is_of_memory(error: BaseException) -> bool:
    """Whether there was not enough memory, of the host or of a device."""
    if isinstance(error, MemoryError) or getattr(error, 'errno', None) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | ValueError) and any(t in str(error) for t in _MEMORY)


def is_full(error: BaseException) -> bool:
    """Whether a disk is full, or takes no more for another reason."""
    return _of_system(error, _FULL) is not None


def is_passing(error: BaseException) -> bool:
    """Whether a disk or a network failed and may work again: a file that was read may be sound."""
    return _of_system(error, _PASSING) is not None


def unwritable(error: BaseException) -> str | None:
    """Why something cannot be written; None if the error is no failure of the disk."""
    if isinstance(error, OSError):
        return said_by(error)
    return _of_system(error, (*_FULL, *_PASSING))


@contextmanager
def writing(what: str | Path, instead: str) -> Iterator[None]:
    """Reports a failure to write in the block in one sentence.

    Args:
      what: what is written, such as a path.
      instead: what a user can choose, such as 'another --output'.

    Raises:
      UserError: if the block raises an error that is `unwritable` and not `is_passing`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = unwritable(error)
        if reason is None or is_passing(error):
            raise
        raise UserError(
            f'{what} cannot be written ({reason}): free disk space, or choose {instead}.'
        ) from error


def _of_system(error: BaseException, numbers: tuple[int, ...]) -> str | None:
    """What the system says about an error, or about what led to it, if it is one of `numbers`."""
    seen: list[BaseException] = []
    found: BaseException | None = error
    while isinstance(found, Exception) and found not in seen:
        for number in numbers:
            if getattr(found, 'errno', None) == number or os.strerror(number) in str(found):
                return os.strerror(number)
        seen.append(found)
        found = found.__cause__ or found.__context__
    return None

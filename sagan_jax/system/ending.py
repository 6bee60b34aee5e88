"""How a program ends: in one sentence and with a status, also when it is asked to end.

A program calls `prepare` before the imports that take seconds, and may then raise. The status is 0,
2 for an error of the user's or of the machine's, `failures.RETRY` for a failure that may be gone
later, 128 plus the number of a signal, and 1, with a traceback, for a bug.
"""

import contextlib
import io
import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

from sagan_jax.system import failures, signals

_NAMES = {signal.SIGINT: 'Ctrl-C', signal.SIGTERM: 'SIGTERM', signal.SIGHUP: 'a hang-up'}

_received: list[int] = []


def prepare() -> None:
    """Prepares the process of a program for its end, and its standard output for any text.

    A signal that asks the process to end raises KeyboardInterrupt, so that nothing half-written is
    left. A second one ends it at once. An exception that `failures.explain` knows is reported in
    one sentence.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace', line_buffering=True)
    sys.excepthook = _report
    sys.unraisablehook = _interrupt_again
    handle_signals()


def handle_signals() -> None:
    """Sets the handlers of signals as `prepare` does, after a library has set its own."""
    for number in signals.requests():
        signal.signal(number, _interrupt)


def _interrupt(number: int, _: FrameType | None) -> None:
    for other in signals.requests():
        # A closed terminal sends more than one.
        signal.signal(other, signal.SIG_IGN if other == signal.SIGHUP else signal.SIG_DFL)
    _received.append(number)
    raise KeyboardInterrupt


def _interrupt_again(args: Any) -> None:
    """Interrupts later if Python ignored the exception because it ran a finaliser or a callback."""
    if _received and isinstance(args.exc_value, KeyboardInterrupt):
        number = _received.pop()
        for each in (signal.SIGTERM, signal.SIGINT, number):
            signal.signal(each, _interrupt)
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
    else:
        sys.__unraisablehook__(args)


def _report(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if _received or isinstance(error, KeyboardInterrupt):
        # A library may have made another exception of it.
        number = _received[0] if _received else signal.SIGINT
        _say(f'\ninterrupted    by {_NAMES[signal.Signals(number)]}')
        # XLA aborts a process that unloads Python while threads still compute.
        os._exit(128 + number)
    if isinstance(error, BrokenPipeError):  # nobody reads the output any more
        os._exit(128 + signal.SIGPIPE)
    found = failures.explain(error)
    if found is None:
        sys.__excepthook__(kind, error, traceback)
        return
    sentence, status = found
    _say(f'error: {sentence}')
    others = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    if not all(thread.daemon for thread in others):
        os._exit(status)  # Orbax's threads of a failed save would wait for minutes
    sys.exit(status)


def _say(line: str) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a terminal that is gone
            if stream is sys.stderr:
                print(line, file=stream)
            stream.flush()

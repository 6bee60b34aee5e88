"""Requests to stop, from a cluster (SIGTERM), the user (Ctrl-C) or a closed terminal (SIGHUP)."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):
    """A long operation was cut short because the process was asked to stop."""


def requests() -> list[int]:
    """The signals by which this process may be asked to end: SIGTERM, SIGINT and SIGHUP.

    SIGHUP is left out if it is ignored, as under nohup.
    """
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return [int(number) for number in numbers]


@contextmanager
def collected(received: list[int] | None = None) -> Iterator[list[int]]:
    """Yields a list to which SIGTERM, SIGINT and SIGHUP are appended instead of ending the process.

    The second signal ends the process immediately, except for SIGHUP: both the shell and the system
    send it when a terminal closes. Outside the main thread, where Python cannot handle signals,
    nothing is appended.

    Args:
      received: the list to use; a new one by default.
    """
    signals: list[int] = [] if received is None else received

    def receive(number: int, _: FrameType | None) -> None:
        if signals and number == signal.SIGHUP:
            return
        if signals:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        signals.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.signal(number, receive) for number in requests()}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

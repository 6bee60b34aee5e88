"""Being asked to end: by a cluster that takes the machine (SIGTERM) or by the user (Ctrl-C)."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(Exception):
    """Something that takes long was left before its end, because the process was asked to end."""


@contextmanager
def collected(received: list[int] | None = None) -> Iterator[list[int]]:
    """Collects the signals SIGTERM, SIGINT and SIGHUP in a list, instead of their effect.

    The second one ends the process at once. Outside the main thread nothing is collected, since
    only there Python may handle signals.
    """
    received = [] if received is None else received

    def receive(number, _):
        if received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # it is under nohup
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Restarts a command until it is done.

    python -m launch.until_done -- python -m sagan_jax.main --config configs/quickstart.py

A command is done if it succeeded (status 0), found an error of the user's (2) or was interrupted
(129, 130 or 143). Otherwise it starts again, except after three failures in a row that each came
within a minute of the start. The launcher passes SIGTERM, SIGINT and SIGHUP on, and exits with the
status of the command.
"""

from sagan_jax.system import ending

if __name__ == '__main__':
    ending.prepare()  # before the imports that take seconds

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from sagan_jax.system import signals

FINAL = (0, 2, 129, 130, 143)  # exit statuses after which there is no further attempt
ATTEMPTS = 3  # that may fail in a row, each within `QUICK` seconds
QUICK = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog='python -m launch.until_done',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('command', nargs='+', help='a program and its arguments, after --')
    command = parser.parse_args().command
    received: list[int] = []
    for number in signals.requests():
        signal.signal(number, lambda number, _: received.append(number))
    return repeat(lambda: run(command, received), received)


def repeat(attempt: Callable[[], int], received: Sequence[int]) -> int:
    """Calls `attempt` until it is done or keeps failing; all launchers restart by this policy.

    Args:
      attempt: returns an exit status.
      received: the signals so far that ask this process to end; after one there is no
        further attempt.

    Returns:
      The last status.
    """
    failures = 0
    while True:
        since = time.monotonic()
        status = attempt()
        if received or status in FINAL:
            return status
        failures = failures + 1 if time.monotonic() - since < QUICK else 1
        print(f'ended with status {status}', file=sys.stderr)
        if failures == ATTEMPTS:
            print(
                f'error: It failed {ATTEMPTS} times in a row: see its output.',
                file=sys.stderr,
            )
            return status
        print('starting again', file=sys.stderr, flush=True)


def run(command: Sequence[str], received: Sequence[int]) -> int:
    """Runs a command and passes signals on as they arrive; returns its status as a shell does."""
    passed_on = 0
    process = subprocess.Popen(command, start_new_session=True)  # Ctrl-C: only from here
    while process.poll() is None:
        for number in received[passed_on:]:
            passed_on += 1
            process.send_signal(number)
        time.sleep(0.05)
    return 128 - process.returncode if process.returncode < 0 else process.returncode


if __name__ == '__main__':
    sys.exit(main())

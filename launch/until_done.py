"""Runs a command again until it is done.

    python -m launch.until_done -- python -m sagan_jax.main --config configs/quickstart.py

A command is done if it ends well (status 0), was given something wrong (2) or was asked to end (130
or 143). Otherwise it starts again, except after three failures in a row that each come within a
minute of the start. SIGTERM, SIGINT and SIGHUP are passed on, and the launcher ends as the command
does.
"""

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

FINAL = (0, 2, 130, 143)  # statuses after which another attempt makes no sense
ATTEMPTS = 3  # in a row, each of which fails within `QUICK` seconds
QUICK = 60.0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog='python -m launch.until_done',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('command', nargs='+', help='a program and its arguments, after --')
    command, signals = parser.parse_args().command, []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # under nohup
            signal.signal(number, lambda number, _: signals.append(number))
    return repeat(lambda: run(command, signals), signals)


def repeat(attempt: Callable[[], int], signals: Sequence[int]) -> int:
    """Calls `attempt` until it is done or keeps failing; this is the only policy of restarts.

    Args:
      attempt: returns an exit status.
      signals: receives the signals that ask this process to end; after one there is no further
        attempt.

    Returns:
      The last status.
    """
    failures = 0
    while True:
        since = time.monotonic()
        status = attempt()
        if signals or status in FINAL:
            return status
        failures = failures + 1 if time.monotonic() - since < QUICK else 1
        print(f'ended with status {status}', file=sys.stderr)
        if failures == ATTEMPTS:
            print(f'error: It failed {ATTEMPTS} times in a row.', file=sys.stderr)
            return status
        print('starting again', file=sys.stderr, flush=True)


def run(command: Sequence[str], signals: Sequence[int]) -> int:
    """Runs a command, to which `signals` are passed on as they arrive; its status as in a shell."""
    passed_on = 0
    process = subprocess.Popen(command, start_new_session=True)  # Ctrl-C reaches it from here, once
    while process.poll() is None:
        for number in signals[passed_on:]:
            passed_on += 1
            process.send_signal(number)
        time.sleep(0.05)
    return 128 - process.returncode if process.returncode < 0 else process.returncode


if __name__ == '__main__':
    sys.exit(main())

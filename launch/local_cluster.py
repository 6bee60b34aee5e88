"""Trains with several processes on this machine, each with its own virtual CPU devices.

    python -m launch.local_cluster --processes 2 --devices 2 -- \
        --config configs/quickstart.py --workdir runs/cluster

The arguments after the two dashes go to `python -m sagan_jax.main`. If a process fails, all restart
from the last checkpoint, see `until_done.repeat`; an error of the user's (status 2) ends the run.
The launcher passes SIGTERM and Ctrl-C on, and exits with the status of the processes.
"""

from sagan_jax.system import ending

if __name__ == '__main__':
    ending.prepare()  # before the imports that take seconds

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from launch import until_done
from sagan_jax.system.distributed import LOST, TIMEOUT
from sagan_jax.system.signals import collected

USER_ERROR = 2  # exit status of a process after a `UserError`


def main() -> int:
    parser = argparse.ArgumentParser(
        prog='python -m launch.local_cluster',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--processes', type=int, default=2, help='number of processes (default: 2)')
    parser.add_argument('--devices', type=int, default=2, help='devices per process (default: 2)')
    parser.add_argument('arguments', nargs='+', help='arguments of sagan_jax.main, after --')
    options = parser.parse_args()
    if min(options.processes, options.devices) < 1:
        parser.error('--processes and --devices should be 1 or more')

    def attempt() -> int:
        started = start(options.processes, options.devices, options.arguments)
        statuses = wait(started, lambda: signals)
        print_failures(statuses)
        if USER_ERROR in statuses:
            return USER_ERROR
        return LOST if any(statuses) else 0

    with collected() as signals:
        status = until_done.repeat(attempt, signals)
    return 128 + signals[0] if status and signals else status


def start(processes: int, devices: int, arguments: Sequence[str]) -> list[subprocess.Popen]:
    """Starts the processes of one run, which connect through a port that is free now."""
    port = free_port()
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices)}
    return [
        subprocess.Popen(
            [
                *(sys.executable, '-m', 'sagan_jax.main', *arguments),
                f'--config.distributed.coordinator=localhost:{port}',
                f'--config.distributed.num_processes={processes}',
                f'--config.distributed.process_id={index}',
            ],
            env=environment,
            start_new_session=True,  # Ctrl-C reaches only the launcher
        )
        for index in range(processes)
    ]


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        return free.getsockname()[1]


def wait(started: Sequence[subprocess.Popen], signals: Callable[[], list[int]]) -> list[int]:
    """Waits until all processes have ended; returns their exit statuses, negative for signals.

    Passes `signals()` on as they arrive. If a process fails, the others have `TIMEOUT` seconds to
    notice before they are killed.
    """
    passed_on, deadline = 0, None
    try:
        while any(process.poll() is None for process in started):
            for number in signals()[passed_on:]:
                passed_on += 1
                _send(started, number)
            if deadline is None and any(process.returncode for process in started):
                deadline = time.monotonic() + TIMEOUT
            if deadline and time.monotonic() > deadline:
                break
            time.sleep(0.05)
    finally:
        _send(started, signal.SIGKILL)
    return [process.wait() for process in started]


def print_failures(statuses: Sequence[int]) -> None:
    """Prints how each failed process ended."""
    for index, status in enumerate(statuses):
        if status:
            how = f'was killed by signal {-status}' if status < 0 else f'ended with status {status}'
            print(f'cluster        process {index} {how}', flush=True)


def _send(started: Sequence[subprocess.Popen], number: int) -> None:
    for process in started:
        if process.poll() is None:
            process.send_signal(number)


if __name__ == '__main__':
    sys.exit(main())

"""A run of several processes on one machine, each with virtual CPU devices of its own.

    python -m launch.local_cluster --processes 2 --devices 2 -- \
        --config configs/quickstart.py --workdir runs/cluster

The arguments after the two dashes go to `python -m sagan_jax.main`. When a process fails, all start
again from the last checkpoint, see `until_done.repeat`; a mistake of the user's (status 2) ends the
run. SIGTERM and Ctrl-C are passed on, and the launcher ends as the processes do.
"""

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

MISTAKE = 2  # status of a process that was given something wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        prog='python -m launch.local_cluster',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--processes', type=int, default=2, help='how many (default: 2)')
    parser.add_argument('--devices', type=int, default=2, help='of each process (default: 2)')
    parser.add_argument('arguments', nargs='+', help='of sagan_jax.main, after --')
    options = parser.parse_args()
    if min(options.processes, options.devices) < 1:
        parser.error('--processes and --devices should be 1 or more')

    def attempt():
        started = start(options.processes, options.devices, options.arguments)
        statuses = wait(started, lambda: signals)
        tell(statuses)
        if MISTAKE in statuses:
            return MISTAKE
        return LOST if any(statuses) else 0

    with collected() as signals:
        status = until_done.repeat(attempt, signals)
    return 128 + signals[0] if status and signals else status


def start(processes: int, devices: int, arguments: Sequence[str]) -> list[subprocess.Popen]:
    """Starts the processes of one run; they find each other at a port that is free now."""
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
            start_new_session=True,  # Ctrl-C reaches them from here, and once
        )
        for index in range(processes)
    ]


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        return free.getsockname()[1]


def wait(started: Sequence[subprocess.Popen], signals: Callable[[], list[int]]) -> list[int]:
    """The exit statuses of processes once all have ended; negative ones are signals.

    Signals are passed on. Once a process has failed the others have `TIMEOUT` seconds to notice.
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


def tell(statuses: Sequence[int]) -> None:
    """Prints how processes ended that did not end well."""
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

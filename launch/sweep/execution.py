"""Processes for the runs of a sweep: so many side by side, each locked, none left behind."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from launch.sweep import runs
from launch.sweep.runs import Run

POLL_SECONDS = 0.2
TELL_SECONDS = 2  # between looks at all runs, and at what a terminal shows of them
LOG_SECONDS = 60  # between lines about one run in a log file
GRACE_SECONDS = 30  # in which a run that is asked to end can save its step

Command = Callable[[Run, str], list[str]]  # what trains ('train') and scores ('evaluate') a run


@dataclass
class _Job:
    """A run that this process takes care of: the lock on it, what it does and will do."""

    run: Run
    lock: int
    mode: str
    process: subprocess.Popen
    modes_left: list[str]


def execute(
    asked: Sequence[Run],
    command: Command,
    jobs: int,
    evaluate: bool,
    tell: Callable[[], None],
    stop: Callable[[], Any],
) -> list[Run]:
    """Does what is not done yet, up to `jobs` side by side, until all is done or `stop()` holds.

    A run that goes on in a process of someone else, such as a sweep that was killed, is waited
    for and then looked at again; on this machine it counts as one of the `jobs`.

    Returns:
      The runs that failed.
    """
    waiting, active, failed = list(asked), [], []
    machine, told = socket.gethostname(), -TELL_SECONDS
    try:
        while (waiting or active) and not stop():
            before = list(active)
            for job in list(active):
                status = job.process.poll()
                if status is None:
                    continue
                active.remove(job)
                runs.record_end(job.run, job.mode, status)
                if status == 0 and job.modes_left:
                    active.append(_start(job.run, job.lock, job.modes_left, command))
                    continue
                os.close(job.lock)
                if status:
                    failed.append(job.run)
            elsewhere = sum(runs.holder(run) == machine for run in waiting)
            for run in list(waiting):
                if len(active) + elsewhere >= jobs:
                    break
                lock = runs.take_lock(run)
                if lock is None:
                    continue
                waiting.remove(run)
                modes = _modes_left(run, evaluate)
                if modes:
                    active.append(_start(run, lock, modes, command))
                else:
                    os.close(lock)
            if active != before or time.monotonic() - told >= TELL_SECONDS:
                tell()
                told = time.monotonic()
            time.sleep(POLL_SECONDS)
    finally:
        _end(active)
    tell()
    return failed


def _modes_left(run: Run, evaluate: bool) -> list[str]:
    ended = runs.how_it_ended(run)
    # A training that was killed after its last checkpoint may lack what follows it.
    if not runs.is_trained(run) or ended is None or (ended['mode'] == 'train' and ended['status']):
        modes = ['train', 'evaluate']
    elif ended['mode'] == 'train' or ended['status']:
        modes = ['evaluate']
    else:
        modes = []
    return [mode for mode in modes if evaluate or mode == 'train']


def _start(run: Run, lock: int, modes: list[str], command: Command) -> _Job:
    """Starts the first of `modes`; its process inherits the lock and so holds it while it lives."""
    if modes[0] == 'train':
        (run.folder / runs.EXIT).unlink(missing_ok=True)
    arguments = command(run, modes[0])
    with (run.folder / runs.LOG).open('a') as log:
        log.write(f'\n{time.strftime("%Y-%m-%d %H:%M:%S")}  {" ".join(arguments)}\n')
        log.flush()
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[lock],
            start_new_session=True,  # a terminal's Ctrl-C reaches the sweep alone, which ends it
        )
    return _Job(run, lock, modes[0], process, modes[1:])


def _end(active: list[_Job]) -> None:
    for job in active:
        job.process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for job in active:
        try:
            job.process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            job.process.kill()
            job.process.wait()
        os.close(job.lock)


def create_progress(asked: Sequence[Run], out: TextIO | None = None) -> Callable[[], None]:
    """Builds `tell()`, which prints a line for each run whose state changed and, every so often,
    for each that goes on: over one another on a terminal, one after the other in a file."""
    out = out or sys.stdout
    width = max(len(run.name) for run in asked)
    every = 0 if out.isatty() else LOG_SECONDS
    before, last, drawn = dict.fromkeys(asked, 'waiting'), -every, 0

    def tell():
        nonlocal last, drawn
        states = {run: runs.state(run) for run in asked}
        changed = [run for run in asked if states[run].what != before[run]]
        if not changed and time.monotonic() - last < every:
            return
        going = [run for run in asked if states[run].what in ('training', 'scoring')]
        lines = [runs.line(run, states[run], width) for run in changed]
        now = [runs.line(run, states[run], width) for run in going if run not in changed]
        finished = sum(state.what in ('trained', 'done') for state in states.values())
        now.append(f'{finished} of {len(asked)} runs finished, {len(going)} going on')
        if out.isatty():
            print(f'\x1b[{drawn}F\x1b[J' if drawn else '', end='', file=out)
            drawn = len(now)
        print('\n'.join(lines + now), file=out, flush=True)
        before.update({run: states[run].what for run in asked})
        last = time.monotonic()

    return tell

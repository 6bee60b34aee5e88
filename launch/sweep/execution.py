"""Processes for the runs of a sweep: at most n at a time, each run locked, none left behind."""

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
REPORT_SECONDS = 2.0  # between readings of all states, and between updates of a terminal
LOG_SECONDS = 60.0  # between reports on running runs in a log file
GRACE_SECONDS = 30.0  # for a run that was asked to end to save its step

Command = Callable[[Run, str], list[str]]  # of a run and a mode: 'train' or 'evaluate'


@dataclass
class _Job:
    """A run of this sweep: its lock, its process, and the modes to follow."""

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
    report: Callable[[], None],
    stop: Callable[[], Any],
) -> list[Run]:
    """Trains and scores runs, at most `jobs` at a time, until all are done or `stop()` is true.

    Skips what is done already. Waits for a run that has a process of another sweep, even of one
    that was killed, and then checks it again; on this machine it counts as one of the `jobs`.

    Returns:
      The runs that failed.
    """
    waiting, failed = list(asked), []
    active: list[_Job] = []
    machine, reported = socket.gethostname(), -REPORT_SECONDS
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
            if active != before or time.monotonic() - reported >= REPORT_SECONDS:
                report()
                reported = time.monotonic()
            time.sleep(POLL_SECONDS)
    finally:
        _end(active)
    report()
    return failed


def _modes_left(run: Run, evaluate: bool) -> list[str]:
    """The modes in which a run must still be started."""
    ended = runs.how_it_ended(run)
    # Training that was killed after its last checkpoint may lack the files that follow it.
    if not runs.is_trained(run) or ended is None or (ended['mode'] == 'train' and ended['status']):
        modes = ['train', 'evaluate']
    elif ended['mode'] == 'train' or ended['status']:
        modes = ['evaluate']
    else:
        modes = []
    return [mode for mode in modes if evaluate or mode == 'train']


def _start(run: Run, lock: int, modes: list[str], command: Command) -> _Job:
    """Starts the first of `modes`; the process inherits the lock and holds it while it lives."""
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
            start_new_session=True,  # Ctrl-C reaches only the sweep, which ends the process
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
    """Builds `report()`, which prints a line for each run whose state changed, with its process.

    It also prints a line for each run in progress: every time on a terminal, where they replace
    the lines before; every `LOG_SECONDS` in a file.
    """
    out = out or sys.stdout
    width = max(len(run.name) for run in asked)
    every = 0.0 if out.isatty() else LOG_SECONDS
    before, last, drawn = dict.fromkeys(asked, 'waiting'), -every, 0

    def report() -> None:
        nonlocal last, drawn
        states = {run: runs.state(run) for run in asked}
        changed = [run for run in asked if states[run].what != before[run]]
        if not changed and time.monotonic() - last < every:
            return
        running = [run for run in asked if states[run].what in ('training', 'scoring')]
        lines = [
            f'{runs.line(run, states[run], width)}  {runs.user(run)}'.rstrip() for run in changed
        ]
        now = [runs.line(run, states[run], width) for run in running if run not in changed]
        finished = sum(state.what in ('trained', 'done') for state in states.values())
        now.append(f'{finished} of {len(asked)} runs finished, {len(running)} in progress')
        if out.isatty():
            print(f'\x1b[{drawn}F\x1b[J' if drawn else '', end='', file=out)
            drawn = len(now)
        print('\n'.join(lines + now), file=out, flush=True)
        before.update({run: states[run].what for run in asked})
        last = time.monotonic()

    return report

"""The launch scripts, with small stand-ins for srun, gcloud and training."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def programs(tmp_path):
    """Writes programs of bash lines that come first on PATH."""
    folder = tmp_path / 'bin'
    folder.mkdir()

    def make(**lines):
        for name, body in lines.items():
            (folder / name).write_text(f'#!/usr/bin/env bash\n{body}\n')
            (folder / name).chmod(0o755)
        path = os.pathsep.join([str(folder), os.environ['PATH']])
        return os.environ | {'PATH': path, 'HERE': str(tmp_path), 'PYTHON': sys.executable}

    return make


def run(script, *arguments, env):
    return subprocess.run(
        [str(ROOT / 'launch' / script), *arguments], env=env, capture_output=True, text=True
    )


UNTIL_DONE = [sys.executable, '-m', 'launch.until_done', '--']


# Exits with the statuses in $HERE/statuses, one per call, and records its arguments.
ENDS = """
echo "$@" >> $HERE/calls
status=$(head -1 $HERE/statuses)
sed -i 1d $HERE/statuses
exit $status
"""


@pytest.mark.parametrize(
    ('statuses', 'calls', 'last'),
    [
        ([0], 1, 0),
        ([75, 137, 0], 3, 0),
        ([2], 1, 2),
        ([143], 1, 143),
        ([129], 1, 129),
        ([1, 1, 1, 0], 3, 1),
    ],
)
def test_until_done_restarts_after_failures(programs, tmp_path, statuses, calls, last):
    env = programs(train=ENDS)
    (tmp_path / 'statuses').write_text(''.join(f'{status}\n' for status in statuses))
    ended = subprocess.run(
        [*UNTIL_DONE, 'train', '--config', 'a b.py'],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == last
    assert (tmp_path / 'calls').read_text() == '--config a b.py\n' * calls
    assert ('3 times in a row' in ended.stderr) == (statuses[:3] == [1, 1, 1])


@pytest.mark.parametrize(
    ('number', 'status'), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_until_done_passes_signals_on_and_waits(programs, tmp_path, number, status):
    saves = f"""
    trap 'sleep 0.5; touch $HERE/saved; exit {status}' TERM INT HUP
    touch $HERE/started
    while true; do sleep 0.05; done
    """
    env = programs(train=saves)
    process = subprocess.Popen([*UNTIL_DONE, 'train'], cwd=ROOT, env=env)
    while not (tmp_path / 'started').exists():
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(20) == status
    assert (tmp_path / 'saved').exists()


def slurm(programs, tmp_path, srun, **extra):
    env = programs(srun=srun, scontrol='echo "$@" >> $HERE/scontrol')
    env |= {'SLURM_SUBMIT_DIR': str(ROOT), 'SLURM_JOB_ID': '17'} | extra
    process = subprocess.Popen(
        [str(ROOT / 'launch' / 'slurm.sh'), '--config', 'configs/shapes.py:feat16'], env=env
    )

    def requeued():
        path = tmp_path / 'scontrol'
        return path.exists() and path.read_text() == 'requeue 17\n'

    return process, requeued


@pytest.mark.parametrize(
    ('status', 'restarts', 'again'),
    [(0, 0, False), (2, 0, False), (75, 0, True), (1, 19, True), (1, 20, False)],
)
def test_slurm_requeues_a_run_that_is_not_done(programs, tmp_path, status, restarts, again):
    (tmp_path / 'statuses').write_text(f'{status}\n')
    process, requeued = slurm(programs, tmp_path, ENDS, SLURM_RESTART_COUNT=str(restarts))
    assert process.wait(20) == status
    assert requeued() == again
    (call,) = (tmp_path / 'calls').read_text().splitlines()
    assert call.endswith(
        f'{sys.executable} -u -m sagan_jax.main --config configs/shapes.py:feat16 '
        '--config.distributed.coordinator=auto'
    )


def test_slurm_saves_and_requeues_after_a_signal(programs, tmp_path):
    saves = """
    trap 'sleep 0.5; touch $HERE/saved; exit 143' TERM
    touch $HERE/started
    while true; do sleep 0.05; done
    """
    process, requeued = slurm(programs, tmp_path, saves, SLURM_RESTART_COUNT='50')
    while not (tmp_path / 'started').exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert (tmp_path / 'saved').exists()
    assert requeued()


def test_tpu_pod_restarts_all_hosts(programs, tmp_path):
    env = programs(gcloud=ENDS)
    (tmp_path / 'statuses').write_text('255\n0\n')
    arguments = ('my-tpu', 'zone-b', '--config', 'configs/a b.py', '--workdir', '/mnt/run')
    assert run('tpu_pod.sh', *arguments, env=env).returncode == 0
    first, second = (tmp_path / 'calls').read_text().splitlines()
    assert first == second
    assert first.startswith('compute tpus tpu-vm ssh my-tpu --zone zone-b --worker=all --command')
    assert first.endswith(
        '-m sagan_jax.main --config configs/a\\ b.py --workdir /mnt/run '
        '--config.distributed.coordinator=auto'
    )
    assert run('tpu_pod.sh', 'my-tpu', env=env).returncode == 2
    refused = run('tpu_pod.sh', 'my-tpu', 'zone-b', '--config', 'a.py', env=env)
    assert refused.returncode == 2
    assert 'No --workdir' in refused.stderr


def test_tpu_pod_ends_only_the_earlier_process_of_its_own_run(programs, tmp_path):
    """This machine is the host: gcloud runs the command, python3 waits for a signal."""
    waits = """
    [ "$1" != -c ] || exit 0
    echo $$ >> $HERE/started
    trap 'echo $$ >> $HERE/ended; exit 143' TERM
    while true; do sleep 0.05; done
    """
    host = tmp_path / 'host'
    (host / 'sagan_jax').mkdir(parents=True)
    (host / 'sagan_jax' / 'launch').symlink_to(ROOT / 'launch')
    (host / 'python3').write_text(f'#!/usr/bin/env bash\n{waits}')
    (host / 'python3').chmod(0o755)
    there = 'env -u PYTHON -u VIRTUAL_ENV HOME=$HERE/host PATH=$HERE/host:$PATH'
    env = programs(gcloud=f'{there} bash -c "${{@: -1}}" &\nexit 2')

    def processes(name, count):
        path = tmp_path / name
        while not path.exists() or len(path.read_text().split()) < count:
            time.sleep(0.01)
        return [int(number) for number in path.read_text().split()]

    try:
        for count, workdir in enumerate(('/mnt/run', '/mnt/run 2', '/mnt/run'), start=1):
            arguments = ('tpu', 'zone', '--config', 'a.py', '--workdir', workdir)
            subprocess.run([str(ROOT / 'launch' / 'tpu_pod.sh'), *arguments], env=env, timeout=20)
            started = processes('started', count)
        assert processes('ended', 1) == started[:1]
        os.kill(started[1], 0)  # it is alive
    finally:
        for process in started[1:]:
            os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize(
    ('given', 'environments', 'found'),
    [
        ({'PYTHON': 'given/python', 'VIRTUAL_ENV': 'active'}, ['active', '.venv'], 'given/python'),
        ({'VIRTUAL_ENV': 'active'}, ['active', '.venv'], 'active/bin/python'),
        ({'VIRTUAL_ENV': 'removed'}, ['.venv'], '.venv/bin/python'),
        ({}, ['.venv'], '.venv/bin/python'),
        ({}, [], 'python3'),
    ],
)
@pytest.mark.parametrize('status', [0, 1])
def test_scripts_find_python(tmp_path, given, environments, found, status):
    """Stand-ins for Python, which are recent enough if the status is 0."""
    for folder in ['given', 'bin', *(f'{name}/bin' for name in environments)]:
        (tmp_path / folder).mkdir(parents=True)
        for name in ('python', 'python3'):
            (tmp_path / folder / name).write_text(f'#!/bin/sh\nexit {status}\n')
            (tmp_path / folder / name).chmod(0o755)
    ended = subprocess.run(
        ['bash', '-c', f'. {ROOT}/launch/python.sh; echo "$PYTHON"'],
        cwd=tmp_path,
        env={'PATH': f'{tmp_path}/bin:/usr/bin:/bin', **given},
        capture_output=True,
        text=True,
    )
    if status:
        assert ended.returncode == 2
        assert f'error: {found} is not Python 3.11 or later' in ended.stderr
    else:
        assert ended.stdout == f'{found}\n'


def test_multi_gpu_without_gpus_is_refused(programs):
    ended = run('multi_gpu.sh', '--config', 'configs/shapes.py', env=programs())
    assert ended.returncode == 1
    assert 'error: JAX sees no GPU' in ended.stderr

"""Several real processes: their communication, and that together they run the same training."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from launch import local_cluster
from sagan_jax.run import checkpoints, integrity
from sagan_jax.state import create_state
from sagan_jax.system.distributed import LOST, TIMEOUT
from tests import tiny

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {'PYTHONPATH': str(ROOT)}

# ---- Communication. ----------------------------------------------------------------------------

WORKER = """
import signal, sys
import numpy as np
from sagan_jax.system import distributed
from sagan_jax.errors import UserError
from tests import tiny

index, port = int(sys.argv[1]), sys.argv[2]
config = tiny.config(
    distributed__coordinator=f'localhost:{port}',
    distributed__num_processes=2,
    distributed__process_id=index,
)

def refusal(function):
    try:
        function()
    except UserError as error:
        return str(error)

def fail():
    raise UserError('The first one cannot.')

with distributed.joined(config):
    assert distributed.is_first() == (index == 0)
    print('only process 0 prints', index)
    assert len(distributed.all_devices()) == 2

    ran = []
    assert distributed.on_first(lambda: ran.append(index) or {'step': 7}) == {'step': 7}
    assert ran == ([0] if index == 0 else [])
    assert refusal(lambda: distributed.on_first(fail)) == 'The first one cannot.'

    own = {'a': np.array([-0.0, np.nan, index], np.float32), 'n': np.float64(np.pi) + index}
    found = distributed.from_first(own)
    assert found['a'].tobytes() == np.array([-0.0, np.nan, 0], np.float32).tobytes()
    assert found['n'] == np.pi and found['n'].shape == ()

    assert distributed.gather(np.full((1, 2), index)).tolist() == [[0, 0], [1, 1]]
    assert distributed.vote(index == 1)() and not distributed.vote(False)()
    poll = distributed.create_poll()
    assert [poll(index == 1 and step == 1) for step in range(6)] == [0, 0, 0, 1, 0, 0]

    distributed.check_agreement({'rate': 1e-4, 'seed': 0})
    sentence = refusal(lambda: distributed.check_agreement({'rate': 1e-4 * (1 + index), 'seed': 0}))
    assert sentence.startswith('Process 1 disagrees with process 0 about rate (0.0002 instead of ')
    if sys.argv[3] == 'fails':
        raise UserError('All of them fail.') if index == 0 else ValueError('a bug')
"""


def workers(how):
    port = str(local_cluster.free_port())
    started = [
        subprocess.Popen(
            [sys.executable, '-c', WORKER, str(index), port, how],
            cwd=ROOT,
            env=ENVIRONMENT | {'JAX_NUM_CPU_DEVICES': '1'},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in started]
    return [process.returncode for process in started], outputs


def test_communication_of_two_processes():
    statuses, outputs = workers('ends well')
    assert statuses == [0, 0], outputs
    assert [re.findall(r'prints \d', output) for output, _ in outputs] == [['prints 0'], []]


def test_processes_that_fail_do_not_wait_for_each_other():
    since = time.monotonic()
    statuses, outputs = workers('fails')
    assert time.monotonic() - since < TIMEOUT
    assert statuses == [2, 1]
    assert 'error: All of them fail.' in outputs[0][1]
    assert 'ValueError: a bug' in outputs[1][1]


# ---- One run. ----------------------------------------------------------------------------------


def settings(folder):
    """A run of five steps. Each step is saved, the last one is scored."""
    return tiny.folder_config(
        folder / 'source',
        seed=1,
        num_train_steps=5,
        checkpoint_every=1,
        keep_checkpoints=9,
        sample_every=5,
        evaluate_every=5,
        optimizer__epsilon=1e-6,  # for the reason given in test_train_step.py
    )


def cluster(processes, devices, config, workdir, **kwargs):
    return subprocess.Popen(
        [
            *(sys.executable, '-m', 'launch.local_cluster'),
            *('--processes', str(processes), '--devices', str(devices), '--'),
            *tiny.arguments(config, workdir),
        ],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kwargs,
    )


def finish(process):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tiny.scored_folder(tmp_path_factory.mktemp('pictures'))


@pytest.fixture(scope='module')
def alone(folder, tmp_path_factory):
    """The workdir of one process with two devices."""
    workdir = tmp_path_factory.mktemp('alone')
    finish(cluster(1, 2, settings(folder), workdir))
    return workdir


@pytest.fixture(scope='module')
def together(alone, folder, tmp_path_factory):
    """The workdir of two processes with a device each."""
    workdir = tmp_path_factory.mktemp('together')
    assert '2 × cpu in 2 processes' in finish(cluster(2, 1, settings(folder), workdir))
    return workdir


def metrics(workdir):
    lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return [{k: v for k, v in line.items() if k != 'images_per_second'} for line in lines]


def state(workdir, config, step):
    manager = checkpoints.open_manager(workdir / 'checkpoints')
    found = checkpoints.restore(manager, create_state(config), step, config)
    manager.close()
    return found


def assert_close(line, other):
    # Diversity is measured on uint8 images, where a difference is 1 or more.
    diversities = [each.pop('sample_diversity', 0) for each in (line, other)]
    assert diversities[0] == pytest.approx(diversities[1], rel=1e-2)
    assert line == pytest.approx(other, rel=1e-4, abs=1e-4)


def assert_same_run(here, there, config):
    """Compares metrics, scores and the first step's gradients: Adam's moments, because β₁ is 0."""
    assert [line['step'] for line in metrics(here)] == [1, 2, 3, 4, 5, 5]
    for line, other in zip(metrics(here), metrics(there), strict=True):
        assert_close(line, other)
    first, other = state(here, config, 1), state(there, config, 1)
    for network in ('generator_opt', 'discriminator_opt'):
        gradients = integrity.named_leaves(getattr(first, network)[0].mu)
        others = integrity.named_leaves(getattr(other, network)[0].mu)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(gradient, others[name], rtol=1e-4, atol=1e-5, err_msg=name)
    paths = [workdir / 'evaluation' / '000005.json' for workdir in (here, there)]
    for row, other in zip(*(json.loads(path.read_text()) for path in paths), strict=True):
        assert row['value'] == pytest.approx(other['value'], rel=1e-4)


def test_two_processes_run_the_training_of_one(alone, together, folder):
    assert_same_run(alone, together, settings(folder))


def test_only_one_process_writes(together):
    names = sorted(path.name for path in together.rglob('events*'))
    assert len(names) == 1
    assert sorted(int(path.name) for path in (together / 'checkpoints').iterdir()) == [
        1,
        2,
        3,
        4,
        5,
    ]
    assert not list(together.rglob('*.partial*'))


@pytest.mark.thorough
def test_four_devices_in_any_number_of_processes(folder, tmp_path):
    config = settings(folder)
    for processes, devices in ((1, 4), (2, 2), (4, 1)):
        finish(cluster(processes, devices, config, tmp_path / str(processes)))
    assert_same_run(tmp_path / '1', tmp_path / '2', config)
    assert_same_run(tmp_path / '1', tmp_path / '4', config)


def test_a_checkpoint_is_resumed_with_another_number_of_processes(alone, folder, tmp_path):
    """Two processes resume from the third step of one process, with the same result."""
    config = settings(folder)
    shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
    for step in (4, 5):
        shutil.rmtree(tmp_path / 'checkpoints' / str(step))
    output = finish(cluster(2, 1, config, tmp_path))
    assert 'from step 3' in output
    for line, other in zip(metrics(tmp_path), metrics(alone), strict=True):
        assert_close(line, other)


@pytest.mark.thorough
def test_both_processes_restart_after_one_is_killed(together, folder, tmp_path):
    config = settings(folder)
    process = cluster(2, 1, config, tmp_path)
    deadline = time.monotonic() + 300
    while not (tmp_path / 'checkpoints' / '2').exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    killed = time.monotonic()
    output = finish(process)
    assert 'process 1 was killed by signal 9' in output
    (status,) = re.findall(r'process 0 ended with status (\d+)', output)
    assert int(status) == LOST, output
    assert 'error: Process 0 cannot continue, probably because another one has ended' in output
    assert 'starting again' in output
    (step,) = re.findall(r'resumes in .* from step (\d)', output)
    assert int(step) in (2, 3, 4)
    assert metrics(tmp_path) == metrics(together)
    here, there = (state(workdir, config, 5) for workdir in (tmp_path, together))
    for name, leaf in integrity.named_leaves(here).items():
        np.testing.assert_array_equal(leaf, integrity.named_leaves(there)[name], name)
    assert time.monotonic() - killed < 300


def test_processes_with_different_configurations_are_refused(folder, tmp_path):
    """As from a user with two terminals."""
    config, port = settings(folder), local_cluster.free_port()
    started = [
        subprocess.Popen(
            [
                *(sys.executable, '-m', 'sagan_jax.main', *tiny.arguments(config, tmp_path)),
                f'--config.distributed.coordinator=localhost:{port}',
                '--config.distributed.num_processes=2',
                f'--config.distributed.process_id={index}',
                f'--config.optimizer.generator_lr={1e-4 * (1 + index)}',
            ],
            cwd=ROOT,
            env=ENVIRONMENT | {'JAX_NUM_CPU_DEVICES': '1'},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2
        assert (
            'error: Process 1 disagrees with process 0 about config.optimizer.generator_lr '
            '(0.0002 instead of 0.0001)' in errors
        )
    assert not list(tmp_path.iterdir())


def test_a_user_error_is_printed_without_restarting(folder, tmp_path):
    config = settings(folder)
    config.batch_size = 7
    process = cluster(2, 1, config, tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert 'batch_size=7 is not divisible by the 2 devices' in output
    assert 'starting again' not in output

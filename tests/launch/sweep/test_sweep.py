"""Sweeps: killed and resumed, shared, refused; states are read from the folders alone."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import report
from launch.sweep import __main__ as sweep
from launch.sweep import runs
from launch.sweep.runs import Run
from sagan_jax.run import provenance
from tests.launch.sweep import fake_sweep

ROOT = Path(__file__).parents[3]
VARIANTS = ('no_attention', 'feat16')

CONFIG = """
from sagan_jax.configuration import defaults, variants

def get_config(variant='feat16'):
    config = defaults.get_config()
    config.model.architecture = 'pyramid'
    return variants.apply(config, variant, {})
"""


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp('config') / 'small.py'
    path.write_text(CONFIG)
    return path


def start(config, workdir, *flags, program=(fake_sweep.__file__,), **variables):
    return subprocess.Popen(
        [
            *(sys.executable, *program, '--config', str(config), '--workdir', str(workdir)),
            *('--variants', 'no_attention,feat16', '--seeds', '0,1', *flags),
        ],
        cwd=ROOT,
        env=os.environ | {'PYTHONPATH': str(ROOT)} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, status=0):
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, out + err
    return out if status != 2 else err


def wait_for(condition, process=None):
    for _ in range(1200):
        if condition():
            return
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise TimeoutError


def all_runs(workdir, seeds=(0, 1)):
    return [Run(variant, seed, workdir) for seed in seeds for variant in VARIANTS]


def states(workdir, seeds=(0, 1)):
    return [runs.state(run).what for run in all_runs(workdir, seeds)]


def processes(run):
    return (run.folder / 'processes').read_text().split()


def table(workdir):
    report.write(workdir)
    return (workdir / 'report.md').read_text()


@pytest.fixture(scope='module')
def alone(config, tmp_path_factory):
    """An undisturbed sweep of four runs."""
    workdir = tmp_path_factory.mktemp('alone')
    out = finish(start(config, workdir))
    assert '4 of 4 runs finished' in out
    return workdir


# ---- Finished and interrupted runs. ------------------------------------------------------------


def test_every_run_is_trained_and_scored_once(alone):
    assert states(alone) == ['done'] * 4
    values = []
    for run in all_runs(alone):
        state = 1
        for _ in range(fake_sweep.STEPS):
            state = fake_sweep.scramble(state, run.name)
        rows = run.files.all_scores()[fake_sweep.STEPS]
        assert [row['value'] for row in rows] == [state / 7, state / 5]
        values.append(state)
        assert len(processes(run)) == 2  # one to train, one to evaluate
        assert '1 × abacus' in (run.folder / runs.LOG).read_text()
    assert len(set(values)) == 4


def test_finished_runs_are_skipped(config, alone):
    before = [processes(run) for run in all_runs(alone)]
    assert '4 of 4 runs finished, 0 in progress' in finish(start(config, alone))
    assert [processes(run) for run in all_runs(alone)] == before


def test_a_sweep_killed_with_its_runs_resumes(config, alone, tmp_path):
    victim = start(config, tmp_path, '--jobs', '2', SLOW='0.3')
    wait_for(lambda: any(tmp_path.glob('*/seed0/checkpoints/2')), victim)
    orphans = [int(processes(run)[-1]) for run in all_runs(tmp_path, (0,))]
    os.kill(victim.pid, signal.SIGKILL)
    for orphan in orphans:
        os.kill(orphan, signal.SIGKILL)
    victim.communicate()
    wait_for(lambda: states(tmp_path) == ['stopped', 'stopped', 'waiting', 'waiting'])
    assert table(tmp_path) != table(alone)
    finish(start(config, tmp_path))
    assert table(tmp_path) == table(alone)
    assert (tmp_path / 'no_attention' / 'seed0' / 'checkpoints' / '2').exists()
    assert len(processes(all_runs(tmp_path)[0])) == 3


def test_a_run_whose_sweep_was_killed_is_waited_for(config, alone, tmp_path):
    victim = start(config, tmp_path, SLOW='0.5')
    wait_for(lambda: (tmp_path / 'no_attention' / 'seed0' / 'metrics.jsonl').exists(), victim)
    victim.kill()
    victim.communicate()
    assert states(tmp_path)[0] == 'training'
    orphan = int(processes(all_runs(tmp_path)[0])[0])
    follower = start(config, tmp_path)
    # On this machine the orphan takes the only job.
    wait_for(lambda: (tmp_path / 'feat16' / 'seed0' / 'processes').exists(), follower)
    assert not fake_sweep.is_alive(orphan)
    finish(follower)
    assert not any('overlap' in processes(run) for run in all_runs(tmp_path))
    assert table(tmp_path) == table(alone)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_sweep_interrupts_its_runs(config, tmp_path, number):
    process = start(config, tmp_path, '--jobs', '2', SLOW='30')
    wait_for(lambda: states(tmp_path)[:2] == ['training'] * 2, process)
    wait_for(lambda: all((run.folder / 'processes').exists() for run in all_runs(tmp_path, (0,))))
    children = [int(processes(run)[0]) for run in all_runs(tmp_path, (0,))]
    process.send_signal(number)
    out = finish(process, 128 + number)
    assert 'same command' in out
    assert not any(map(fake_sweep.is_alive, children))
    assert states(tmp_path)[2:] == ['waiting'] * 2
    assert not {'training', 'failed', 'done'} & set(states(tmp_path))


def test_as_a_slurm_array(config, alone, tmp_path):
    tasks = [
        start(config, tmp_path, '--sweep_index', 'slurm', SLURM_ARRAY_TASK_ID=str(index))
        for index in (0, 1)
    ]
    for task in tasks:
        assert '1 of 1 runs finished' in finish(task)
    assert states(tmp_path) == ['done', 'done', 'waiting', 'waiting']
    for task in [start(config, tmp_path, '--sweep_index', str(index)) for index in (2, 3)]:
        finish(task)
    assert table(tmp_path) == table(alone)


def test_two_sweeps_share_a_folder(config, alone, tmp_path):
    for process in [start(config, tmp_path, '--jobs', '2', SLOW='0.1') for _ in range(2)]:
        finish(process)
    assert [len(processes(run)) for run in all_runs(tmp_path)] == [2] * 4
    assert table(tmp_path) == table(alone)


def test_a_run_that_fails(config, alone, tmp_path):
    out = finish(start(config, tmp_path, FAIL='feat16/seed0'), status=1)
    assert '1 of 4 runs failed' in out
    assert states(tmp_path) == ['done', 'failed', 'done', 'done']
    assert re.search(r'feat16/seed0 +failed .* The abacus is broken\.', out)
    assert re.search(r'- feat16/seed0 +failed +.*The abacus is broken\.', table(tmp_path))
    finish(start(config, tmp_path))
    assert table(tmp_path) == table(alone)


def test_scoring_is_skipped_and_done_later(config, alone, tmp_path):
    finish(start(config, tmp_path, '--noevaluate'))
    assert states(tmp_path) == ['trained'] * 4
    assert all(len(processes(run)) == 1 for run in all_runs(tmp_path))
    finish(start(config, tmp_path))
    assert all(len(processes(run)) == 2 for run in all_runs(tmp_path))
    assert table(tmp_path) == table(alone)


def test_killed_while_scoring(config, alone, tmp_path):
    process = start(config, tmp_path, SLOW_SCORES='30')
    run = all_runs(tmp_path)[0]
    wait_for(lambda: runs.state(run).what == 'scoring' and len(processes(run)) == 2, process)
    process.terminate()
    finish(process, 128 + signal.SIGTERM)
    assert states(tmp_path) == ['trained', 'waiting', 'waiting', 'waiting']
    finish(start(config, tmp_path))
    assert len(processes(run)) == 3  # scored again, not trained
    assert table(tmp_path) == table(alone)


# ---- The command line. -------------------------------------------------------------------------


def test_list_does_nothing(config, alone, tmp_path):
    out = finish(start(config, tmp_path / 'new', '--list')).splitlines()
    assert [line.split() for line in out] == [
        [str(index), run.name, 'waiting'] for index, run in enumerate(all_runs(tmp_path))
    ]
    assert not (tmp_path / 'new').exists()
    done = finish(start(config, alone, '--list'))
    assert all(f'{run.name}  ' in done for run in all_runs(alone))
    assert len(re.findall(r'done +step 6/6', done)) == 4


def test_seeds_are_added_but_a_changed_configuration_is_refused(config, tmp_path):
    flags = ('--variants', 'feat16', '--seeds', '0', '--config.optimizer.b2=0.9')
    finish(start(config, tmp_path, *flags))
    finish(start(config, tmp_path, *flags, '--seeds', '0,1', '--config.log_every=7'))
    assert states(tmp_path) == ['waiting', 'done', 'waiting', 'done']
    path = tmp_path / runs.RECORD
    path.write_text(path.read_text().replace('"mismatch_weight": 0.0,', ''))  # an older version
    finish(start(config, tmp_path, *flags, '--seeds', '0,1'))
    before = (tmp_path / runs.RECORD).read_text()
    assert 'mismatch_weight' not in before
    for changed, parts in (
        (['--config.optimizer.b2=0.5'], ['optimizer.b2 was 0.9 and is now 0.5']),
        (['--config.num_train_steps=7'], ['num_train_steps was 1000000 and is now 7']),
        (['--config.optimizer.b2=0.999', '--variants', 'no_attention'], ['feat16: optimizer.b2']),
    ):
        error = finish(start(config, tmp_path, *flags, *changed), status=2)
        assert error.count('\n') == 1
        for part in (str(tmp_path), '--workdir', *parts):
            assert part in error
    assert (tmp_path / runs.RECORD).read_text() == before
    assert json.loads(before)['runs'] == [['feat16', 0], ['feat16', 1]]


@pytest.mark.parametrize(
    ('flags', 'parts'),
    [
        (['--variants', 'feat9'], ["'feat9'", 'table1', 'feat16']),
        (['--variants', ''], ['--variants']),
        (['--seeds', '0,x'], ['--seeds=0,x']),
        (['--seeds', ''], ['--seeds']),
        (['--workdir', ''], ['--workdir']),
        (['--config.seed=1'], ['--seeds']),
        (['--config.depth=1'], ["'depth'"]),
        (['--config.model.discriminator_attention=(64,)'], ['discriminator_attention', '64']),
        (['--seeds', '0,4294967296'], ['seed=4294967296 should be from 0']),
        (['--sweep_index', '4'], ["'4'", '0 to 3']),
        (['--sweep_index', 'slurm'], ['SLURM_ARRAY_TASK_ID']),
        (['--jobs', '0'], ['--jobs']),
        (['--config', 'configs/quickstart.py'], ['no variants']),
        (['--config', 'configs/shapes.py:feat8'], ['--config configs/shapes.py', 'colon']),
    ],
)
def test_invalid_flags_are_refused_in_one_sentence(config, tmp_path, flags, parts):
    error = finish(start(config, tmp_path / 'new', *flags), status=2)
    assert error.startswith('error: ')
    assert error.endswith('.\n')
    assert error.count('\n') == 1
    for part in parts:
        assert part in error
    assert not (tmp_path / 'new').exists()


def test_free_keys_are_free_in_a_run_too():
    """A sweep must refuse what the trainer would refuse."""
    for key in sweep.FREE_KEYS:
        assert key in provenance.FREE_KEYS or key.startswith(provenance.FREE_SECTIONS)


# ---- With the real trainer. --------------------------------------------------------------------


def test_the_real_trainer_is_started(config, tmp_path):
    nowhere = ('--config.dataset.name=image_folder', '--config.dataset.source_dir=/nowhere')
    flags = ('--variants', 'feat16', '--seeds', '3', *nowhere)
    finish(start(config, tmp_path, *flags, program=('-m', 'launch.sweep')), status=1)
    run = Run('feat16', 3, tmp_path)
    state = runs.state(run)
    assert state.what == 'failed'
    assert 'There is no folder or archive /nowhere' in state.error
    log = (run.folder / runs.LOG).read_text()
    assert f'--mode train --config {config}:feat16 --config.seed=3 ' in log


def test_the_command_resolves_to_the_same_configuration(config):
    """Overrides keep their meaning when a sweep passes them to a run."""
    overrides = ['--config.model.generator_attention=(8, 16)', '--config.dataset.flip=True']
    run = Run('no_attention', 5, Path('sweep'))
    command = sweep.create_command(str(config), overrides)(run, 'evaluate')
    assert command[1:5] == ['-m', 'sagan_jax.main', '--mode', 'evaluate']
    assert command[-2:] == ['--workdir', 'sweep/no_attention/seed5']
    assert command[5:7] == ['--config', f'{config}:no_attention']
    resolved = sweep.resolve(str(config), 'no_attention', command[7:-2])
    assert resolved.seed == 5
    assert resolved.dataset.flip is True
    assert resolved.model.generator_attention == (8, 16)
    assert resolved.model.discriminator_attention == ()

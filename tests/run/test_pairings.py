"""Two processes in one workdir: one goes on as if alone, the other is refused in one sentence."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from launch.sweep import __main__ as sweep
from launch.sweep import runs
from sagan_jax import train as training
from sagan_jax.errors import UserError
from sagan_jax.evaluation import evaluate as evaluation
from sagan_jax.metrics import in_domain
from sagan_jax.run import checkpoints, lock
from sagan_jax.run.folder import RunFolder
from sagan_jax.train import train
from sagan_jax.viewing import paper_figures
from tests import tiny
from tests.run.test_lock import foreign
from tests.test_chaos import assert_same

ROOT = Path(__file__).parents[2]
# With a variant, so that a sweep can have the run.
CONFIG = """
from sagan_jax.configuration import defaults

def get_config(variant='feat16'):
    config = defaults.get_config()
    config.update_from_flattened_dict({values})
    return config
"""
NEWCOMERS = {
    'training': ('--mode', 'train'),
    'another seed': ('--mode', 'train', '--config.seed=1'),
    'evaluate': ('--mode', 'evaluate'),
    'figures': ('--mode', 'figures', '--figures', 'curves'),
}


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    """A configuration file of a run of four steps."""
    folder = tmp_path_factory.mktemp('pictures')
    config = tiny.folder_config(tiny.picture_folder(folder / 'source'), sample_every=2)
    path = folder / 'small.py'
    values = {key: value for key, value in flat(config).items() if value is not None}
    path.write_text(CONFIG.format(values=values))
    return path


def flat(config, prefix=''):
    found = {}
    for key, value in config.items():
        inside = hasattr(value, 'items')
        found |= flat(value, f'{prefix}{key}.') if inside else {prefix + key: value}
    return found


@pytest.fixture(scope='module')
def config(file):
    return sweep.resolve(str(file), 'feat16', [])


@pytest.fixture(scope='module')
def alone(config, tmp_path_factory):
    """The run without a second process."""
    workdir = tmp_path_factory.mktemp('alone') / 'run'
    train(config, workdir)
    return workdir


def copy(workdir, to):
    shutil.copytree(workdir, to)
    return to


def start(program, file, workdir, *flags):
    return subprocess.Popen(
        [
            *(sys.executable, '-m', program, '--config', str(file)),
            *('--workdir', str(workdir), *flags),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_main(file, workdir, *flags):
    return start('sagan_jax.main', f'{file}:feat16', workdir, *flags)


def content(workdir):
    """What a folder holds, without what its owner writes at any time."""
    paths = (path for path in workdir.rglob('*') if 'tensorboard' not in path.parts)
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


def assert_refused(process, workdir, by):
    """Asserts that a process ends in one sentence that names the process `by`."""
    out, err = process.communicate(timeout=300)
    since = json.loads((workdir / 'run.lock').read_text())['since']
    assert process.returncode == 2, out + err
    assert err == (
        f'error: The workdir {workdir} is in use by process {by} on {platform.node()} since '
        f'{since}: wait, end it, or choose another --workdir.\n'
    )
    assert out == ''


def at_step(wanted, act):
    """`train.confirm_owner`, which calls `act(run)` first at one step."""
    confirm_owner = training.confirm_owner

    def confirm(run, step, state, values):
        if step == wanted:
            run.recent.wait_until_finished()
            act(run)
        confirm_owner(run, step, state, values)

    return confirm


# ---- On this machine. --------------------------------------------------------------------------


@pytest.fixture(scope='module')
def disturbed(file, config, tmp_path_factory):
    """The run in a sweep's folder; during its third step, others try to use it.

    Yields the folder, and for each of the others what `assert_refused` raised, if anything, and
    what the folder held before and after.
    """
    workdir = tmp_path_factory.mktemp('disturbed')
    folder, found = runs.Run('feat16', 0, workdir).folder, {}

    def disturb(run):
        for name, flags in NEWCOMERS.items():
            before = content(folder)
            process = start_main(file, folder, *flags)
            try:
                assert_refused(process, folder, os.getpid())
            except AssertionError as error:
                found[name] = error, before, content(folder)
            else:
                found[name] = None, before, content(folder)
        before = content(folder)
        found['sweep'] = wait_of_sweep(file, workdir), before, content(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, 'confirm_owner', at_step(3, disturb))
        train(config, folder)
    return folder, found


def wait_of_sweep(file, workdir):
    """Starts a sweep with the run and interrupts it when it waits; returns its first line."""
    process = start('launch.sweep', file, workdir, '--variants', 'feat16')
    try:
        line = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        return line if process.returncode == 143 else line + out + err
    finally:
        process.kill()


@pytest.mark.parametrize('name', NEWCOMERS)
def test_a_second_process_is_refused_while_a_run_trains(disturbed, name):
    error, before, after = disturbed[1][name]
    assert error is None
    assert after == before


def test_a_sweep_waits_for_a_run_that_trains(disturbed):
    folder, found = disturbed
    line, before, after = found['sweep']
    since = json.loads((folder / 'run.lock').read_text())['since']
    assert line.startswith('feat16/seed0  training  step 2/4')
    assert line.endswith(f'  used by process {os.getpid()} on {platform.node()} since {since}\n')
    assert {path: text for path, text in after.items() if path.name != runs.LOCK} == before


def test_what_others_try_changes_no_bit_of_a_run(disturbed, alone, config):
    assert_same(disturbed[0], alone, config, files=['samples', 'config.json'])


@pytest.mark.thorough
def test_training_is_refused_while_scores_are_computed(alone, file, config, tmp_path, monkeypatch):
    """… and they are those without a second process."""
    first, second = (copy(alone, tmp_path / name) for name in 'ab')
    monkeypatch.setattr(in_domain, 'STEPS', 10)
    evaluation.evaluate(config, first)
    create = evaluation.create_evaluator

    def disturbed(*arguments):
        assert_refused(start_main(file, second), second, os.getpid())
        return create(*arguments)

    monkeypatch.setattr(evaluation, 'create_evaluator', disturbed)
    evaluation.evaluate(config, second)
    assert_same(first, second, config, files=['evaluation', 'config.json'])


@pytest.mark.thorough
def test_training_is_refused_while_figures_are_drawn(alone, file, config, tmp_path, monkeypatch):
    """… and they are those without a second process."""
    first, second = (copy(alone, tmp_path / name) for name in 'ab')
    paper_figures.illustrate(config, first, kinds=['curves', 'classes'])
    load = paper_figures.create_loader

    def disturbed(*arguments):
        assert_refused(start_main(file, second), second, os.getpid())
        return load(*arguments)

    monkeypatch.setattr(paper_figures, 'create_loader', disturbed)
    assert len(paper_figures.illustrate(config, second, kinds=['curves', 'classes'])) > 2
    assert_same(first, second, config, files=['figures', 'config.json'])


@pytest.mark.thorough
@pytest.mark.parametrize('seeds', [(0, 0), (0, 1)])
def test_of_two_that_start_together_one_goes_on(seeds, file, alone, config, tmp_path):
    workdir = tmp_path / 'run'
    both = [start_main(file, workdir, f'--config.seed={seed}') for seed in seeds]
    ended = [process.communicate(timeout=300) for process in both]
    statuses = [process.returncode for process in both]
    assert sorted(statuses) == [0, 2], ended
    winner = statuses.index(0)
    err = ended[1 - winner][1]
    assert re.fullmatch(
        rf'error: The workdir .* is in use by process {both[winner].pid} on .* since .*: .*\n', err
    )
    if seeds[winner]:
        config = config.copy_and_resolve_references()
        config.seed = seeds[winner]
        train(config, alone := tmp_path / 'alone')
    assert_same(workdir, alone, config, files=['samples', 'config.json'])


@pytest.mark.thorough
def test_training_is_refused_in_the_run_of_a_sweep(file, alone, config, tmp_path):
    process = start('launch.sweep', file, tmp_path, '--variants', 'feat16', '--noevaluate')
    run = runs.Run('feat16', 0, tmp_path)
    try:
        while (owner := lock.owner(run.files)) is None:
            assert process.poll() is None, process.communicate()
        assert_refused(start_main(file, run.folder), run.folder, owner.process)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, out + err
    assert_same(run.folder, alone, config, files=['samples', 'config.json'])


# ---- On two hosts, of which the other is a record. ---------------------------------------------


@pytest.fixture
def patience(monkeypatch):
    monkeypatch.setattr(lock, 'PATIENCE', 0.2)
    monkeypatch.setattr(lock, '_POLL', 0.01)
    monkeypatch.setattr(lock, 'BEAT', 0.02)


@pytest.fixture
def half(alone, tmp_path):
    """The run as another host left it after its checkpoint of step 2."""
    workdir = copy(alone, tmp_path / 'run')
    shutil.rmtree(workdir / 'checkpoints' / '4')
    foreign(RunFolder(workdir))
    return workdir


def test_a_run_on_another_host_is_left_alone(half, config, patience):
    folder, ended = RunFolder(half), threading.Event()
    before, record = content(half), lock.owner(folder)
    beating = threading.Thread(target=lock._beat, args=(folder, record, ended))
    beating.start()
    try:
        with pytest.raises(UserError, match=r'in use by process 4321 on node7 since 2026-01-02 03'):
            train(config, half)
    finally:
        ended.set()
        beating.join()
    assert content(half) == before


def test_a_run_of_a_host_that_is_gone_goes_on_as_if_alone(half, config, alone, patience, capsys):
    train(config, half)
    out = capsys.readouterr().out
    assert 'taken over from process 4321 on node7 since 2026-01-02 03:04:05+00:00, which is' in out
    assert 'from step 2\n' in out
    assert_same(half, alone, config, files=['samples', 'config.json'])


@pytest.mark.thorough
def test_a_suspended_run_that_was_taken_over_writes_no_more(config, tmp_path, monkeypatch):
    """As when the other host waited for a sign of life, and this one wakes up later."""
    workdir, before = tmp_path / 'run', {}

    def take_over(run):
        foreign(run.folder)
        before.update(content(workdir))

    monkeypatch.setattr(training, 'confirm_owner', at_step(3, take_over))
    with pytest.raises(UserError, match=r'was taken over by process 4321 on node7 since 2026-01-0'):
        train(config, workdir)
    assert content(workdir) == before
    assert checkpoints.steps_in(workdir / 'checkpoints').keys() == {2}

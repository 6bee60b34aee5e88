"""A run that is killed repeatedly ends bit for bit like an undisturbed run."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sagan_jax.run import checkpoints, integrity
from sagan_jax.state import create_state, state_shapes
from tests import tiny

ROOT = Path(__file__).parents[1]
SAVED_EVERY, SCORED_EVERY = 5, 15


def settings(folder, steps):
    return tiny.folder_config(
        folder / 'source',
        num_train_steps=steps,
        optimizer__decay_from=0.25,
        mismatch_weight=0.5,
        diff_augment='color,translation,cutout',
        lecam_weight=0.3,
        r1_weight=1.0,
        r1_every=3,
        model__z_dim=16,
        dataset__flip=True,
        ema__decay=0.9,
        ema__start_step=5,
        checkpoint_every=SAVED_EVERY,
        evaluate_every=SCORED_EVERY,
        sample_every=SCORED_EVERY,
    )


class Run:
    """A run in its folder, with one process at a time."""

    def __init__(self, config, workdir):
        self.config, self.workdir = config, workdir

    def start(self, program=('-m', 'sagan_jax.main'), workdir=None):
        arguments = tiny.arguments(self.config, workdir or self.workdir)
        self.process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=ROOT,
            env=os.environ | {'JAX_NUM_CPU_DEVICES': '2'},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for(self, happens):
        """Waits until `happens()` or the process ends."""
        deadline = time.monotonic() + 300
        while self.process.poll() is None and not happens():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def end(self, number=0):
        """Waits for the end, after a signal if one is given; returns the output and the status."""
        if number:
            self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=300)
        return output, self.process.returncode

    @property
    def step(self):
        """The last logged step; every step is logged."""
        path = self.workdir / 'metrics.jsonl'
        found = re.findall(
            r'^{"step": (\d+), .*}$', path.read_text() if path.exists() else '', re.M
        )
        return int(found[-1]) if found else 0

    def saving(self):
        return any((self.workdir / 'checkpoints').glob('*-tmp'))


def disturb(run, dice):
    """Starts a run and waits for a random moment; returns the signal to send, and the moment."""
    run.start()
    begun_at = run.step
    moment = dice.choice(['any', 'step', 'step', 'save', 'score'])
    if moment == 'any':  # loading and compiling included
        end = time.monotonic() + dice.uniform(0, 15)
        run.wait_for(lambda: time.monotonic() > end)
    elif moment == 'step':
        wanted = begun_at + dice.randint(1, 2 * SAVED_EVERY)
        run.wait_for(lambda: run.step >= wanted)
    elif moment == 'save':
        wanted = begun_at + dice.randint(0, SAVED_EVERY)
        run.wait_for(lambda: run.step >= wanted and run.saving())
    else:
        wanted = begun_at - begun_at % SCORED_EVERY + SCORED_EVERY
        run.wait_for(lambda: run.step >= wanted)
        time.sleep(dice.uniform(0, 0.3))
    return dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]), moment


def survives(folder, tmp_path, steps, kills, seed):
    """Kills a run `kills` times; returns the number of repeated steps, and the kills."""
    config, dice = settings(folder, steps), random.Random(seed)
    straight, killed = Run(config, tmp_path / 'straight'), Run(config, tmp_path / 'killed')
    straight.start()
    output, status = straight.end()
    assert status == 0, output

    done, redone, reached, asked = [], 0, 0, False
    while len(done) < kills:
        number, moment = disturb(killed, dice)
        output, status = killed.end(number)
        if status == 0:
            pytest.fail(f'the run ended after {len(done)} kills: give it more steps')
        expected = {-number, 128 + number} if number == signal.SIGTERM else {-number}
        assert status in expected, output
        resumed = re.findall(r'resumes in .* from step ([\d,]+)\n', output)
        if resumed:
            from_step = int(resumed[0].replace(',', ''))
            redone += reached - from_step
            # SIGTERM saves the step; SIGKILL loses the steps since a checkpoint.
            assert 0 <= reached - from_step <= (0 if asked else 2 * SAVED_EVERY)
        if resumed or 'starts afresh' in output:
            reached = killed.step
            asked = status == 143
        done.append((moment, signal.Signals(number).name))
    killed.start()
    output, status = killed.end()
    assert status == 0, output
    assert not (killed.workdir / 'damaged_checkpoints').exists()
    assert_same(straight.workdir, killed.workdir, config)
    return redone, done


def comparable(path):
    """What a file holds; of `config.json` without the flags of XLA, which only commands set."""
    if path.name != 'config.json':
        return path.read_bytes()
    return {key: value for key, value in json.loads(path.read_text()).items() if key != 'numerics'}


def assert_same(here, there, config, files=('**',)):
    """Compares what two runs leave: metrics without rates, all JSON and PNG files, checkpoints.

    Args:
      here, there: their folders.
      config: their configuration.
      files: patterns of the files to compare beside metrics and checkpoints.
    """

    def lines(workdir):
        read = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
        return [{k: v for k, v in line.items() if k != 'images_per_second'} for line in read]

    assert lines(here) == lines(there)
    names = {
        str(path.relative_to(here)): path
        for pattern in files
        for found in here.glob(pattern)
        for path in (found, *found.rglob('*'))
        if path.is_file()
        and path.suffix in ('.png', '.json')
        and 'best' not in path.parts
        and 'checkpoints' not in path.parts
    }
    assert len(names) >= len(files)
    for name, path in names.items():
        assert comparable(path) == comparable(there / name), name
    for folder in ('checkpoints', 'best'):
        kept = [set(checkpoints.steps_in(run / folder)) for run in (here, there)]
        assert max(kept[0], default=None) == max(kept[1], default=None)
        assert kept[0] & kept[1] or folder == 'best'
        for step in kept[0] & kept[1]:
            one, other = (arrays(run / folder, step, config) for run in (here, there))
            assert [name for name in one if one[name] != other[name]] == []
    assert not [path for path in there.rglob('*') if 'tmp' in path.name or 'partial' in path.name]


def arrays(folder, step, config):
    """The bytes of each array of a checkpoint."""
    manager = checkpoints.open_manager(folder)
    state = checkpoints.restore(manager, state_shapes(config), step, config)
    manager.close()
    return {name: leaf.tobytes() for name, leaf in integrity.named_leaves(state).items()}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tiny.scored_folder(tmp_path_factory.mktemp('pictures'))


def test_killed_a_few_times(folder, tmp_path):
    redone, done = survives(folder, tmp_path, steps=30, kills=2, seed=10)
    print(redone, done)


@pytest.mark.thorough
def test_killed_fifty_times(folder, tmp_path):
    redone, done = survives(folder, tmp_path, steps=400, kills=50, seed=0)
    print(redone, done)


def test_a_second_signal_ends_at_once_and_keeps_the_last_checkpoint(folder, tmp_path):
    run = Run(settings(folder, 400), tmp_path)
    run.start()
    run.wait_for(lambda: run.step > SAVED_EVERY and not run.saving())
    run.process.send_signal(signal.SIGTERM)
    output, status = run.end(signal.SIGTERM)
    if status == 143:  # it saved before the second signal
        assert 'interrupted' in output
    else:
        assert status == -signal.SIGTERM
    manager = checkpoints.open_manager(tmp_path / 'checkpoints')
    state = checkpoints.restore_newest(manager, create_state(run.config), run.config)
    manager.close()
    assert int(state.step) >= SAVED_EVERY
    assert all(np.isfinite(leaf).all() for leaf in integrity.named_leaves(state).values())

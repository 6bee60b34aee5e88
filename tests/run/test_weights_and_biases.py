"""A run is logged at Weights & Biases if it names a project, and trains whatever happens there."""

import json
import re
import struct
import sys
import time
from importlib.machinery import PathFinder
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sagan_jax.configuration import defaults
from sagan_jax.errors import UserError
from sagan_jax.run import weights_and_biases
from sagan_jax.run.folder import RunFolder
from sagan_jax.run.logs import RunLog

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), np.uint8)


@pytest.fixture
def config():
    found = defaults.get_config()
    found.logging.wandb_project = 'gans'
    return found


def log(folder, config, step=0, last=3):
    """What a run logs that begins after `step`."""
    with RunLog(folder, step, config) as opened:
        for number in range(step + 1, last + 1):
            opened.scalars(number, {'loss': number / 2, 'real_logit': 0.25})
        opened.samples(last, IMAGES, 3)
        opened.scalars(last, {'fid50k': 7.5})


@pytest.fixture
def stand_in(monkeypatch):
    """A package in place of wandb; `fails` in it is the name of a function that raises `error`."""
    package = SimpleNamespace(
        logged=[], begun=[], finished=[], fails=None, error=RuntimeError('no')
    )

    def may_fail(name):
        if package.fails == name:
            raise package.error

    def init(**options):
        may_fail('init')
        package.begun.append(options)
        return run

    def add(values):
        may_fail('log')
        package.logged.append(values)

    def finish(exit_code):
        may_fail('finish')
        package.finished.append(exit_code)

    def encode(pixels):
        may_fail('Image')
        return pixels

    run = SimpleNamespace(log=add, finish=finish, define_metric=lambda *_, **__: None)
    package.init, package.Image, package.Settings = init, encode, dict
    monkeypatch.setitem(sys.modules, 'wandb', package)
    return package


def test_a_run_logs_there_what_it_logs_in_its_folder(tmp_path, config, stand_in):
    folder = RunFolder(tmp_path / 'birds')
    folder.path.mkdir()
    log(folder, config)
    (begun,) = stand_in.begun
    assert (begun['project'], begun['dir']) == ('gans', folder.path)
    assert begun['name'] == f'{tmp_path.name}/birds'
    assert begun['config'] == json.loads(config.to_json())
    *lines, scores = [json.loads(line) for line in folder.metrics_jsonl.open()]
    *points, shown, last = stand_in.logged
    assert points == lines
    assert last == scores
    assert shown.keys() == {'step', 'samples'}
    with Image.open(folder.grid(3)) as image:
        np.testing.assert_array_equal(shown['samples'], np.asarray(image))
    assert stand_in.finished == [0]


def test_a_run_that_resumes_goes_on_there(tmp_path, config, stand_in):
    folder = RunFolder(tmp_path)
    log(folder, config)
    log(folder, config, step=2, last=5)
    first, second = stand_in.begun
    assert first['id'] == second['id']
    assert first['resume'] == second['resume'] == 'allow'
    other = RunFolder(tmp_path / 'other')
    other.path.mkdir()
    log(other, config)
    assert stand_in.begun[-1]['id'] != first['id']


def test_a_run_that_fails_has_failed_there(tmp_path, config, stand_in):
    with pytest.raises(SystemExit), RunLog(RunFolder(tmp_path), 0, config):
        sys.exit(143)
    assert stand_in.finished == [1]


@pytest.mark.parametrize('error', [RuntimeError, OSError, ValueError, TimeoutError])
@pytest.mark.parametrize('where', ['import', 'init', 'log', 'Image', 'finish'])
def test_a_failure_is_said_once_and_ends_nothing(
    where, error, tmp_path, config, stand_in, monkeypatch, capsys
):
    stand_in.fails, stand_in.error = where, error('no route\nto host')
    if where == 'import':
        monkeypatch.setitem(sys.modules, 'wandb', None)
    folder = RunFolder(tmp_path)
    log(folder, config)
    assert [json.loads(line)['step'] for line in folder.metrics_jsonl.open()] == [1, 2, 3, 3]
    assert folder.grid(3).is_file()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith('warning        Weights & Biases has failed (')
    assert line.endswith('), training continues without it')
    assert where == 'import' or 'no route to host' in line

    stand_in.fails = None  # the next start tries again
    monkeypatch.setitem(sys.modules, 'wandb', stand_in)
    log(folder, config, step=3, last=4)
    assert {'step': 4, 'loss': 2.0, 'real_logit': 0.25} in stand_in.logged


@pytest.mark.parametrize('content', [b'', b'\xff\xfe', b'../../x', b'0123abc\n4', b'0' * 10**6])
def test_a_damaged_id_is_replaced(content, tmp_path, config, stand_in, capsys):
    folder = RunFolder(tmp_path)
    folder.wandb.mkdir()
    path = folder.wandb / 'run_id'
    path.write_bytes(content)
    for _ in range(2):
        log(folder, config)
    assert capsys.readouterr().out.count(f'{path} holds no id of a run') == 1
    first, second = stand_in.begun
    assert first['id'] == second['id'] == path.read_text().strip()
    assert re.fullmatch('[0-9a-f]{8}', first['id'])


def test_what_is_in_the_place_of_the_id_stays(tmp_path, config, stand_in, capsys):
    folder = RunFolder(tmp_path)
    (folder.wandb / 'run_id').mkdir(parents=True)
    log(folder, config)
    assert 'Weights & Biases has failed (Is a directory)' in capsys.readouterr().out
    assert stand_in.begun == []


@pytest.mark.parametrize('folder_here', [False, True])
def test_a_package_that_is_missing_is_named(folder_here, config, monkeypatch, tmp_path):
    (tmp_path / 'wandb').mkdir()  # as the package itself makes them
    path = [str(tmp_path)] if folder_here else []
    spec = PathFinder.find_spec('wandb', path)
    assert (spec is not None) == folder_here
    monkeypatch.setattr(weights_and_biases.importlib.util, 'find_spec', lambda name: spec)
    with pytest.raises(UserError, match=r'wandb_project=gans needs .*pip install wandb'):
        weights_and_biases.check(config)
    config.logging.wandb_project = None
    weights_and_biases.check(config)


# ---- The package itself. -----------------------------------------------------------------------


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    package = pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    for name in ('WANDB_CONFIG_DIR', 'WANDB_CACHE_DIR', 'WANDB_DATA_DIR'):
        monkeypatch.setenv(name, str(tmp_path / 'home'))
    for name in ('WANDB_DIR', 'WANDB_PROJECT', 'WANDB_RUN_ID', 'WANDB_RESUME'):
        monkeypatch.delenv(name, raising=False)
    package.teardown()  # which has read the environment
    yield package
    package.teardown()


def records(path):
    """What a file of the package holds, by kind: messages in the log format of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, message, found = path.read_bytes(), 7, b'', {}  # after the file's own header
    assert content.startswith(b':W&B')
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # too little of the block is left for a header
            at += 32768 - at % 32768
            continue
        length, part = struct.unpack_from('<HB', content, at + 4)  # behind the checksum
        message += content[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # the whole message, or its last part
            record = Record.FromString(message)
            kind = record.WhichOneof('record_type')
            found.setdefault(kind, []).append(getattr(record, kind))
            message = b''
    return found


def test_offline_runs_of_the_package_itself(tmp_path, config, wandb, capsys):
    folder = RunFolder(tmp_path / 'birds')
    folder.path.mkdir()
    log(folder, config)
    time.sleep(1.1)  # the package names its folders after the second
    log(folder, config, step=2, last=4)
    wandb.teardown()  # the package's service writes its files until it ends
    assert 'warning' not in capsys.readouterr().out
    identity = (folder.wandb / 'run_id').read_text().strip()
    first, second = sorted(folder.wandb.glob(f'offline-run-*/run-{identity}.wandb'))
    for path, steps in ((first, [1, 2, 3, 3, 3]), (second, [3, 4, 4, 4])):
        found = records(path)
        (begun,) = found['run']
        assert (begun.run_id, begun.project) == (identity, 'gans')
        assert begun.display_name == f'{tmp_path.name}/birds'
        given = {item.key: json.loads(item.value_json) for item in begun.config.update}
        assert given['optimizer'] == config.optimizer.to_dict()
        rows = [
            {
                item.key or '.'.join(item.nested_key): json.loads(item.value_json)
                for item in row.item
            }
            for row in found['history']
        ]
        assert [row['step'] for row in rows] == steps
        assert [row['loss'] for row in rows[:-2]] == [step / 2 for step in steps[:-2]]
        assert rows[-1]['fid50k'] == 7.5
        with (
            Image.open(path.parent / 'files' / rows[-2]['samples.path']) as there,
            Image.open(folder.grid(steps[-1])) as here,
        ):
            np.testing.assert_array_equal(np.asarray(there), np.asarray(here))


def test_a_package_that_ends_in_the_middle_ends_nothing(tmp_path, config, wandb, capsys):
    with RunLog(RunFolder(tmp_path), 0, config) as opened:
        opened.scalars(1, {'loss': 0.5})
        wandb.teardown()
        for step in (2, 3):
            opened.scalars(step, {'loss': 0.5})
    assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == 3
    assert capsys.readouterr().out.count('Weights & Biases has failed') == 1

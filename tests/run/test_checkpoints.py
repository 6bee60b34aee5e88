"""Checkpoints on broken disks: damaged ones are skipped, failed writes are reported."""

import contextlib
import errno
import os
import resource
import shutil

import jax
import numpy as np
import pytest

import sagan_jax
from sagan_jax.errors import UserError
from sagan_jax.run import checkpoints, integrity
from sagan_jax.run.folder import RunFolder
from sagan_jax.state import state_shapes
from tests import tiny

STATE = {
    'kernel': np.random.default_rng(0).normal(size=(3, 500)).astype(np.float32),
    'step': np.zeros((), np.int32),
}

CONFIG = tiny.config()


def at(step):
    return STATE | {'step': np.int32(step)}


def save(folder, *steps):
    manager = checkpoints.open_manager(folder, keep=2)
    for step in steps:
        assert checkpoints.save(manager, step, at(step), CONFIG)
        checkpoints.finish(manager, step, at(step), CONFIG)
    manager.close()


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize('damage', [truncate, flip_a_bit, lambda path: path.unlink()])
def test_a_damaged_checkpoint_is_skipped_or_intact(damage, tmp_path, capsys):
    save(tmp_path / 'whole', 1, 2)
    skipped = 0
    for path in sorted((tmp_path / 'whole' / '2').rglob('*')):
        if path.is_dir():
            continue
        run = tmp_path / 'run'
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(tmp_path / 'whole', run / 'checkpoints')
        damage(run / 'checkpoints' / path.relative_to(tmp_path / 'whole'))
        manager = checkpoints.open_manager(run / 'checkpoints', keep=2)
        state = checkpoints.restore_newest(manager, STATE, CONFIG)
        step = int(state['step'])
        np.testing.assert_array_equal(state['kernel'], STATE['kernel'])
        printed = capsys.readouterr().out
        assert ('damaged' in printed or 'cannot be read' in printed) == (step == 1)
        skipped += step == 1
        if step == 1:  # the damaged one does not prevent saving this step again
            assert checkpoints.save(manager, 2, at(2), CONFIG)
            checkpoints.finish(manager, 2, at(2), CONFIG)
            assert int(checkpoints.restore_newest(manager, STATE, CONFIG)['step']) == 2
        manager.close()
    assert skipped >= 3


def test_all_checkpoints_damaged(tmp_path):
    save(tmp_path / 'checkpoints', 1, 2)
    for path in tmp_path.rglob('_METADATA'):
        truncate(path)
    manager = checkpoints.open_manager(tmp_path / 'checkpoints', keep=2)
    with pytest.raises(UserError, match=r'All checkpoints in .* are damaged'):
        checkpoints.restore_newest(manager, STATE, CONFIG)
    assert {path.name for path in (tmp_path / 'checkpoints').iterdir()} == {'1', '2'}


def test_a_checkpoint_of_another_network_is_not_damaged(tmp_path):
    save(tmp_path, 1)
    manager = checkpoints.open_manager(tmp_path, keep=2)
    for other in (STATE | {'kernel': np.zeros((3, 400))}, {'step': STATE['step']}):
        with pytest.raises(UserError, match='does not match the generator') as caught:
            checkpoints.restore_newest(manager, other, CONFIG)
        assert not isinstance(caught.value, integrity.DamagedError)


@contextlib.contextmanager
def full_disk():
    """Limits files to 100 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_keeps_earlier_checkpoints(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(checkpoints, '_PAUSES', (0, 0))
    save(tmp_path, 1, 2)
    manager = checkpoints.open_manager(tmp_path, keep=2)
    with full_disk(), pytest.raises(UserError, match='last checkpoint cannot be written'):
        checkpoints.finish(manager, 3, at(3), CONFIG)
    assert 'a checkpoint cannot be written and is tried again' in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {'1', '2'}
    assert checkpoints.save(manager, 4, at(4), CONFIG)
    checkpoints.finish(manager, 4, at(4), CONFIG)
    assert {path.name for path in tmp_path.iterdir()} == {'2', '4'}
    assert int(checkpoints.restore_newest(manager, STATE, CONFIG)['step']) == 4


@pytest.mark.parametrize(
    'failure',
    [
        OSError(errno.ESTALE, 'Stale file handle'),
        ValueError('DEADLINE_EXCEEDED: Error reading local file: Connection timed out'),
        MemoryError('Unable to allocate 5. GiB'),
    ],
)
def test_a_checkpoint_is_not_damaged_because_the_machine_fails(tmp_path, monkeypatch, failure):
    save(tmp_path / 'checkpoints', 1, 2)
    manager = checkpoints.open_manager(tmp_path / 'checkpoints', keep=2)

    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(manager, 'restore', fail)
    with pytest.raises(type(failure), match=str(failure)[-9:]):
        checkpoints.restore_newest(manager, STATE, CONFIG)
    assert {path.name for path in (tmp_path / 'checkpoints').iterdir()} == {'1', '2'}


def test_a_missing_folder_is_created_again(tmp_path, capsys):
    save(tmp_path / 'run' / 'checkpoints', 1)
    manager = checkpoints.open_manager(tmp_path / 'run' / 'checkpoints', keep=2)
    (tmp_path / 'run').rename(tmp_path / 'elsewhere')
    checkpoints.save(manager, 2, at(2), CONFIG)
    checkpoints.finish(manager, 2, at(2), CONFIG)
    assert int(checkpoints.restore_newest(manager, STATE, CONFIG)['step']) == 2


def test_remains_of_a_killed_save_are_removed_only_when_opened_for_saving(tmp_path):
    save(tmp_path, 1)
    remains = tmp_path / '2.orbax-checkpoint-tmp'
    (remains / 'state').mkdir(parents=True)
    checkpoints.open_manager(tmp_path).close()  # for reading
    assert remains.exists()
    checkpoints.open_manager(tmp_path, keep=2).close()
    assert {path.name for path in tmp_path.iterdir()} == {'1'}


def test_what_others_put_beside_checkpoints_stays(tmp_path):
    save(tmp_path, 1)
    others = {'mine.orbax-checkpoint-tmp', '1_backup', '1 (copy)', 'notes', '.1', 'step_1'}
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / 'file').write_text('mine')
    save(tmp_path, 2, 3, 4)  # two are kept
    assert {path.name for path in tmp_path.iterdir()} == others | {'3', '4'}
    assert all((tmp_path / name / 'file').exists() for name in others)


# ---- Whose checkpoint it is. -------------------------------------------------------------------


def newest(folder, config=CONFIG):
    manager = checkpoints.open_manager(folder, keep=2)
    try:
        return checkpoints.restore_newest(manager, STATE, config)
    finally:
        manager.close()


def test_a_checkpoint_under_another_step_is_refused(tmp_path):
    save(tmp_path, 1, 2)
    (tmp_path / '2').rename(tmp_path / '7')
    with pytest.raises(
        UserError, match=r'/7 was saved at step 2: rename it back, or move'
    ) as found:
        newest(tmp_path)
    assert not isinstance(found.value, integrity.DamagedError)
    assert {path.name for path in tmp_path.iterdir()} == {'1', '7'}


@pytest.mark.parametrize(
    ('key', 'there', 'here'), [('seed', 0, 1), ('model__z_dim', 8, 9), ('batch_size', 8, 16)]
)
def test_a_checkpoint_of_another_configuration_is_refused(tmp_path, key, there, here):
    save(tmp_path, 1)
    name = key.replace('__', '.')
    with pytest.raises(
        UserError, match=rf'/1 belongs to .*, {name} \({there} there, {here} here\):'
    ):
        newest(tmp_path, tiny.config(**{key: here}))
    assert int(newest(tmp_path, tiny.config(num_train_steps=9, log_every=3))['step']) == 1


@pytest.fixture
def version_0_1(monkeypatch):
    """Records as version 0.1 made them: without an origin, and without dtypes."""

    def checks(state, step, config):
        leaves = integrity.named_leaves(state).items()
        found = {name: [list(leaf.shape), integrity._crc32(leaf)] for name, leaf in leaves}
        return found | {'itself': integrity._checksum(found)}

    with monkeypatch.context() as patch:
        patch.setattr(integrity, 'record', checks)
        yield


def test_a_checkpoint_without_an_origin_is_read(tmp_path, version_0_1):
    save(tmp_path, 1)
    assert int(newest(tmp_path, tiny.config(seed=1))['step']) == 1
    manager = checkpoints.open_manager(tmp_path)
    with pytest.raises(UserError, match=r'/1 is of a version that did not record'):
        checkpoints.restore_newest(manager, STATE, CONFIG, needs_origin=True)


# ---- Dtypes. -----------------------------------------------------------------------------------


@pytest.mark.parametrize('record', ['version_0_1', None])
@pytest.mark.parametrize(
    ('name', 'dtype'),
    [('kernel', np.float64), ('kernel', np.float16), ('step', np.int64), ('step', np.uint32)],
)
def test_a_sound_checkpoint_with_other_dtypes_is_not_damaged(
    record, name, dtype, tmp_path, request
):
    if record:
        request.getfixturevalue(record)
    save(tmp_path, 1)
    other = STATE | {name: STATE[name].astype(dtype)}
    message = f'holds {STATE[name].dtype} where JAX is set to {other[name].dtype} here .{name}.: '
    manager = checkpoints.open_manager(tmp_path, keep=2)
    with pytest.raises(UserError, match=message) as caught:
        checkpoints.restore_newest(manager, other, CONFIG)
    assert not isinstance(caught.value, integrity.DamagedError)
    assert int(checkpoints.restore_newest(manager, STATE, CONFIG)['step']) == 1
    manager.close()
    assert {path.name for path in tmp_path.iterdir()} == {'1'}


def test_a_run_is_not_damaged_for_a_process_with_64_bits(trained_workdir, tmp_path, request):
    with jax.enable_x64(True), pytest.raises(UserError, match='JAX is set to float64') as caught:
        sagan_jax.load(trained_workdir)
    assert not isinstance(caught.value, integrity.DamagedError)

    # The same checkpoint as version 0.1 saved it.
    config = RunFolder(trained_workdir).config()
    manager = checkpoints.open_manager(trained_workdir / 'checkpoints')
    state = checkpoints.restore(manager, state_shapes(config), 7, config)
    manager.close()
    request.getfixturevalue('version_0_1')
    manager = checkpoints.open_manager(tmp_path, keep=1)
    checkpoints.save_at_once(manager, 7, state, config)
    found = checkpoints.restore(manager, state_shapes(config), 7, config)
    jax.tree.map(np.testing.assert_array_equal, found, state)
    with jax.enable_x64(True), pytest.raises(UserError, match='JAX is set to float64') as caught:
        checkpoints.restore(manager, state_shapes(config), 7, config)
    assert not isinstance(caught.value, integrity.DamagedError)
    manager.close()


def test_a_save_at_once_is_on_disk_or_says_that_it_is_not(tmp_path, capsys):
    manager = checkpoints.open_manager(tmp_path, keep=1)
    with full_disk():
        assert not checkpoints.save_at_once(manager, 3, at(3), CONFIG)
    assert 'cannot be written and is tried again' in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert checkpoints.save_at_once(manager, 3, at(3), CONFIG)
    assert {path.name for path in tmp_path.iterdir()} == {'3'}


@pytest.mark.parametrize('keep', [None, 1])
def test_a_pipe_among_the_files_is_refused_and_not_waited_for(tmp_path, keep):
    pipe = tmp_path / '3' / 'state' / 'manifest.ocdbt'
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    with pytest.raises(UserError, match=f'{pipe} is a pipe, a socket or a device'):
        checkpoints.open_manager(tmp_path, keep)


def test_a_full_disk_is_no_damage_of_the_folder(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints.ocp, 'CheckpointManager', full)
    with pytest.raises(OSError, match='No space left on device'):
        checkpoints.open_manager(tmp_path, keep=1)

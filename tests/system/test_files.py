"""A reader never sees half a file, and a lock has one holder, alive."""

import os
import subprocess
import threading

import pytest

from sagan_jax.system.files import (
    atomic_path,
    is_locked,
    locked,
    partial_path,
    remove_partial,
    take_lock,
)


def test_the_path_is_replaced_only_if_the_block_succeeds(tmp_path):
    path = tmp_path / 'folder' / 'a.txt'
    with atomic_path(path) as temporary:
        temporary.write_text('first')
        assert not path.exists()
        assert temporary.suffix == '.txt'
    assert path.read_text() == 'first'

    def interrupted():
        with atomic_path(path) as temporary:
            temporary.write_text('half')
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert path.read_text() == 'first'
    assert list(path.parent.iterdir()) == [path]


def test_a_durable_file_is_on_disk_before_its_name_is(tmp_path, monkeypatch):
    done = []

    def fsync(descriptor):
        done.append(os.readlink(f'/proc/self/fd/{descriptor}'))
        assert path.exists() == (done[-1] == str(tmp_path))

    monkeypatch.setattr(os, 'fsync', fsync)
    path = tmp_path / 'a.txt'
    with atomic_path(path, durable=True) as temporary:
        temporary.write_text('first')
    assert done == [str(temporary), str(tmp_path)]
    with atomic_path(path) as temporary:
        temporary.write_text('second')
    assert len(done) == 2


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / 'a.txt') as temporary:
            temporary.write_text('text')
    finally:
        os.umask(before)
    assert (tmp_path / 'a.txt').stat().st_mode & 0o777 == 0o640


def test_files_of_a_killed_process_are_removed(tmp_path):
    path = tmp_path / 'folder' / 'a.txt'
    with atomic_path(path) as temporary:
        temporary.write_text('text')
    with atomic_path(path) as temporary:
        temporary.write_text('half')
        remove_partial(tmp_path)
        assert temporary.exists()  # in another folder
        remove_partial(tmp_path, tmp_path / 'nowhere', path.parent)
        assert list(tmp_path.rglob('*.*')) == [path]
        temporary.write_text('again')


def test_folders_of_a_killed_process_are_removed(tmp_path):
    folder = partial_path(tmp_path / 'a.b')
    assert (folder.parent, folder.suffix) == (tmp_path, '.b')
    (folder / 'more').mkdir(parents=True)
    (folder / 'more' / 'a.txt').write_text('half')
    (tmp_path / 'kept').mkdir()
    partial_path(tmp_path / 'link').symlink_to('kept')
    remove_partial(tmp_path)
    assert os.listdir(tmp_path) == ['kept']


@pytest.mark.parametrize(
    'name',
    [
        '.holiday.mp4.partial',
        '.thesis.partial.tex',
        '.a.partial',
        '.partial',
        '.0123456789abcdef0123456789abcdef.partial.txt',
        '.sagan_jax-notes.partial.txt',
        '.sagan_jax-0123456789abcdef0123456789abcdef.txt',
        'sagan_jax-0123456789abcdef0123456789abcdef.partial.txt',
    ],
)
def test_files_of_others_stay(tmp_path, name):
    (tmp_path / name).write_text('mine')
    remove_partial(tmp_path)
    assert (tmp_path / name).read_text() == 'mine'


# ---- Locks. ------------------------------------------------------------------------------------


def test_a_lock_is_held_by_one(tmp_path):
    path = tmp_path / 'new' / '.lock'
    assert not is_locked(path)
    descriptor = take_lock(path)
    assert is_locked(path)
    assert take_lock(path) is None
    os.close(descriptor)
    assert not is_locked(path)
    os.close(take_lock(path))


def test_a_lock_ends_with_the_last_process_that_has_it(tmp_path):
    path = tmp_path / '.lock'
    descriptor = take_lock(path)
    child = subprocess.Popen(['sleep', '60'], pass_fds=[descriptor])
    os.close(descriptor)
    assert take_lock(path) is None
    child.kill()
    child.wait()
    os.close(take_lock(path))


def test_who_is_busy_is_told_and_waits(tmp_path):
    path, order = tmp_path / '.lock', []
    descriptor = take_lock(path)

    def tell():
        order.append('busy')
        threading.Timer(0.1, lambda: (order.append('free'), os.close(descriptor))).start()

    with locked(path, tell):
        order.append('mine')
        assert is_locked(path)
    assert order == ['busy', 'free', 'mine']
    with locked(path, lambda: order.append('busy')):
        assert len(order) == 3


def test_a_lock_can_be_refused_and_ends_with_an_error(tmp_path):
    path = tmp_path / '.lock'
    with locked(path), pytest.raises(ZeroDivisionError), locked(path, lambda: 1 / 0):
        pass
    with pytest.raises(KeyError), locked(path):
        raise KeyError
    assert not is_locked(path)

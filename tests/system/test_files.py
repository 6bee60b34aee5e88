"""A reader never sees half a file."""

import os

import pytest

from sagan_jax.system.files import atomic_path, remove_partial


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

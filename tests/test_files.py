"""A reader never meets half a file."""

import pytest

from sagan_jax.files import atomic_path


def test_takes_its_place_only_when_the_block_ends_well(tmp_path):
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

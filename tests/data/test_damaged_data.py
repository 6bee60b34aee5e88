"""Prepared data that are damaged: they are read, or refused in one sentence."""

import contextlib
import io

import pytest

from sagan_jax import data
from sagan_jax.errors import UserError
from tests import damage, tiny


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """A configuration, and a copy of its prepared data."""
    folder = tmp_path_factory.mktemp('data')
    config = tiny.folder_config(tiny.picture_folder(folder / 'source', count=4))
    data.load(config.dataset)
    (folder / 'prepared').rename(folder / 'whole')
    return config, folder


def check(prepared, every):
    config, folder = prepared
    problems = []
    for each in damage.some(folder / 'whole', every):
        if 'pipe' in each[0]:  # TFDS would wait for its writer
            continue
        damage.damaged_copy(folder / 'whole', folder / 'prepared', each)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                source = data.load(config.dataset)
                assert sum(len(images) for images, _ in data.one_pass(source, 4)) == 12
        except UserError as error:
            assert str(error).endswith('.')  # noqa: PT017
            assert len(str(error)) < 900  # noqa: PT017
        except Exception as error:
            problems.append((*each[:2], repr(error)[:300]))
    assert not problems, '\n'.join(map(str, problems))


def test_some_damages(prepared):
    check(prepared, every=30)


@pytest.mark.thorough
def test_all_damages(prepared):
    check(prepared, every=1)

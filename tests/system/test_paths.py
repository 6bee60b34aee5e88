"""Paths that are not of this machine are refused; every class has a folder of its own."""

import os
import unicodedata
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sagan_jax.errors import UserError
from sagan_jax.run import checkpoints
from sagan_jax.run.folder import RunFolder
from sagan_jax.system import buckets, paths
from tests import tiny

TEXT = st.text(st.characters(exclude_categories=()), max_size=300)  # surrogates too


# ---- Paths. ------------------------------------------------------------------------------------


@given(
    st.from_regex(r'[a-z][a-z0-9+.-]{0,8}', fullmatch=True),
    st.text(st.characters(exclude_characters='\0'), max_size=20),
    st.sampled_from([paths.check_path, paths.check_data_path]),
)
@example('gs', 'bucket/run', paths.check_path)
@example('S3', '', paths.check_path)
@example('file', '/tmp', paths.check_path)
def test_every_scheme_is_refused(scheme, rest, check):
    with pytest.raises(UserError, match=r'^--output=.* is not a path on this machine: .*\.$'):
        check(f'{scheme}://{rest.replace(chr(10), "")}', '--output')


@pytest.mark.parametrize('scheme', ['gs', 's3'])
def test_addresses_of_buckets(scheme, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    found = {}
    for path in ('a', 'a/b', 'a/b/c', 'a%2Fb', 'b/a', 'A', 'a b'):
        address = buckets.parse(f'{scheme}://bucket/{path}/', '--workdir')
        assert str(address) == f'{scheme}://bucket/{path}'
        found[address.folder] = path
    assert len(found) == 7
    assert not [one for one in found for other in found if one in other.parents]  # none in another
    assert buckets.parse('runs/a', '--workdir') is None


@pytest.mark.parametrize(
    'path',
    ['', '/', 'b', 'bucket', 'bucket//a', 'bucket/../a', 'bucket/a/./b', 'B_/a', 'bucket/a*'],
)
def test_addresses_that_name_no_place(path):
    with pytest.raises(
        UserError, match=r'^--workdir=.*: (give gs://BUCKET/PATH|choose another .*)\.$'
    ):
        buckets.parse(f'gs://{path}', '--workdir')


@pytest.mark.parametrize(
    'address', ['hf://a/b', 'az://a/b', 'http://a/b', 'file:///tmp', 'GS://a/b']
)
def test_other_schemes_are_refused(address):
    with pytest.raises(UserError, match=r'^--workdir=.* is not a path on this machine: copy'):
        buckets.parse(address, '--workdir')


@pytest.mark.parametrize(
    ('address', 'flag', 'how'),
    [
        ('gs://b/x', '--config.dataset.source_dir', r'`gcloud storage cp -r gs://b/x FOLDER`'),
        ('s3://b/x', '--config.dataset.data_dir', r'`aws s3 cp --recursive s3://b/x FOLDER`'),
        ('gs://b/x', '--init', r'`--mode figures --workdir gs://b/x`'),
    ],
)
def test_a_refusal_says_how_to_get_it(address, flag, how):
    with pytest.raises(UserError, match=how):
        paths.check_data_path(address, flag)


@given(st.text(st.characters(exclude_characters='*?[]\\:\0', exclude_categories=['Cs'])))
@example('runs/a:b')
@example('/')
@example('')
@example('../x')
@example('~/runs {a,b} 100% café #1')
def test_other_paths_are_accepted(path):
    paths.check_path(path, '--workdir')
    paths.check_data_path(path, '--workdir')


@pytest.mark.parametrize(
    'path', ['a[1]b', 'a/*', 'a?', 'a\\b/c', 'gs:', 'x/gs:/bucket', os.fsdecode(b'x\xff')]
)
def test_folders_that_cannot_be_read_back_are_refused(path):
    with pytest.raises(UserError, match=r'^--workdir=.*: (choose|rename) .*\.$') as refused:
        paths.check_data_path(path, '--workdir')
    assert '\n' not in str(refused.value).encode().decode()


def test_a_folder_above_counts(tmp_path, monkeypatch):
    (tmp_path / 'a[1]').mkdir()
    monkeypatch.chdir(tmp_path / 'a[1]')
    with pytest.raises(UserError, match=r"because of 'a\[1\]' in /.*/run: choose another folder"):
        paths.check_data_path('run', '--workdir')


NAMES = ['a b', 'é', 'e\u0301', '😀', '{a,b}', '%41', '#1', '$HOME', '~', 'a:b', 's3:', '\u202ex']
NAMES += [chr(code) for code in range(1, 127) if chr(code) not in '/*?[]\\.']
STATE = {'a': np.arange(3, dtype=np.float32)}
CONFIG = tiny.config()


@pytest.mark.parametrize('names', [NAMES[:12], NAMES[12::20]])
def test_checkpoints_are_read_back_from_folders_that_are_accepted(tmp_path, names):
    for name in names:
        workdir = tmp_path / name
        paths.check_data_path(str(workdir), '--workdir')
        manager = checkpoints.open_manager(RunFolder(workdir).checkpoints, keep=1)
        assert checkpoints.save(manager, 7, STATE, CONFIG)
        manager.wait_until_finished()
        restored = checkpoints.restore_newest(manager, STATE, CONFIG)
        manager.close()
        assert RunFolder(workdir).checkpoint_steps() == [7]
        jax.tree.map(np.testing.assert_array_equal, restored, STATE)


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('dataset.source_dir', 's3://images'),
        ('dataset.data_dir', 'hf://set'),
        ('dataset.data_dir', 'data[1]'),
        ('evaluation.inception_weights', 'https://example.org/w.tgz'),
    ],
)
def test_paths_of_a_configuration(key, value):
    with pytest.raises(UserError, match=f'--config.{key}='):
        paths.check_config(tiny.config(**{key: value}))
    paths.check_config(tiny.config(**{key: 'folder'}))


# ---- Folders of classes. -----------------------------------------------------------------------


def alike(name):
    """What a file system that ignores case and composition makes of a name."""
    return unicodedata.normalize('NFD', unicodedata.normalize('NFD', name).casefold())


@given(
    st.lists(st.one_of(TEXT, st.sampled_from(['a', 'A', 'a/b', 'a_b', '_', '', 'a~1'])), max_size=8)
)
@example(['..', '.', '', '/', '\\', 'a/b', 'a_b', 'a\0b', 'a\\b', '~1', '_~0', '_~1'])
@example(['cat', 'Cat', 'CAT', 'CAT~0', 'é', 'e\u0301', 'ß', 'ss', 'samples.json', 'Samples.JSON'])
@example(['x' * 300, 'x' * 301, 'é' * 150, '😀' * 80, '\ud800', '\udc80', 'a\n', '.lock'])
def test_every_class_has_a_folder_of_its_own(names):
    folders = paths.folder_names(names, reserved=['samples.json'])
    assert len({alike(name) for name in (*folders, 'samples.json')}) == len(names) + 1
    for name in folders:
        assert 1 <= len(os.fsencode(name)) <= 255
        assert Path('/a', name).resolve() == Path('/a') / name
        assert name == os.path.basename(name)
        assert not name.startswith('.')
        assert not any(
            unicodedata.category(character).startswith('C')
            and unicodedata.category(character) not in ('Cn', 'Co')
            for character in name
        )


def test_usual_names_stay():
    names = ['class0', 'red fox', 'café', '犬', "Steller's jay (1)", 'n01440764', 'a-b.c']
    assert paths.folder_names(names) == names
    assert paths.folder_names(['a/b', 'B', 'b', '..']) == ['a_b~0', 'B~1', 'b~2', '__~3']


@given(TEXT)
def test_folders_can_be_made(tmp_path_factory, name):
    (folder,) = paths.folder_names([name])
    parent = tmp_path_factory.getbasetemp() / 'folders'
    (parent / folder).mkdir(parents=True, exist_ok=True)
    assert folder in os.listdir(parent)

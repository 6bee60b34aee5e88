"""A data set is its content: copies are the same wherever they are, and any change is another."""

import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import ml_collections
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sagan_jax import data
from sagan_jax.data import class_folders, image_folder, stored
from sagan_jax.errors import UserError
from sagan_jax.run import provenance
from sagan_jax.run.folder import RunFolder
from tests import tiny

CLASSES = ('cat', 'dog', 'eel')
DAY = (10**18, 10**18)


def pictures(folder, per_class=2):
    """Uncompressed files, all of one size and, as if from an archive, of one time."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
            image.save(folder / name / f'{index}.bmp')
            os.utime(folder / name / f'{index}.bmp', ns=DAY)
    return folder


def load(folder, data_dir, classes=3):
    return data.load(
        ml_collections.ConfigDict(
            {
                'name': 'image_folder',
                'source_dir': str(folder),
                'data_dir': str(data_dir),
                'image_size': 8,
                'channels': 3,
                'num_classes': classes,
            }
        )
    )


def stream(source):
    """The first batches of a run, as bytes."""
    batches = data.batches(source, 7, 4, stop=3)
    return [(images.tobytes(), labels.tobytes()) for images, labels in batches]


@pytest.fixture
def began(tmp_path):
    """A run that began with `pictures`, and what it read there."""
    source = load(pictures(tmp_path / 'own'), tmp_path / 'prepared')
    run = RunFolder(tmp_path / 'run')
    run.write_record(provenance.record(tiny.config()) | {'data': data.identity(source)})
    return run, source


# ---- What does not matter. ---------------------------------------------------------------------


def copy(folder):
    copied = folder.with_name(f'{folder.name}+')
    shutil.copytree(folder, copied, copy_function=shutil.copyfile)
    return copied


def move(folder):
    return folder.rename(folder.with_name(f'{folder.name}_moved'))


def replace_by_a_copy(folder):
    copied = copy(folder)
    folder.rename(folder.with_name(f'{folder.name}_old'))
    return copied.rename(folder)


def link(folder):
    """Hard links in place of copies."""
    linked = folder.with_name(f'{folder.name}_links')
    shutil.copytree(folder, linked, copy_function=os.link)
    return linked


def point(folder):
    pointer = folder.with_name(f'{folder.name}_pointer')
    pointer.symlink_to(folder)
    return pointer


def touch(folder):
    for path in folder.rglob('*.bmp'):
        os.utime(path, (1, 1))
    return folder


def wrap(folder):
    (folder.parent / f'{folder.name}_outer').mkdir()
    folder.rename(folder.parent / f'{folder.name}_outer' / 'inner')
    return folder.parent / f'{folder.name}_outer'


def compress(folder):
    """The same pixels in another format. The names keep their order."""
    for path in list(folder.rglob('*.bmp')):
        Image.open(path).save(path.with_suffix('.png'))
        path.unlink()
    return folder


HARMLESS = [copy, move, replace_by_a_copy, link, point, touch, wrap, compress]


@settings(max_examples=8, deadline=None)
@given(changes=st.lists(st.sampled_from(HARMLESS), min_size=1, max_size=3, unique=True))
def test_the_place_and_the_time_of_files_do_not_matter(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp('data')
    before = load(pictures(folder / 'own'), folder / 'prepared')
    now = folder / 'own'
    for change in changes:
        now = change(now)
    for data_dir in (folder / 'prepared', folder / 'elsewhere'):
        found = load(now, data_dir)
        assert data.identity(found) == data.identity(before)
        assert found.name == before.name
        assert stream(found) == stream(before)


def test_each_harmless_change_is_accepted_by_the_run(began, tmp_path):
    run, _ = began
    now = tmp_path / 'own'
    for change in HARMLESS:
        now = change(now)
        provenance.check_data(run, data.identity(load(now, tmp_path / 'prepared')))


def test_without_class_folders_the_name_of_the_folder_does_not_matter(tmp_path):
    source = load(pictures(tmp_path / 'own') / 'cat', tmp_path / 'prepared', classes=1)
    run = RunFolder(tmp_path / 'run')
    run.write_record(provenance.record(tiny.config()) | {'data': data.identity(source)})
    (tmp_path / 'own' / 'cat').rename(tmp_path / 'tac')
    found = load(tmp_path / 'tac', tmp_path / 'prepared', classes=1)
    assert found.class_names == ('tac',)
    assert stream(found) == stream(source)
    provenance.check_data(run, data.identity(found))


# ---- What matters. -----------------------------------------------------------------------------


def change_a_byte(folder, name, other):
    path = folder / name / '0.bmp'
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=DAY)
    return 'the same number, with other contents'


def exchange(folder, name, other):
    """Two images of different classes: the same names, sizes and times as before."""
    one, two, aside = folder / name / '0.bmp', folder / other / '1.bmp', folder / 'aside'
    one.rename(aside), two.rename(one), aside.rename(two)
    return 'the same number, with other contents'


def exchange_within(folder, name, other):
    one, two, aside = folder / name / '0.bmp', folder / name / '1.bmp', folder / 'aside'
    one.rename(aside), two.rename(one), aside.rename(two)
    return 'the same images in another order, as if files were renamed'


def rename_a_class(folder, name, other):
    (folder / name).rename(folder / f'{name}s')
    return f'of the classes, {name} is missing, {name}s is new'


def exchange_classes(folder, name, other):
    (folder / name).rename(folder / 'aside')
    (folder / other).rename(folder / name)
    (folder / 'aside').rename(folder / other)
    return 'the same number, with other contents'


def add_an_image(folder, name, other):
    shutil.copyfile(folder / name / '0.bmp', folder / other / 'new.bmp')
    return '6 there, 7 here'


def remove_an_image(folder, name, other):
    (folder / name / '0.bmp').unlink()
    return '6 there, 5 here'


def move_an_image(folder, name, other):
    (folder / name / '0.bmp').rename(folder / other / '00.bmp')
    return 'the same number, with other contents'


HARMFUL = [
    change_a_byte, exchange, exchange_within, rename_a_class, exchange_classes, add_an_image,
    remove_an_image, move_an_image,
]  # fmt: skip


def assert_refused(run, source, folder, data_dir, expected):
    found = load(folder, data_dir)
    assert stream(found) != stream(source) or 'is missing' in expected
    with pytest.raises(UserError) as error:
        provenance.check_data(run, data.identity(found))
    assert str(error.value) == (
        f'The images of {found.name} are not those that the run in {run.path} began with '
        f'({expected}): restore them, or choose another --workdir.'
    )


@pytest.mark.parametrize('change', HARMFUL)
def test_a_change_in_place_is_refused(change, began, tmp_path):
    """Also of files whose paths, sizes and times are those of the prepared data."""
    run, source = began
    expected = change(tmp_path / 'own', 'dog', 'cat')
    assert_refused(run, source, tmp_path / 'own', tmp_path / 'prepared', expected)


@settings(max_examples=8, deadline=None)
@given(
    change=st.sampled_from(HARMFUL),
    classes=st.permutations(CLASSES),
    harmless=st.sampled_from(HARMLESS[:-1]),
)
def test_a_change_of_a_copy_is_refused(tmp_path_factory, change, classes, harmless):
    folder = tmp_path_factory.mktemp('data')
    source = load(pictures(folder / 'own'), folder / 'prepared')
    run = RunFolder(folder / 'run')
    run.write_record(provenance.record(tiny.config()) | {'data': data.identity(source)})
    now = harmless(folder / 'own')
    images = next(path for path in (now, now / 'inner') if (path / 'cat').exists())
    expected = change(images, *classes[:2])
    assert_refused(run, source, now, folder / 'prepared', expected)


# ---- Computed once. ----------------------------------------------------------------------------


def test_the_hash_is_of_each_label_and_image_in_order(tmp_path):
    source = load(pictures(tmp_path / 'own'), tmp_path / 'prepared')
    digests = [
        hash_of(f'{example["label"]} (8, 8, 3)\0'.encode() + example['image'].tobytes())
        for example in source.examples
    ]
    assert source.content == (
        hash_of(b''.join(digests)).hex(),
        hash_of(b''.join(sorted(digests))).hex(),
        hash_of(b''.join(digests)).hex(),
        [2, 2, 2],
        0,
    )


def test_equal_examples_of_one_class_are_copies(tmp_path):
    folder = pictures(tmp_path / 'own')
    for name in ('cat/2.bmp', 'cat/3.bmp', 'eel/2.bmp'):  # the last is of another class
        shutil.copy(folder / 'cat' / '0.bmp', folder / name)
    content = load(folder, tmp_path / 'prepared').content
    assert (content.label_counts, content.copies) == ([4, 2, 3], 2)


@pytest.mark.parametrize('mode', ['RGB', 'L', 'P'])
def test_a_png_is_its_pixels_and_a_jpeg_its_bytes(mode):
    """What a JPEG decodes to depends on the decoder."""
    values = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    image = Image.fromarray(values).convert(mode)
    for kind in ('PNG', 'JPEG'):
        buffer = io.BytesIO()
        image.convert('RGB' if (mode, kind) == ('P', 'JPEG') else mode).save(buffer, kind)
        found = stored._pixels(buffer.getvalue())
        if kind == 'PNG':
            np.testing.assert_array_equal(found, np.asarray(image.convert('RGB')))
        else:
            assert found == buffer.getvalue()


def hash_of(content):
    return hashlib.sha256(content).digest()


def test_it_is_computed_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    folder = pictures(tmp_path / 'own')
    expected = load(folder, tmp_path / 'prepared').content
    (shard,) = tmp_path.rglob('*.array_record*')
    (kept,) = tmp_path.rglob('content_train.json')
    with monkeypatch.context() as patch:
        patch.setattr(stored, '_compute', None)
        assert load(folder, tmp_path / 'prepared').content == expected
    damaged = kept.read_text().replace(expected.sha256, 64 * '0')
    kept.write_text(damaged)
    assert load(folder, tmp_path / 'prepared').content.sha256 == 64 * '0'  # is read
    os.utime(shard, (1, 1))
    assert load(folder, tmp_path / 'prepared').content == expected
    of_0_1 = json.loads(kept.read_text())
    del of_0_1['copies'], of_0_1['label_counts']
    for content in ('', '[]', '{}', '{"files": 1}', kept.read_text()[:-9], json.dumps(of_0_1)):
        kept.write_text(content)
        assert load(folder, tmp_path / 'prepared').content == expected
        assert json.loads(kept.read_text())['sha256'] == expected.sha256


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    folder = pictures(tmp_path / 'own')
    expected = load(folder, tmp_path / 'prepared').content
    (kept,) = tmp_path.rglob('content_train.json')
    shutil.rmtree(kept.parent)
    kept.parent.write_text('in the way')
    assert load(folder, tmp_path / 'prepared').content == expected
    assert f'warning        {kept} cannot be written' in capsys.readouterr().out


# ---- Version 0.1. ------------------------------------------------------------------------------


def test_data_that_version_0_1_prepared_are_used(tmp_path):
    folder = pictures(tmp_path / 'own')
    listing = class_folders.scan(folder)
    old = image_folder.builder(listing._replace(key=listing.key_0_1), 8, str(tmp_path / 'prepared'))
    old.download_and_prepare()
    source = load(folder, tmp_path / 'prepared')
    assert source.folder == Path(old.data_dir)
    assert data.identity(source) == data.identity(load(folder, tmp_path / 'elsewhere'))


@pytest.mark.parametrize('same', [True, False])
def test_a_run_of_version_0_1_goes_on_with_the_same_images(same, began, tmp_path):
    run, source = began
    record = data.identity(source)
    old = {key: record[key] for key in ('count', 'class_names', 'sha256_of_some')}
    old['name'] = 'image_folder/32px_0123456789abcdef/1.0.0'
    run.write_record(run.record() | {'data': old})
    if not same:
        change_a_byte(tmp_path / 'own', 'cat', 'dog')  # one of at most 64 images
    found = data.identity(load(copy(tmp_path / 'own'), tmp_path / 'prepared'))
    if same:
        return provenance.check_data(run, found)
    with pytest.raises(UserError, match='the same number, with other contents'):
        provenance.check_data(run, found)


def test_class_names_of_version_0_1_are_compared_in_any_unicode_form(began):
    run, source = began
    found = data.identity(source) | {'class_names': ['caf\u00e9', 'dog', 'eel']}
    old = found | {'class_names': ['cafe\u0301', 'dog', 'eel']}
    run.write_record(run.record() | {'data': old})
    provenance.check_data(run, found)
    with pytest.raises(UserError, match='of the classes, caf\u00e9 is missing, cafe is new'):
        provenance.check_data(run, found | {'class_names': ['cafe', 'dog', 'eel']})

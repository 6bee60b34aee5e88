import hashlib
import itertools
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagan_jax.data.class_folders import scan
from sagan_jax.errors import UserError
from sagan_jax.image_scan import describe


def make(folder, *names):
    """Empty files: a scan does not open images."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def used(folder):
    """The relative names and class names of the images of each split."""
    listing = scan(folder)
    return {
        split: sorted(
            (os.path.relpath(path, folder), listing.class_names[label]) for path, label in images
        )
        for split, images in listing.splits.items()
    }


def passed_over(folder):
    return describe(scan(folder).passed_over, folder)


# ---- Layouts. ------------------------------------------------------------------------------------


@pytest.mark.parametrize('wrappers', ['', 'archive', 'archive/Dataset'])
@pytest.mark.parametrize(
    ('train', 'test'),
    [
        *itertools.product(['train', 'Train', 'TRAINING'], ['test', 'Testing', 'VAL', 'valid']),
        ('Train', 'Validation'),
    ],
)
def test_the_usual_names_of_splits(tmp_path, wrappers, train, test):
    root = tmp_path / wrappers
    make(root, f'{train}/cat/1.png', f'{train}/dog/2.png', f'{test}/dog/3.png')
    make(tmp_path, '__MACOSX/x/._1.png', '.DS_Store')
    prefix = f'{wrappers}/' if wrappers else ''
    assert used(tmp_path) == {
        'train': [(f'{prefix}{train}/cat/1.png', 'cat'), (f'{prefix}{train}/dog/2.png', 'dog')],
        'test': [(f'{prefix}{test}/dog/3.png', 'dog')],
    }
    assert passed_over(tmp_path) == []


def test_train_valid_and_test(tmp_path):
    make(tmp_path, 'train/cat/1.png', 'valid/cat/2.png', 'valid/cat/3.png', 'test/cat/4.png')
    assert used(tmp_path) == {
        'train': [('train/cat/1.png', 'cat')],
        'test': [('test/cat/4.png', 'cat')],
    }
    assert passed_over(tmp_path) == ['1 not used, splits that are not read: valid (2 images)']


@pytest.mark.parametrize('wrapper', ['data/', 'a/b/c/', 'train/'])
def test_wrapper_folders_are_looked_through(tmp_path, wrapper):
    make(tmp_path, f'{wrapper}cat/1.png', f'{wrapper}dog/2.png', 'README.txt')
    assert used(tmp_path)['train'] == [
        (f'{wrapper}cat/1.png', 'cat'),
        (f'{wrapper}dog/2.png', 'dog'),
    ]
    assert passed_over(tmp_path) == ['1 not used, files that are not images: README.txt']


def test_a_wrapper_in_each_class_folder(tmp_path):
    make(tmp_path, 'train/n01/images/1.jpg', 'train/n01/boxes.txt', 'train/n02/n02/2.jpg')
    assert used(tmp_path)['train'] == [
        ('train/n01/images/1.jpg', 'n01'),
        ('train/n02/n02/2.jpg', 'n02'),
    ]
    assert passed_over(tmp_path) == ['1 not used, files that are not images: train/n01/boxes.txt']


def test_one_class_folder_is_no_wrapper(tmp_path):
    make(tmp_path, 'cat/1.png')
    assert used(tmp_path) == {'train': [('cat/1.png', 'cat')]}
    assert not scan(tmp_path).flat


def test_a_link_to_the_folder_itself_ends(tmp_path):
    (tmp_path / 'again').symlink_to(tmp_path)
    with pytest.raises(UserError, match='has no images, only again: one folder of images'):
        scan(tmp_path)


def test_a_class_called_train_or_test(tmp_path):
    make(tmp_path, 'Train/1.png', 'test/2.png', 'plane/3.png')
    assert scan(tmp_path).class_names == ('Train', 'plane', 'test')


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (
            ['train/cat/1.png', 'test/cat/1.png', 'labels/cat/1.txt'],
            'has the training images in train, and beside it labels: one folder of images per '
            'class is expected, as FOLDER/cat/1.jpg, or as FOLDER/train/cat/1.jpg and FOLDER/test',
        ),
        (['train/cat/1.png', 'Train/cat/1.png'], 'the training images in .*, and beside it'),
        (
            ['2019/cat/1.png', '2020/cat/2.png'],
            '2019 has no images, only cat: one folder of images per class is expected',
        ),
        (['cat/1.png', 'dog/1.xml', 'dog/2.heic'], 'dog has no images, only 1.xml, 2.heic: one'),
        (['valid/cat/1.png', 'test/cat/1.png'], 'test has no images, only cat: one folder'),
        (
            ['a/1.png', *(f'b/{number:02}.xml' for number in range(13))],
            'b has no images, only 00.xml, .*, 09.xml and 3 more: one folder',
        ),
        (['train/cat/1.png', 'test/dog/1.png'], 'images of dog in .*/test but none in .*/train'),
    ],
)
def test_other_layouts_are_refused_with_what_was_found_and_what_is_expected(
    tmp_path, names, message
):
    make(tmp_path, *names)
    with pytest.raises(UserError, match=message) as error:
        scan(tmp_path)
    assert str(tmp_path) in str(error.value)


# ---- Nothing is passed over without a word. ------------------------------------------------------


def test_everything_that_is_not_used_is_named(tmp_path):
    make(tmp_path, 'cat/1.png', 'cat/2.jfif', 'cat/3.jpe', 'cat/4.pgm', 'cat/5.tga', 'dog/6.png')
    make(tmp_path, 'beside.png', 'cat/deep/7.png', 'cat/deep/deeper/8.png', 'dog/9.heic')
    (tmp_path / 'dog' / 'gone.png').symlink_to(tmp_path / 'nowhere')
    assert len(used(tmp_path)['train']) == 6
    assert sorted(passed_over(tmp_path)) == [
        '1 not used, broken links: dog/gone.png (No such file or directory)',
        '1 not used, files that are not images: dog/9.heic',
        '1 not used, images beside class folders: beside.png',
        '1 not used, nested folders: cat/deep (2 images)',
    ]


def test_what_lies_beside_the_splits_is_named(tmp_path):
    make(tmp_path, 'train/cat/1.png', 'test/cat/2.png', 'labels.csv', 'cover.jpg', 'train/x.txt')
    assert sorted(passed_over(tmp_path)) == [
        '1 not used, images beside the splits: cover.jpg',
        '2 not used, files that are not images: labels.csv, train/x.txt',
    ]


part = st.sampled_from(['cat', 'dog', 'train', 'Test', 'val', 'data'])
files = st.sampled_from(['1.png', '2.jfif', '3.txt', '4', '.hidden', 'Thumbs.db'])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.lists(part, max_size=3), files), min_size=1, max_size=8))
def test_in_any_layout_every_file_is_used_or_named_or_the_layout_is_refused(
    tmp_path_factory, drawn
):
    folder = tmp_path_factory.mktemp('layout')
    make(folder, *('/'.join([*parts, name]) for parts, name in drawn))
    try:
        listing = scan(folder)
    except UserError:
        return
    images = [path for split in listing.splits.values() for path, _ in split]
    assert len(images) == len(set(images))
    named = [entry.path for entry in listing.passed_over]
    for path in folder.rglob('*'):
        if path.is_dir() or path.name in ('.hidden', 'Thumbs.db'):
            continue
        # Itself, or a folder that is passed over as a whole.
        mentions = [str(path) in images, *(path == n or n in path.parents for n in named)]
        assert sum(mentions) == 1, path


# ---- Names of classes. ---------------------------------------------------------------------------


def forms(name):
    return unicodedata.normalize('NFC', name), unicodedata.normalize('NFD', name)


@pytest.mark.parametrize('name', ['café', 'Ångström', '가', 'ệ'])
def test_unicode_forms_of_a_name_are_one_class(tmp_path, name):
    composed, decomposed = forms(name)
    assert composed != decomposed
    make(tmp_path, f'train/{decomposed}/1.png', 'train/z/2.png', f'test/{composed}/3.png')
    assert used(tmp_path) == {
        'train': sorted([(f'train/{decomposed}/1.png', composed), ('train/z/2.png', 'z')]),
        'test': [(f'test/{composed}/3.png', composed)],
    }
    make(tmp_path, f'train/{composed}/4.png')  # both forms in one folder
    assert [label for _, label in used(tmp_path)['train']].count(composed) == 2
    assert len(scan(tmp_path).class_names) == 2


@pytest.mark.parametrize('name', ['pics/cat', 'pi\udcffcs/cat', 'pics/c\udce4t', 'train/c\udce4t'])
def test_a_folder_whose_name_is_not_utf8_is_refused(tmp_path, name):
    make(tmp_path, f'{name}/\udcff.png', 'test/cat/1.png' if 'train' in name else 'pics/x/1.png')
    folder = tmp_path if 'train' in name else tmp_path / name.split('/')[0]
    if name == 'pics/cat':
        assert len(scan(folder).splits['train']) == 2
        return
    with pytest.raises(UserError, match=r'The name of the folder .*\\udc.* is not UTF-8') as error:
        scan(folder)
    str(error.value).encode()


@pytest.mark.parametrize(
    'name',
    ['-x', 'a,b', '12', '%s', '{0}', '*?[1]', '\u202e', 'a b', '\x1b[1m', "'", '\\', '\U0001f600'],
)
def test_any_other_name_is_a_class(tmp_path, name):
    make(tmp_path, f'{name}/1.png', 'z/2.png')
    assert sorted(used(tmp_path)['train']) == sorted([(f'{name}/1.png', name), ('z/2.png', 'z')])


@pytest.mark.parametrize('name', ['a\nb', 'a ', ' a', 'a\u2028b', '\x85a', 'a\t', '\u3000a'])
def test_a_class_that_tfds_would_rename_is_refused(tmp_path, name):
    make(tmp_path, f'pics/{name}/1.png', 'pics/z/2.png', f'{name}/1.png')
    for folder in (tmp_path / 'pics', tmp_path / name):
        with pytest.raises(UserError, match=r'cannot give its name .* to a class.*: rename it\.$'):
            scan(folder)


def test_data_that_version_0_1_prepared_are_found(tmp_path):
    """Under the hash of path, size and time of each image in order."""
    names = ['train/cat/1.png', 'train/cat/2.jpg', 'train/dog/1.png', 'test/cat/9.png']
    make(tmp_path, *names, 'train/cat/notes.txt', 'train/cat/.hidden.png')
    digest = hashlib.sha256()
    for name in names:
        path = Path(tmp_path, name)
        path.write_bytes(name.encode())
        os.utime(path, ns=(5, 10**18 + len(name)))
        digest.update(f'{path}\0{len(name)}\0{10**18 + len(name)}\0'.encode())
    assert scan(tmp_path).key_0_1 == digest.hexdigest()[:16]


def test_the_key_of_0_1_depends_on_the_names_of_classes(tmp_path):
    """Names are stored with prepared data, so that folders with old names are prepared again."""
    decomposed = forms('é')[1]
    make(tmp_path, f'{decomposed}/1.png', 'x/2.png')
    time = os.stat(tmp_path / 'x' / '2.png').st_mtime_ns
    os.utime(tmp_path / decomposed / '1.png', ns=(time, time))
    paths = [tmp_path / 'x' / '2.png', tmp_path / decomposed / '1.png']
    plain = hashlib.sha256()
    for path in paths:
        plain.update(f'{path}\0000\0{time}\0'.encode())
    assert scan(tmp_path).key_0_1 != plain.hexdigest()[:16]

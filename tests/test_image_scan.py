import os
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sagan_jax import image_scan
from sagan_jax.data import class_folders
from sagan_jax.errors import UserError
from sagan_jax.image_scan import PassedOver, contents, describe, images_below
from sagan_jax.images import SUFFIXES

IGNORED = [
    '.DS_Store', '._x.png', '.hidden', '__MACOSX', 'Thumbs.db', 'THUMBS.DB', 'desktop.ini',
    'Icon\r', '@eaDir', '$RECYCLE.BIN',
]  # fmt: skip


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(folder):
    """The relative names of images and of what is passed over, with its kind."""
    images, others = images_below(folder)
    return (
        sorted(str(path.relative_to(folder)) for path in images),
        sorted((str(other.path.relative_to(folder)), other.kind) for other in others),
    )


@pytest.mark.parametrize('folder', [False, True])
@pytest.mark.parametrize('name', IGNORED)
def test_what_archives_and_systems_add_is_ignored(tmp_path, name, folder):
    touch(tmp_path / 'a.png', tmp_path / name / 'b.png' if folder else tmp_path / name)
    assert found(tmp_path) == (['a.png'], [])
    assert contents(tmp_path).folders == ()


def test_links_are_followed_and_each_folder_is_read_once(tmp_path):
    pics, elsewhere = tmp_path / 'pics', tmp_path / 'elsewhere'
    touch(pics / 'cat' / '1.png', elsewhere / '2.png', elsewhere / 'deep' / '3.png')
    (pics / 'dog').symlink_to(elsewhere)
    (pics / 'cat' / '4.png').symlink_to(elsewhere / '2.png')
    (pics / 'cat' / 'up').symlink_to(pics)
    (elsewhere / 'around').symlink_to(elsewhere / 'deep')
    (pics / 'a_second').symlink_to(pics / 'cat')
    again = 'links to folders that are read already'
    images, others = found(pics)
    assert images == ['cat/1.png', 'cat/4.png', 'dog/2.png', 'dog/deep/3.png']
    assert others == [('a_second', again), ('cat/up', again), ('dog/around', again)]


def test_many_links_to_each_other_end(tmp_path):
    folders = [tmp_path / str(number) for number in range(20)]
    for folder in folders:
        touch(folder / 'x.png')
    for folder in folders:
        for other in folders:
            (folder / f'to_{other.name}').symlink_to(other)
    images, others = images_below(tmp_path)
    assert (len(images), len(others)) == (20, 400)


def test_what_is_no_image_is_named_by_kind(tmp_path):
    touch(tmp_path / 'a.png', tmp_path / 'notes.txt', tmp_path / 'no_suffix', tmp_path / 'x.eps')
    (tmp_path / 'b.png').symlink_to(tmp_path / 'gone.png')
    (tmp_path / 'c.png').symlink_to(tmp_path / 'c.png')
    os.mkfifo(tmp_path / 'd.png')
    (tmp_path / 'e.png').mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / 'f.png'))
        images, others = found(tmp_path)
    assert images == ['a.png']
    assert others == [
        ('b.png', 'broken links'),
        ('c.png', 'broken links'),
        ('d.png', 'special files'),
        ('f.png', 'special files'),
        ('no_suffix', 'files that are not images'),
        ('notes.txt', 'files that are not images'),
        ('x.eps', 'files that are not images'),
    ]


def test_up_to_ten_are_named_and_all_counted(tmp_path):
    passed_over = [PassedOver('files', tmp_path / f'{number:02}') for number in range(12)]
    passed_over.insert(3, PassedOver('nested folders', Path('/x/sub'), '3 images'))
    assert describe(passed_over, tmp_path) == [
        f'12 not used, files: {", ".join(f"{number:02}" for number in range(10))}, …',
        '1 not used, nested folders: /x/sub (3 images)',
    ]
    assert describe([], tmp_path) == []


names = st.text(st.characters(blacklist_characters='/\0', codec='utf-8'), min_size=1, max_size=12)
entries = st.sampled_from([*sorted(SUFFIXES), '.txt', '', '.PNG', '.eps'])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(names, entries, st.booleans()), max_size=8))
def test_every_name_is_used_or_named_or_one_that_is_ignored(tmp_path_factory, drawn):
    """Whatever entries are called: nothing is missing, nothing is counted twice."""
    folder = tmp_path_factory.mktemp('names')
    made = {}
    for name, suffix, deep in drawn:
        path = folder / ('sub' if deep else '.') / (name + suffix)
        if len(os.fsencode(path.name)) < 200 and path.name not in ('.', '..', 'sub'):
            touch(path)
            made[str(path)] = path
    images, others = images_below(folder)
    ignored = [
        path
        for path in made.values()
        if path.name.startswith('.') or path.name.lower() in {name.lower() for name in IGNORED}
    ]
    assert sorted([*images, *(other.path for other in others), *ignored]) == sorted(made.values())
    for line in describe(others, folder):
        assert line.isprintable()


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    def fail(_):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(image_scan.os, 'scandir', fail)
    with pytest.raises(UserError, match=f'Cannot read the folder {tmp_path} .Permission denied'):
        images_below(tmp_path)


def test_training_and_scores_use_the_same_images(tmp_path):
    """One folder of everything: both scans find the same images."""
    pics, elsewhere = tmp_path / 'pics', tmp_path / 'elsewhere'
    suffixes = ['.jfif', '.jpe', '.pgm', '.tga', '.PNG', '.gif']
    for suffix in suffixes:
        touch(pics / 'cat' / f'a{suffix}', elsewhere / f'b{suffix}')
    (pics / 'dog').symlink_to(elsewhere)
    (pics / 'cat' / 'link.png').symlink_to(elsewhere / 'b.gif')
    (pics / 'cat' / 'broken.png').symlink_to(tmp_path / 'nowhere')
    touch(pics / 'cat' / '._x.png', pics / '__MACOSX' / 'cat' / 'x.png', pics / 'notes.txt')
    trained = class_folders.scan(pics).splits['train']
    assert sorted(path for path, _ in trained) == sorted(map(str, images_below(pics)[0]))
    assert len(trained) == 2 * len(suffixes) + 1


def test_every_suffix_of_the_readable_formats_and_no_other():
    assert {'.jpg', '.jpeg', '.jfif', '.jpe', '.png', '.webp', '.bmp', '.gif'} <= SUFFIXES
    assert {'.tif', '.tiff', '.ppm', '.pgm', '.pnm', '.tga'} <= SUFFIXES
    assert not {'.eps', '.ps', '.pdf', '.svg', '.wmf', '.emf'} & SUFFIXES
    assert Image.registered_extensions().keys() >= SUFFIXES

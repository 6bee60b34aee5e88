"""An archive of images is the folder that it would be unpacked to."""

import contextlib
import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sagan_jax import data
from sagan_jax.data import archives
from sagan_jax.data.class_folders import scan
from sagan_jax.errors import UserError
from sagan_jax.image_scan import describe

KINDS = ('zip', 'tar', 'tar.gz', 'tar.xz')


def pack(folder, kind, name='packed'):
    """The archive of a folder, beside it, by the commands that people use."""
    path = folder.parent / f'{name}.{kind}'
    if kind == 'zip':
        shutil.make_archive(str(path.with_suffix('')), 'zip', folder)
    else:
        with tarfile.open(path, 'w:' + kind.removeprefix('tar').removeprefix('.')) as tar:
            tar.add(folder, '.')
    return path


def zipped(path, files):
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path, files):
    """Names as they are, also those that `tarfile` would change."""
    with tarfile.open(path, 'w') as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def png(seed, size=32):
    buffer = io.BytesIO()
    image = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(image).save(buffer, 'PNG')
    return buffer.getvalue()


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def listed(path):
    """What a scan finds, with paths relative to the folder or archive; or why it refuses."""
    try:
        listing = scan(path)
    except UserError as error:
        return str(error).replace(str(path), 'HERE')
    splits = {
        split: [(os.path.relpath(name, path), label) for name, label in images]
        for split, images in listing.splits.items()
    }
    lines = describe(sorted(listing.passed_over), listing.folder)
    return listing.class_names if not listing.flat else None, splits, lines


part = st.sampled_from(['cat', 'dog', 'Train', 'test', 'val', 'images', '.hidden', '__MACOSX'])
file = st.sampled_from(['1.png', '2.JPG', 'é.png', '3.txt', '4', '.png', 'Thumbs.db'])


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    files=st.lists(st.tuples(st.lists(part, max_size=3), file), min_size=1, max_size=8),
    folders=st.lists(part, max_size=2),
)
def test_any_layout_is_listed_as_that_of_the_folder(tmp_path_factory, kind, files, folders):
    folder = tmp_path_factory.mktemp('layout') / 'own'
    write(folder, {'/'.join([*parts, name]): b'' for parts, name in files})
    for name in folders:
        (folder / name).mkdir(exist_ok=True)
    assert listed(pack(folder, kind)) == listed(folder)


def identity(dataset, path, split='train'):
    dataset.update(name='image_folder', source_dir=str(path), num_classes=None)
    source = data.load(dataset, split)
    images, labels = data.all_examples(source)
    return data.identity(source), images.tobytes(), labels.tolist(), source.aspects


@pytest.mark.parametrize('kind', KINDS)
def test_images_labels_order_and_identity_are_those_of_the_folder(dataset, tmp_path, kind):
    files = {f'train/{name}/{n}.png': png(n, 20 + n) for name in 'ab' for n in range(20)}
    files |= {f'val/{name}/{n}.png': png(n) for name in 'ba' for n in range(3)}
    folder = write(tmp_path / 'own', files)
    path = pack(folder, kind)
    compressed = kind in ('tar.gz', 'tar.xz')
    for split in ('test', 'train'):
        expected, found = (identity(dataset, each, split) for each in (folder, path))
        assert found[:3] == expected[:3]
        assert found[3] == (() if compressed else expected[3])
    shutil.rmtree(folder)
    assert identity(dataset, path)[:3] == expected[:3]
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, 'prepared']
    assert not [p for p in Path(dataset.data_dir).rglob('*') if 'tmp' in p.name]


def test_an_archive_that_changes_is_prepared_again(dataset, tmp_path):
    path = zipped(tmp_path / 'own.zip', {f'{n}.png': png(n) for n in range(3)})
    before = identity(dataset, path)
    assert identity(dataset, path) == before
    zipped(path, {f'{n}.png': png(n) for n in (0, 1, 3)})
    assert identity(dataset, path)[1] != before[1]


# ---- Tiny ImageNet. ------------------------------------------------------------------------------


def tiny_imagenet(per_class=3):
    """Its files, by name: two classes, and test images without classes."""
    root, classes, files = 'tiny-imagenet-200', ('n01443537', 'n01629819'), {}
    for label, name in enumerate(classes):
        files[f'{root}/train/{name}/{name}_boxes.txt'] = b'boxes'
        for n in range(per_class):
            files[f'{root}/train/{name}/images/{name}_{n}.JPEG'] = png(10 * label + n, 64)
    lines = []
    for n in range(4):
        files[f'{root}/val/images/val_{n}.JPEG'] = png(100 + n, 64)
        files[f'{root}/test/images/test_{n}.JPEG'] = png(200 + n, 64)
        lines.append(f'val_{n}.JPEG\t{classes[(n + 1) % 2]}\t0\t32\t44\t62')
    files[f'{root}/val/val_annotations.txt'] = '\n'.join([*lines, '']).encode()
    files[f'{root}/words.txt'] = files[f'{root}/wnids.txt'] = b'words'
    return files


@pytest.mark.parametrize('kind', ['folder', *KINDS])
def test_tiny_imagenet(tmp_path, kind):
    folder = write(tmp_path / 'own', tiny_imagenet())
    path = folder if kind == 'folder' else pack(folder, kind)
    listing = scan(path)
    root = path / 'tiny-imagenet-200'
    assert listing.class_names == ('n01443537', 'n01629819')
    assert [label for _, label in listing.splits['train']] == [0, 0, 0, 1, 1, 1]
    assert listing.splits['test'] == [
        (str(root / 'val' / 'images' / f'val_{n}.JPEG'), (n + 1) % 2) for n in (1, 3, 0, 2)
    ]
    assert sorted(describe(listing.passed_over, root)) == [
        '1 not used, splits that are not read: test (4 images)',
        '4 not used, files that are not images: '
        'train/n01443537/n01443537_boxes.txt, train/n01629819/n01629819_boxes.txt, wnids.txt, '
        'words.txt',
    ]


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        ('val_0.JPEG\tn01443537', r'val_1.JPEG has no class in .*annotations.txt: restore'),
        ('val_0.JPEG n01443537', r'has no image and class, with a tab between them'),
        ('val_0.JPEG\t\udcff', r'has no image and class, with a tab between them'),
    ],
)
def test_annotations_that_are_damaged_are_refused(tmp_path, lines, message):
    files = tiny_imagenet()
    files['tiny-imagenet-200/val/val_annotations.txt'] = lines.encode(errors='surrogateescape')
    with pytest.raises(UserError, match=message):
        scan(zipped(tmp_path / 'own.zip', files))


# ---- What an archive may hold besides. -----------------------------------------------------------


def test_of_files_with_one_name_the_last_counts(dataset, tmp_path):
    path = tmp_path / 'own.tar'
    with tarfile.open(path, 'w') as tar:
        tar.addfile(tarfile.TarInfo('b.png'))
        link = tarfile.TarInfo('b.png')
        link.type, link.linkname = tarfile.SYMTYPE, 'a.png'
        tar.addfile(link)
        for content in (b'no image', png(1)):
            info = tarfile.TarInfo('a.png')
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert identity(dataset, path)[1] == np.asarray(Image.open(io.BytesIO(png(1)))).tobytes()


def test_links_in_a_tar(tmp_path):
    """A hard link is a file, as when it is unpacked; other links are named."""
    folder = write(tmp_path / 'own', {'cat/1.png': b'', 'dog/2.png': b''})
    os.link(folder / 'cat' / '1.png', folder / 'dog' / '1.png')
    (folder / 'cat' / '3.png').symlink_to('1.png')
    os.mkfifo(folder / 'cat' / '4.png')
    listing = scan(pack(folder, 'tar'))
    assert [Path(name).name for name, _ in listing.splits['train']] == ['1.png', '1.png', '2.png']
    assert sorted(describe(listing.passed_over, listing.folder)) == [
        '1 not used, links in an archive: cat/3.png',
        '1 not used, special files: cat/4.png',
    ]
    first, second = (listing.archive.places[name] for name, _ in listing.splits['train'][:2])
    assert first == second


def test_a_zip_with_paths_of_windows(tmp_path):
    path = zipped(tmp_path / 'own.zip', {'cat\\1.png': b'', 'dog\\2.png': b''})
    assert scan(path).class_names == ('cat', 'dog')


# ---- What is refused. ----------------------------------------------------------------------------


def flagged(path, offset, value):
    """Sets bytes of each entry in the central directory and in front of each file."""
    content = bytearray(path.read_bytes())
    for signature, shift in ((b'PK\1\2', 8), (b'PK\3\4', 6)):
        at = content.find(signature)
        while at >= 0:
            content[at + shift + offset : at + shift + offset + 2] = value.to_bytes(2, 'little')
            at = content.find(signature, at + 4)
    path.write_bytes(content)
    return path


def bomb(path):
    """A kilobyte that expands to more than an image."""
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a.png', bytes(100_000))
    return path


IMAGES = {f'{name}/{n}.png': png(n) for name in 'ab' for n in range(3)}
OUTSIDE = r'has a file outside of itself, .*: pack the images again'
UNKNOWN = r'cannot be read \(neither a zip nor a tar\): replace it by a complete zip or tar, or'


@pytest.mark.parametrize('packed', [zipped, tarred])
@pytest.mark.parametrize('name', ['../a.png', '/etc/a.png', 'a/../../b.png', 'a/..', '..'])
def test_a_path_that_leads_out_is_refused(tmp_path, packed, name):
    with pytest.raises(UserError, match=OUTSIDE):
        scan(packed(tmp_path / 'own', IMAGES | {name: b''}))


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda path: flagged(zipped(path, IMAGES), 0, 1), 'is encrypted: unpack it with its pass'),
        (lambda path: flagged(zipped(path, IMAGES), 2, 9), 'method 9 of zip, which cannot be read'),
        (lambda path: zipped(path, {'a': b'', 'a/1.png': b''}), 'both a file and a folder for a/1'),
        (lambda path: tarred(path, {'a/1.png': b'', 'a': b''}), 'both a file and a folder for a:'),
        (lambda path: path.write_bytes(png(0)), UNKNOWN),
        (lambda path: path.write_bytes(b''), r'cannot be read \('),
        (lambda path: os.mkfifo(path), r'cannot be read \(not a file\)'),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(tmp_path, make, message):
    make(tmp_path / 'own')
    with pytest.raises(UserError, match=message) as error:
        scan(tmp_path / 'own')
    assert str(tmp_path / 'own') in str(error.value)
    assert '\n' not in str(error.value)


def test_an_archive_that_expands_to_more_than_images_do_is_refused(tmp_path, monkeypatch):
    path = bomb(tmp_path / 'own.zip')
    assert scan(path).class_names == ('own.zip',)
    with monkeypatch.context() as patch:
        patch.setattr(archives, 'LARGEST_FILE', 99_999)
        with pytest.raises(UserError, match=r'expands to far more than .*, at a.png: unpack it if'):
            scan(path)
    monkeypatch.setattr(archives, 'ALWAYS_ALLOWED', 99_999)
    with pytest.raises(UserError, match='expands to far more than images do'):
        scan(path)
    monkeypatch.setattr(archives, 'EXPANSION', 99_999)
    scan(path)


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(['zip', *KINDS]),
    share=st.floats(0, 1, exclude_max=True),
)
def test_an_archive_that_was_cut_is_refused(tmp_path_factory, kind, share):
    folder = write(tmp_path_factory.mktemp('cut') / 'own', IMAGES)
    path = pack(folder, kind)
    content = path.read_bytes()
    if kind == 'tar':
        with tarfile.open(path) as tar:
            tar.getmembers()
            content = content[: tar.offset + 512]  # what follows the end mark is padding
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r'^The archive .* cannot be read \(.*\): replace it by'):
        scan(path)


def test_a_tar_that_was_cut_between_two_files_is_refused(tmp_path):
    """Where `tarfile` sees no damage."""
    path = pack(write(tmp_path / 'own', IMAGES), 'tar')
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        ends = [*[member.offset for member in tar][1:], tar.offset]
    for end in ends:
        for rest in (b'', bytes(100), b'!' * 512):
            path.write_bytes(content[:end] + rest)
            with pytest.raises(UserError, match=r'cannot be read \(it is damaged or incomplete\)'):
                scan(path)


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32 - 1))
def test_any_damage_ends_in_a_sentence_or_changes_nothing_else(tmp_path_factory, kind, seed):
    folder = write(tmp_path_factory.mktemp('damaged') / 'own', IMAGES)
    path = pack(folder, kind)
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    for at in rng.integers(0, len(content), rng.integers(1, 9)):
        content[at] = rng.integers(0, 256)
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        scan(path)


def test_images_that_are_damaged_in_a_zip_are_named(dataset, tmp_path):
    path = zipped(tmp_path / 'own.zip', IMAGES | {'a/bad.png': b'not an image', 'a/none.png': b''})
    content = path.read_bytes()
    path.write_bytes(content.replace(png(2)[-40:-20], bytes(20), 1))
    with pytest.raises(UserError) as error:
        identity(dataset, path)
    assert str(error.value).startswith('Cannot read 3 images, ')
    for name, why in (('2.png', 'Bad CRC-32'), ('bad.png', 'damaged'), ('none.png', 'is empty')):
        assert f'{path}/a/{name} ({"the file " * (name == "none.png")}' in str(error.value)
        assert why in str(error.value)

"""ImageNet's two tars are the class folders that they are unpacked to."""

import io
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from sagan_jax import data
from sagan_jax.data import from_tfds, imagenet2012
from sagan_jax.errors import UserError
from tests.data.test_archives import pack, png, tarred, write

CLASSES = ('n01440764', 'n01443537', 'n01484850')
LABELS = (2, 0, 2, 1, 0)  # of the validation images, by number


@pytest.fixture(autouse=True)
def three_classes(tmp_path, monkeypatch):
    """What TFDS would ship if ImageNet were small."""
    labels = ''.join(f'{CLASSES[label]}\n' for label in LABELS)
    files = {'labels.txt': '\n'.join(CLASSES).encode(), 'validation_labels.txt': labels.encode()}
    monkeypatch.setattr(imagenet2012, 'LABELS', write(tmp_path / 'labels', files))


def inner(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def training():
    """The inner tars by name, in another order than that of the names."""
    return {
        f'{name}.tar': inner({f'{name}_{n}.JPEG': png(10 * label + n) for n in (10, 9, 100)})
        for label, name in reversed(list(enumerate(CLASSES)))
    }


def validation():
    return {f'ILSVRC2012_val_{n + 1:08}.JPEG': png(100 + n) for n in (3, 1, 4, 0, 2)}


@pytest.fixture
def tars(dataset, tmp_path):
    """The configuration's `dataset` with a folder of both tars."""
    folder = tmp_path / 'tars'
    folder.mkdir()
    tarred(folder / imagenet2012.TRAIN, training())
    tarred(folder / imagenet2012.VALIDATION, validation())
    dataset.update(name='imagenet2012', source_dir=str(folder), num_classes=3)
    return dataset


def read(dataset, split):
    source = data.load(dataset, split)
    images, labels = data.all_examples(source)
    record = data.identity(source)
    name = record.pop('name')
    return name, record, images.tobytes(), labels.tolist()


def test_images_labels_and_order_are_those_of_the_class_folders(tars, tmp_path):
    files = {
        f'train/{name}/{name}_{n}.JPEG': png(10 * label + n)
        for label, name in enumerate(CLASSES)
        for n in (10, 9, 100)
    }
    for n, label in enumerate(LABELS):
        files[f'val/{CLASSES[label]}/ILSVRC2012_val_{n + 1:08}.JPEG'] = png(100 + n)
    unpacked = write(tmp_path / 'unpacked', files)
    for split, count in (('train', 9), ('test', 5)):
        name, *found = read(tars, split)
        folder = tars.copy_and_resolve_references()
        folder.update(name='image_folder', source_dir=str(unpacked))
        other, *expected = read(folder, split)
        assert found == expected
        assert found[0]['count'] == count
        assert name == other.replace('image_folder', 'imagenet2012')


def test_the_tars_are_read_once_and_each_image_of_validation_has_its_label(tars, monkeypatch):
    source = data.load(tars, 'test')
    found = {e['image'].tobytes(): e['label'] for e in source.examples}
    for n, label in enumerate(LABELS):
        assert found[Image.open(io.BytesIO(png(100 + n))).tobytes()] == label
    monkeypatch.setattr(imagenet2012, 'scan', None)
    assert len(data.load(tars)) == 9


def test_validation_may_be_missing(tars):
    (Path(tars.source_dir) / imagenet2012.VALIDATION).unlink()
    assert len(data.load(tars)) == 9
    with pytest.raises(UserError, match='has no split test'):
        data.load(tars, 'test')


def change(path, files, **changes):
    """Writes a tar with some files removed, if None, or replaced."""
    files = {name: content for name, content in files.items() if name not in changes}
    return tarred(path, files | {name: new for name, new in changes.items() if new is not None})


@pytest.mark.parametrize(
    ('name', 'changes', 'message'),
    [
        ('TRAIN', {'n01443537.tar': None}, 'since it lacks n01443537.tar: download it again'),
        ('TRAIN', {'n99999999.tar': inner({})}, 'since it has n99999999.tar: download it again'),
        ('TRAIN', {'n01443537.tar': training()['n01443537.tar'][:9_000]}, 'cannot be read'),
        (
            'VALIDATION',
            {'ILSVRC2012_val_00000002.JPEG': None},
            'lacks ILSVRC2012_val_00000002.JPEG',
        ),
        ('VALIDATION', {'x.JPEG': b''}, 'since it has x.JPEG: download it again'),
    ],
)
def test_tars_that_are_not_those_of_the_authors_are_refused(tars, name, changes, message):
    path = Path(tars.source_dir) / getattr(imagenet2012, name)
    change(path, training() if name == 'TRAIN' else validation(), **changes)
    with pytest.raises(UserError, match=message) as error:
        data.load(tars)
    assert str(path) in str(error.value)
    assert not list(Path(tars.data_dir).rglob('dataset_info.json'))


def test_a_compressed_tar_is_refused(tars, tmp_path):
    folder = write(tmp_path / 'files', training())
    pack(folder, 'tar.gz').rename(Path(tars.source_dir) / imagenet2012.TRAIN)
    with pytest.raises(UserError, match=r'img_train.tar is compressed: expand it to a tar'):
        data.load(tars)


def test_what_to_give_is_said(tars):
    tars.num_classes = 4
    with pytest.raises(UserError, match=r'has 3 classes but .* is 4'):
        data.load(tars)
    (Path(tars.source_dir) / imagenet2012.TRAIN).unlink()
    with pytest.raises(UserError, match=r'There is no .*img_train.tar \(No such file.*source_dir'):
        data.load(tars)
    tars.source_dir = None
    with pytest.raises(UserError, match=r'no dataset.source_dir: set .*FOLDER .*hf:ILSVRC'):
        data.load(tars)


def test_the_labels_are_those_that_tfds_ships(monkeypatch):
    monkeypatch.undo()
    names = imagenet2012._lines('labels.txt')
    assert (len(names), list(names)) == (1000, sorted(names))
    assert Counter(imagenet2012._lines('validation_labels.txt')) == dict.fromkeys(names, 50)
    assert imagenet2012._lines('validation_labels.txt')[:2] == ('n01751748', 'n09193705')


def test_what_tfds_prepared_is_used(tars, monkeypatch):
    """Whether TFDS has, is tested with CIFAR-10."""
    made = []
    monkeypatch.setattr(from_tfds, 'already_prepared', lambda *given: made.append(given) or 'own')
    assert imagenet2012.builder(tars.source_dir, 32, 'DATA') == 'own'
    assert made == [('imagenet2012', 'DATA')]

"""CIFAR-10 from its archive, given or downloaded, and that it is what TFDS prepares."""

import io
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from sagan_jax import data
from sagan_jax.data import cifar10, from_tfds
from sagan_jax.errors import UserError
from sagan_jax.run import provenance
from sagan_jax.run.folder import RunFolder
from tests import file_server, tiny
from tests.data import cifar10_files


@pytest.fixture
def archive(monkeypatch):
    """The bytes of an archive that counts as the official one."""
    content = cifar10_files.packed(cifar10_files.files(*cifar10_files.made_up()))
    return cifar10_files.accept(monkeypatch, content)


@pytest.fixture
def given(dataset, tmp_path, archive):
    """The configuration's `dataset` with the archive as a file."""
    path = tmp_path / 'given' / cifar10.ARCHIVE
    path.parent.mkdir()
    path.write_bytes(archive)
    dataset.update(name='cifar10', source_dir=str(path))
    return dataset


@pytest.fixture
def server(archive, monkeypatch):
    with file_server.serving(archive) as server:
        monkeypatch.setattr(cifar10, 'URL', server.url + cifar10.ARCHIVE)
        yield server


def stored(source):
    """Images and labels in the order in which they are stored."""
    images, labels = data.all_examples(source)
    return images.tobytes(), labels.tolist()


def left(folder):
    return sorted(path.name for path in Path(folder).rglob('*') if path.is_file())


def test_all_images_of_both_splits_have_their_labels(given):
    images, labels = cifar10_files.made_up()
    for split, part in (('train', slice(0, 20)), ('test', slice(20, 24))):
        source = data.load(given, split)
        assert source.class_names == cifar10.CLASS_NAMES
        expected = {
            image.tobytes(): label for image, label in zip(images[part], labels[part], strict=True)
        }
        assert len(source) == len(expected)
        assert {e['image'].tobytes(): e['label'] for e in source.examples} == expected


class Encoder:
    """What TFDS encodes images with: PNG, by Pillow in place of TensorFlow."""

    def run(self, _, image):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, 'PNG')
        return buffer.getvalue()


@pytest.fixture
def by_tfds(dataset, tmp_path, monkeypatch):
    """Prepares the same archive with TFDS's own code, reading files as TensorFlow would."""

    def prepare():
        folder = tmp_path / 'extracted'
        for name, content in cifar10_files.files(*cifar10_files.made_up()).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        code = sys.modules[type(tfds.builder('cifar10')).__module__]
        gfile = types.SimpleNamespace(GFile=open)
        tensorflow = types.SimpleNamespace(io=types.SimpleNamespace(gfile=gfile))
        encoder = tfds.core.features.image_feature._ImageEncoder
        with monkeypatch.context() as patch:
            patch.setattr(code, 'tf', tensorflow)
            patch.setattr(encoder, '_runner', Encoder())
            patch.setattr(tfds.core.features.image_feature, '_ENCODE_FN', {'png': lambda: None})
            patch.setattr(
                tfds.download.DownloadManager, 'download_and_extract', lambda *_: str(folder)
            )
            builder = tfds.builder('cifar10', data_dir=dataset.data_dir)
            builder.download_and_prepare(file_format='array_record')

    return prepare


def test_images_labels_and_order_are_those_of_tfds(given, by_tfds):
    """TFDS's own code, with the parts replaced that call TensorFlow, stores the same."""
    ours = {split: stored(data.load(given, split)) for split in ('train', 'test')}
    given.data_dir += '_tfds'
    by_tfds()
    given.source_dir = None  # nothing is prepared again
    for split in ours:
        source = data.load(given, split)
        assert source.name == 'cifar10/3.0.2'
        assert source.class_names == cifar10.CLASS_NAMES
        assert stored(source) == ours[split]


def begun(folder, source, **changes):
    """The folder of a run that began with the images of a source."""
    run = RunFolder(folder)
    record = data.identity(source) | changes
    recorded = {key: value for key, value in record.items() if value}
    config = tiny.config(dataset__num_classes=10)
    run.write_record(provenance.record(config) | {'data': recorded})
    return run


def test_a_run_goes_on_with_the_same_images_of_tfds_or_of_the_archive(given, by_tfds, tmp_path):
    """Also one of an older version, which recorded the hash of images as they are stored."""
    ours = data.load(given)
    given.data_dir += '_tfds'
    by_tfds()
    theirs = data.load(given)
    found = {name: data.identity(source) for name, source in (('o', ours), ('t', theirs))}
    assert found['o']['sha256_as_stored'] != found['t']['sha256_as_stored']
    keys = found['o'].keys() - {'name', 'sha256_as_stored'}
    assert {key: found['o'][key] for key in keys} == {key: found['t'][key] for key in keys}
    assert (ours.content.label_counts, ours.content.copies) == (
        theirs.content.label_counts, theirs.content.copies
    )  # fmt: skip
    for name, source in (('o', ours), ('t', theirs)):
        run = begun(tmp_path / name, source)
        old = begun(
            tmp_path / f'{name}_old',
            source,
            sha256=source.content.sha256_as_stored,
            sha256_in_any_order='of the same',
            sha256_as_stored=None,
        )
        for record in found.values():
            provenance.check_data(run, record)
        provenance.check_data(old, found[name])
        other = found[name] | dict.fromkeys(keys - {'count', 'class_names'}, 'other')
        for each in (run, old):
            with pytest.raises(UserError, match='with other contents'):
                provenance.check_data(each, other | {'sha256_as_stored': 'other'})


def test_the_url_and_the_checksum_are_those_that_tfds_has():
    infos = tfds.builder('cifar10').url_infos
    assert {(url, info.checksum) for url, info in infos.items()} == {(cifar10.URL, cifar10.SHA256)}


def test_what_tfds_prepared_in_another_format_is_not_used(given, by_tfds):
    by_tfds()
    info = Path(given.data_dir) / 'cifar10' / '3.0.2' / 'dataset_info.json'
    info.write_text(info.read_text().replace('array_record', 'tfrecord'))
    assert data.load(given).name == 'cifar10/archive/1.0.0'


def test_a_folder_with_the_archive_is_found(given):
    given.source_dir = str(Path(given.source_dir).parent)
    assert len(data.load(given)) == 20


def test_the_archive_is_downloaded_once_with_progress(dataset, server, capsys):
    dataset.name = 'cifar10'
    first = stored(data.load(dataset))
    assert f'{cifar10.ARCHIVE}: 100%' in capsys.readouterr().err
    archive = Path(dataset.data_dir) / 'downloads' / cifar10.ARCHIVE
    assert archive.read_bytes() == server.content
    assert stored(data.load(dataset)) == first
    (Path(dataset.data_dir) / 'cifar10').rename(Path(dataset.data_dir) / 'elsewhere')
    assert stored(data.load(dataset)) == first
    assert server.requests == ['/' + cifar10.ARCHIVE]


def test_classes_are_checked_before_the_download(dataset, server):
    dataset.update(name='cifar10', num_classes=9)
    with pytest.raises(UserError, match=r'cifar10 has 10 classes but .* is 9: .*num_classes=10'):
        data.load(dataset)
    dataset.num_classes = None
    assert data.count_classes(dataset) == 10
    assert server.requests == []


@pytest.mark.parametrize('fault', ['another', 'cut', 'missing'])
def test_a_download_that_fails_leaves_nothing(dataset, server, fault):
    dataset.name = 'cifar10'
    server.content += b'!' * (fault == 'another')
    server.cut = 3 * (fault == 'cut')
    server.status = 404 if fault == 'missing' else 200
    expected = {
        'another': rf'{cifar10.URL} is not {cifar10.ARCHIVE} .*SHA-256.*: download .* again\.$',
        'cut': rf'Cannot download {cifar10.URL} \(broke off .*set --config.dataset.source_dir',
        'missing': rf'Cannot download {cifar10.URL} \(.*404.*set --config.dataset.source_dir',
    }
    with pytest.raises(UserError, match=expected[fault]):
        data.load(dataset)
    assert left(dataset.data_dir) == ['.lock']


def test_a_file_that_is_not_there_or_another_one_is_refused(given):
    path = Path(given.source_dir)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf'^{path} is not {cifar10.ARCHIVE} .*SHA-256.*again\.$'):
        data.load(given)
    path.unlink()
    with pytest.raises(UserError, match=rf'^{path} cannot be read \(No such file.*a download\.$'):
        data.load(given)
    assert left(given.data_dir) == ['.lock']


def without(name):
    return lambda files: {key: value for key, value in files.items() if not key.endswith(name)}


def renamed(name, other):
    return lambda files: {key.replace(name, other): value for key, value in files.items()}


def resized(change):
    key = 'cifar-10-batches-bin/data_batch_2.bin'
    return lambda files: files | {key: change(files[key])}


@pytest.mark.parametrize(
    'change',
    [
        without('data_batch_2.bin'),
        renamed('data_batch_2', '../data_batch_2'),
        renamed('cifar-10-batches-bin/data', '/cifar-10-batches-bin/data'),
        resized(lambda content: content[:-1]),
        resized(lambda content: content + content),
    ],
)
def test_an_archive_with_other_files_is_refused(given, monkeypatch, change):
    """Even one with the right checksum."""
    files = change(cifar10_files.files(*cifar10_files.made_up()))
    archive = cifar10_files.accept(monkeypatch, cifar10_files.packed(files))
    Path(given.source_dir).write_bytes(archive)
    with pytest.raises(UserError, match=r'has no cifar-10-batches-bin/data_batch_\d.bin of 12,292'):
        data.load(given)
    assert left(given.data_dir) == ['.lock']


@pytest.mark.parametrize('damage', ['cut', 'no archive', 'no tar'])
def test_an_archive_that_cannot_be_unpacked_is_refused(given, monkeypatch, damage):
    content = Path(given.source_dir).read_bytes()
    content = {'cut': content[:-200], 'no archive': b'<html>', 'no tar': b'\x1f\x8b\x08'}[damage]
    Path(given.source_dir).write_bytes(cifar10_files.accept(monkeypatch, content))
    with pytest.raises(UserError, match=r'cannot be read \(.*set --config.dataset.source_dir'):
        data.load(given)


@pytest.mark.parametrize(
    ('machine', 'expected'),
    [
        (('linux', 'x86_64', (3, 13)), r'pip install tensorflow-cpu'),
        (('linux', 'aarch64', (3, 11)), r'pip install tensorflow'),
        (('darwin', 'arm64', (3, 12)), r'pip install tensorflow'),
        (('linux', 'x86_64', (3, 14)), r'.* Python up to 3.13 alone; .*hf:OWNER/NAME.*\.'),
        (('darwin', 'arm64', (3, 14)), r'.* Python up to 3.13 alone; .*hf:OWNER/NAME.*\.'),
        (('darwin', 'x86_64', (3, 12)), r'TensorFlow has no package for darwin on x86_64; .*\.'),
    ],
)
def test_what_installs_tensorflow_is_right_for_each_machine(machine, expected):
    assert re.fullmatch(expected, from_tfds.how_to_get_tensorflow(*machine))


def test_other_sizes_are_resized_when_read(given):
    given.image_size = 16
    assert np.shape(data.load(given).examples[0]['image']) == (16, 16, 3)

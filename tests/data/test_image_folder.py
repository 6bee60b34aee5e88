import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sagan_jax import data
from sagan_jax.data import class_folders, image_folder, preparing
from sagan_jax.errors import UserError
from sagan_jax.system.files import locked, partial_path


@pytest.fixture
def folder(dataset, tmp_path):
    """Three class folders of five images, at the configuration's size."""
    dataset.update(name='image_folder', source_dir=str(tmp_path / 'own'), num_classes=3)
    for index, name in enumerate(['cat', 'dog', 'eel']):
        for number in range(5):
            write(tmp_path / 'own' / name / f'{number}.png', image_of(5 * index + number))
    return tmp_path / 'own'


def image_of(seed, size=32):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def write(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)


def contents(source):
    """The images and labels of a source, in any order: {bytes: label}."""
    return {example['image'].tobytes(): int(example['label']) for example in source.examples}


def leftovers(dataset):
    """All files below the data folder that belong to no finished preparation."""
    root = Path(dataset.data_dir)
    finished = {path.parent for path in root.rglob('dataset_info.json')}
    return [
        path
        for path in (root / 'image_folder').rglob('*')
        if path.is_file() and finished.isdisjoint(path.parents) and path.name != '.lock'
    ]


def test_images_are_stored_losslessly_with_labels_in_order_of_names(dataset, folder):
    source = data.load(dataset)
    assert source.class_names == ('cat', 'dog', 'eel')
    assert (len(source), source.image_size) == (15, 32)
    assert contents(source) == {image_of(seed).tobytes(): seed // 5 for seed in range(15)}
    assert source.examples[0]['image'].shape == (32, 32, 3)
    assert source.examples[0]['image'].dtype == np.uint8
    # Stored in shuffled order, not class by class.
    labels = [int(example['label']) for example in source.examples]
    assert labels != sorted(labels)


def test_more_images_than_are_read_ahead(dataset, folder):
    expected = contents(data.load(dataset))
    for number in range(16 * 3 * (os.cpu_count() + 1)):
        write(folder / 'eel' / f'more{number}.png', image_of(1000 + number))
        expected[image_of(1000 + number).tobytes()] = 2
    assert contents(data.load(dataset)) == expected


@pytest.mark.parametrize('test_name', ['test', 'val', 'validation'])
def test_splits(dataset, tmp_path, test_name):
    for name, seed in [('cat', 1), ('dog', 2)]:
        write(tmp_path / 'own/train' / name / 'a.png', image_of(seed))
    write(tmp_path / 'own' / test_name / 'dog/a.png', image_of(3))
    dataset.update(name='image_folder', source_dir=str(tmp_path / 'own'), num_classes=2)
    assert contents(data.load(dataset)) == {image_of(1).tobytes(): 0, image_of(2).tobytes(): 1}
    assert contents(data.load(dataset, 'test')) == {image_of(3).tobytes(): 1}


def test_a_class_called_train(dataset, folder):
    write(folder / 'train' / 'engine.png', image_of(99))
    dataset.num_classes = 4
    source = data.load(dataset)
    assert source.class_names == ('cat', 'dog', 'eel', 'train')
    assert contents(source)[image_of(99).tobytes()] == 3


def test_hidden_and_other_files_are_ignored(dataset, folder):
    write(folder / '.thumbnails' / 'a.png', image_of(50))
    write(folder / 'cat' / '.hidden.png', image_of(51))
    (folder / 'cat' / '._0.png').write_bytes(b'macOS metadata')
    (folder / 'cat' / 'notes.txt').write_text('not an image')
    (folder / 'README.txt').write_text('not an image either')
    (folder / 'dog' / '3.png').rename(folder / 'dog' / '3.PNG')
    assert len(contents(data.load(dataset))) == 15


def test_flat_folder_without_classes(dataset, tmp_path):
    for seed in range(4):
        write(tmp_path / 'own' / f'{seed}.png', image_of(seed))
    dataset.update(name='image_folder', source_dir=str(tmp_path / 'own'))
    for num_classes in (0, 1):
        dataset.num_classes = num_classes
        source = data.load(dataset)
        assert source.class_names == ('own',)
        assert contents(source) == {image_of(seed).tobytes(): 0 for seed in range(4)}
    dataset.num_classes = 10
    with pytest.raises(
        UserError, match=r'no class folders.*leave out --config.dataset.num_classes'
    ):
        data.load(dataset)


def test_prepared_once(dataset, folder, monkeypatch):
    before = contents(data.load(dataset))

    def fail(*_):
        raise AssertionError('prepared again')

    monkeypatch.setattr('sagan_jax.data.image_folder.read_square', fail)
    assert contents(data.load(dataset)) == before


@pytest.mark.parametrize('change', ['content', 'time', 'removed', 'renamed', 'added'])
def test_a_changed_folder_is_prepared_again(dataset, folder, change):
    before = contents(data.load(dataset))
    changed = folder / 'cat' / '0.png'
    expected = dict(before)
    if change == 'content':
        del expected[image_of(0).tobytes()]
        expected[bytes(32 * 32 * 3)] = 0
        write(changed, np.zeros((32, 32, 3), np.uint8))
    elif change == 'time':
        os.utime(changed, (1, 1))
    elif change == 'removed':
        del expected[image_of(0).tobytes()]
        changed.unlink()
    elif change == 'renamed':
        expected[image_of(0).tobytes()] = 2
        changed.rename(folder / 'eel' / 'new.png')
    else:
        expected[image_of(77).tobytes()] = 1
        write(folder / 'dog' / 'new.png', image_of(77))
    prepared_before = len(list(Path(dataset.data_dir).rglob('dataset_info.json')))
    assert contents(data.load(dataset)) == expected
    assert len(list(Path(dataset.data_dir).rglob('dataset_info.json'))) == prepared_before + 1


def test_another_size_or_folder_is_prepared_separately(dataset, folder):
    data.load(dataset)
    dataset.image_size = 64
    assert data.load(dataset).examples[0]['image'].shape == (64, 64, 3)
    dataset.image_size = 32
    folder.rename(folder.parent / 'moved')
    dataset.source_dir = str(folder.parent / 'moved')
    data.load(dataset)
    assert len(list(Path(dataset.data_dir).rglob('dataset_info.json'))) == 3


def test_home_in_data_dir(dataset, folder, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    dataset.update(data_dir='~/in_home', source_dir='~/own')
    data.load(dataset)
    assert (tmp_path / 'in_home' / 'image_folder').is_dir()


def test_many_shards(dataset, folder, monkeypatch):
    before = contents(data.load(dataset))
    monkeypatch.setattr(
        'sagan_jax.data.image_folder.shards',
        lambda examples, count, _: preparing.shards(examples, count, 2**29 // 4),
    )
    os.utime(folder / 'cat' / '0.png', (1, 1))
    source = data.load(dataset)
    assert len(list(Path(dataset.data_dir).rglob('*-of-00004'))) == 4
    assert contents(source) == before


def test_a_truncated_image_stops_the_preparation(dataset, folder, capfd):
    bad = folder / 'dog' / '2.jpg'
    write(bad, image_of(7, 200), quality=95)
    bad.write_bytes(bad.read_bytes()[:5000])
    with pytest.raises(UserError, match=f'Cannot read the image {bad} .*truncated'):
        data.load(dataset)
    assert not list(Path(dataset.data_dir).rglob('dataset_info.json'))
    assert not list(Path(dataset.data_dir).rglob('*incomplete*'))
    assert not list(Path(dataset.data_dir, 'image_folder').glob('32px*'))
    # After replacing it, preparation succeeds and prints only the progress bar.
    write(bad, image_of(7, 200))
    capfd.readouterr()
    assert len(data.load(dataset)) == 16
    printed = capfd.readouterr()
    assert printed.out == ''
    lines = [line for line in printed.err.replace('\r', '\n').split('\n') if line]
    assert all(line.startswith('Preparing train: ') for line in lines)
    assert '16/16' in lines[-1]


LOAD = """
import sys
import ml_collections
from sagan_jax import data
data_dir, source_dir = sys.argv[1:]
dataset = dict(name='image_folder', data_dir=data_dir, source_dir=source_dir, image_size=32,
               num_classes=3)
print(len(data.load(ml_collections.ConfigDict(dataset))))
"""


def start_loading(dataset):
    return subprocess.Popen(
        [sys.executable, '-c', LOAD, dataset.data_dir, dataset.source_dir],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize('count', [2, 13])
def test_all_images_that_cannot_be_read_are_reported_at_once(dataset, tmp_path, count):
    """Of both splits, whatever is wrong with each."""
    bad = [tmp_path / 'own' / 'train' / 'cat' / f'{number:02}.png' for number in range(count - 1)]
    bad.append(tmp_path / 'own' / 'test' / 'cat' / 'late.jpg')
    for number in range(40):
        write(tmp_path / 'own' / 'train' / 'cat' / f'good{number}.png', image_of(number))
    for number, path in enumerate(bad):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((b'', b'no image', b'\x89PNG\r\n\x1a\n')[number % 3])
    dataset.update(name='image_folder', source_dir=str(tmp_path / 'own'), num_classes=1)
    with pytest.raises(UserError) as error:
        data.load(dataset)
    message = str(error.value)
    assert message.startswith(f'Cannot read {count} images, ')
    assert sum(str(path) in message for path in bad) == min(count, 10)
    assert ('and 3 more: replace them' in message) == (count == 13)
    assert message.count('the file is empty') >= 1
    assert not list(Path(dataset.data_dir).rglob('*incomplete*'))


def test_what_is_passed_over_is_known_to_the_source(dataset, folder):
    write(folder / 'beside.png', image_of(70))
    (folder / 'cat' / 'notes.txt').write_text('not an image')
    source = data.load(dataset)
    assert len(source) == 15
    assert sorted(source.passed_over) == [
        '1 not used, files that are not images: cat/notes.txt',
        '1 not used, images beside class folders: beside.png',
    ]


def test_names_that_are_not_utf8(dataset, folder):
    os.rename(folder / 'cat' / '0.png', os.fsencode(folder / 'cat') + b'/\xff.png')
    assert len(data.load(dataset)) == 15


def test_killed_in_the_middle(dataset, folder):
    # Enough work for seconds: one large image under many names.
    write(folder / 'cat' / 'large.jpg', image_of(1, 1500), quality=90)
    for number in range(400):
        os.link(folder / 'cat' / 'large.jpg', folder / 'cat' / f'copy{number}.jpg')
    process = start_loading(dataset)
    deadline = time.monotonic() + 60
    while not list(Path(dataset.data_dir).rglob('*.array_record*')):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert leftovers(dataset)
    assert not list(Path(dataset.data_dir).rglob('dataset_info.json'))

    # The next start, even of a changed folder, removes the remains and prepares everything.
    for number in range(400):
        (folder / 'cat' / f'copy{number}.jpg').unlink()
    assert len(data.load(dataset)) == 16
    assert not leftovers(dataset)
    assert len(list(Path(dataset.data_dir, 'image_folder').glob('32px*'))) == 1


def test_only_remains_of_this_program_are_removed(dataset, folder):
    root = Path(dataset.data_dir) / 'image_folder'
    own = partial_path(root / 'prepared') / 'image_folder'
    others = [
        root / 'incomplete.thesis',
        root / '.sagan_jax-notes.partial',
        root / '1' / 'incomplete.A',
    ]
    for path in (own, *others):
        path.mkdir(parents=True)
        (path / 'file').write_text('something')
    data.load(dataset)
    assert not own.parent.exists()
    assert [(path / 'file').read_text() for path in others] == ['something'] * 3


def test_a_full_disk_during_preparation_is_named_and_leaves_nothing(dataset, folder):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(
            UserError, match=r'image_folder cannot be written \(File too large\): '
        ) as e:
            data.load(dataset)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert '--config.dataset.data_dir=FOLDER' in str(e.value)
    assert [path.name for path in (Path(dataset.data_dir) / 'image_folder').iterdir()] == ['.lock']
    assert len(data.load(dataset)) == 15


def test_one_process_prepares_and_the_other_waits(dataset, folder, capsys, monkeypatch):
    lengths = []
    loading = threading.Thread(target=lambda: lengths.append(len(data.load(dataset))))
    root = Path(dataset.data_dir) / 'image_folder'
    with locked(root / '.lock'):
        loading.start()
        loading.join(1)
        assert loading.is_alive()
        assert [path.name for path in root.iterdir()] == ['.lock']
        listing = class_folders.scan(dataset.source_dir)
        image_folder.builder(listing, 32, dataset.data_dir).download_and_prepare()
        monkeypatch.setattr(preparing, '_prepare', None)  # must not run again
    loading.join(30)
    assert lengths == [15]
    assert 'Another process is preparing data in' in capsys.readouterr().err


def test_number_of_classes(dataset, folder):
    dataset.num_classes = 4
    with pytest.raises(UserError, match=r'own has 3 classes .* is 4: .*num_classes=3'):
        data.load(dataset)
    assert not Path(dataset.data_dir).exists()


def test_no_source_dir(dataset):
    dataset.name = 'image_folder'
    with pytest.raises(
        UserError, match=r'no dataset.source_dir: set --config.dataset.source_dir=FOLDER'
    ):
        data.load(dataset)


def test_missing_folder(dataset, tmp_path):
    dataset.update(name='image_folder', source_dir=str(tmp_path / 'nowhere'))
    with pytest.raises(UserError, match=r'no folder .*/nowhere: .*source_dir'):
        data.load(dataset)


def test_empty_folder(dataset, tmp_path):
    (tmp_path / 'own').mkdir()
    dataset.update(name='image_folder', source_dir=str(tmp_path / 'own'))
    with pytest.raises(
        UserError,
        match=r'own has no images: one folder of images per class is expected, .* end in .a',
    ):
        data.load(dataset)


def test_class_folder_without_images(dataset, folder):
    (folder / 'fox').mkdir()
    with pytest.raises(UserError, match='own/fox has no images: '):
        data.load(dataset)


def test_class_in_the_test_split_only(dataset, tmp_path):
    write(tmp_path / 'own/train/cat/a.png', image_of(1))
    write(tmp_path / 'own/test/cow/a.png', image_of(2))
    dataset.update(name='image_folder', source_dir=str(tmp_path / 'own'), num_classes=1)
    with pytest.raises(UserError, match=r'images of cow in .*own/test but none in .*own/train'):
        data.load(dataset)


def test_no_test_split(dataset, folder):
    with pytest.raises(UserError, match='image_folder has no split test or validation, only train'):
        data.load(dataset, 'test')


def test_data_dir_is_a_file(dataset, folder, tmp_path):
    (tmp_path / 'prepared').write_text('in the way')
    with pytest.raises(UserError, match=r'cannot be written \(Not a directory\).*data_dir=FOLDER'):
        data.load(dataset)


def test_something_else_in_the_way(dataset, folder):
    data.load(dataset)
    (info,) = Path(dataset.data_dir).rglob('dataset_info.json')
    info.unlink()
    with pytest.raises(UserError, match='is not a prepared data set: remove it'):
        data.load(dataset)
    assert (info.parent / 'features.json').exists()

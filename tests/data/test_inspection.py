"""What spoils a run is reported, each in one line, and good images give no line."""

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sagan_jax import data
from sagan_jax.data import pixels, stored
from sagan_jax.images import aspect_ratio
from tests import tiny

CLASSES = ('ant', 'bee', 'cow')


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    """Three class folders of 20 photographs; nobody writes to it."""
    return tiny.photographs(tmp_path_factory.mktemp('photographs') / 'own', 20, CLASSES)


def report(dataset, folder, conditional=True):
    dataset.update(name='image_folder', source_dir=str(folder), num_classes=None)
    source = data.load(dataset)
    return data.warnings(source, data.summary(source, 0, per_class=1), conditional)


def grey(folder):
    for path in (folder / 'bee').iterdir():
        Image.open(path).convert('L').convert('RGB').save(path)
    return '20 of the first 60 images are grey, and as many samples will be: remove'


def all_grey(folder):
    for path in folder.glob('*/*'):
        Image.open(path).convert('L').save(path)
    return 'the first 60 images are all grey: set --config.dataset.channels=1'


def copies(folder):
    for index in range(5):
        shutil.copy(folder / 'ant' / f'{index}.jpg', folder / 'ant' / f'copy{index}.jpg')
    return '5 of 65 images are copies of another one, which .* learns by heart: remove'


def frames(folder):
    """Like a film: the same scene with other noise."""
    scene = np.asarray(Image.open(folder / 'cow' / '0.jpg')).astype(float)
    for index in range(10):
        noise = np.random.default_rng(index).normal(0, 6, scene.shape)
        image = Image.fromarray((scene + noise).clip(0, 255).astype(np.uint8))
        image.save(folder / 'cow' / f'frame{index}.png')
    return '11 of the first 70 images are nearly the same as another one, .*: keep one of each'


def shapes(folder):
    rng = np.random.default_rng(1)
    for index in range(20):
        tiny.photograph(rng, 60, 120).save(folder / 'bee' / f'{index}.jpg')
        tiny.photograph(rng, 120, 60).save(folder / 'cow' / f'{index}.jpg')
    # 20 images of 80×64 keep 0.8 of their width, 40 keep half.
    return r'aspect ratios .* from 0.5 to 2, and the centred square leaves out 40% of an average'


def few(folder):
    for name, count in (('ant', 17), ('cow', 11)):
        for index in range(count):
            (folder / name / f'{index}.jpg').unlink()
    return r'2 classes have fewer than 10 images \(ant 3, cow 9\), which samples will copy: add'


def one(folder):
    for name in CLASSES[1:]:
        shutil.rmtree(folder / name)
    return 'all 20 images have the same class, .*: set --config.model.conditioning=none'


@pytest.mark.parametrize('spoil', [grey, all_grey, copies, frames, shapes, few, one])
def test_each_property_is_reported_in_one_line(spoil, photographs, dataset, tmp_path):
    folder = shutil.copytree(photographs, tmp_path / 'own')
    sentence = spoil(folder)
    (line,) = report(dataset, folder)
    assert '\n' not in line
    assert re.search(sentence, line)


@pytest.mark.parametrize('channels', [1, 3])
def test_photographs_give_no_line(photographs, dataset, channels):
    dataset.channels = channels
    assert report(dataset, photographs) == []


def test_without_classes_only_the_number_of_images_counts(dataset, tmp_path):
    folder = tiny.photographs(tmp_path / 'own', 9, ('ant',))
    assert report(dataset, folder, conditional=False) == [
        'there are only 9 images, which samples will copy: add more'
    ]
    tiny.photographs(folder, 9, ('bee',))
    assert report(dataset, folder, conditional=False) == []


def test_a_few_grey_images_copies_and_panoramas_are_no_reason(photographs, dataset, tmp_path):
    folder = shutil.copytree(photographs, tmp_path / 'own')
    Image.open(folder / 'ant' / '0.jpg').convert('L').save(folder / 'ant' / '0.jpg')
    shutil.copy(folder / 'ant' / '1.jpg', folder / 'ant' / 'copy.jpg')
    tiny.photograph(np.random.default_rng(0), 300, 60).save(folder / 'bee' / '0.jpg')
    assert report(dataset, folder) == []


def test_classes_of_a_data_set_without_images():
    """A folder has none, but a split of TFDS may."""
    examples = [{'image': np.zeros((8, 8, 3), np.uint8), 'label': 1}] * 30
    content = stored.Content('', '', '', [0, 30], 0)
    names = ('a', 'b\n', 'c')
    source = data.Source(examples, names, 8, 'made/1', 'train', Path(), content)
    summary = data.summary(source, 0, per_class=1)._replace(num_grey=0)
    assert data.warnings(source, summary, conditional=True) == [
        'all 30 images have the same class, so that there is nothing to learn about classes: '
        'set --config.model.conditioning=none'
    ]
    source = dataclasses.replace(source, content=content._replace(label_counts=[20, 4]))
    (line,) = data.warnings(source, summary, conditional=True)
    assert r'2 classes have fewer than 10 images (b\n 4, c 0)' in line


@pytest.mark.parametrize('size', [8, 20, 48, 64])
def test_images_alike_are_counted_as_by_comparing_all_thumbnails(size):
    rng = np.random.default_rng(size)
    block = size // 8
    images = np.stack([np.asarray(tiny.photograph(rng, size, size)) for _ in range(30)])
    images[1] = images[0]  # equal, which does not count
    for target, shift in ((3, 1), (4, 2), (6, 9)):  # of 255; the last is too different
        images[target] = np.clip(images[2].astype(int) + shift, 0, 255)
    images[8] = images[7]
    images[9] = np.clip(images[7].astype(int) - 1, 0, 255)

    def thumbnail(image):
        cells = image[: 8 * block, : 8 * block].astype(np.float64)
        return cells.reshape(8, block, 8, block, 3).mean((1, 3))

    def alike(one, other):
        difference = np.sqrt(np.mean((thumbnail(one) - thumbnail(other)) ** 2))
        return difference < 4 and (one != other).any()

    expected = sum(any(alike(one, other) for other in images) for one in images)
    assert expected == 6
    assert pixels.count_alike(images) == expected


def test_grey_images_are_counted_with_the_noise_of_jpeg():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    tinted = levels.copy()
    tinted[..., 0] = np.minimum(levels[..., 0].astype(int) + 8, 255)
    coloured = levels.copy()
    coloured[0, 5, 5] = (100, 109, 100)
    assert pixels.count_grey(np.concatenate([levels, tinted, coloured])) == 2


@pytest.mark.parametrize('orientation', range(1, 9))
def test_aspect_ratio_is_that_of_the_upright_image(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new('RGB', (40, 20)).save(tmp_path / 'a.jpg', exif=exif)
    assert aspect_ratio(tmp_path / 'a.jpg') == (2 if orientation < 5 else 0.5)
    (tmp_path / 'a.jpg').write_bytes(b'no image')
    assert aspect_ratio(tmp_path / 'a.jpg') is None

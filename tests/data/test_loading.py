import importlib.util
import io
import json
import platform
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from sagan_jax import data
from sagan_jax.errors import UserError


def grey_image(seed, shape=(28, 20)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


class TinyImages(tfds.core.GeneratorBasedBuilder):
    """Grey 28×20 PNG files in three classes, stored as in TFDS's own data sets."""

    VERSION = tfds.core.Version('1.0.0')
    url_infos = None
    label = tfds.features.ClassLabel(names=['low', 'middle', 'high'])
    missing_module = None

    def _info(self):
        features = {'image': tfds.features.Image(shape=(28, 20, 1), encoding_format='png')}
        if self.label:
            features['label'] = self.label
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples(30), 'validation': self._generate_examples(6)}

    def _generate_examples(self, count):
        if self.missing_module:
            importlib.import_module(self.missing_module)
        for seed in range(count):
            file = io.BytesIO()
            Image.fromarray(grey_image(seed)).save(file, 'PNG')
            file.seek(0)
            yield seed, {'image': file} | ({'label': seed % 3} if self.label else {})


class ElsewhereImages(TinyImages, skip_registration=True):
    """Prepared by someone else: TFDS finds the files but not this class."""

    name = 'elsewhere_images'


class UnlabelledImages(TinyImages):
    label = None


class TextOnly(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        features = tfds.features.FeaturesDict({'text': tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        raise AssertionError('must not be prepared')

    def _generate_examples(self):
        raise AssertionError('must not be prepared')


@pytest.fixture
def tiny(dataset):
    dataset.update(name='tiny_images', num_classes=3)
    return dataset


def check_tiny(source, count, labelled=True):
    assert len(source) == count
    seen = set()
    for example in source.examples:
        assert example['image'].shape == (20, 20, 3)
        assert example['image'].dtype == np.uint8
        grey = example['image'][..., 0]
        assert (example['image'] == grey[..., None]).all()
        (seed,) = [s for s in range(count) if np.array_equal(grey, grey_image(s)[4:-4])]
        assert example['label'] == (seed % 3 if labelled else 0)
        seen.add(seed)
    assert seen == set(range(count))


def test_prepared_on_first_use(tiny):
    tiny.image_size = 20
    source = data.load(tiny)
    assert source.class_names == ('low', 'middle', 'high')
    check_tiny(source, 30)
    check_tiny(data.load(tiny, 'test'), 6)  # TFDS's validation


def test_data_prepared_by_someone_else(dataset):
    ElsewhereImages(data_dir=dataset.data_dir).download_and_prepare(file_format='array_record')
    dataset.update(name='elsewhere_images', num_classes=3, image_size=20)
    check_tiny(data.load(dataset), 30)


def test_without_labels(dataset):
    dataset.update(name='unlabelled_images', image_size=20)
    for dataset.num_classes in (0, 1):
        source = data.load(dataset)
        assert source.class_names == ('unlabelled_images',)
        check_tiny(source, 30, labelled=False)
    dataset.num_classes = 10
    with pytest.raises(UserError, match=r'has 1 classes but .* is 10: .*num_classes=1'):
        data.load(dataset)


def test_resized_on_the_fly(tiny):
    tiny.image_size = 10
    source = data.load(tiny)
    expected = {
        Image.fromarray(grey_image(seed)[4:-4])
        .resize((10, 10), Image.Resampling.BOX)
        .tobytes(): seed
        for seed in range(30)
    }
    # Box and Lanczos resampling give similar images.
    for example in source.examples:
        assert example['image'].shape == (10, 10, 3)
        distance = {
            seed: abs(np.frombuffer(box, np.uint8) - example['image'][..., 0].ravel().astype(int))
            for box, seed in expected.items()
        }
        seed = min(distance, key=lambda seed: distance[seed].mean())
        assert example['label'] == seed % 3
        assert distance[seed].mean() < 20


def test_shapes_resized_on_the_fly(dataset):
    dataset.image_size = 64
    example = data.load(dataset).examples[0]
    assert example['image'].shape == (64, 64, 3)


@pytest.mark.parametrize('image_size', [32, 64])
def test_one_channel_makes_images_grey(dataset, image_size):
    dataset.image_size = image_size
    coloured = data.load(dataset, 'test')
    dataset.channels = 1
    grey = data.load(dataset, 'test')
    assert grey.name == f'{coloured.name}, grey'  # statistics are stored by the name
    assert grey.content == coloured.content
    images, labels = data.all_examples(grey)
    expected, expected_labels = data.all_examples(coloured)
    np.testing.assert_array_equal(labels, expected_labels)
    luma = expected @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert images.dtype == np.uint8
    assert np.abs(images - luma[..., None]).max() <= 0.51
    assert images.shape == expected.shape
    assert (np.ptp(images, -1) == 0).all()


def test_number_of_classes(tiny):
    tiny.num_classes = 10
    with pytest.raises(UserError, match=r'tiny_images has 3 classes .* is 10: .*num_classes=3'):
        data.load(tiny)


def test_prepared_as_tfrecord(tiny):
    data.load(tiny)
    builder = tfds.builder('tiny_images', data_dir=tiny.data_dir)
    path = builder.data_path / 'dataset_info.json'
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {'fileFormat': 'tfrecord'}))
    with pytest.raises(UserError, match=r'tiny_images/1.0.0 is prepared as tfrecord.*remove it'):
        data.load(tiny)


def test_tensorflow_missing(dataset, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name: name != 'tensorflow' and find_spec(name)
    )
    monkeypatch.setattr(sys, 'platform', 'linux')
    monkeypatch.setattr(sys, 'version_info', (3, 12, 0))
    monkeypatch.setattr(platform, 'machine', lambda: 'aarch64')
    dataset.name = 'mnist'
    with pytest.raises(UserError, match=r'needs tensorflow .*mnist.*: pip install tensorflow$'):
        data.load(dataset)


def test_another_module_missing(tiny, monkeypatch):
    monkeypatch.setattr(TinyImages, 'missing_module', 'no_such_module')
    with pytest.raises(UserError, match=r'needs no_such_module .* pip install no_such_module'):
        data.load(tiny)


def test_unknown_name(dataset):
    dataset.name = 'cifar1'
    with pytest.raises(UserError, match=r'no data set cifar1: did you mean cifar10'):
        data.load(dataset)
    dataset.name = 'qqqqqqqq'
    with pytest.raises(UserError, match=r'no data set qqqqqqqq: is it the name of a TFDS data set'):
        data.load(dataset)
    dataset.name = 'image_foldr'
    with pytest.raises(UserError, match=r'did you mean image_folder'):
        data.load(dataset)


@pytest.mark.parametrize('name', ['cifar10/no_such_config', 'cifar10:9.9.9', 'not a name', ''])
def test_impossible_name(dataset, name):
    dataset.name = name
    with pytest.raises(UserError, match=rf'TFDS cannot open {name} \(') as caught:
        data.load(dataset)
    assert '\n' not in str(caught.value)


def test_no_images(dataset):
    dataset.update(name='text_only', num_classes=0)
    with pytest.raises(UserError, match='text_only has no images under the key "image", only text'):
        data.load(dataset)


def test_no_such_split(tiny):
    with pytest.raises(UserError, match='no split extra, only train, validation'):
        data.load(tiny, 'extra')


def test_tensorflow_is_not_imported(dataset):
    code = 'import sys; import sagan_jax.data; print("tensorflow" in sys.modules)'
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == 'False'

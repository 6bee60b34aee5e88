import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sagan_jax.errors import UserError
from sagan_jax.metrics import inception
from tests.traced import operations, precisions

LAYERS = {'64', '192', '768', '2048', 'logits_unbiased', 'logits'}


def test_all_products_are_float32_on_every_platform():
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)
    variables = jax.eval_shape(inception.Inception().init, jax.random.key(0), images)
    assert precisions(operations(inception.apply, variables, images)) == {'HIGHEST'}


@pytest.fixture(scope='module')
def features(seeded_graph):
    return inception.load(seeded_graph, batch_size=8)


def assert_golden(actual, golden_features, rows):
    assert set(actual) == LAYERS
    for layer, values in actual.items():
        expected = golden_features[layer][rows]
        assert values.dtype == np.float32
        assert values.shape == expected.shape
        error = np.abs(values - expected).max() / np.abs(expected).max()
        assert error < 1e-5, f'{layer}: {error}'


def test_features_are_golden_for_any_number_of_images(features, golden_features):
    rows = np.arange(11) % 4  # one whole batch of eight and an incomplete one
    assert_golden(features(golden_features['images'][rows]), golden_features, rows)


def test_features_are_golden_on_one_device(seeded_graph, golden_features, monkeypatch):
    assert len(jax.local_devices()) == 8
    monkeypatch.setattr(jax, 'local_devices', lambda: jax.devices()[:1])
    features = inception.load(seeded_graph, batch_size=3)
    assert_golden(features(golden_features['images']), golden_features, np.arange(4))


def test_the_network_has_the_constants_of_the_graph(seeded_graph, golden_shapes):
    variables, sha256 = inception.load_variables(seeded_graph)
    assert list(variables) == ['params']
    leaves = flatten_dict(variables['params'])
    assert {'/'.join(path): leaf.shape for path, leaf in leaves.items()} == golden_shapes
    assert len(leaves) == 472
    assert len(sha256) == 64


@pytest.mark.parametrize(
    'images',
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((2, 8, 8, 1), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
)
def test_inputs_other_than_uint8_rgb_are_refused(features, images):
    with pytest.raises(UserError, match=r'uint8 \[N, H, W, 3\].*convert'):
        features(images)


def resize_by_hand(image):
    """TensorFlow 1's bilinear resizing, pixel by pixel."""
    height, width, channels = image.shape
    out = np.empty((299, 299, channels))
    for i in range(299):
        y = i * height / 299
        top, bottom = int(y), min(int(y) + 1, height - 1)
        for j in range(299):
            x = j * width / 299
            left, right = int(x), min(int(x) + 1, width - 1)
            a, b = x - left, y - top
            above = image[top, left] * (1 - a) + image[top, right] * a
            below = image[bottom, left] * (1 - a) + image[bottom, right] * a
            out[i, j] = above * (1 - b) + below * b
    return out


@pytest.mark.parametrize('shape', [(5, 7), (32, 64), (401, 330), (1, 1)])
def test_resize_equals_tensorflow_1(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 2)).astype(np.float32)
    resized = np.asarray(inception.resize(image[None]))
    np.testing.assert_allclose(resized[0], resize_by_hand(image), atol=0.02)


def test_resize_leaves_images_of_299_unchanged():
    images = np.random.default_rng(0).normal(size=(1, 299, 299, 3)).astype(np.float32)
    np.testing.assert_array_equal(inception.resize(images), images)

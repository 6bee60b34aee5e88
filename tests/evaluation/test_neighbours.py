"""Nearest training images and their distances."""

import numpy as np
import pytest
from scipy import spatial

from sagan_jax import data
from sagan_jax.evaluation import neighbours, real_statistics
from sagan_jax.evaluation.neighbours import nearest_images
from sagan_jax.figures import neighbours_figure
from sagan_jax.metrics.features import FeatureNetwork
from tests import tiny


def coarse(images):
    """4×4 averages: [N, 32, 32, 3] → [N, 48]."""
    return images.reshape(-1, 4, 8, 4, 8, 3).mean((2, 4)).reshape(-1, 48)


def test_a_memorised_image_is_found(tmp_path, monkeypatch):
    network = FeatureNetwork(
        'coarse', 'none', 'none', lambda _, images: {'x': coarse(images)}, {}, 'x', 'x'
    )
    networks = real_statistics.Networks(network, None, False)
    monkeypatch.setattr(real_statistics, 'load_networks', lambda config, source: networks)
    config = tiny.folder_config(tiny.picture_folder(tmp_path / 'source'))
    source = data.load(config.dataset)
    real = np.stack([example['image'] for example in source.examples])
    images = real[[5, 20]]
    images[1, 0, 0] ^= 3  # nearly memorised

    found = nearest_images(config, source, images, k=4)
    assert found.images.shape == (2, 4, 32, 32, 3)
    np.testing.assert_array_equal(found.images[:, 0], real[[5, 20]])
    features = coarse(real)
    distances = np.linalg.norm(features[:, None] - features, axis=-1)
    np.testing.assert_allclose(found.distances[0], np.sort(distances[5])[:4], atol=1e-3)
    assert 0 < found.distances[1, 0] < 0.1
    chosen = np.random.default_rng(0).permutation(len(real))[:2]
    nearest_other = (distances + np.diag(np.full(len(real), np.inf))).min(1)
    np.testing.assert_allclose(found.among_images, nearest_other[chosen], atol=1e-3)

    figure = neighbours_figure(images, found.images, found.distances)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[0] == titles[5] == 'sample'
    assert titles[2] == f'{found.distances[0, 1]:.3g}'


@pytest.mark.parametrize('block', [1, 7, 500])
@pytest.mark.parametrize('k', [1, 3, 60])
def test_nearest_rows_are_those_of_all_distances(monkeypatch, block, k):
    monkeypatch.setattr(neighbours, 'BLOCK', block)
    rng = np.random.default_rng(0)
    real, points = (rng.normal(size=(n, 6)).astype(np.float32) for n in (40, 17))
    rows, distances = neighbours.nearest(real, points, k)
    expected = spatial.distance.cdist(points, real)
    np.testing.assert_array_equal(rows, np.argsort(expected)[:, :k])
    np.testing.assert_allclose(distances, np.sort(expected)[:, :k], rtol=1e-5)

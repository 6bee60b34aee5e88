"""Image grids, pixel by pixel."""

import numpy as np
from PIL import Image

from sagan_jax.images import image_grid, save_png


def test_grid_places_every_image():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 64, 64, 3), np.uint8)
    grid = image_grid(images, columns=3)
    assert grid.shape == (2 * 66 + 2, 3 * 66 + 2, 3)
    for index in range(5):
        y, x = 2 + index // 3 * 66, 2 + index % 3 * 66
        assert (grid[y : y + 64, x : x + 64] == index).all()
    assert (grid[68:, 134:] == 255).all()  # the sixth place stays white
    assert (grid[:2] == 255).all()
    assert (grid[:, :2] == 255).all()


def test_small_images_are_enlarged_without_blur():
    image = np.random.default_rng(0).integers(0, 255, (1, 32, 32, 3), dtype=np.uint8)
    grid = image_grid(image, columns=1)
    np.testing.assert_array_equal(grid[2:66:2, 2:66:2], image[0])
    np.testing.assert_array_equal(grid[3:67:2, 3:67:2], image[0])


def test_save_png_is_lossless(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    save_png(tmp_path / 'new' / 'a.png', image)
    with Image.open(tmp_path / 'new' / 'a.png') as read:
        np.testing.assert_array_equal(np.asarray(read), image)
    assert len(list((tmp_path / 'new').iterdir())) == 1

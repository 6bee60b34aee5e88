"""Pictures of what a run does."""

import os

import numpy as np
from PIL import Image

from sagan_jax.files import atomic_path


def image_grid(images: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """Lays images out in rows on white, small ones enlarged so that they can be looked at.

    Args:
      images: uint8 [N, H, W, 3].
      columns: images a row; the last row may be shorter.
      gap: white pixels between images.

    Returns:
      uint8 [height, width, 3].
    """
    scale = max(1, 64 // images.shape[1])
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    shape = (rows * (height + gap) + gap, columns * (width + gap) + gap, 3)
    grid = np.full(shape, 255, np.uint8)
    for index, image in enumerate(images):
        y = gap + index // columns * (height + gap)
        x = gap + index % columns * (width + gap)
        grid[y : y + height, x : x + width] = image
    return grid


def save_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes uint8 [H, W, 3] as a PNG file, atomically."""
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format='PNG')

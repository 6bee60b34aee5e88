"""Image files: decoded as upright RGB and as squares of one size; grids, written as PNG."""

import os
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from sagan_jax.errors import UserError
from sagan_jax.system.files import atomic_path

SUFFIXES = frozenset({'.bmp', '.gif', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp'})


def read(path: str | os.PathLike) -> np.ndarray:
    """Decodes a file, of an animation the first frame, as uint8 RGB [H, W, 3].

    See `upright_rgb`. Raises UserError, naming the file, when it cannot be decoded in full.
    """
    return _read(path, upright_rgb)


def read_square(path: str | os.PathLike, size: int) -> np.ndarray:
    """Decodes a file as uint8 RGB [size, size, 3]; see `square`, and `read` for what it raises."""
    return _read(path, lambda image: square(image, size))


def _read(path: str | os.PathLike, convert: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(convert(image))
    except Exception as error:  # what Pillow raises on a damaged file depends on the format
        raise UserError(
            f'Cannot read the picture {path} ({error}): replace it or remove it.'
        ) from error


def square(image: Image.Image, size: int) -> Image.Image:
    """The largest centred square of a picture, RGB of size × size, see `upright_rgb`.

    Crop and Lanczos resampling are one pass. A square of the right size already is not resampled
    at all.
    """
    image = upright_rgb(image)
    side = min(image.size)
    # Whole pixels, so that cropping alone does not blur.
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    if side == size:
        return image.crop(box)
    return image.resize((size, size), Image.Resampling.LANCZOS, box)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Any picture as RGB: the EXIF orientation is applied, transparency composited on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith('I'):  # 16-bit grey, which Pillow would clip instead of scale
        return Image.fromarray(_eight_bits(np.asarray(image))).convert('RGB')
    if image.has_transparency_data:
        image = image.convert('RGBA')
        background = Image.new('RGBA', image.size, 'white')
        return Image.alpha_composite(background, image).convert('RGB')
    return image.convert('RGB')


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


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    """0 … 65535 to 0 … 255, rounded to the nearest."""
    return ((np.clip(grey, 0, 65535).astype(np.int64) * 2 + 257) // 514).astype(np.uint8)

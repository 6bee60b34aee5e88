"""From any picture file to RGB squares of one size."""

import os

import numpy as np
from PIL import Image, ImageOps

from sagan_jax.errors import UserError

SUFFIXES = frozenset({'.bmp', '.gif', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp'})


def read_square(path: str | os.PathLike, size: int) -> np.ndarray:
    """Decodes a file, of an animation the first frame, as uint8 RGB [size, size, 3].

    See `square`. Raises UserError, naming the file, when it cannot be decoded in full.
    """
    try:
        with Image.open(path) as image:
            return square(image, size)
    except Exception as error:  # what Pillow raises on a damaged file depends on the format
        raise UserError(
            f'Cannot read the picture {path} ({error}): replace it or remove it.'
        ) from error


def square(image: Image.Image, size: int) -> np.ndarray:
    """The largest centred square of an upright picture, uint8 RGB [size, size, 3].

    The EXIF orientation is applied, transparency composited on white, and crop and Lanczos
    resampling are one pass. A square of the right size already is not resampled at all.
    """
    image = _rgb(ImageOps.exif_transpose(image))
    side = min(image.size)
    # Whole pixels, so that cropping alone does not blur.
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    if side == size:
        return np.asarray(image.crop(box))
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith('I'):  # 16-bit grey, which Pillow would clip instead of scale
        return Image.fromarray(_eight_bits(np.asarray(image))).convert('RGB')
    if image.has_transparency_data:
        image = image.convert('RGBA')
        background = Image.new('RGBA', image.size, 'white')
        return Image.alpha_composite(background, image).convert('RGB')
    return image.convert('RGB')


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    """0 … 65535 to 0 … 255, rounded to the nearest."""
    return ((np.clip(grey, 0, 65535).astype(np.int64) * 2 + 257) // 514).astype(np.uint8)

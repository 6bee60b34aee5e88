"""Image files: decoding as upright RGB or as squares of one size, grids, writing PNG."""

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from sagan_jax.errors import UserError
from sagan_jax.system import failures
from sagan_jax.system.files import atomic_path
from sagan_jax.system.untrusted import open_file, reason

# What Pillow decodes by itself. It passes EPS to Ghostscript, whatever the file is called.
# TGA has no signature, so it is tried last. Older versions of Pillow lack AVIF.
Image.init()
FORMATS = tuple(
    name
    for name in ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'AVIF', 'TGA')
    if name in Image.OPEN
)
SUFFIXES = frozenset(
    suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS
)

Opener = Callable[[Path], IO[bytes]]


def open_image(file: str | os.PathLike | IO[bytes]) -> Image.Image:
    """Opens an image of one of the `FORMATS`. The only place where images are opened.

    Raises what Pillow raises, `PIL.UnidentifiedImageError` for any other format.
    """
    return Image.open(file, formats=FORMATS)


class UnreadableImage(UserError):
    """An image file that cannot be decoded."""

    def __init__(self, path: str | os.PathLike, reason: str) -> None:
        super().__init__(f'Cannot read the image {path} ({reason}): replace it or remove it.')
        self.path, self.reason = path, reason


def unreadable(found: Sequence[UnreadableImage]) -> UserError:
    """One error about all of at least one image that cannot be decoded; names up to ten."""
    if len(found) == 1:
        return found[0]
    named = ', '.join(f'{error.path} ({error.reason})' for error in found[:10])
    more = f' and {len(found) - 10:,} more' if len(found) > 10 else ''
    return UserError(
        f'Cannot read {len(found):,} images, {named}{more}: replace them or remove them.'
    )


def read(path: str | os.PathLike) -> np.ndarray:
    """Decodes an image file as uint8 RGB [H, W, 3], see `upright_rgb`.

    Takes the first frame of an animation.

    Raises:
      UnreadableImage: if the file ends before its last pixel, its decoder reports an error, or its
        values are not supported. Other damage is not noticed: JPEG and most other formats have no
        checksum of their pixels, so that a damaged file may decode to other pixels.
    """
    return _read(path, upright_rgb)


def read_square(path: str | os.PathLike, size: int, opened: Opener = open_file) -> np.ndarray:
    """Decodes an image file as uint8 RGB [size, size, 3], see `square`. Raises as `read` does."""
    return _read(path, lambda image: square(image, size), opened)


def decode_square(content: bytes, name: str, size: int) -> np.ndarray:
    """As `read_square`, for the content of an image file that errors call `name`."""
    try:
        with open_image(io.BytesIO(content)) as image:
            return np.asarray(square(image, size))
    except Exception as error:  # what Pillow raises on a damaged file depends on the format
        raise UnreadableImage(name, _reason(error, empty=not content)) from error


def aspect_ratio(path: str | os.PathLike, opened: Opener = open_file) -> float | None:
    """Width / height of an image as it stands upright, without decoding it.

    None if that cannot be read.
    """
    try:
        with opened(Path(path)) as file, open_image(file) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
    except Exception as error:  # what Pillow raises on a damaged file depends on the format
        if failures.is_passing(error):
            raise
        return None
    return height / width if turned else width / height


def _read(
    path: str | os.PathLike,
    convert: Callable[[Image.Image], Image.Image],
    opened: Opener = open_file,
) -> np.ndarray:
    empty = False
    try:
        with opened(Path(path)) as file:
            empty = not file.read(1)
            file.seek(0)
            with open_image(file) as image:
                return np.asarray(convert(image))
    except Exception as error:  # what Pillow raises on a damaged file depends on the format
        if failures.is_passing(error):
            raise
        raise UnreadableImage(path, _reason(error, empty)) from error


def _reason(error: Exception, empty: bool) -> str:
    if not isinstance(error, UnidentifiedImageError):
        return reason(error)
    if empty:
        return 'the file is empty'
    return f'it is damaged or none of {", ".join(FORMATS)}'


def square(image: Image.Image, size: int) -> Image.Image:
    """Resizes the largest centred square of an image to RGB size × size, see `upright_rgb`.

    Lanczos resampling, which crops in the same pass. A square that already has this size is not
    resampled.
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
    """Converts an image to RGB: applies the EXIF orientation, composites transparency on white.

    Scales 16-bit grey, and floating-point grey from 0 to 1, to 8 bits. 16-bit colour keeps its
    upper 8 bits. Does not apply colour profiles. Raises ValueError for other values.
    """
    stored = _stored_as(image)  # not known after loading
    transparent = image.info.get('transparency')
    if transparent is not None and stored == 'RGB;16B':
        raise ValueError('transparency of one 16-bit colour is not supported')
    upright = ImageOps.exif_transpose(image)
    if image.mode.startswith(('I', 'F')):  # Pillow would clip instead of scale
        grey = np.asarray(upright)
        result = _eight_bits(grey, *_black_and_white(image))
        if transparent is not None:
            result = np.where(grey == transparent, np.uint8(255), result)
        return Image.fromarray(result).convert('RGB')
    if image.mode in ('1', 'L') and isinstance(transparent, int):
        # Pillow scales grey of fewer than 8 bits, but not the value that is transparent.
        white = {'1': 1, 'L;2': 3, 'L;4': 15}.get(stored, 255)
        grey = np.asarray(upright.convert('L'))
        mask = grey == min(transparent, white) * (255 // white)
        return Image.fromarray(np.where(mask, np.uint8(255), grey)).convert('RGB')
    if upright.has_transparency_data:
        upright = upright.convert('RGBA')
        background = Image.new('RGBA', upright.size, 'white')
        return Image.alpha_composite(background, upright).convert('RGB')
    return upright.convert('RGB')


def image_grid(images: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """Lays images out in rows on white. Images below 64 pixels are enlarged by a whole factor.

    Args:
      images: uint8 [N, H, W, 3].
      columns: images per row; the last row may be shorter.
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


def _stored_as(image: Image.Image) -> str:
    """Pillow's name for how pixels are stored in the file, such as 'RGB;16B'; '' in memory."""
    tiles = getattr(image, 'tile', None)
    args = tiles[0][3] if tiles else ''
    return str(args[0] if isinstance(args, tuple) else args)


def _black_and_white(image: Image.Image) -> tuple[float, float]:
    """The values of black and of white in an image with one deep channel."""
    black, white = 0.0, 1.0 if image.mode == 'F' else 65535.0
    if isinstance(image, TiffImageFile):
        if image.mode == 'I':
            raise ValueError('TIFF with signed or 32-bit integers is not supported')
        if image.tag_v2.get(BITSPERSAMPLE) == (12,):
            white = 4095.0
        if image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero
            black, white = white, black
    return black, white


def _eight_bits(grey: np.ndarray, black: float, white: float) -> np.ndarray:
    """Scales black … white to 0 … 255, rounded to the nearest. Raises ValueError outside."""
    grey = grey.astype(np.float64)
    low, high = grey.min(), grey.max()
    if not min(black, white) <= low <= high <= max(black, white):
        raise ValueError(
            f'values from {low:g} to {high:g}, but only {min(black, white):g} to '
            f'{max(black, white):g} is supported'
        )
    return np.floor((grey - black) / (white - black) * 255 + 0.5).astype(np.uint8)

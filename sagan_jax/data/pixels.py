"""Counts images by properties of their pixels."""

import numpy as np

_GREY = 8  # the largest difference between the channels of a grey pixel; JPEG makes some
_ALIKE = 4.0  # the root mean square difference, of 255, between thumbnails that are nearly the same
_THUMBNAIL = 8  # pixels


def count_grey(images: np.ndarray) -> int:
    """The number of images, uint8 [N, S, S, 3], without any colour."""
    return sum(int(np.ptp(image, axis=-1).max() <= _GREY) for image in images)


def count_alike(images: np.ndarray) -> int:
    """The number of images, uint8 [N, S, S, 3], that are nearly the same as another, but not equal.

    Compares the thumbnails of all pairs.
    """
    block = images.shape[1] // _THUMBNAIL
    side = block * _THUMBNAIL
    parts = images[:, :side, :side].reshape(-1, _THUMBNAIL, block, _THUMBNAIL, block, 3)
    thumbnails = parts.mean((2, 4), dtype=np.float32).reshape(len(images), -1)
    thumbnails -= thumbnails.mean(0)  # so that float32 is exact enough for small distances
    squares = (thumbnails**2).sum(1)
    alike = 0
    for row, thumbnail in enumerate(thumbnails):
        distances = squares + squares[row] - 2 * thumbnails @ thumbnail
        near = np.flatnonzero(distances < _ALIKE**2 * thumbnails.shape[1])
        alike += any(not np.array_equal(images[row], images[other]) for other in near)
    return alike

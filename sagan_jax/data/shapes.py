"""The embedded data set: pairs of matching shapes, right only if both halves agree.

Each image shows two copies of its class's shape on grey, one in each half, of the same colour and
size and at independent heights. Convolutions learn the shapes easily; making the two distant halves
agree is what self-attention is for.

The images are the same bytes on every platform: random numbers come from `RandomState`, whose
stream never changes, and all operations on them are on integers or exact according to IEEE 754.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from scipy.special import xlogy

from sagan_jax.data.preparing import Shard, features, shards

SIZE = 32
COUNTS = {'train': 20_000, 'test': 2_000}
BACKGROUND = 128
# Scores of this data set only: the share of images whose halves agree in colour, and the number of
# hues within a class, on average and in the class with the fewest.
SCORES = ('colour_agreement', 'hue_variety', 'hue_variety_min')

_SEEDS = {'train': 1, 'test': 2}
_SUBSAMPLES = 4  # per axis; the coverage of a pixel is the share of its 4×4 points in the shape
_MIN_AMOUNT = 16 * 64**2  # of an object's colour: squared differences summed over its pixels
_CHUNK = 100  # images drawn at once, so that the intermediates stay in the processor's cache


# The shapes: whether (x, y) is inside. y is up, the unit is the radius, x and y broadcast.


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squared = x * x + y * y
    return (squared <= 1) & (squared >= 0.3)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Inside are points on the inner side of at least four of a pentagram's five lines. The normals
    # are literals because the last digit of a sine may differ between platforms.
    normals = (
        (0, -1),
        (0.951057, -0.309017),
        (0.587785, 0.809017),
        (-0.587785, 0.809017),
        (-0.951057, -0.309017),
    )
    sides = [(a * x + b * y <= 0.36).view(np.uint8) for a, b in normals]
    return functools.reduce(np.add, sides) >= 4


def _cross(x: np.ndarray, y: np.ndarray, reach: float = 1.0, half_width: float = 0.3) -> np.ndarray:
    x, y = abs(x), abs(y)
    return (np.minimum(x, y) <= half_width) & (np.maximum(x, y) <= reach)


Inside = Callable[[np.ndarray, np.ndarray], np.ndarray]

_INSIDE: dict[str, Inside] = {
    'disc': lambda x, y: x * x + y * y <= 1,
    'ring': _ring,
    'square': lambda x, y: np.maximum(abs(x), abs(y)) <= 0.8,
    'diamond': lambda x, y: abs(x) + abs(y) <= 1.1,
    'triangle': lambda x, y: (1.85 * abs(x) + y <= 1) & (y >= -0.85),
    'star': _star,
    'cross': _cross,
    'saltire': lambda x, y: _cross(x + y, x - y, reach=1.5, half_width=0.42),
    'crescent': lambda x, y: (x * x + y * y <= 1) & ((x - 0.5) * (x - 0.5) + y * y >= 0.6),
    'bar': lambda x, y: (abs(x) <= 1.05) & (abs(y) <= 0.36),
}
CLASS_NAMES = tuple(_INSIDE)


class Parameters(NamedTuple):
    """What distinguishes N images from each other. The unit is half the side of an image."""

    labels: np.ndarray  # int64 [N], indices into CLASS_NAMES
    radii: np.ndarray  # float64 [N]
    heights: np.ndarray  # float64 [N, 2], centres of the left and the right copy; down is positive
    colours: np.ndarray  # uint8 [N, 3]


def parameters(split: str) -> Parameters:
    """The parameters of all images of 'train' or 'test', balanced over classes and shuffled."""
    random = np.random.RandomState(_SEEDS[split])
    count = COUNTS[split]

    def uniform(low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
        # RandomState.uniform would compute this in C, where a compiler may fuse the operations.
        return low + (high - low) * random.random_sample(shape)

    return Parameters(
        labels=random.permutation(np.arange(count) % len(CLASS_NAMES)),
        radii=uniform(0.34, 0.42, (count,)),
        heights=uniform(-0.45, 0.45, (count, 2)),
        colours=_rgb(
            hue=uniform(0, 6, (count,)),
            saturation=uniform(0.8, 1, (count,)),
            value=uniform(0.8, 1, (count,)),
        ),
    )


def draw(parameters: Parameters) -> np.ndarray:
    """Draws N images, uint8 [N, 32, 32, 3]."""
    labels, radii, heights, colours = parameters
    images = np.empty((len(labels), SIZE, SIZE, 3), np.uint8)
    full = _SUBSAMPLES**2
    for label, name in enumerate(CLASS_NAMES):
        members = np.flatnonzero(labels == label)
        for start in range(0, len(members), _CHUNK):
            chunk = members[start : start + _CHUNK]
            coverage = _coverage(_INSIDE[name], radii[chunk], heights[chunk])[..., None]
            # Blended in integers, which round the same way everywhere; uint16 holds 16 · 255.
            blended = colours[chunk, None, None, :] * coverage + BACKGROUND * (full - coverage)
            images[chunk] = (blended + full // 2) // full
    return images


def render(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Draws all of 'train' or 'test': images uint8 [N, 32, 32, 3] and labels int64 [N]."""
    drawn = parameters(split)
    return draw(drawn), drawn.labels


def colours_agree(images: jax.Array) -> jax.Array:
    """Whether the objects in the two halves of each image have the same colour.

    The colour of an object is the mean difference of its half's pixels from the background,
    weighted by the square of that difference. Two colours agree if their Euclidean distance is at
    most 32 of 255. A half has an object if its squared differences sum to at least those of 16
    pixels that differ by 64. A half without an object agrees with none.

    Args:
      images: [N, 32, 32, 3], values from 0 to 255.

    Returns:
      bool [N].
    """
    n = len(images)
    pixels = images.astype(jnp.float32).reshape(n, SIZE, 2, SIZE // 2, 3) - BACKGROUND
    weights = jnp.square(pixels).sum(-1, keepdims=True)
    amounts = weights.sum((1, 3))  # [N, 2, 1]
    colours = (weights * pixels).sum((1, 3)) / jnp.maximum(amounts, 1)  # [N, 2, 3]
    apart = jnp.linalg.norm(colours[:, 0] - colours[:, 1], axis=-1)
    return (apart <= 32) & (amounts.min((1, 2)) >= _MIN_AMOUNT)


def hues(images: jax.Array) -> jax.Array:
    """The hue of the objects in each image: red 0, green 2, blue 4.

    It is the hue of the mean difference of all pixels from the background, weighted by the square
    of that difference.

    Args:
      images: [N, 32, 32, 3], values from 0 to 255.

    Returns:
      float32 [N] in [0, 6); NaN for images without objects.
    """
    pixels = images.astype(jnp.float32) - BACKGROUND
    weights = jnp.square(pixels).sum(-1, keepdims=True)
    red, green, blue = (weights * pixels).sum((1, 2)).T
    angle = jnp.arctan2(0.75**0.5 * (green - blue), red - 0.5 * (green + blue))
    hue = jnp.mod(angle * (3 / jnp.pi), 6)
    # A small negative angle rounds to 6.
    return jnp.where(weights.sum((1, 2, 3)) >= _MIN_AMOUNT, jnp.where(hue < 6, hue, 0), jnp.nan)


def hue_variety(hues: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The effective number of hues within each class: 1 for one colour, 12 if all are as frequent.

    The exponential of the entropy of a histogram with 12 equal bins. FID, class share and colour
    agreement do not notice a class that has only one colour. Images without objects are ignored; a
    class that has no others gets 0.

    Args:
      hues: float [N], from `hues`.
      labels: int [N].

    Returns:
      float64 [classes], for the classes that occur in `labels`, in order.
    """
    found = []
    for label in np.unique(labels):
        ours = hues[labels == label]
        counts = np.histogram(ours[~np.isnan(ours)], bins=12, range=(0, 6))[0]
        p = counts / max(counts.sum(), 1)
        found.append(np.exp(-xlogy(p, p).sum()) if counts.any() else 0.0)
    return np.array(found)


def _coverage(inside: Inside, radii: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """The number of each pixel's 16 points that are inside the shape: uint16 [n, 32, 32]."""
    points = (np.arange(SIZE * _SUBSAMPLES) + 0.5) / (SIZE * _SUBSAMPLES / 2) - 1  # exact, in ±1
    # The centres are at ±0.5, so both halves have the same columns relative to their centre.
    x = points[: len(points) // 2] + 0.5
    radii = radii[:, None, None, None]
    x = x / radii  # [n, 1, 1, 64]
    y = (heights[:, :, None, None] - points[:, None]) / radii  # [n, 2, 128, 1], up is positive
    covered = inside(x, y)  # [n, 2, 128, 64]
    count, copies, rows, columns = covered.shape
    counts = covered.view(np.uint8).reshape(
        count, copies, rows // _SUBSAMPLES, _SUBSAMPLES, columns // _SUBSAMPLES, _SUBSAMPLES
    )
    # Adding eight slices is several times as fast as a sum over two short axes.
    counts = functools.reduce(np.add, [counts[:, :, :, i] for i in range(_SUBSAMPLES)])
    counts = functools.reduce(np.add, [counts[..., i] for i in range(_SUBSAMPLES)])
    counts = counts.transpose(0, 2, 1, 3).reshape(count, SIZE, SIZE)  # halves side by side
    return counts.astype(np.uint16)


def _rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Converts HSV, hue in [0, 6) and the others in [0, 1], each [N], to uint8 RGB [N, 3]."""
    k = np.fmod(np.array([5, 3, 1]) + hue[:, None], 6)
    ramp = np.clip(np.minimum(k, 4 - k), 0, 1)
    channels = value[:, None] * (1 - saturation[:, None] * ramp)
    return np.floor(255 * channels + 0.5).astype(np.uint8)


class Shapes(tfds.core.ShardBasedBuilder):
    """The TFDS builder. Writes what `render` returns, in the same order."""

    VERSION = tfds.core.Version('1.0.0')
    url_infos = None  # nothing is downloaded

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description='Two matching shapes in each image, one in each half.',
            features=features(SIZE, CLASS_NAMES),
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Shard]]:
        del dl_manager
        return {
            split: shards(_examples(split), count, SIZE * SIZE * 3)
            for split, count in COUNTS.items()
        }


def _examples(split: str) -> Iterator[tuple[int, dict]]:
    for index, (image, label) in enumerate(zip(*render(split), strict=True)):
        yield index, {'image': image, 'label': label}

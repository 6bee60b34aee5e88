"""Matplotlib figures of arrays: attention maps, curves, nearest neighbours."""

import math
import os
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from sagan_jax.system.files import atomic_path

DOT_COLOURS = ('#e6194b', '#3cb44b', '#4363d8', '#ffe119', '#f58231', '#42d4f4', '#f032e6')


def attention_figure(images: np.ndarray, weights: np.ndarray, points: np.ndarray) -> Figure:
    """Attention maps of query locations (SAGAN, figures 1 and 5), one image per row.

    A row starts with the image and its query locations as coloured dots. For each of them follows
    its attention map over the image, one cell per key, with arrows to the most attended regions.

    Args:
      images: uint8 [R, S, S, 3].
      weights: float32 [R, N, M]: attention of N query positions to M keys, both square grids.
      points: int [R, K, 2]: rows and columns of the query locations in the query grid.
    """
    size = images.shape[1]
    queries, keys = (math.isqrt(n) for n in weights.shape[1:])
    rows, count = points.shape[:2]
    figure = Figure(figsize=(1.6 * (count + 1), 1.6 * rows), layout='constrained')
    axes = figure.subplots(rows, count + 1, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, image, image_weights, image_points in zip(axes, images, weights, points, strict=True):
        centres = (image_points[:, ::-1] + 0.5) * size / queries  # [K, 2], x and y in pixels
        row[0].imshow(image, extent=(0, size, size, 0))
        row[0].scatter(*centres.T, c=DOT_COLOURS[:count], s=40, edgecolors='white')
        for axis, point, centre, colour in zip(
            row[1:], image_points, centres, DOT_COLOURS, strict=False
        ):
            attention = image_weights[point[0] * queries + point[1]].reshape(keys, keys)
            axis.imshow(image, extent=(0, size, size, 0))
            axis.imshow(
                attention,
                extent=(0, size, size, 0),
                cmap='inferno',
                alpha=0.7,
                interpolation='nearest',
            )
            for peak in _peaks(attention):
                target = (peak[::-1] + 0.5) * size / keys
                axis.annotate('', target, centre, arrowprops={'color': colour, 'arrowstyle': '->'})
            axis.scatter(*centre, c=colour, s=40, edgecolors='white')
    return figure


def spread_points(weights: np.ndarray, count: int) -> np.ndarray:
    """Chooses query locations whose attention maps differ most from each other.

    The first has the map that is farthest from the mean map, each next one the map that is farthest
    from those already chosen, in Hellinger distance.

    Args:
      weights: float32 [N, M]: attention of N query positions, a square grid, to M keys.
      count: K, the number of locations.

    Returns:
      int [K, 2], rows and columns in the query grid.
    """
    roots = np.sqrt(weights)
    distances = np.linalg.norm(roots - np.sqrt(weights.mean(0)), axis=1)
    chosen = [int(distances.argmax())]
    distances = np.full(len(weights), np.inf)
    while len(chosen) < count:
        distances = np.minimum(distances, np.linalg.norm(roots - roots[chosen[-1]], axis=1))
        chosen.append(int(distances.argmax()))
    return np.stack(np.divmod(chosen, math.isqrt(len(weights))), axis=1)


def curves_figure(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], ylabel: str) -> Figure:
    """Plots curves over training steps, given as `{name: (steps, values)}`."""
    figure = Figure(figsize=(6, 3.5), layout='constrained')
    axis = figure.subplots()
    for name, (steps, values) in curves.items():
        axis.plot(steps, values, label=name)
    axis.set_xlabel('step')
    axis.set_ylabel(ylabel)
    axis.legend()
    axis.grid(alpha=0.3)
    return figure


def neighbours_figure(images: np.ndarray, neighbours: np.ndarray, distances: np.ndarray) -> Figure:
    """Images and their nearest neighbours, one image per row.

    Args:
      images: uint8 [R, S, S, 3].
      neighbours: uint8 [R, K, S, S, 3], on the right of each image.
      distances: float [R, K], the neighbours' titles.
    """
    rows, count = distances.shape
    figure = Figure(figsize=(1.2 * (count + 1), 1.4 * rows), layout='constrained')
    axes = figure.subplots(rows, count + 1, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, image, nearest, far in zip(axes, images, neighbours, distances, strict=True):
        row[0].imshow(image)
        row[0].set_title('sample', fontsize=8)
        for axis, neighbour, distance in zip(row[1:], nearest, far, strict=True):
            axis.imshow(neighbour)
            axis.set_title(f'{distance:.3g}', fontsize=8)
    return figure


def save_figure(path: str | os.PathLike, figure: Figure) -> None:
    """Writes a figure atomically, in the format that the path's suffix names: .png or .pdf."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _peaks(attention: np.ndarray, count: int = 3) -> list[np.ndarray]:
    """The most attended cells, at most `count`: not adjacent, at least a third of the maximum."""
    attention, threshold = attention.copy(), attention.max() / 3
    peaks: list[np.ndarray] = []
    while len(peaks) < count and attention.max() >= threshold:
        row, column = np.unravel_index(np.argmax(attention), attention.shape)
        peaks.append(np.array([row, column]))
        attention[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = -1
    return peaks

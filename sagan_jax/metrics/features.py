"""Runs a feature network on all devices and collects what the scores need."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sagan_jax.metrics.scores import (
    Moments,
    SplitSums,
    add_logits,
    merge,
    moments,
    split_sums,
)
from sagan_jax.system import distributed

Variables = dict[str, Any]  # Flax variables, {'params': …}

MERGED = 1024  # samples whose moments are computed at a time


class FeatureNetwork(NamedTuple):
    """A network whose features are scored.

    Attributes:
      name: part of every score's protocol.
      sha256: of its weights.
      resize: how it resizes images to its input size.
      apply: `apply(variables, images) -> {layer: [N, d], logits: [N, classes], …}`, a pure
        function of images [N, H, W, 3], uint8 or float from 0 to 255.
      variables: its weights.
      layer: the entry of the features that distances are computed from.
      logits: the entry that the Inception Score is computed from.
    """

    name: str
    sha256: str
    resize: str
    apply: Callable[[Variables, jax.Array], dict[str, jax.Array]]
    variables: Variables
    layer: str
    logits: str


def on_devices(
    apply: Callable[[Any, Any], dict[str, jax.Array]],
    batch_size: int,
    devices: list[jax.Device] | None = None,
) -> Callable[[Any, Iterable[Any]], Iterator[dict[str, np.ndarray]]]:
    """Builds `stream(variables, batches)`, which iterates over the features of batches of images.

    Batches of any length are cut into parts of `batch_size`, rounded up to a multiple of the
    devices, which share each part. The last part is padded and its padding removed afterwards. So
    `apply` is compiled once, no image is dropped, and the features depend neither on `batch_size`
    nor on the number of devices.

    Args:
      apply: `apply(variables, images) -> {name: [n, …]}`. Must process each image independently.
      batch_size: images at a time.
      devices: the local devices by default. If they belong to several processes, all of these must
        call `stream` with the same batches, and all receive all features.

    Returns:
      `stream(variables, batches)`. Batches are arrays [n, …] or trees of arrays of the same length;
      they may also be inputs from which `apply` generates images.
    """
    devices = devices or jax.local_devices()
    mesh = Mesh(np.array(devices), ('batch',))
    rows, whole = NamedSharding(mesh, PartitionSpec('batch')), NamedSharding(mesh, PartitionSpec())
    part = -(-batch_size // len(devices)) * len(devices)
    run = jax.jit(apply, in_shardings=(whole, rows), out_shardings=whole)

    def fetch(features: dict[str, jax.Array], count: int) -> dict[str, np.ndarray]:
        return {name: np.asarray(value)[:count] for name, value in features.items()}

    def padded(array: np.ndarray) -> np.ndarray:
        return np.pad(array, [(0, part - len(array))] + [(0, 0)] * (array.ndim - 1))

    def stream(variables: Any, batches: Iterable[Any]) -> Iterator[dict[str, np.ndarray]]:
        variables = distributed.place(variables, whole)
        waiting = None  # the devices compute one part while the host handles the one before
        for batch in batches:
            length = len(jax.tree.leaves(batch)[0])
            for start in range(0, length, part):
                end = min(start + part, length)
                images = jax.tree.map(lambda array, at=slice(start, end): padded(array[at]), batch)
                features = run(variables, distributed.place(images, rows))
                if waiting:
                    yield fetch(*waiting)
                waiting = features, end - start
        if waiting:
            yield fetch(*waiting)

    return stream


class Collected(NamedTuple):
    """What the scores need of a set of N images."""

    moments: Moments  # of all images
    splits: SplitSums  # of all images, for the Inception Score
    features: np.ndarray  # [min(N, keep), d] of the first images, for scores over pairs


def collect(
    stream: Iterable[dict[str, np.ndarray]],
    layer: str,
    logits: str,
    total: int,
    splits: int,
    keep: int,
) -> Collected:
    """Reads the features of `total` images. Memory grows with `keep`, not with `total`.

    Args:
      stream: batches of features, as from `on_devices`.
      layer: the entry for moments and for scores over pairs.
      logits: the entry for the Inception Score.
      total: the number of images, at least 1.
      splits: of the Inception Score.
      keep: the number of images whose features are kept for scores over pairs.

    Raises:
      UserError: if a value is not finite.
      ValueError: if there are more or fewer than `total` images.
    """
    sums, room = split_sums(total, splits), keep
    kept: list[np.ndarray] = []
    block: list[np.ndarray] = []
    whole: Moments | None = None
    for batch in stream:
        sums = add_logits(sums, batch[logits])
        block.append(batch[layer])
        if room or not kept:  # [0, d] if nothing is kept
            kept.append(batch[layer][:room].copy())  # a view would keep the whole batch alive
            room -= len(kept[-1])
        # Merging costs as much as hundreds of samples, so it is done once per thousand.
        if sum(map(len, block)) >= MERGED or sums.seen >= total:
            part, block = moments(np.concatenate(block)), []
            whole = part if whole is None else merge(whole, part)
    if whole is None or sums.seen != total:
        raise ValueError(f'expected the features of {total} images, got {sums.seen}')
    return Collected(whole, sums, np.concatenate(kept))

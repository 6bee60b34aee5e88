"""Running a feature network over devices, and gathering what the scores need."""

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

MERGED = 1024  # samples


class FeatureNetwork(NamedTuple):
    """A network whose features scores are taken from.

    Attributes:
      name: goes with every score.
      sha256: of its weights.
      resize: how it brings pictures to its own size.
      apply: `apply(variables, images) -> {layer: [N, d], logits: [N, classes], …}`, a pure
        function of images [N, H, W, 3], uint8 or float from 0 to 255.
      variables: its weights.
      layer, logits: the entries for distances and for the Inception Score.
    """

    name: str
    sha256: str
    resize: str
    apply: Callable[[dict, jax.Array], dict[str, jax.Array]]
    variables: dict
    layer: str
    logits: str


def on_devices(
    apply: Callable[[dict, Any], dict[str, jax.Array]],
    batch_size: int,
    devices: list[jax.Device] | None = None,
) -> Callable[[dict, Iterable[Any]], Iterator[dict[str, np.ndarray]]]:
    """Makes of `apply(variables, images)` a function from batches of images to their features.

    Batches [n, …] may be of any length and are cut into parts of `batch_size`, rounded up to a
    multiple of the devices, which share each part. The last part is padded and its padding
    cut off again: so there is one compilation, every image counts, and the features depend neither
    on `batch_size` nor on the number of devices. `apply` must treat every image by itself; instead
    of images it may take whatever it makes them from, as one array or several of the same length.

    `devices` are the local ones by default. With those of several processes all must call it, with
    the same batches, and all get all features.
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

    def stream(variables: dict, batches: Iterable[Any]) -> Iterator[dict[str, np.ndarray]]:
        variables = distributed.place(variables, whole)
        waiting = None  # one part is under way on the devices while the host handles the last
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
    """What the scores need of one set of images."""

    moments: Moments  # of all of them
    splits: SplitSums  # of all of them, for the Inception Score
    features: np.ndarray  # [min(N, keep), d] of the first ones, for scores over pairs of samples


def collect(
    stream: Iterable[dict[str, np.ndarray]],
    layer: str,
    logits: str,
    total: int,
    splits: int,
    keep: int,
) -> Collected:
    """Reads the features of `total` images once, in memory that `keep` alone enlarges.

    `layer` names the entry for moments and pairs, `logits` that for the Inception Score. Raises
    UserError if a value is not finite and ValueError if there are not `total` images.
    """
    sums, kept, room = split_sums(total, splits), [], keep
    whole, block = None, []
    for batch in stream:
        sums = add_logits(sums, batch[logits])
        block.append(batch[layer])
        if room or not kept:  # where nothing is kept, [0, d]
            kept.append(batch[layer][:room].copy())  # a view would hold on to the whole batch
            room -= len(kept[-1])
        # A merge costs as much as hundreds of samples, so they are merged by the thousand.
        if sum(map(len, block)) >= MERGED or sums.seen >= total:
            part, block = moments(np.concatenate(block)), []
            whole = part if whole is None else merge(whole, part)
    if sums.seen != total:
        raise ValueError(f'expected the features of {total} images, got {sums.seen}')
    return Collected(whole, sums, np.concatenate(kept))

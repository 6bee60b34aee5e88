"""Feature networks, and what the scores need of their features."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from sagan_jax.metrics.scores import (
    Moments,
    SplitSums,
    add_logits,
    merge,
    moments,
    split_sums,
)

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

"""Signs that a GAN has collapsed or is about to, while all values are still finite."""

from collections.abc import Mapping

import ml_collections
import numpy as np


def diversity(images: np.ndarray, columns: int) -> float:
    """How much samples of the same class differ, on the scale from 0 to 255.

    The standard deviation of each pixel over the samples of a row, averaged over pixels, channels
    and rows. It is 0 if all samples of a row are equal.

    Args:
      images: uint8 [rows · columns, H, W, 3], one class per row.
      columns: samples per row.
    """
    rows = images.reshape(-1, columns, *images.shape[1:]).astype(np.float32)
    return float(rows.std(1).mean())


def warnings(config: ml_collections.ConfigDict, values: Mapping[str, float]) -> dict[str, str]:
    """Describes each threshold of `config.watch` that is exceeded, in a sentence.

    Args:
      config: see configuration/defaults.py.
      values: metrics of a step, and 'sample_diversity' if it was measured.

    Returns:
      `{name of the threshold: sentence}`.
    """
    limits = config.watch
    found: dict[str, str] = {}
    gap = abs(values['real_logit'] - values['fake_logit'])
    if gap > limits.max_logit_gap:
        found['max_logit_gap'] = (
            f'real and fake logits are {gap:.3g} apart, so the generator may stop learning'
        )
    sigma = max(values['generator_sigma'], values['discriminator_sigma'])
    if sigma > limits.max_sigma:
        found['max_sigma'] = f'the largest σ is {sigma:.3g}, as before a collapse'
    spread = values.get('sample_diversity', np.inf)
    if spread < limits.min_diversity:
        found['min_diversity'] = (
            f'samples of a class differ by {spread:.2g} of 255, as after a collapse'
        )
    return {name: f'{sentence} (watch.{name}={limits[name]:g})' for name, sentence in found.items()}

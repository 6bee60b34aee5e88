"""Signs that a GAN has collapsed or is about to, while its numbers are still finite."""

from collections.abc import Mapping

import ml_collections
import numpy as np


def diversity(images: np.ndarray, columns: int) -> float:
    """How much samples of one class differ, in levels of 0 to 255.

    The standard deviation of each pixel over the samples of a row, averaged over everything else:
    0 if all are the same picture.

    Args:
      images: uint8 [rows · columns, H, W, 3], a row a class.
      columns: samples in a row.
    """
    rows = images.reshape(-1, columns, *images.shape[1:]).astype(np.float32)
    return float(rows.std(1).mean())


def warnings(config: ml_collections.ConfigDict, values: Mapping[str, float]) -> dict[str, str]:
    """A sentence for each threshold of `config.watch` that is passed, by the threshold's name.

    Args:
      config: see configuration/defaults.py.
      values: metrics of a step, and 'sample_diversity' where it was measured.
    """
    limits, found = config.watch, {}
    gap = abs(values['real_logit'] - values['fake_logit'])
    if gap > limits.max_logit_gap:
        found['max_logit_gap'] = (
            f'real and fake logits are {gap:.3g} apart, so that the generator may learn nothing'
        )
    sigma = max(values['generator_sigma'], values['discriminator_sigma'])
    if sigma > limits.max_sigma:
        found['max_sigma'] = f'the largest σ is {sigma:.3g}, as before a collapse'
    spread = values.get('sample_diversity', np.inf)
    if spread < limits.min_diversity:
        found['min_diversity'] = (
            f'samples of a class differ by {spread:.2g} levels of 256, as after a collapse'
        )
    return {name: f'{sentence} (watch.{name}={limits[name]:g})' for name, sentence in found.items()}

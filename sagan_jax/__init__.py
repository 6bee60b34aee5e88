"""Self-Attention Generative Adversarial Networks (Zhang et al., ICML 2019) in JAX and Flax.

model = sagan_jax.load('runs/quickstart')
images = model.sample(classes=['star'], n=8, seed=0)  # uint8 [8, 32, 32, 3]
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sagan_jax.trained.model import Model

__version__ = '0.1.0'


def load(workdir: str | os.PathLike, checkpoint: str | int = 'newest') -> Model:
    """Loads the model of a run's folder, of an exported folder, or of hf://OWNER/NAME on the hub.

    `checkpoint` of a run is 'newest', 'best' or a step. See `trained.loading.load`.
    """
    from sagan_jax.trained import loading  # imports JAX, which takes seconds

    return loading.load(workdir, checkpoint)

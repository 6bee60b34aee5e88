"""Self-Attention Generative Adversarial Networks (Zhang et al., ICML 2019) in JAX and Flax.

model = sagan_jax.load('runs/quickstart')
images = model.sample(classes=['star'], n=8, seed=0)  # uint8 [8, 32, 32, 3]
"""

import os

__version__ = '0.1.0'


def load(workdir: str | os.PathLike, checkpoint: str | int = 'newest'):
    """The model of a run's checkpoint: 'newest', 'best' or a step; see `trained.model.load`."""
    from sagan_jax.trained import model  # JAX is not imported before it is needed

    return model.load(workdir, checkpoint)

"""A small SAGAN on the embedded data set `shapes`: ten classes of 32×32 pictures.

  python -m sagan_jax.main --config configs/quickstart.py

Each picture holds two copies of its class's shape, far apart and of one colour. 2,000 steps take
four to six minutes on two CPU cores. By the end the rows of runs/quickstart/samples/002000.png are
pairs of one colour whose shape is the class's. Both losses stay near 1, and the gammas move away
from 0 to about +0.3.
"""

import ml_collections

from sagan_jax.configuration import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults.get_config()
    config.num_train_steps = 2000
    config.batch_size = 16
    config.discriminator_steps = 1

    config.dataset.name = 'shapes'
    config.dataset.image_size = 32
    config.dataset.num_classes = 10

    config.model.architecture = 'pyramid'
    config.model.generator_width = 24
    config.model.discriminator_width = 24
    config.model.z_dim = 64
    config.model.generator_attention = (16,)
    config.model.discriminator_attention = (16,)

    config.optimizer.generator_lr = 6e-4
    config.optimizer.discriminator_lr = 1.2e-3
    config.optimizer.b1 = 0.0
    config.optimizer.b2 = 0.9

    config.ema.decay = 0.99
    config.ema.start_step = 100
    config.batch_norm.standing_batches = 16

    config.log_every = 50
    config.sample_every = 250
    config.checkpoint_every = 250
    config.evaluate_every = 500

    config.evaluation.features = 'in_domain'
    config.evaluation.num_samples = 10_000
    config.evaluation.training_samples = 2000
    return config

"""A small SAGAN on the embedded data set `shapes`: ten classes of 32×32 images.

  python -m sagan_jax.main --config configs/quickstart.py

Each image shows two copies of its class's shape, far apart and of the same colour. Shapes match
their classes after about 1,000 steps, and the two colours agree after about 2,000, when the rates
are already falling. docs/scores.md has the scores of eight seeds and how the recipe was found.
"""

import ml_collections

from sagan_jax.configuration import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults.get_config()
    config.num_train_steps = 3500
    config.batch_size = 32
    config.discriminator_steps = 1
    config.mismatch_weight = 1.0
    config.mode_seeking_weight = 0.5

    config.dataset.name = 'shapes'
    config.dataset.image_size = 32
    config.dataset.num_classes = 10

    config.model.architecture = 'pyramid'
    config.model.generator_width = 12
    config.model.discriminator_width = 20
    config.model.z_dim = 8  # an image has six independent properties beside its class
    config.model.generator_attention = (16,)
    config.model.discriminator_attention = (8,)

    config.optimizer.generator_lr = 1.2e-3
    config.optimizer.discriminator_lr = 1.2e-3
    config.optimizer.b1 = 0.0
    config.optimizer.b2 = 0.9
    config.optimizer.decay_from = 0.5

    config.ema.decay = 0.99
    config.ema.start_step = 100
    config.batch_norm.standing_batches = 16

    config.log_every = 100
    config.sample_every = 500
    config.checkpoint_every = 500
    config.evaluate_every = 500

    config.evaluation.features = 'in_domain'
    config.evaluation.num_samples = 10_000
    config.evaluation.training_samples = 2000
    return config

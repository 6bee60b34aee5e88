"""The paper's models at small scale, on the embedded data set `shapes`.

  python -m sagan_jax.main --config configs/shapes.py:feat16

Networks of about the size of configs/quickstart.py, trained for 1,000 steps. The variants are those
of sagan_jax/configuration/variants.py, with attention at 8 or 16, and at 16 in Table 2.
"""

import ml_collections

from sagan_jax.configuration import defaults, variants

BEST_PUBLIC = variants.attention_at(16) | {
    'ema.decay': 0.999,
    'spectral_norm.epsilon': 1e-8,
    'batch_norm.cross_replica': False,
}


def get_config(variant: str = 'feat16') -> ml_collections.ConfigDict:
    config = defaults.get_config()
    config.num_train_steps = 1000
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
    config.evaluate_every = 250

    config.evaluation.features = 'in_domain'
    config.evaluation.num_samples = 10_000
    config.evaluation.training_samples = 2000
    return variants.apply(config, variant, BEST_PUBLIC)

"""SAGAN on CelebA, unconditional, 64×64.

  python -m sagan_jax.main --config configs/celeba.py

The data set is celeb_a of TFDS, which needs TensorFlow once, to prepare it (the error says what to
install). Neither a folder of the images needs it, --config.dataset.name=image_folder
--config.dataset.source_dir=FOLDER, nor a copy on the Hugging Face hub, such as
--config.dataset.name=hf:flwrlabs/celeba. For 128×128 add
--config.dataset.image_size=128. One GPU is enough. The rates, 5e-5 for the generator and 1e-4 for
the discriminator, are those of a published recipe. The variants are those of
sagan_jax/configuration/variants.py that need no classes.
"""

import ml_collections

from sagan_jax.configuration import defaults, variants

BEST_PUBLIC = variants.attention_at(32) | {
    'ema.decay': 0.999,
    'ema.start_step': 2000,
    'spectral_norm.epsilon': 1e-8,
    'batch_norm.cross_replica': False,
}


def get_config(variant: str = 'feat32') -> ml_collections.ConfigDict:
    config = defaults.get_config()
    config.num_train_steps = 100_000
    config.batch_size = 64
    config.discriminator_steps = 1

    config.dataset.name = 'celeb_a'
    config.dataset.image_size = 64
    config.dataset.num_classes = 1
    config.dataset.flip = True

    config.model.architecture = 'sagan'
    config.model.generator_width = 64
    config.model.discriminator_width = 64
    config.model.z_dim = 128
    config.model.generator_attention = (32,)
    config.model.discriminator_attention = (32,)
    config.model.conditioning = 'none'

    config.optimizer.generator_lr = 5e-5
    config.optimizer.discriminator_lr = 1e-4
    config.optimizer.b1 = 0.0
    config.optimizer.b2 = 0.9

    config.log_every = 100
    config.sample_every = 1000
    config.checkpoint_every = 1000
    return variants.apply(config, variant, BEST_PUBLIC)

"""SAGAN on ImageNet at 128×128, as the authors' code trained it for the paper.

  python -m sagan_jax.main --config configs/imagenet128.py:feat32 \\
      --config.dataset.source_dir=IMAGENET

IMAGENET/train has the 1,000 class folders of ILSVRC 2012, and so has IMAGENET/val, which is
optional. With --config.dataset.name=imagenet2012, IMAGENET has ILSVRC2012_img_train.tar and
ILSVRC2012_img_val.tar instead, which are not unpacked; the second is optional. The images and their
order are the same. --config.dataset.name=hf:ILSVRC/imagenet-1k takes the copy on the Hugging Face
hub, with HF_TOKEN of an account that has accepted its conditions.

sagan_jax/configuration/variants.py defines the variants: those of Table 1 (`no_attention`, `feat8`
… `feat64`, `residual8` … `residual64`), of Table 2 (`acgan`, `sngan_projection`) and of Figure 3
(`sn_d`, `sn_d_5to1`, `sn_gd`, `sn_gd_ttur`), `dcgan`, `paper_text`, and `best_public`, the settings
of the best public result (Inception Score 69.5, FID 12.83; batches of 256 on eight devices, whose
moments are of 32 images each).

The paper trained a million steps of 256 images on four GPUs in about two weeks. It reports an FID
of 22.96 without attention, and of 22.98, 22.14, 18.28 and 18.65 with attention at 8, 16, 32 and 64.
Its code computes batch statistics per GPU, over 64 images: --config.batch_norm.cross_replica=False
on four devices.
"""

import ml_collections

from sagan_jax.configuration import defaults, variants

BEST_PUBLIC = variants.attention_at(64) | {
    'ema.decay': 0.999,
    'ema.start_step': 2000,
    'model.dense_bias': 'uniform',
    'spectral_norm.epsilon': 1e-8,
    'batch_norm.cross_replica': False,
    'batch_norm.class_tables': 'drawn',
    'batch_norm.decay': 0.9,
    'batch_norm.last_decay': 0.9,
    'batch_norm.unbiased_average': True,
}


def get_config(variant: str = 'feat32') -> ml_collections.ConfigDict:
    config = defaults.get_config()
    config.num_train_steps = 1_000_000
    config.batch_size = 256
    config.discriminator_steps = 1

    config.dataset.name = 'image_folder'
    config.dataset.image_size = 128
    config.dataset.num_classes = 1000

    config.model.architecture = 'sagan'
    config.model.generator_width = 64
    config.model.discriminator_width = 64
    config.model.z_dim = 128
    config.model.generator_attention = (32,)
    config.model.discriminator_attention = (32,)

    config.optimizer.generator_lr = 1e-4
    config.optimizer.discriminator_lr = 4e-4
    config.optimizer.b1 = 0.0
    config.optimizer.b2 = 0.999

    config.log_every = 100
    config.sample_every = 5000
    config.checkpoint_every = 5000
    return variants.apply(config, variant, BEST_PUBLIC)

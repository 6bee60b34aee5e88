"""SAGAN on ImageNet at 128×128, as the authors' code trained it for the paper's Table 1.

  python -m sagan_jax.main --config configs/imagenet128.py:feat32 \\
      --config.dataset.source_dir=IMAGENET

IMAGENET/train holds the 1,000 class folders of ILSVRC 2012 (and IMAGENET/val, if it is there, the
same for validation). Variants: `feat8`, `feat16`, `feat32` (the default), `feat64` put one
attention block into each network at that resolution, `no_attention` none.

The paper trained a million steps of 256 images on four GPUs in about two weeks, and reports an
FID of 22.96 without attention, 22.98, 22.14, 18.28 and 18.65 with it at 8, 16, 32 and 64. Its
code takes batch statistics per GPU, 64 images each: --config.batch_norm.cross_replica=False on
four devices.
"""

import ml_collections

from configs import common
from sagan_jax.errors import UserError

ATTENTION = {'no_attention': (), 'feat8': (8,), 'feat16': (16,), 'feat32': (32,), 'feat64': (64,)}


def get_config(variant: str = 'feat32') -> ml_collections.ConfigDict:
    if variant not in ATTENTION:
        raise UserError(
            f'configs/imagenet128.py has no variant {variant!r}: '
            f'choose among {", ".join(ATTENTION)}.'
        )
    config = common.get_config()
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
    config.model.generator_attention = ATTENTION[variant]
    config.model.discriminator_attention = ATTENTION[variant]

    config.optimizer.generator_lr = 1e-4
    config.optimizer.discriminator_lr = 4e-4
    config.optimizer.b1 = 0.0
    config.optimizer.b2 = 0.999

    config.log_every = 100
    config.sample_every = 5000
    config.checkpoint_every = 5000
    return config

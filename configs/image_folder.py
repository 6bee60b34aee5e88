"""Your own images: a folder of JPEG or PNG files, one such folder per class, or an archive.

  python -m sagan_jax.main --config configs/image_folder.py --config.dataset.source_dir=IMAGES

The files are IMAGES/1.jpg, IMAGES/2.png, …, which are trained without classes, or IMAGES/cat/1.jpg,
IMAGES/dog/2.png, …, or either below IMAGES/train and IMAGES/test (Train, valid and the like work
too). IMAGES may also be a zip or tar of such a folder, as tiny-imagenet-200.zip is, and is not
unpacked; a compressed tar is read as a whole at each start. WebP, GIF, BMP, TIFF, PPM, TGA and AVIF
are read as well. On first use the images are cropped to their centre, resized to
`dataset.image_size` (24, 32, 48, 64, 96, … 1024) and stored beside the other data sets of TFDS.
--config.model.conditioning=none trains without the classes of a folder.
--config.dataset.channels=1 makes images grey, and samples are grey then too.
--config.dataset.name=hf:OWNER/NAME takes the images of the Hugging Face hub instead.

A discriminator learns few images by heart. If there are fewer than 10,000, it therefore sees them
augmented (Zhao et al. 2020). --config.diff_augment= turns that off, which suits narrow networks and
short runs, as on a CPU: see docs/few_images.md.

The defaults suit 64×64 on one GPU. --config.dtype=bfloat16 computes activations in half precision.
On a CPU use --config.dataset.image_size=32 and widths from 16 to 32.
"""

import ml_collections

from sagan_jax.configuration import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults.get_config()
    config.num_train_steps = 100_000
    config.batch_size = 64
    config.discriminator_steps = 1
    config.diff_augment = 'auto'

    config.dataset.name = 'image_folder'
    config.dataset.image_size = 64
    config.dataset.num_classes = None  # as many as the folder has
    config.dataset.flip = True

    config.model.architecture = 'sagan'
    config.model.generator_width = 64
    config.model.discriminator_width = 64
    config.model.z_dim = 128
    config.model.generator_attention = None  # at 16, or at 12 for images of 48, 96, 192 …
    config.model.discriminator_attention = None

    config.optimizer.generator_lr = 1e-4
    config.optimizer.discriminator_lr = 4e-4
    config.optimizer.b1 = 0.0
    config.optimizer.b2 = 0.9

    config.ema.decay = 0.999
    config.ema.start_step = 1000
    config.batch_norm.standing_batches = 16

    config.log_every = 100
    config.sample_every = 1000
    config.checkpoint_every = 1000
    return config

"""Decides what a configuration leaves open: keys whose values depend on the data."""

from collections.abc import Callable

import ml_collections

from sagan_jax.configuration import checks
from sagan_jax.models.architectures import attention_resolutions, usual_attention

# With this many images of CIFAR-10 DiffAugment lowered the FID of BigGAN from 21.6 to 14.0, with
# half as many from 39.8 to 22.4, and with all 50,000 from 9.6 to 8.7 (Zhao et al. 2020, table 2).
FEW_IMAGES = 10_000
FEW_IMAGES_AUGMENTATION = 'color,translation,cutout'


def is_open(config: ml_collections.ConfigDict) -> bool:
    """Whether a configuration leaves anything to `resolve`."""
    model = config.model
    attention = model.generator_attention, model.discriminator_attention
    return config.diff_augment == 'auto' or None in (config.dataset.num_classes, *attention)


def resolve(
    config: ml_collections.ConfigDict,
    count_classes: Callable[[], int],
    count_images: Callable[[], int],
) -> ml_collections.ConfigDict:
    """A configuration with a value for every key that networks and data need.

    `dataset.num_classes=None` becomes the number of classes that there are. If there is one class,
    `model.conditioning` becomes 'none'. `diff_augment='auto'` becomes `FEW_IMAGES_AUGMENTATION` for
    fewer than `FEW_IMAGES` images, and '' for more. Attention that is None becomes that of
    `architectures.usual_attention`.

    Args:
      config: one that `checks.check` accepts; it is not changed.
      count_classes: called if `dataset.num_classes` is None; returns the number of classes.
      count_images: called if `diff_augment` is 'auto'; returns the number of training images.

    Raises:
      UserError: if `checks.check` refuses the result, as some keys depend on the classes.
    """
    if not is_open(config):
        return config
    resolved = config.copy_and_resolve_references()
    model, dataset = resolved.model, resolved.dataset
    with resolved.unlocked():
        if dataset.num_classes is None:
            dataset.num_classes = count_classes()
            if dataset.num_classes < 2:
                model.conditioning = 'none'
        if resolved.diff_augment == 'auto':
            resolved.diff_augment = FEW_IMAGES_AUGMENTATION if count_images() < FEW_IMAGES else ''
        possible = attention_resolutions(model.architecture, dataset.image_size)
        if model.generator_attention is None:
            model.generator_attention = usual_attention(possible[0])
        if model.discriminator_attention is None:
            model.discriminator_attention = usual_attention(possible[1])
    checks.check(resolved)
    return resolved

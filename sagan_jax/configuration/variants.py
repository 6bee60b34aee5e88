"""The models that the paper compares, as variants of a configuration.

  python -m sagan_jax.main --config configs/imagenet128.py:feat32 \\
      --config.dataset.source_dir=IMAGENET

A variant is a set of keys that differ from the settings of its configuration file.
"""

import math
from collections.abc import Sequence
from typing import Any

import ml_collections

from sagan_jax.errors import UserError

FEATURE_MAPS = (8, 16, 32, 64)

# Groups of variants; which of them exist depends on the image size.
GROUPS = {
    'table1': (
        'no_attention',
        *(f'feat{k}' for k in FEATURE_MAPS),
        *(f'residual{k}' for k in FEATURE_MAPS),
    ),
    'table2': ('acgan', 'sngan_projection', 'sagan'),
    'figure3': ('sn_d', 'sn_d_5to1', 'sn_gd', 'sn_gd_ttur'),
}


def names(image_size: int) -> list[str]:
    """The variants that exist at an image size: attention is possible up to half of it.

    Images of 3·2^k have none of these feature maps.
    """
    maps = [k for k in FEATURE_MAPS if k <= image_size // 2 and image_size % 3]
    return [
        'no_attention',
        *(f'feat{k}' for k in maps),
        *(f'residual{k}' for k in maps),
        *GROUPS['figure3'],
        'acgan',
        'sngan_projection',
        'dcgan',
        'paper_text',
        'best_public',
    ]


def expand(chosen: Sequence[str], image_size: int) -> list[str]:
    """Replaces groups by their variants; keeps the order and removes duplicates.

    Variants of a group that do not exist at `image_size` are left out. 'sagan' of table 2 is the
    variant with attention at half the image size, as in the paper. Raises UserError for an unknown
    name.
    """
    existing = names(image_size)
    found: list[str] = []
    for name in chosen:
        if name not in GROUPS and name not in existing:
            raise UserError(
                f'There is no variant or group {name!r} at image size {image_size}: choose among '
                f'{", ".join((*GROUPS, *existing))}.'
            )
        for member in GROUPS.get(name, (name,)):
            member = f'feat{image_size // 2}' if member == 'sagan' else member
            if member in existing and member not in found:
                found.append(member)
    return found


def apply(
    config: ml_collections.ConfigDict, variant: str, best_public: dict[str, Any]
) -> ml_collections.ConfigDict:
    """Changes a file's settings, which are those of SAGAN, to those of a variant.

    Args:
      config: changed in place, and returned.
      variant: one of `names(config.dataset.image_size)`.
      best_public: the keys of the variant 'best_public' of this file.

    Raises:
      UserError: if the variant does not exist at this image size or needs classes.
    """
    image_size = config.dataset.image_size
    if variant not in names(image_size):
        raise UserError(
            f'There is no variant {variant!r} at image size {image_size}: choose among '
            f'{", ".join(names(image_size))}.'
        )
    if variant in ('acgan', 'sngan_projection') and config.model.conditioning == 'none':
        raise UserError(
            f'The variant {variant} needs classes and this data set has none: choose another one.'
        )

    # Variants with a single rate use the geometric mean of both, which is the 2e-4 of SNGAN for the
    # paper's rates.
    rates = config.optimizer.generator_lr, config.optimizer.discriminator_lr
    rate = round(math.sqrt(math.prod(rates)), 6)
    one_rate = {'optimizer.generator_lr': rate, 'optimizer.discriminator_lr': rate}
    sn_gd_ttur = attention_at()
    sn_gd = sn_gd_ttur | one_rate
    sn_d = sn_gd | {'spectral_norm.generator': False}
    sn_d_5to1 = sn_d | {'discriminator_steps': 5}
    sngan_projection = sn_d_5to1 | {'optimizer.b2': 0.9}
    changes = {
        'no_attention': attention_at(),
        **{f'feat{k}': attention_at(k) for k in FEATURE_MAPS},
        **{
            f'residual{k}': attention_at(k) | {'model.attention_block': 'residual'}
            for k in FEATURE_MAPS
        },
        'sn_d': sn_d,
        'sn_d_5to1': sn_d_5to1,
        'sn_gd': sn_gd,
        'sn_gd_ttur': sn_gd_ttur,
        'sngan_projection': sngan_projection,
        'acgan': sngan_projection | {'model.conditioning': 'acgan'},
        'dcgan': attention_at()
        | {
            'model.architecture': 'dcgan',
            'model.conditioning': 'none',
            'model.initializer': 'normal',
            'spectral_norm.generator': False,
            'spectral_norm.discriminator': False,
            'loss': 'non_saturating',
            'optimizer.generator_lr': 2e-4,
            'optimizer.discriminator_lr': 2e-4,
            'optimizer.b1': 0.5,
            'optimizer.b2': 0.999,
        },
        'paper_text': {
            'model.attention_value_divisor': 8,
            'model.attention_pooling': False,
            'optimizer.b2': 0.9,
        },
        'best_public': best_public,
    }
    config.update_from_flattened_dict(changes[variant])
    return config


def attention_at(*resolutions: int) -> dict[str, tuple[int, ...]]:
    """The keys that put attention, or the block that replaces it, at these resolutions."""
    return {
        'model.generator_attention': resolutions,
        'model.discriminator_attention': resolutions,
    }

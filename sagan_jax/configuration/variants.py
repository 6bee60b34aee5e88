"""The systems that the paper compares, as changes of a configuration: its variants.

  python -m sagan_jax.main --config configs/imagenet128.py:feat32

Each variant says here, and nowhere else, in which keys it differs from its file's own settings.
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
    """The variants that exist at an image size: attention stands at half of it at most."""
    maps = [k for k in FEATURE_MAPS if k <= image_size // 2]
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
    """Names of variants and groups as names of variants, in order and each once.

    Of a group those are taken that exist at `image_size`; 'sagan' in table 2 is the one with
    attention at half the image size, as in the paper. Raises UserError for an unknown name.
    """
    existing = names(image_size)
    found = []
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
    """Turns a file's own settings, which are those of SAGAN, into those of a variant.

    Args:
      config: changed in place, and returned.
      variant: one of `names(config.dataset.image_size)`.
      best_public: the keys of the file's variant of that name.

    Raises:
      UserError: for a variant that does not exist, at this image size or without classes.
    """
    image_size = config.dataset.image_size
    if variant not in names(image_size):
        raise UserError(
            f'There is no variant {variant!r} at image size {image_size}: choose among '
            f'{", ".join(names(image_size))}.'
        )
    if variant in ('acgan', 'sngan_projection') and config.model.conditioning == 'none':
        raise UserError(f'The variant {variant} needs classes, and this data set has none.')

    # One rate for both networks where there are no two: their geometric mean, which for the
    # paper's rates is the 2e-4 of SNGAN.
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
    """The keys that put attention, or what stands in its place, at these feature maps."""
    return {
        'model.generator_attention': resolutions,
        'model.discriminator_attention': resolutions,
    }

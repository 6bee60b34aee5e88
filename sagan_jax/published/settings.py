"""The configuration that describes published networks, from the shapes of their arrays."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sagan_jax.errors import UserError
from sagan_jax.models.architectures import ARCHITECTURES, Architecture

Arrays = Mapping[str, np.ndarray]  # by path, see `weights.Found`
Keys = dict[str, Any]  # of a configuration, by dotted name

# What all published networks have in common.
OURS: Keys = {
    'model.attention_block': 'self_attention',
    'model.attention_value_divisor': 2,
    'model.attention_pooling': True,
    'model.conditioning': 'projection',
    'spectral_norm.class_tables': False,
    'batch_norm.class_tables': 'constant',  # gains are stored as they are, 1 + table
    'ema.decay': 0.0,
    'steps_per_call': 1,
}


def describe(generator: Arrays, discriminator: Arrays | None, epsilon: float) -> Keys:
    """The keys that describe networks, from the shapes of their arrays.

    Args:
      generator, discriminator: see `weights.Found`.
      epsilon: of batch norm.

    Raises:
      UserError: if these are no networks of ours.
    """
    for path in ('dense/kernel', 'block1/norm1/scale'):
        if f'params/{path}' not in generator:
            raise UserError(f'The generator has no {path}: the file is damaged.')
    z_dim, features = generator['params/dense/kernel'].shape
    outputs = [features // 16, *_widths(generator)]
    size = 4 * 2 ** (len(outputs) - 1)
    name, unit = _architecture(size, outputs)
    arch = ARCHITECTURES[name][size]
    keys = {
        'dataset.image_size': size,
        'dataset.num_classes': len(generator['params/block1/norm1/scale']),
        'model.architecture': name,
        'model.generator_width': unit,
        'model.z_dim': z_dim,
        'model.generator_attention': tuple(4 * 2**n for n in blocks_before_attention(generator)),
        **OURS,
        'model.discriminator_width': 1,
        'model.discriminator_attention': (),
        'spectral_norm.generator': False,  # folded into the weights
        'spectral_norm.discriminator': False,
        'batch_norm.epsilon': epsilon,
    }
    if discriminator is not None:
        keys |= _describe_discriminator(discriminator, arch, size)
    return keys


def _describe_discriminator(arrays: Arrays, arch: Architecture, size: int) -> Keys:
    widths, after = _widths(arrays), blocks_before_attention(arrays)
    unit = _unit_of(widths, arch.discriminator)
    if not unit:
        raise UserError(
            f'The discriminator has blocks of {_listed(widths)} channels, which is none of ours '
            f'for {size}×{size} images: give the file of the generator alone.'
        )
    if any(n > arch.downs for n in after):
        raise UserError(
            f'The discriminator has attention after its blocks {_listed(after)}, where ours cannot '
            'have it: give the file of the generator alone.'
        )
    return {
        'model.discriminator_width': unit,
        'model.discriminator_attention': tuple(size // 2**n for n in after),
    }


def _widths(arrays: Arrays) -> list[int]:
    """The channels that each block puts out, in order."""
    paths = {
        int(m[1]): path for path in arrays if (m := re.match(r'params/block(\d+)/conv2/k', path))
    }
    return [arrays[paths[number]].shape[-1] for number in sorted(paths)]


def blocks_before_attention(arrays: Arrays) -> list[int]:
    """The numbers of the blocks that attention follows."""
    found = (re.match(r'params/attention(\d+)/gamma', path) for path in arrays)
    return sorted(int(match[1]) for match in found if match)


def _architecture(size: int, widths: Sequence[int]) -> tuple[str, int]:
    """The architecture whose generator has these widths, and their unit."""
    for name, sizes in ARCHITECTURES.items():
        if name != 'dcgan' and size in sizes and (unit := _unit_of(widths, sizes[size].generator)):
            return name, unit
    raise UserError(
        f'The generator has blocks of {_listed(widths)} channels, which is no SAGAN of '
        f'{size}×{size} images: it cannot be converted.'
    )


def _unit_of(widths: Sequence[int], table: Sequence[int]) -> int:
    """The base width with which a table gives these widths; 0 if none does."""
    unit = widths[-1] // table[-1] if widths else 0
    return unit if [unit * factor for factor in table] == list(widths) else 0


def _listed(numbers: Sequence[int]) -> str:
    return ', '.join(map(str, numbers))

"""Variables of the official TensorFlow code in a file of numpy.

TensorFlow writes one with `np.savez(path, **variables)`, see `models.official`.
"""

import io
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from sagan_jax.errors import UserError
from sagan_jax.models import Variables, official
from sagan_jax.models.architectures import ARCHITECTURES
from sagan_jax.published.settings import OURS

ORIGIN = {
    'project': 'self-attention-gan, the official code',
    'networks': ['generator', 'discriminator'],
    'left_out': ['the optimizer'],
    'colours': 'RGB',
    'licence': 'Apache-2.0',
}
_SIZE = 128  # that of the official networks


def is_official(path: Path) -> bool:
    """Whether a file is one of numpy, by its name."""
    return path.suffix == '.npz'


def read(
    path: Path, config: ml_collections.ConfigDict
) -> tuple[Variables, Variables, dict[str, Any]]:
    """Reads a generator, a discriminator and the keys of the configuration that describe them.

    Raises:
      UserError: if the file cannot be read or does not hold these networks.
    """
    variables = _arrays(path)
    keys = _settings(path, variables)
    described = config.copy_and_resolve_references()
    described.update_from_flattened_dict(keys)
    return *official.convert(described, variables), keys


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the file, which are stored as they are and hold what they claim."""
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED:
                    raise ValueError('it is compressed')
                content = io.BytesIO(archive.read(info))
                version = np.lib.format.read_magic(content)
                if version != (1, 0):
                    raise ValueError('its format is unknown')
                shape, _, dtype = np.lib.format.read_array_header_1_0(content)
                if dtype.hasobject or math.prod(shape) * dtype.itemsize > info.file_size:
                    raise ValueError(f'{info.filename} is not what it claims')
                content.seek(0)
                array = np.lib.format.read_array(content, allow_pickle=False)
                found[info.filename.removesuffix('.npy')] = array
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f'{path} is not a file of np.savez that can be read here ({error!s:.200}): write it '
            'again.'
        ) from error
    return found


def _settings(path: Path, variables: Mapping[str, np.ndarray]) -> dict[str, Any]:
    def shape(pattern: str) -> tuple[int, ...]:
        for name, value in variables.items():
            if re.search(rf'(^|/){pattern}$', name):
                return value.shape
        return ()

    dense, table = shape('g_snh0/Matrix'), shape('g_block1/cbn_0/gamma')
    first = shape('d_optimized_block1/sn_conv1/w')
    if not (len(dense) == 2 and len(table) == 2 and len(first) == 4):
        raise UserError(
            f'{path} does not hold the variables of the official SAGAN: g_snh0/Matrix, '
            'g_block1/cbn_0/gamma or d_optimized_block1/sn_conv1/w is missing.'
        )
    arch = ARCHITECTURES['sagan'][_SIZE]
    unit = dense[1] // 16 // arch.generator[0]
    # The channels of the attention tell where it is: no two blocks before the last have as many.
    sizes = [4 * 2**n for n in range(len(arch.generator))]
    in_generator = dict(zip((unit * width for width in arch.generator), sizes, strict=True))
    in_discriminator = {
        first[3] * w: _SIZE // 2**n for n, w in enumerate(arch.discriminator[:5], 1)
    }

    def attention(network: str, places: Mapping[int, int]) -> tuple[int, ...]:
        found = shape(f'{network}_non_local/sn_conv_theta/w')
        return (places.get(found[2], 0),) if len(found) == 4 else ()

    return {
        'dataset.image_size': _SIZE,
        'dataset.num_classes': table[0],
        'model.architecture': 'sagan',
        'model.generator_width': unit,
        'model.discriminator_width': first[3],
        'model.z_dim': dense[0],
        'model.generator_attention': attention('g', in_generator),
        'model.discriminator_attention': attention('d', in_discriminator),
        'model.discriminator_skip': 'input',
        'spectral_norm.generator': True,
        'spectral_norm.discriminator': True,
        **OURS,
    }

"""The official TensorFlow variables as a file of numpy."""

import io
import zipfile
from pathlib import Path

import chex
import numpy as np
import pytest

from sagan_jax.configuration import defaults
from sagan_jax.errors import UserError
from sagan_jax.models import official
from sagan_jax.published import conversion

GOLDEN = np.load(Path(__file__).parents[1] / 'golden' / 'official_feat32.npz')
VARIABLES = {k.removeprefix('var|'): GOLDEN[k] for k in GOLDEN.files if k.startswith('var|')}


def test_settings_and_variables_are_found(tmp_path):
    path = tmp_path / 'official.npz'
    np.savez(path, **VARIABLES)
    converted = conversion.convert([path], defaults.get_config())
    config = converted.config
    assert (config.dataset.image_size, config.dataset.num_classes) == (128, 5)
    assert (config.model.generator_width, config.model.discriminator_width) == (4, 4)
    assert config.model.z_dim == 16
    assert config.spectral_norm.generator
    assert config.model.generator_attention == config.model.discriminator_attention == (32,)
    generator, discriminator = official.convert(config, VARIABLES)
    chex.assert_trees_all_equal(converted.generator, generator)
    chex.assert_trees_all_equal(converted.discriminator, discriminator)


def claiming(shape, dtype='<f4'):
    """An .npy file that claims a shape and holds six numbers."""
    content = io.BytesIO()
    header = {'descr': dtype, 'fortran_order': False, 'shape': shape}
    np.lib.format.write_array_header_1_0(content, header)
    return content.getvalue() + bytes(24)


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('other', claiming((6,)), 'does not hold the variables'),
        ('g_snh0/Matrix', claiming((2**30, 2**30)), 'not what it claims'),
        ('g_snh0/Matrix', claiming((6,), '|O'), 'not what it claims'),
        ('g_snh0/Matrix', b'nothing', 'magic'),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    path = tmp_path / 'official.npz'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(f'{name}.npy', content)
    with pytest.raises(UserError, match=message) as error:
        conversion.convert([path], defaults.get_config())
    assert '\n' not in str(error.value)
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('g_snh0/Matrix.npy', bytes(10**6))
    with pytest.raises(UserError, match='is compressed'):
        conversion.convert([path], defaults.get_config())

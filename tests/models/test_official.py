"""The networks against one evaluation of the original TensorFlow graph."""

from pathlib import Path

import chex
import numpy as np
import pytest
from flax import traverse_util

from sagan_jax import models
from sagan_jax.configuration import defaults
from sagan_jax.errors import UserError
from sagan_jax.models import official

GOLDEN = np.load(Path(__file__).parents[1] / 'golden' / 'official_feat32.npz')
TOLERANCE = {'rtol': 1e-4, 'atol': 1e-4}


def official_config():
    generator_width, discriminator_width, num_classes, z_dim, _ = GOLDEN['meta'].tolist()
    config = defaults.get_config()
    config.dataset.image_size, config.dataset.num_classes = 128, num_classes
    config.model.generator_width = generator_width
    config.model.discriminator_width = discriminator_width
    config.model.z_dim = z_dim
    config.model.generator_attention = config.model.discriminator_attention = (32,)
    return config


def golden(prefix):
    return {k.removeprefix(prefix): GOLDEN[k] for k in GOLDEN.files if k.startswith(prefix)}


@pytest.fixture(scope='module')
def converted():
    return official.convert(official_config(), golden('var|'))


@pytest.fixture(scope='module')
def networks():
    return models.create(official_config())


def expected_stats(before, network, collection, prefix):
    """The golden values after a pass, with our names."""
    variables = golden('var|') | golden(prefix)
    stats = official.convert(official_config(), variables)[network][collection]
    assert len(golden(prefix)) > 10
    chex.assert_trees_all_equal_structs(stats, before[collection])
    return stats


def without_sigma(spectral_stats):
    flat = traverse_util.flatten_dict(spectral_stats)
    return {path: value for path, value in flat.items() if path[-1] == 'u'}


def test_generator_in_training_mode(converted, networks):
    weights, spectral_stats = networks[0].normalise(converted[0])
    images, batch_stats = networks[0].apply(weights, GOLDEN['z'], GOLDEN['labels'], train=True)
    np.testing.assert_allclose(images, GOLDEN['out|g_train'], **TOLERANCE)

    u = expected_stats(converted[0], 0, 'spectral_stats', 'out|after_g_train|')
    chex.assert_trees_all_close(without_sigma(spectral_stats), without_sigma(u), **TOLERANCE)
    averages = expected_stats(converted[0], 0, 'batch_stats', 'out|after_bn|')
    assert len(golden('out|after_bn|')) == 20
    for block in (f'block{i}' for i in range(1, 6)):  # the last batch norm is not recorded
        chex.assert_trees_all_close(batch_stats[block], averages[block], **TOLERANCE)


def test_generator_with_moving_averages(converted, networks):
    weights, _ = networks[0].normalise(converted[0])
    images, batch_stats = networks[0].apply(weights, GOLDEN['z'], GOLDEN['labels'], train=False)
    np.testing.assert_allclose(images, GOLDEN['out|g_eval'], **TOLERANCE)
    chex.assert_trees_all_equal(batch_stats, converted[0]['batch_stats'])


def test_discriminator(converted, networks):
    discriminator = networks[1]
    weights, spectral_stats = discriminator.normalise(converted[1])
    u = expected_stats(converted[1], 1, 'spectral_stats', 'out|after_d_real|')
    chex.assert_trees_all_close(without_sigma(spectral_stats), without_sigma(u), **TOLERANCE)
    for train, expected in ((True, 'out|d_real'), (False, 'out|d_noop')):
        logits, _ = discriminator.apply(weights, GOLDEN['images'], GOLDEN['labels'], train=train)
        np.testing.assert_allclose(logits, GOLDEN[expected][:, 0], **TOLERANCE)


def test_convert_ignores_optimiser_slots_and_outer_scopes():
    variables = {f'tower/{name}': value for name, value in golden('var|').items()}
    variables['tower/model/g_snh0/Matrix/Adam_1'] = variables['tower/model/g_snh0/Matrix']
    variables['beta1_power'] = np.float32(0)
    generator, _ = official.convert(official_config(), variables)
    np.testing.assert_array_equal(
        generator['params']['dense']['kernel'], GOLDEN['var|model/g_snh0/Matrix']
    )


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        (lambda v: v.pop('model/g_bn/beta'), '1 variables of .* missing.* params/norm/bias'),
        (lambda v: v.update({'model/g_new/w': np.zeros(3)}), 'g_new/w is not a variable'),
        (
            lambda v: v.update({'model/g_block9/snconv1/w': np.zeros(3)}),
            'block9/.* is not in the networks of this configuration',
        ),
        (lambda v: v.update({'model/g_bn/beta': np.zeros(3)}), 'g_bn/beta has shape'),
    ],
)
def test_convert_refuses(change, sentence):
    variables = golden('var|')
    change(variables)
    with pytest.raises(UserError, match=sentence):
        official.convert(official_config(), variables)

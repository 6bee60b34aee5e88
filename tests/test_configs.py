"""Every configuration describes networks that can be built, and trained when made narrow."""

import importlib

import jax
import numpy as np
import pytest

from configs import common, imagenet128
from sagan_jax import models
from sagan_jax.train_step import create_state, create_train_step, replicate
from tests import tiny

CONFIGURATIONS = ['common', 'quickstart', 'image_folder', 'cifar10', 'imagenet128']
VARIANTS = list(imagenet128.ATTENTION)


@pytest.mark.parametrize('name', CONFIGURATIONS)
def test_every_file_has_the_keys_of_common(name):
    config = importlib.import_module(f'configs.{name}').get_config()

    def keys(tree):
        return {k: keys(v) if hasattr(v, 'items') else None for k, v in tree.items()}

    assert keys(config) == keys(common.get_config())
    for key in ('log_every', 'sample_every', 'checkpoint_every'):
        assert config[key] % config.steps_per_call == 0


@pytest.mark.parametrize('name', CONFIGURATIONS)
def test_the_networks_of_every_file_can_be_built(name):
    config = importlib.import_module(f'configs.{name}').get_config()
    for network in models.create(config):
        variables = jax.eval_shape(network.init, jax.random.key(0))
        assert models.count_parameters(variables) > 300_000


@pytest.mark.parametrize('variant', VARIANTS)
def test_imagenet_variants_differ_in_their_attention_only(variant):
    config, plain = imagenet128.get_config(variant), imagenet128.get_config('no_attention')
    state = jax.eval_shape(lambda: create_state(config))
    blocks = [
        {name for name in network['params'] if name.startswith('attention')}
        for network in (state.generator, state.discriminator)
    ]
    expected = {variant.replace('feat', 'attention')} - {'no_attention'}
    assert blocks == [expected, expected]

    with config.unlocked(), plain.unlocked():
        for key in ('generator_attention', 'discriminator_attention'):
            del config.model[key], plain.model[key]
    assert config == plain


@pytest.mark.parametrize('variant', VARIANTS)
def test_a_step_of_every_imagenet_variant(variant):
    config = imagenet128.get_config(variant)
    config.model.generator_width = config.model.discriminator_width = 8
    config.batch_size = 2
    used = jax.devices()[:1]
    state, metrics = create_train_step(config, used)(
        replicate(create_state(config), used), *tiny.batch(config)
    )
    assert int(state.step) == 1
    assert all(np.isfinite(value).all() for value in metrics.values())
    resolution = variant.removeprefix('feat')
    assert (f'generator_gamma{resolution}' in metrics) == variant.startswith('feat')

"""All configurations and variants: their keys, their networks, and two steps of training."""

import importlib
import inspect

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sagan_jax import models
from sagan_jax.configuration import defaults, resolving, variants
from sagan_jax.errors import UserError
from sagan_jax.state import create_state
from sagan_jax.system.replicas import replicate
from sagan_jax.train_step import create_train_step
from tests import tiny

CONFIGURATIONS = [
    'quickstart',
    'image_folder',
    'shapes',
    'cifar10',
    'celeba',
    'imagenet128',
]
NEED_CLASSES = ['acgan', 'sngan_projection']  # which celeba does not have


def module_of(name):
    return importlib.import_module(f'configs.{name}')


def load(name, *variant):
    return module_of(name).get_config(*variant)


def flat(config):
    with config.unlocked():
        return flatten_dict(config.to_dict(), sep='.')


def variants_of(name):
    module = module_of(name)
    if not inspect.signature(module.get_config).parameters:
        return []
    missing = NEED_CLASSES if name == 'celeba' else []
    size = module.get_config().dataset.image_size
    return [variant for variant in variants.names(size) if variant not in missing]


ALL = [(name, variant) for name in CONFIGURATIONS for variant in variants_of(name)]
# Different programs. The others differ in numbers or sizes, or are trained in other tests.
TRAINED = [
    ('shapes', 'residual16'),
    ('shapes', 'acgan'),
    ('shapes', 'dcgan'),
    ('shapes', 'paper_text'),
    ('shapes', 'best_public'),
    ('celeba', 'feat32'),
]


@pytest.mark.parametrize('name', CONFIGURATIONS)
def test_every_file_has_every_key(name):
    config = load(name)
    assert flat(config).keys() == flat(defaults.get_config()).keys()
    for key in ('log_every', 'sample_every', 'checkpoint_every', 'evaluate_every'):
        assert config[key] % config.steps_per_call == 0


@pytest.mark.parametrize(
    ('name', 'variant'), [(name, None) for name in ('quickstart', 'image_folder')] + ALL
)
def test_the_networks_of_every_variant_can_be_built(name, variant):
    config = resolving.resolve(load(name, *filter(None, [variant])), lambda: 10, lambda: 10**6)
    for network in models.create(config):
        variables = jax.eval_shape(network.init, jax.random.key(0))
        assert models.count_parameters(variables) > 50_000


# ---- What a variant changes. -------------------------------------------------------------------

ATTENTION = {'model.generator_attention', 'model.discriminator_attention'}
RATES = {'optimizer.generator_lr', 'optimizer.discriminator_lr'}
DCGAN = {
    'model.architecture', 'model.conditioning', 'model.initializer', 'loss', 'optimizer.b1',
    'spectral_norm.generator', 'spectral_norm.discriminator',
}  # fmt: skip
PAPER_TEXT = {'model.attention_value_divisor', 'model.attention_pooling', 'optimizer.b2'}


@pytest.mark.parametrize(
    ('variant', 'neighbour', 'keys'),
    [
        ('feat8', 'no_attention', ATTENTION),
        ('feat16', 'no_attention', ATTENTION),
        ('feat32', 'no_attention', ATTENTION),
        ('feat64', 'no_attention', ATTENTION),
        ('residual8', 'feat8', {'model.attention_block'}),
        ('residual64', 'feat64', {'model.attention_block'}),
        ('sn_gd_ttur', 'no_attention', set()),
        ('sn_gd', 'sn_gd_ttur', RATES),
        ('sn_d', 'sn_gd', {'spectral_norm.generator'}),
        ('sn_d_5to1', 'sn_d', {'discriminator_steps'}),
        ('sngan_projection', 'sn_d_5to1', {'optimizer.b2'}),
        ('acgan', 'sngan_projection', {'model.conditioning'}),
        ('dcgan', 'no_attention', DCGAN | RATES),
        ('paper_text', 'feat32', PAPER_TEXT),
        (
            'best_public',
            'feat64',
            {
                'ema.decay',
                'ema.start_step',
                'model.dense_bias',
                'spectral_norm.epsilon',
                'batch_norm.cross_replica',
                'batch_norm.class_tables',
                'batch_norm.decay',
                'batch_norm.last_decay',
                'batch_norm.unbiased_average',
            },
        ),
    ],
)
def test_a_variant_differs_from_its_neighbour_in_these_keys_only(variant, neighbour, keys):
    here, there = flat(load('imagenet128', variant)), flat(load('imagenet128', neighbour))
    assert {key for key in here if here[key] != there[key]} == keys


@pytest.mark.parametrize(('name', 'variant'), ALL)
def test_attention_is_at_the_resolution_in_the_variants_name(name, variant):
    config = load(name, variant)
    digits = variant.removeprefix('feat').removeprefix('residual')
    if digits.isdigit():
        assert config.model.generator_attention == (int(digits),)
        assert config.model.discriminator_attention == (int(digits),)
    elif variant not in ('paper_text', 'best_public'):
        assert config.model.generator_attention == config.model.discriminator_attention == ()


# What mmgeneration trained its best SAGANs with: its configurations
# sagan_32_woReLUinplace_lr-2e-4_ndisc5_cifar10_b64x1.py, with the images of cifar10_nopad.py, and
# sagan_128_woReLUinplace_noaug_bigGAN_Glr-1e-4_Dlr-4e-4_ndisc1_imagenet1k_b32x8.py, with the
# defaults of its networks and of PyTorch's layers where these say nothing.
RECIPES = {
    'cifar10': {
        'batch_size': 64,  # b64x1
        'discriminator_steps': 5,  # disc_step = 5
        'num_train_steps': 100_000,  # total_iters = 100000 * disc_step
        'loss': 'hinge',
        'dataset.flip': True,  # RandomFlip at 0.5
        'dataset.image_size': 32,
        'dataset.num_classes': 10,
        'model.generator_width': 64,  # base_channels 256 times 1 = ch times 4
        'model.discriminator_width': 64,  # 128 times 1 = ch times 2
        'model.z_dim': 128,  # noise_size
        'model.generator_attention': (16,),  # attention_after_nth_block 2
        'model.discriminator_attention': (16,),  # attention_after_nth_block 1
        'model.attention_value_divisor': 2,
        'model.attention_pooling': True,
        'model.conditioning': 'projection',
        'model.discriminator_skip': 'input',  # woReLUinplace
        'model.initializer': 'orthogonal',  # init_cfg type studio
        'model.dense_bias': 'zeros',  # init_cfg type studio
        'batch_norm.class_tables': 'drawn',  # gain 1 + table, orthogonal
        'batch_norm.epsilon': 1e-4,  # norm_eps
        'batch_norm.decay': 0.9,  # 1 - momentum of nn.BatchNorm2d
        'batch_norm.last_decay': 0.9,
        'batch_norm.unbiased_average': True,  # nn.BatchNorm2d
        'batch_norm.standing_batches': 0,
        'spectral_norm.generator': True,
        'spectral_norm.discriminator': True,
        'spectral_norm.class_tables': True,  # as with_spectral_norm
        'spectral_norm.epsilon': 1e-12,  # sn_eps
        'optimizer.generator_lr': 2e-4,
        'optimizer.discriminator_lr': 2e-4,
        'optimizer.b1': 0.5,
        'optimizer.b2': 0.999,
        'optimizer.epsilon': 1e-8,
        'optimizer.decay_from': 1.0,  # lr_config = None
        'optimizer.frozen_discriminator_blocks': 0,
        'ema.decay': 0.0,  # sample_model orig
    },
    'imagenet128': {
        'batch_size': 256,  # b32x8
        'discriminator_steps': 1,
        'num_train_steps': 1_000_000,
        'loss': 'hinge',
        'dataset.flip': False,  # imagenet_noaug_128.py
        'dataset.image_size': 128,
        'dataset.num_classes': 1000,
        'model.generator_width': 64,
        'model.discriminator_width': 64,
        'model.z_dim': 128,
        'model.generator_attention': (64,),  # attention_after_nth_block 4
        'model.discriminator_attention': (64,),  # attention_after_nth_block 1
        'model.attention_value_divisor': 2,
        'model.attention_pooling': True,
        'model.conditioning': 'projection',
        'model.discriminator_skip': 'input',
        'model.initializer': 'xavier_uniform',  # init_cfg type BigGAN
        'model.dense_bias': 'uniform',  # nn.Linear; convolutions of ConvModule begin at 0
        'batch_norm.class_tables': 'drawn',  # gain 1 + table, Xavier
        'batch_norm.cross_replica': False,  # auto_sync_bn=False
        'batch_norm.epsilon': 1e-5,
        'batch_norm.decay': 0.9,
        'batch_norm.last_decay': 0.9,
        'batch_norm.unbiased_average': True,
        'batch_norm.standing_batches': 0,
        'spectral_norm.generator': True,
        'spectral_norm.discriminator': True,
        'spectral_norm.class_tables': False,  # with_embedding_spectral_norm=False
        'spectral_norm.epsilon': 1e-8,
        'optimizer.generator_lr': 1e-4,
        'optimizer.discriminator_lr': 4e-4,
        'optimizer.b1': 0.0,
        'optimizer.b2': 0.999,
        'optimizer.epsilon': 1e-8,
        'optimizer.decay_from': 1.0,
        'optimizer.frozen_discriminator_blocks': 0,
        'ema.decay': 0.999,  # momentum of ExponentialMovingAverageHook
        'ema.start_step': 2000,  # its start_iter
    },
}


@pytest.mark.parametrize('name', RECIPES)
def test_best_public_is_the_recipe_of_the_record_in_every_switch(name):
    config = flat(load(name, 'best_public'))
    assert {key: config[key] for key in RECIPES[name]} == RECIPES[name]
    # Every switch of training is in the table, or is off or meaningless there.
    switches = ('loss', 'model.', 'batch_norm.', 'spectral_norm.', 'optimizer.', 'ema.')
    others = {key for key in config if key.startswith(switches)} - RECIPES[name].keys()
    assert others <= {
        'model.architecture',
        'model.attention_block',
        'model.attention_query_block',  # memory
        'model.acgan_weight',  # of another conditioning
        'batch_norm.cross_replica',  # on the one GPU of CIFAR-10's record
        'ema.start_step',  # where there is no average
    }
    assert config['mismatch_weight'] == config['mode_seeking_weight'] == 0
    assert config['lecam_weight'] == config['r1_weight'] == 0
    assert config['diff_augment'] == ''


def test_a_single_rate_is_the_geometric_mean():
    config = load('imagenet128', 'sn_gd')
    assert config.optimizer.generator_lr == config.optimizer.discriminator_lr == 2e-4
    two = load('shapes', 'sn_gd_ttur').optimizer
    one = load('shapes', 'sn_gd').optimizer.generator_lr
    assert one**2 == pytest.approx(two.generator_lr * two.discriminator_lr, rel=2e-3)


def test_unknown_variants_are_refused():
    with pytest.raises(UserError, match=r"'feat9' at image size 128: .*feat64, residual8"):
        load('imagenet128', 'feat9')
    with pytest.raises(UserError, match=r"'feat32' at image size 32: choose among no_attention, "):
        load('shapes', 'feat32')
    with pytest.raises(UserError, match='acgan needs classes'):
        load('celeba', 'acgan')


def test_groups():
    assert variants.expand(['table1'], 32) == [
        'no_attention', 'feat8', 'feat16', 'residual8', 'residual16'
    ]  # fmt: skip
    assert len(variants.expand(['table1'], 128)) == 9
    assert variants.expand(['table2', 'acgan', 'feat8'], 128) == [
        'acgan', 'sngan_projection', 'feat64', 'feat8'
    ]  # fmt: skip
    assert variants.expand(['figure3'], 64) == ['sn_d', 'sn_d_5to1', 'sn_gd', 'sn_gd_ttur']
    with pytest.raises(UserError, match=r"no variant or group 'table3' .* table1, table2, figure3"):
        variants.expand(['table3'], 32)


# ---- Two steps of each. ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'variant'),
    [
        pytest.param(
            *each, marks=() if each in TRAINED else pytest.mark.thorough, id='-'.join(each)
        )
        for each in ALL
    ],
)
def test_two_steps(name, variant):
    config = load(name, variant)
    config.model.generator_width = config.model.discriminator_width = 8
    config.batch_size = 2
    config.discriminator_steps = min(config.discriminator_steps, 2)
    used = jax.devices()[:1]
    train_step, state = create_train_step(config, used), replicate(create_state(config), used)
    for seed in range(2):
        state, metrics = train_step(state, *tiny.batch(config, seed))
    assert int(state.step) == 2
    assert all(np.isfinite(value).all() for value in metrics.values())
    attention = {name for name in state.generator['params'] if name.startswith('attention')}
    assert attention == {f'attention{k}' for k in config.model.generator_attention}
    gammas = {name for name in metrics if 'gamma' in name}
    has_gammas = config.model.attention_block == 'self_attention'
    assert len(gammas) == (2 * len(attention) if has_gammas else 0)
    assert ('fake_accuracy' in metrics) == (variant == 'acgan')
    # Running averages of the discriminator, if it has batch norm.
    moved = jax.tree.leaves(state.discriminator['batch_stats'])
    assert bool(moved) == (variant == 'dcgan')
    assert all(np.abs(leaf).max() > 0 for leaf in moved)
    jax.clear_caches()  # fifty programs of this size are more than a process may map

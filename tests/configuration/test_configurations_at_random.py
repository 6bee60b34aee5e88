"""Random combinations of settings: each one trains and can be saved, or is refused."""

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sagan_jax.configuration import checks, defaults
from sagan_jax.errors import UserError
from sagan_jax.models import architectures
from sagan_jax.run import checkpoints, integrity
from sagan_jax.state import create_state
from sagan_jax.system.replicas import replicate, single_copy
from sagan_jax.train_step import create_train_step
from tests import tiny

REPEATED = ('steps_per_call', 'discriminator_steps', 'gradient_accumulation')


def some(possible):
    return st.lists(st.sampled_from(possible), unique=True, max_size=2).map(tuple)


@st.composite
def valid(draw):
    """Settings by dotted name of a configuration that can be trained."""
    names = [
        (name, size)
        for name, sizes in architectures.ARCHITECTURES.items()
        for size in sizes
        if size <= 64
    ]
    name, size = draw(st.sampled_from(names))
    found = {'model.architecture': name, 'dataset.image_size': size}
    if name == 'dcgan':
        found |= {'model.conditioning': 'none'}
        found |= {f'model.{network}_attention': () for network in ('generator', 'discriminator')}
    else:
        found['model.conditioning'] = draw(st.sampled_from(['projection', 'acgan', 'none']))
        maps = architectures.attention_resolutions(name, size)
        for network, resolutions in zip(('generator', 'discriminator'), maps, strict=True):
            # Attention over 64×64 positions works but is slow.
            possible = [resolution for resolution in resolutions if resolution <= 32]
            found[f'model.{network}_attention'] = draw(some(possible))
    choices = {
        'seed': [0, 1, 2**32 - 1],
        'dtype': ['float32', 'bfloat16'],
        'matmul_precision': ['default', 'high', 'highest'],
        'deterministic': [False, True],
        'loss': ['hinge', 'non_saturating'],
        'batch_size': [4, 8],
        'dataset.num_classes': [0, 1, 3] if found['model.conditioning'] == 'none' else [1, 3],
        'dataset.channels': [1, 3],
        'dataset.flip': [False, True],
        'model.generator_width': [1, 2, 5],
        'model.discriminator_width': [1, 2, 5],
        'model.z_dim': [1, 5],
        'model.attention_block': ['self_attention', 'residual'],
        'model.attention_value_divisor': [1, 2, 8],
        'model.attention_pooling': [True, False],
        'model.attention_query_block': [0, 4, 4096],
        'model.acgan_weight': [0.0, 0.5],
        'model.initializer': ['xavier_uniform', 'orthogonal', 'normal'],
        'model.dense_bias': ['zeros', 'uniform'],
        'model.discriminator_skip': ['input', 'relu'],
        'batch_norm.unbiased_average': [False, True],
        'spectral_norm.generator': [True, False],
        'spectral_norm.discriminator': [True, False],
        'spectral_norm.epsilon': [1e-12, 1e-4],
        'batch_norm.cross_replica': [True, False],
        'batch_norm.decay': [0.0, 0.999, 1.0],
        'optimizer.b1': [0.0, 0.5],
        'optimizer.generator_lr': [0.0, 1e-4],
        'optimizer.decay_from': [0.0, 0.5, 1.0],
        'mode_seeking_weight': [0.0, 0.5],
        'diff_augment': ['', 'color,translation,cutout', 'cutout,translation'],
        'lecam_weight': [0.0, 0.3],
        'r1_weight': [0.0, 1.0],
        'r1_every': [2],
        'ema.decay': [0.0, 0.999, 1.0],
        'ema.start_step': [0, 1],
    }
    found |= {key: draw(st.sampled_from(values)) for key, values in choices.items()}
    if found['model.conditioning'] != 'none':
        found['batch_norm.class_tables'] = draw(st.sampled_from(['constant', 'drawn']))
        possible = found['spectral_norm.generator'] and found['batch_norm.class_tables'] == 'drawn'
        found['spectral_norm.class_tables'] = possible and draw(st.booleans())
    if found['model.conditioning'] == 'projection' and found['dataset.num_classes'] > 1:
        found['mismatch_weight'] = draw(st.sampled_from([0.0, 0.5]))
    # At most one of these: each doubles the program to compile.
    repeated = draw(st.sampled_from([None, *REPEATED]))
    return found | {key: 1 + (key == repeated) for key in REPEATED}


def configuration(values):
    config = defaults.get_config()
    config.update_from_flattened_dict(values)
    return config


def trains_and_survives_a_checkpoint(values, devices, folder):
    config = configuration(values)
    checks.check(config)
    used = jax.devices()[:devices]
    train_step, state = create_train_step(config, used), replicate(create_state(config), used)
    for seed in range(2):
        state, metrics = train_step(state, *tiny.batch(config, seed))
        for name, value in metrics.items():
            assert np.isfinite(value).all(), name
    step = int(state.step)
    assert step == 2 * config.steps_per_call

    saved = jax.tree.map(np.array, single_copy(state))
    manager = checkpoints.open_manager(folder, keep=1)
    assert checkpoints.save(manager, step, saved, config)
    checkpoints.finish(manager, step, saved, config)
    restored = checkpoints.restore_newest(manager, create_state(config), config)
    manager.close()
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    for name, leaf in integrity.named_leaves(restored).items():
        np.testing.assert_array_equal(leaf, integrity.named_leaves(saved)[name], name)
    jax.clear_caches()


EXAMPLE = {'values': valid(), 'devices': st.sampled_from([1, 2])}
# Compiling an example takes many seconds, too many to shrink a failing one.
SLOW = settings(
    deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate], database=None
)


@given(**EXAMPLE)
@settings(SLOW, max_examples=1, derandomize=True)
def test_valid_configurations_train_and_survive_a_checkpoint(values, devices, tmp_path_factory):
    trains_and_survives_a_checkpoint(values, devices, tmp_path_factory.mktemp('checkpoints'))


@pytest.mark.thorough
@given(**EXAMPLE)
@settings(SLOW, max_examples=300)
def test_many_valid_configurations_train(values, devices, tmp_path_factory):
    trains_and_survives_a_checkpoint(values, devices, tmp_path_factory.mktemp('checkpoints'))


FAULTS = {
    'loss': 'wasserstein',
    'dtype': 'float16',
    'diff_augment': 'color,colour',
    'model.architecture': 'biggan',
    'model.attention_block': 'transformer',
    'model.conditioning': 'concatenation',
    'model.initializer': 'he',
    'model.dense_bias': 'ones',
    'model.discriminator_skip': 'none',
    'batch_norm.class_tables': 'zeros',
    'dataset.image_size': 40,
    'model.generator_attention': (20,),
    'model.discriminator_attention': (7,),
    'model.attention_query_block': 24,
}


def outside(key):
    """Values slightly and far outside of a key's range, of the key's type."""
    minimum, maximum, _ = checks.RANGES[key]
    *sections, name = key.split('.')
    section = defaults.get_config()
    for each in sections:
        section = section[each]
    if section.get_type(name) is int:
        values = [int(minimum) - 1, -1000]
        return values if np.isinf(maximum) else [*values, int(maximum) + 1]
    return [minimum - 1.0, float('nan'), -float('inf'), float('inf'), float(maximum) * 1.1 + 1]


@st.composite
def faulty(draw):
    """As `valid`, with one invalid key."""
    values = draw(valid())
    key = draw(st.sampled_from([*FAULTS, *checks.RANGES]))
    if key == 'model.attention_query_block':  # nothing to divide without attention
        values |= {'model.architecture': 'pyramid', 'model.conditioning': 'none'}
        values |= {'dataset.image_size': 32, 'model.generator_attention': (16,)}
        values |= {'model.discriminator_attention': ()}
        values |= {'batch_norm.class_tables': 'constant', 'spectral_norm.class_tables': False}
    bad = [FAULTS[key]] if key in FAULTS else []
    bad += outside(key) if key in checks.RANGES else []
    return key, values | {key: draw(st.sampled_from(bad))}


@given(faulty())
@settings(SLOW, max_examples=300, derandomize=True)
def test_invalid_configurations_are_refused_in_one_sentence(case):
    key, values = case
    with pytest.raises(UserError) as caught:
        checks.check(configuration(values))
    message = str(caught.value)
    assert key.rpartition('.')[2] in message or str(values[key]) in message
    assert message.endswith('.')
    assert '\n' not in message


@pytest.mark.parametrize('devices', [3, 8])
def test_a_batch_that_is_not_divisible_is_refused(devices):
    config = tiny.config(batch_size=4)
    with pytest.raises(UserError, match=f'batch_size=4 is not divisible by the {devices} devices'):
        create_train_step(config, jax.devices()[:devices])


def test_a_batch_is_divided_among_devices_parts_and_pairs():
    config = tiny.config(batch_size=12, gradient_accumulation=3, mode_seeking_weight=0.5)
    checks.check_batch(config, 2)
    with pytest.raises(UserError, match=r'=3 times the 2 images of a pair .* a multiple of 24'):
        checks.check_batch(config, 4)

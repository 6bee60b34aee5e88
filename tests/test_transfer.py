"""A run that begins with the networks of another one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sagan_jax import models, sampling, transfer
from sagan_jax.configuration import defaults
from sagan_jax.errors import UserError
from sagan_jax.published import conversion, writing
from sagan_jax.run import checkpoints, provenance
from sagan_jax.run.folder import RunFolder
from sagan_jax.state import state_shapes
from sagan_jax.system.replicas import replicate
from sagan_jax.train import train
from sagan_jax.train_step import create_train_step
from tests import tiny
from tests.published.test_conversion import files

NAMES = ['class0', 'class1', 'class2']  # those of `trained_workdir`


def begin(workdir, names=NAMES, **overrides):
    """The configuration, and its run's beginning; what is new is 1, and 0 in the optimizers."""
    config = tiny.config(init__run=str(workdir), **overrides)
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), state_shapes(config))
    optimizers = ('generator_opt', 'discriminator_opt')
    zeros = {name: jax.tree.map(jnp.zeros_like, getattr(ones, name)) for name in optimizers}
    fresh = ones._replace(step=jnp.int32(0), restarts=jnp.int32(0), **zeros)
    return config, transfer.begin(config, fresh, names)


def state_of(workdir):
    run = RunFolder(workdir)
    like = state_shapes(run.config())
    with checkpoints.chosen(run.config(), run, 'newest', like) as states:
        ((_, state),) = states
    return state


def images(config, variables, labels):
    generator, _ = models.create(config)
    z = np.random.default_rng(0).standard_normal((len(labels), 8)).astype(np.float32)
    frozen = sampling.create_freeze(config)(variables)
    return np.asarray(generator.apply(frozen, z, np.array(labels), train=False)[0])


def test_the_same_classes_give_the_same_images(trained_workdir):
    """With σ divided out, drawn class tables and new statistics of the power iteration."""
    config, begun = begin(trained_workdir, batch_norm__class_tables='drawn')
    other, state = RunFolder(trained_workdir).config(), state_of(trained_workdir)
    found = images(config, begun.state.generator, [0, 1, 2])
    np.testing.assert_allclose(found, images(other, state.averaged, [0, 1, 2]), atol=1e-4)
    chex.assert_trees_all_equal(begun.state.ema_params, begun.state.generator['params'])
    leaves = jax.tree.leaves(begun.state)
    assert len({leaf.__array_interface__['data'][0] for leaf in leaves}) == len(leaves)
    assert begun.state.step == 0
    assert len(begun.lines) == 1
    assert begun.record['step'] == 7


def test_other_classes_begin_at_the_mean_of_those_before(trained_workdir):
    _, begun = begin(trained_workdir, ['a', 'b', 'c', 'd', 'e'], dataset__num_classes=5)
    state = state_of(trained_workdir)
    before = state.ema_params['block1']['norm1']['scale']
    after = begun.state.generator['params']['block1']['norm1']['scale']
    assert after.shape[0] == 5
    np.testing.assert_allclose(after, np.tile(before.mean(0), (5, 1)), rtol=1e-6)
    embedding = begun.state.discriminator['params']['embed']['embedding']
    assert embedding.shape[0] == 5
    assert np.ptp(embedding, axis=0).max() == 0
    for network in ('generator_opt', 'discriminator_opt'):
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(getattr(begun.state, network)))
    assert any('new' in line and 'classes' in line for line in begun.lines)


def test_a_generator_without_classes_can_begin_with_one_that_has_them(trained_workdir):
    _, begun = begin(trained_workdir, [''], dataset__num_classes=1, model__conditioning='none')
    before = state_of(trained_workdir).ema_params['block2']['norm2']['bias']
    after = begun.state.generator['params']['block2']['norm2']['bias']
    np.testing.assert_allclose(after, before.mean(0), rtol=1e-6)


def test_other_networks_and_missing_runs_are_refused(trained_workdir, tmp_path):
    with pytest.raises(UserError, match=r'set --config.model.generator_width=4 --config.*z_dim=8'):
        begin(trained_workdir, model__generator_width=8, model__z_dim=9)
    with pytest.raises(UserError, match='There is no run in'):
        begin(tmp_path)


def test_frozen_blocks_stay_as_they_are(trained_workdir):
    config, begun = begin(trained_workdir, optimizer__frozen_discriminator_blocks=2)
    before = jax.tree.map(np.copy, begun.state.discriminator['params'])
    devices = jax.devices()[:1]
    step = create_train_step(config, devices)
    state, _ = step(replicate(begun.state, devices), *tiny.batch(config))
    after = state.discriminator['params']
    for name in before:
        frozen = name in ('block1', 'block2', 'attention16', 'attention8')
        equal = all(jax.tree.leaves(jax.tree.map(np.array_equal, before[name], after[name])))
        assert equal == frozen, name


@pytest.mark.thorough
def test_a_converted_run_is_trained_further_on_other_classes_and_resumed(tmp_path, capsys):
    """Twenty steps on shapes, of which the last ten are resumed: as twenty at a stretch."""
    converted = conversion.convert(files('tiny_mmgen_32_ema'), defaults.get_config())
    writing.write(converted, tmp_path / 'converted')
    there = RunFolder(tmp_path / 'converted').config()
    config = tiny.config(
        num_train_steps=20,
        checkpoint_every=10,
        sample_every=20,
        init__run=str(tmp_path / 'converted'),
        dataset__num_classes=10,
        model__architecture='sagan',
        model__z_dim=16,
        batch_norm__epsilon=there.batch_norm.epsilon,
        batch_norm__class_tables='drawn',
        optimizer__frozen_discriminator_blocks=1,
    )
    train(config, tmp_path / 'whole')
    assert 'the classes are new' in capsys.readouterr().out
    with config.unlocked():
        config.num_train_steps = 10
    train(config, tmp_path / 'resumed')
    config.num_train_steps = 20
    train(config, tmp_path / 'resumed')
    assert 'resumes' in capsys.readouterr().out
    whole, resumed = state_of(tmp_path / 'whole'), state_of(tmp_path / 'resumed')
    chex.assert_trees_all_equal(whole, resumed)
    kernel = converted.generator['params']['block3']['conv1']['kernel']
    after = whole.generator['params']['block3']['conv1']['kernel']
    assert 0 < np.abs(after - kernel).max() < 0.02
    frozen = converted.discriminator['params']['block1']['conv1']['kernel']
    np.testing.assert_array_equal(
        whole.discriminator['params']['block1']['conv1']['kernel'], frozen
    )
    record = RunFolder(tmp_path / 'resumed').record()
    assert record['init']['step'] == 1000
    assert provenance.record(config)['config']['init']['run'] == str(tmp_path / 'converted')

"""The losses of both networks, computed again from the networks' outputs."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sagan_jax import losses
from sagan_jax.errors import UserError
from sagan_jax.game import (
    Examples,
    create_game,
    discriminate_both,
    discriminator_loss,
    generate,
    generator_loss,
)
from sagan_jax.system.replicas import AXIS
from tests import tiny


def create(**overrides):
    """A game on one device, and the variables of its generator and its discriminator."""
    game = create_game(tiny.config(**overrides), jax.devices()[:1])
    keys = jax.random.split(jax.random.key(0))
    networks = game.generator, game.discriminator
    return game, *(network.init(key) for network, key in zip(networks, keys, strict=True))


def on_one_device(function):
    """Runs a function that uses collectives, as inside the training step."""
    return jax.jit(jax.vmap(function, None, None, axis_name=AXIS, axis_size=1))


def labelled(seed, count=8):
    rng = np.random.default_rng(seed)
    images = rng.uniform(-1, 1, (count, 32, 32, 3)).astype(np.float32)
    return Examples(images, rng.integers(0, 3, count).astype(np.int32))


def cross_entropy(class_logits, labels):
    class_logits = np.float64(class_logits)
    chosen = class_logits[np.arange(len(labels)), labels]
    return np.mean(np.log(np.exp(class_logits).sum(-1)) - chosen)


def test_acgan_classifies_real_and_generated_images():
    game, generator, discriminator = create(model__conditioning='acgan', model__acgan_weight=0.5)
    weights, reals, fakes = discriminator['params'], labelled(1), labelled(2)
    d_weights = {'params': weights, 'batch_stats': {}}
    apply = jax.jit(partial(game.discriminator.apply, train=False))
    (real, real_classes), _ = apply(d_weights, *reals[:2])
    (fake, fake_classes), _ = apply(d_weights, *fakes[:2])

    loss, (_, metrics) = on_one_device(partial(discriminator_loss, game))(weights, {}, reals, fakes)
    classes = cross_entropy(real_classes, reals[1]) + cross_entropy(fake_classes, fakes[1])
    expected = losses.hinge_discriminator(real, fake) + 0.5 * classes
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(
        metrics['fake_accuracy'], np.mean(fake_classes.argmax(-1) == fakes[1])
    )

    z = np.random.default_rng(3).normal(size=(8, 8)).astype(np.float32)
    variables = generator['params'], generator['batch_stats']
    images, _ = on_one_device(partial(generate, game))(*variables, z, fakes[1])
    (logits, class_logits), _ = apply(d_weights, images, fakes[1])
    loss, _ = on_one_device(partial(generator_loss, game))(*variables, weights, {}, z, fakes[1])
    expected = -logits.mean() + 0.5 * cross_entropy(class_logits, fakes[1])
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.mark.parametrize('architecture', ['pyramid', 'dcgan'])
def test_logits_of_real_images_do_not_depend_on_generated_ones(architecture):
    """In one pass without batch norm, in two passes with it."""
    overrides = {
        'model__architecture': architecture,
        'model__conditioning': 'none',
        'model__generator_attention': (),
        'model__discriminator_attention': (),
    }
    game, _, discriminator = create(**overrides)
    assert bool(discriminator['batch_stats']) == (architecture == 'dcgan')
    both = on_one_device(partial(discriminate_both, game))
    variables = discriminator['params'], discriminator['batch_stats']
    found = [both(*variables, labelled(1), labelled(seed))[0][0] for seed in (2, 3)]
    chex.assert_trees_all_close(found[0][0], found[1][0], rtol=1e-5)
    assert np.abs(found[0][1] - found[1][1]).max() > 1e-3


@pytest.mark.parametrize('length', [1, 3])
def test_a_step_on_a_cpu_has_no_loops(length):
    """XLA runs a convolution inside a loop on one CPU thread."""
    game, _, _ = create()

    def running_sum(values):
        return game.scan(lambda total, value: (total + value, total), 0.0, values)

    values = jnp.arange(1.0, length + 1)
    assert 'while' not in jax.jit(running_sum).lower(values).as_text()
    total, before = running_sum(values)
    assert total == values.sum()
    np.testing.assert_array_equal(before, np.cumsum(values) - values)


def test_mode_seeking_compares_images_of_one_class():
    game, generator, discriminator = create(mode_seeking_weight=0.5)
    weights, variables = discriminator['params'], (generator['params'], generator['batch_stats'])
    z = np.random.default_rng(3).normal(size=(8, 8)).astype(np.float32)
    labels = np.array([0, 1, 2, 0, 1, 1, 2, 1], np.int32)
    paired = np.array([0, 0, 2, 2, 1, 1, 2, 2], np.int32)
    images, _ = on_one_device(partial(generate, game))(*variables, z, paired)
    d_weights = {'params': weights, 'batch_stats': {}}
    logits, _ = game.discriminator.apply(d_weights, images, paired, train=False)
    first, second = np.asarray(images[::2]), np.asarray(images[1::2])
    distances = np.abs(first - second).mean((1, 2, 3))
    distances += np.abs(first.mean((1, 2)) - second.mean((1, 2))).mean(1)
    ratios = np.abs(z[::2] - z[1::2]).mean(-1) / (distances + 0.01)
    loss, _ = on_one_device(partial(generator_loss, game))(*variables, weights, {}, z, labels)
    np.testing.assert_allclose(loss, -logits.mean() + 0.5 * ratios.mean(), rtol=1e-4)


def test_mode_seeking_needs_an_even_batch_on_each_device():
    config = tiny.config(batch_size=4, mode_seeking_weight=0.5)
    with pytest.raises(UserError, match=r'4 devices times the 2 images of a pair .* multiple of 8'):
        create_game(config, jax.devices()[:4])

"""One synchronous step: on any number of devices, and each part against its definition."""

import functools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import Mesh, PartitionSpec

from sagan_jax import losses, models, spectral_norm
from sagan_jax.augmentation import NUMBERS, augment
from sagan_jax.errors import UserError
from sagan_jax.game import create_game
from sagan_jax.gradients import accumulate
from sagan_jax.run import integrity
from sagan_jax.state import create_state
from sagan_jax.streams import Stream, stream_key
from sagan_jax.system.replicas import AXIS, replicate, single_copy
from sagan_jax.train_step import (
    create_gathering_train_step,
    create_train_step,
    penalise_discriminator,
    steps_on_each,
)
from tests import tiny
from tests.traced import operations, precisions

pytestmark = pytest.mark.usefixtures('small_networks')


def open_gammas(state):
    """Sets every gamma to 0.5; at 0, all gradients inside attention would be 0."""

    def open_gamma(path, leaf):
        return leaf + 0.5 if path[-1].key == 'gamma' else leaf

    g = state.generator | {
        'params': jax.tree_util.tree_map_with_path(open_gamma, state.generator['params'])
    }
    d = state.discriminator | {
        'params': jax.tree_util.tree_map_with_path(open_gamma, state.discriminator['params'])
    }
    return state._replace(generator=g, discriminator=d)


def base(**overrides):
    """One configuration for most tests here, because each other one has to be compiled.

    Adam moves a parameter whose gradient is rounding noise, such as a bias in front of batch norm,
    by the whole learning rate in a random direction. An epsilon above that noise keeps this out of
    comparisons over several steps. With seed 0, unoptimised XLA and float32, gradients on one and
    on two devices differ by 1e-3, because rounding flips a ReLU or a maximum; in float64 they are
    equal.
    """
    settings = {
        'seed': 1,
        'ema__decay': 0.5,
        'ema__start_step': 1,
        'dataset__flip': True,
        'optimizer__epsilon': 1e-6,
    }
    return tiny.config(**tiny.SMALL | settings | overrides)


@functools.cache
def step_of(devices, **overrides):
    return create_train_step(base(**overrides), jax.devices()[:devices])


def run(devices, steps, start=0, **overrides):
    """The state and the metrics of each call, on the first `devices` devices."""
    config, used = base(**overrides), jax.devices()[:devices]
    train_step = step_of(devices, **overrides)
    state = create_state(config)._replace(step=np.int32(start))
    state = replicate(open_gammas(state), used)
    history = []
    for step in range(steps):
        state, metrics = train_step(state, *tiny.batch(config, seed=step))
        history.append(jax.tree.map(np.array, metrics))
    return state, history


@pytest.fixture(scope='module')
def on_devices(small_networks):
    """Five steps of one configuration on 1, 2 and 8 devices."""
    return {devices: run(devices, 5) for devices in (1, 2, 8)}


@pytest.fixture(scope='module')
def first_step(small_networks):
    """The first step of the same runs: the states before (on the host) and after."""
    before = jax.tree.map(np.array, open_gammas(create_state(base())))
    return before, {devices: run(devices, 1)[0] for devices in (1, 2, 8)}


def test_accumulated_gradients_equal_those_on_more_devices(alone_on_devices):
    """Two parts on each of four devices have the batch moments of eight devices."""
    accumulated = run(4, 1, gradient_accumulation=2, batch_norm__cross_replica=False)[0]
    one, several = gradients(accumulated), gradients(alone_on_devices)
    for path, gradient in one.items():
        difference = np.linalg.norm(several[path] - gradient)
        assert difference <= 1e-4 * np.linalg.norm(gradient) + 1e-4, path


def test_gathering_batches_on_the_devices_changes_nothing():
    config = base()
    images, labels = tiny.batch(base(batch_size=40), seed=3)
    rows = np.random.default_rng(0).integers(0, 40, 8).astype(np.int32)
    used = jax.devices()[:2]
    results = [
        train_step(replicate(create_state(config), used), *batch)
        for train_step, batch in (
            (step_of(2), (images[rows], labels[rows])),
            (create_gathering_train_step(config, (images, labels), used), (rows,)),
        )
    ]
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings('error:.*pmap')
def test_shard_map_in_place_of_pmap_gives_the_same_bits():
    """How to leave pmap, see docs/paper.md; a warning of JAX about pmap fails this test first."""
    config, devices = base(), jax.devices()[:2]
    steps, _ = steps_on_each(create_game(config, devices))

    def on_each(state, batches):
        return steps(state, jax.tree.map(lambda parts: parts[0], batches), ())

    whole, parts = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.jit(
        jax.shard_map(
            on_each,
            mesh=Mesh(np.array(devices), (AXIS,)),
            in_specs=(whole, parts),
            out_specs=whole,
            check_vma=False,
        ),
        donate_argnums=0,
    )
    images, labels = tiny.batch(config)
    batches = images.reshape(2, 1, 1, 4, 8, 8, 3), labels.reshape(2, 1, 1, 4)
    begin = jax.tree.map(np.array, open_gammas(create_state(config)))
    with_pmap = step_of(2)(replicate(begin, devices), images, labels)
    with_shard_map = mapped(replicate(begin, devices), batches)
    chex.assert_trees_all_equal(with_shard_map, with_pmap)


def test_accumulate_averages_values_and_carries_statistics():
    game = create_game(base(gradient_accumulation=4), jax.devices()[:1])
    batch = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)

    def function(stats, part):
        assert part.shape == (2, 3)
        return 2 * stats + part[0], {'mean': part.mean()}

    stats, values = accumulate(game, function, np.zeros(3, np.float32), batch)
    np.testing.assert_allclose(stats, np.array([8, 4, 2, 1]) @ batch[::2], rtol=1e-5)
    np.testing.assert_allclose(values['mean'], batch.mean(), rtol=1e-5)


def gradients(state):
    """The gradients of the last step, which are Adam's first moments because β1 is 0."""
    assert base().optimizer.b1 == 0
    return {
        (network, *path): np.asarray(leaf)
        for network in ('generator', 'discriminator')
        for path, leaf in traverse_util.flatten_dict(getattr(state, f'{network}_opt')[0].mu).items()
    }


@pytest.mark.parametrize('devices', [2, 8])
def test_metrics_do_not_depend_on_the_number_of_devices(on_devices, devices):
    for one, several in zip(on_devices[1][1], on_devices[devices][1], strict=True):
        chex.assert_trees_all_close(several, one, rtol=1e-4, atol=1e-6)


def test_names_and_shapes_of_metrics(on_devices):
    first = on_devices[1][1][0]
    assert first.keys() == {
        'discriminator_loss', 'generator_loss', 'real_logit', 'fake_logit',
        'discriminator_grad_norm', 'generator_grad_norm',
        'discriminator_sigma', 'generator_sigma',
        'discriminator_gamma4', 'generator_gamma8',
    }  # fmt: skip
    assert all(value.shape == (1,) and np.isfinite(value).all() for value in first.values())


@pytest.mark.parametrize('devices', [2, 8])
def test_gradients_do_not_depend_on_the_number_of_devices(first_step, devices):
    on_one, on_several = gradients(first_step[1][1]), gradients(first_step[1][devices])
    norms = {
        network: np.sqrt(sum((g**2).sum() for p, g in on_one.items() if p[0] == network))
        for network in ('generator', 'discriminator')
    }
    for path, one in on_one.items():
        difference = np.linalg.norm(on_several[path] - one)
        # The gradient of a bias in front of batch norm is rounding noise, 1e-6 of the whole.
        allowed = 1e-4 * np.linalg.norm(one) + 1e-6 * norms[path[0]]
        assert difference <= allowed, (path, difference, np.linalg.norm(one))
    inside = [p for p in on_one if 'attention8' in p or 'attention4' in p]
    assert len(inside) == 10
    assert all(np.linalg.norm(on_one[path]) > 1e-3 for path in inside)


@pytest.fixture(scope='module')
def alone_on_devices(small_networks):
    return run(8, 1, batch_norm__cross_replica=False)[0]


def test_batch_norm_per_device_differs(first_step, alone_on_devices):
    path = ('generator', 'block1', 'conv1', 'kernel')
    together, alone = gradients(first_step[1][8])[path], gradients(alone_on_devices)[path]
    assert np.linalg.norm(alone - together) > 1e-2 * np.linalg.norm(together)


@pytest.mark.parametrize('batch_norm', ['cross_replica', 'alone'])
def test_replicas_agree_bit_for_bit(on_devices, alone_on_devices, batch_norm):
    state = on_devices[8][0] if batch_norm == 'cross_replica' else alone_on_devices
    for leaf in jax.tree.leaves(state):
        replicas = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(replicas) == 8
        for replica in replicas[1:]:
            np.testing.assert_array_equal(replica, replicas[0])


def test_the_second_step_is_not_compiled_again():
    config, compiled = base(), []
    train_step, state = create_train_step(config), replicate(create_state(config))
    state, _ = train_step(state, *tiny.batch(config))
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if 'backend_compile' in event else None
    )
    try:
        train_step(state, *tiny.batch(config))
        assert compiled == []
        jax.jit(lambda x: x + len(compiled))(1.0)
        assert compiled  # compiling does emit this event
    finally:
        jax.monitoring.clear_event_listeners()


def test_two_steps_in_one_call_equal_two_calls(on_devices):
    config = base(steps_per_call=2)
    batches = [tiny.batch(base(), seed=step) for step in range(2)]
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    used = jax.devices()[:2]
    state, metrics = create_train_step(config, used)(
        replicate(open_gammas(create_state(config)), used), images, labels
    )
    assert int(state.step) == 2
    for name, values in metrics.items():
        singles = np.concatenate([history[name] for history in on_devices[2][1][:2]])
        np.testing.assert_allclose(values, singles, rtol=1e-4, atol=1e-6)


def test_two_discriminator_updates_per_step():
    config = base(discriminator_steps=2)
    before = jax.tree.map(np.array, create_state(config).discriminator)
    used = jax.devices()[:1]
    images, labels = tiny.batch(config)
    state, _ = create_train_step(config, used)(
        replicate(create_state(config), used), images, labels
    )
    assert int(state.discriminator_opt[0].count) == 2
    assert int(state.generator_opt[0].count) == 1
    _, once = spectral_norm.normalise(before['params'], before['spectral_stats'])
    _, twice = spectral_norm.normalise(before['params'], once)  # the parameters moved little
    last = state.discriminator['spectral_stats']['block1']['conv1']['kernel']['u']
    to_once = np.linalg.norm(last - once['block1']['conv1']['kernel']['u'])
    to_twice = np.linalg.norm(last - twice['block1']['conv1']['kernel']['u'])
    assert to_twice < 0.1 * to_once


def test_one_step_against_its_definition(first_step, on_devices):
    """Each part of the state after one step, computed from the networks and losses."""
    before, after = first_step[0], single_copy(first_step[1][1])
    config, (images, labels) = base(), tiny.batch(base())
    _, discriminator = models.create(config)

    # u of each network has advanced once.
    for network in ('generator', 'discriminator'):
        old, new = getattr(before, network), getattr(after, network)
        _, once = spectral_norm.normalise(old['params'], old['spectral_stats'])
        chex.assert_trees_all_close(new['spectral_stats'], once, rtol=1e-4, atol=1e-5)

    # The discriminator sees real images in [-1, 1], mirrored where the stream says so.
    mirrored = jax.random.bernoulli(stream_key(config.seed, Stream.AUGMENTATION, 0), shape=(8,))
    assert 0 < mirrored.sum() < 8
    seen = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images) / 127.5 - 1
    weights, _ = discriminator.normalise(before.discriminator)
    logits, _ = jax.jit(discriminator.apply, static_argnames='train')(
        weights, seen.astype(np.float32), labels, train=False
    )
    np.testing.assert_allclose(on_devices[1][1][0]['real_logit'][0], logits.mean(), rtol=1e-4)

    # Adam without momentum moves each parameter by its rate, against the gradient.
    for network, rate in (('generator', 1e-4), ('discriminator', 4e-4)):
        old, new = getattr(before, network)['params'], getattr(after, network)['params']
        mu = getattr(after, f'{network}_opt')[0].mu
        for leaves in zip(*map(jax.tree.leaves, (old, new, mu)), strict=True):
            a, b, gradient = (np.atleast_1d(leaf) for leaf in leaves)
            clear = np.abs(gradient) > 1e-4
            expected = -rate * np.sign(gradient)
            np.testing.assert_allclose((b - a)[clear], expected[clear], rtol=2e-2, atol=1e-6)
    assert not np.array_equal(
        after.generator['batch_stats']['norm']['moments']['mean'],
        before.generator['batch_stats']['norm']['moments']['mean'],
    )


def test_generator_gradient_against_end_to_end_differentiation(first_step):
    """The pulled-back gradient equals that of the whole chain with normalisation."""
    before, after = first_step[0], single_copy(first_step[1][1])
    config = base()
    generator, discriminator = models.create(config)
    z_key, labels_key = jax.random.split(stream_key(config.seed, Stream.GENERATOR_NOISE, 0))
    z = jax.random.normal(z_key, (8, 8))
    labels = jax.random.randint(labels_key, (8,), 0, 3)

    @jax.jit
    @jax.grad
    def gradient(params):
        weights, _ = generator.normalise(before.generator | {'params': params})
        images, _ = generator.apply(weights, z, labels, train=True)
        # The discriminator after its own update, with its next u.
        d_weights, _ = discriminator.normalise(after.discriminator)
        logits, _ = discriminator.apply(d_weights, images, labels, train=False)
        return losses.hinge_generator(logits)

    expected = traverse_util.flatten_dict(gradient(before.generator['params']))
    found = traverse_util.flatten_dict(after.generator_opt[0].mu)
    scale = np.sqrt(sum((g**2).sum() for g in expected.values()))
    for path, leaf in expected.items():
        np.testing.assert_allclose(found[path], leaf, rtol=1e-3, atol=1e-5 * scale)


def test_averaging_begins_at_start_step(first_step):
    first = first_step[1][1]
    chex.assert_trees_all_equal(first.ema_params, first.generator['params'])
    second, _ = run(1, 2)
    expected = jax.tree.map(
        lambda a, b: (np.asarray(a) + np.asarray(b)) / 2,
        first.generator['params'],
        second.generator['params'],
    )
    chex.assert_trees_all_close(second.ema_params, expected, rtol=1e-6, atol=1e-7)


def test_mismatch_loss_on_wrong_labels(first_step):
    """The discriminator's loss on real images with a wrong label, from the networks' logits.

    Each of two devices, two updates and two parts of a batch draws its own wrong labels.
    """
    settings = {
        'discriminator_steps': 2,
        'gradient_accumulation': 2,
        'dataset__flip': False,
        'optimizer__discriminator_lr': 0.0,
    }
    config = base(**settings)
    before = jax.tree.map(np.array, open_gammas(create_state(config)))
    _, (metrics,) = run(2, 1, mismatch_weight=0.5, **settings)
    images, labels = tiny.batch(config)
    ahead = np.concatenate([
        jax.random.randint(stream_key(config.seed, Stream.WRONG_LABELS, update), (8,), 1, 3)
        for update in range(2)
    ])  # fmt: skip
    assert set(ahead) == {1, 2}
    wrong = (labels + ahead) % 3

    _, discriminator = models.create(config)
    normalise = jax.jit(spectral_norm.normalise)
    apply = jax.jit(discriminator.apply, static_argnames='train')
    params = before.discriminator['params']
    weights, once = normalise(params, before.discriminator['spectral_stats'])
    second, _ = normalise(params, once)
    logits = {'real': [], 'wrong': []}
    for at, used in ((slice(0, 8), weights), (slice(8, 16), second)):
        for name, given in (('real', labels), ('wrong', wrong)):
            seen = (images[at] / 127.5 - 1).astype(np.float32)
            variables = {'params': used, 'batch_stats': {}}
            logits[name].append(apply(variables, seen, given[at], train=False)[0])
    real, wrong = np.concatenate(logits['real']), np.concatenate(logits['wrong'])
    np.testing.assert_allclose(metrics['real_logit'][0], real.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics['mismatch_logit'][0], wrong.mean(), rtol=1e-4)

    _, (without,) = run(2, 1, **settings)
    added = metrics['discriminator_loss'][0] - without['discriminator_loss'][0]
    np.testing.assert_allclose(added, 0.5 * np.maximum(0, 1 + wrong).mean(), rtol=1e-3)
    np.testing.assert_allclose(metrics['generator_loss'], without['generator_loss'], rtol=1e-4)


REGULARISED = {
    'diff_augment': 'color,translation,cutout',
    'lecam_weight': 0.3,
    'r1_weight': 1.0,
    'r1_every': 2,
}


@functools.cache
def regularised(devices, **changes):
    """One step with R1 at its end."""
    return run(devices, 1, start=1, **REGULARISED, **changes)


@pytest.mark.parametrize(
    'devices',
    [
        8,
        pytest.param(2, marks=pytest.mark.thorough),
        pytest.param('parts', marks=pytest.mark.thorough),
    ],
)
def test_regularisers_do_not_depend_on_the_number_of_devices(devices):
    """Nor on the parts of a batch. The discriminator's gradient is that of R1."""
    if devices == 'parts':
        one, (metrics,) = regularised(8, batch_norm__cross_replica=False)
        other, (other_metrics,) = regularised(
            4, batch_norm__cross_replica=False, gradient_accumulation=2
        )
    else:
        (one, (metrics,)), (other, (other_metrics,)) = regularised(1), regularised(devices)
    assert {'lecam_penalty', 'r1_penalty'} < metrics.keys() == other_metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(other_metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    averages = [state.discriminator['logit_averages'] for state in (one, other)]
    chex.assert_trees_all_close(*averages, rtol=1e-4, atol=1e-6)
    on_one, on_several = gradients(one), gradients(other)
    for path, gradient in on_one.items():
        difference = np.linalg.norm(on_several[path] - gradient)
        assert difference <= 1e-4 * np.linalg.norm(gradient) + 1e-4, path


def test_one_regularised_step_against_its_definition(first_step):
    """Augmented images, LeCam's penalty and averages, from the networks. R1 is not due.

    What depends on the generator's images alone is as without.
    """
    before = first_step[0]
    config = base(**REGULARISED)
    state, (metrics,) = run(1, 1, **REGULARISED)
    assert 'r1_penalty' not in metrics
    plain = single_copy(first_step[1][1])
    for part in (lambda s: s.discriminator['spectral_stats'], lambda s: s.generator['batch_stats']):
        chex.assert_trees_all_close(part(state), part(plain), rtol=1e-5, atol=1e-6)

    generator, discriminator = models.create(config)
    images, labels = tiny.batch(config)

    def numbers(stream):
        return jax.random.uniform(stream_key(config.seed, stream, 0), (8, NUMBERS))

    def generated(stream):
        z_key, labels_key = jax.random.split(stream_key(config.seed, stream, 0))
        z, labels = jax.random.normal(z_key, (8, 8)), jax.random.randint(labels_key, (8,), 0, 3)
        weights, _ = generator.normalise(before.generator)
        return generator.apply(weights, z, labels, train=True)[0], labels

    def logits(variables, images, labels, stream):
        seen = augment(images, numbers(stream), config.diff_augment)
        weights, _ = discriminator.normalise(variables)
        return np.asarray(discriminator.apply(weights, seen, labels, train=False)[0])

    mirrored = jax.random.bernoulli(stream_key(config.seed, Stream.AUGMENTATION, 0), shape=(8,))
    reals = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images) / 127.5 - 1
    real = logits(before.discriminator, reals.astype(np.float32), labels, Stream.REAL_AUGMENTATION)
    fakes = generated(Stream.DISCRIMINATOR_NOISE)
    fake = logits(before.discriminator, *fakes, Stream.FAKE_AUGMENTATION)
    fakes = generated(Stream.GENERATOR_NOISE)
    last = logits(state.discriminator, *fakes, Stream.GENERATOR_AUGMENTATION)

    penalty = np.mean(np.maximum(real, 0) ** 2) + np.mean(np.maximum(-fake, 0) ** 2)
    for name, value in {
        'real_logit': real.mean(),
        'fake_logit': fake.mean(),
        'lecam_penalty': penalty,  # the averages begin at 0
        'discriminator_loss': losses.hinge_discriminator(real, fake) + 0.3 * penalty,
        'generator_loss': -last.mean(),
    }.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    averages = state.discriminator['logit_averages']
    np.testing.assert_allclose(averages['real'], real.mean(), rtol=1e-4)
    np.testing.assert_allclose(averages['fake'], fake.mean(), rtol=1e-4)


@pytest.mark.parametrize(
    'settings',
    [
        {'mismatch_weight': 0.5},
        {
            'model__architecture': 'dcgan',
            'model__conditioning': 'none',
            'model__generator_attention': (),
            'model__discriminator_attention': (),
        },
    ],
)
def test_r1_against_its_definition(settings):
    """The gradient of γ/2 · k · E[‖∇D(x)‖²] with normalisation and augmentation inside.

    Neither u nor the moments of batch norm advance, of which dcgan's discriminator has some.
    """
    config = base(dataset__flip=False, discriminator_steps=2, **REGULARISED, **settings)
    state = open_gammas(create_state(config))._replace(step=np.int32(4))
    game = create_game(config, jax.devices()[:1])
    images, labels = (array[:8] for array in tiny.batch(config))
    after, metrics = jax.jit(
        jax.vmap(partial(penalise_discriminator, game), None, None, axis_name=AXIS, axis_size=1)
    )(state, images, labels)
    _, discriminator = models.create(config)
    reals = (images / 127.5 - 1).astype(np.float32)
    key = stream_key(config.seed, Stream.REAL_AUGMENTATION, 7)  # of eight updates, the last
    numbers = jax.random.uniform(key, (8, NUMBERS))

    def logit(params, image, number, label):
        variables = state.discriminator | {'params': params}
        seen = augment(image[None], number[None], config.diff_augment)
        return discriminator.apply(
            discriminator.normalise(variables)[0], seen, label[None], train=False
        )[0][0]

    def penalty(params):
        gradients = jax.vmap(jax.grad(logit, argnums=1), (None, 0, 0, 0))(
            params, reals, numbers, labels
        )
        return jnp.square(gradients).sum() / 8

    assert bool(state.discriminator['batch_stats']) == (config.model.architecture == 'dcgan')
    if not state.discriminator['batch_stats']:  # else images depend on each other
        value, expected = jax.jit(jax.value_and_grad(penalty))(state.discriminator['params'])
        np.testing.assert_allclose(metrics['r1_penalty'], value, rtol=1e-4)
        expected = traverse_util.flatten_dict(expected)
        found = traverse_util.flatten_dict(after.discriminator_opt[0].mu)  # β1 is 0
        scale = np.sqrt(sum((g**2).sum() for g in expected.values()))
        assert scale > 1e-3
        for path, gradient in expected.items():
            np.testing.assert_allclose(found[path], gradient, rtol=1e-3, atol=1e-5 * scale)
    changed = {'discriminator': {'params'}}
    for network in ('generator', 'discriminator'):
        old, new = getattr(state, network), getattr(after, network)
        for name in old.keys() - changed.get(network, set()):
            chex.assert_trees_all_equal(old[name], new[name])
    kernel = ('conv1', 'kernel')
    old, new = (traverse_util.flatten_dict(s.discriminator['params']) for s in (state, after))
    assert any((old[path] != new[path]).any() for path in old if path[-2:] == kernel)


def test_only_lecam_adds_to_the_state():
    plain, with_lecam = (
        set(integrity.named_leaves(create_state(base(**settings))))
        for settings in (REGULARISED | {'lecam_weight': 0.0}, REGULARISED)
    )
    assert plain == set(integrity.named_leaves(create_state(base())))
    added = {f'discriminator/logit_averages/{name}' for name in ('real', 'fake')}
    assert with_lecam == plain | added


def test_rates_fall_to_zero():
    """Updates are those of constant rates for half of the steps, then shrink linearly."""
    config, moved = base(num_train_steps=4, optimizer__decay_from=0.5), []
    used = jax.devices()[:1]
    constant, falling = step_of(1), create_train_step(config, used)
    state = jax.tree.map(np.array, open_gammas(create_state(config)))
    for step in range(4):
        batch = tiny.batch(config, seed=step)
        ends = [
            single_copy(train_step(replicate(state, used), *batch)[0])
            for train_step in (constant, falling)
        ]
        for network in ('generator', 'discriminator'):
            before = jax.tree.leaves(getattr(state, network)['params'])
            after = [jax.tree.leaves(getattr(end, network)['params']) for end in ends]
            with_constant, with_falling = (
                np.concatenate([(b - a).ravel() for a, b in zip(before, leaves, strict=True)])
                for leaves in after
            )
            moved.append(np.linalg.norm(with_falling) / np.linalg.norm(with_constant))
        state = jax.tree.map(np.array, ends[1])
    # The discriminator's update changes the generator's gradient in the same step, not its rate.
    np.testing.assert_allclose(moved, np.repeat([1, 1, 1, 0.5], 2), rtol=2e-2)


def test_randomness_is_a_function_of_the_step():
    """The same state and batch at another step number: different fakes and different flips.

    At a learning rate of 0 each of them changes a different metric.
    """
    config = base(optimizer__discriminator_lr=0.0)
    used, history = jax.devices()[:1], []
    train_step = create_train_step(config, used)
    for step in (0, 0, 1):
        state = create_state(config)._replace(step=np.int32(step))
        _, metrics = train_step(replicate(state, used), *tiny.batch(config))
        history.append(jax.tree.map(np.array, metrics))
    assert history[0] == history[1]
    for name in ('fake_logit', 'generator_loss', 'real_logit'):
        assert abs(history[0][name] - history[2][name]) > 1e-4 * abs(history[0][name])


def test_a_step_in_bfloat16_without_classes_and_attention():
    state, (metrics,) = run(
        2,
        1,
        dtype='bfloat16',
        loss='non_saturating',
        model__conditioning='none',
        model__generator_attention=(),
        spectral_norm__generator=False,
    )
    assert all(np.isfinite(value).all() for value in metrics.values())
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert state.generator['spectral_stats'] == {}
    assert metrics['generator_sigma'] == 0 < metrics['discriminator_sigma']
    assert 'generator_gamma8' not in metrics
    assert 'embed' not in state.discriminator['params']
    # The loss is convex in the logits, so it is at least the loss of their means (Jensen).
    bound = np.logaddexp(0, -metrics['real_logit']) + np.logaddexp(0, metrics['fake_logit'])
    assert bound <= metrics['discriminator_loss'] < bound + 5
    assert metrics['generator_loss'] > 0


def test_seeds_differ():
    states = [create_state(base(seed=seed)) for seed in (0, 0, 1)]
    chex.assert_trees_all_equal(states[0], states[1])
    kernels = [s.generator['params']['dense']['kernel'] for s in states]
    assert not np.allclose(kernels[0], kernels[2])


def test_a_batch_that_is_not_divisible_is_refused():
    with pytest.raises(UserError, match='batch_size=8 is not divisible by the 3 devices'):
        create_train_step(base(), jax.devices()[:3])


# ---- The operations of a step, on any platform. ------------------------------------------------


@functools.cache
def traced_step(**settings):
    config = tiny.config(**settings)
    state = jax.eval_shape(lambda: create_state(config))
    step = create_train_step(config, jax.devices()[:1])
    return list(operations(step, state, *tiny.batch(config)))


@pytest.mark.parametrize(
    ('precision', 'settings', 'expected'),
    [
        ('default', {}, {None, 'HIGHEST'}),
        ('high', {'dtype': 'bfloat16', 'model__attention_query_block': 16}, {'HIGH', 'HIGHEST'}),
        (
            'highest',
            {
                'model__architecture': 'dcgan',
                'model__conditioning': 'none',
                'model__generator_attention': (),
                'model__discriminator_attention': (),
            },
            {'HIGHEST'},
        ),
    ],
)
def test_products_have_the_precision_of_the_configuration(precision, settings, expected):
    """Forward and backward; those of spectral normalisation are always float32."""
    assert precisions(traced_step(matmul_precision=precision, **settings)) == expected


def test_every_operation_has_a_deterministic_form_on_a_gpu():
    """XLA refuses to compile the gradient of a maximum over windows with `deterministic`."""
    names = {each.primitive.name for each in traced_step(matmul_precision='default')}
    assert 'conv_general_dilated' in names
    assert not any('select_and_' in name for name in names)

"""Parameter counts, shapes and purity of the networks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sagan_jax import models
from sagan_jax.configuration import defaults
from tests import tiny


def configuration(image_size, num_classes, generator_attention, discriminator_attention=None):
    config = defaults.get_config()
    config.dataset.image_size = image_size
    config.dataset.num_classes = num_classes
    config.model.generator_attention = generator_attention
    config.model.discriminator_attention = discriminator_attention or generator_attention
    return config


# The first three rows are the counts of the official code and of compare_gan.
@pytest.mark.parametrize(
    ('image_size', 'num_classes', 'attention', 'generator_count', 'discriminator_count'),
    [
        (128, 1000, (32,), 42_078_852, 39_463_618),
        (128, 1000, (64,), 42_017_412, 39_448_258),
        (128, 1000, (), 41_996_931, 39_443_137),
        (32, 10, (16,), 4_386_308, 1_075_586),
        (64, 100, (32,), 12_811_396, 19_650_242),
    ],
)
def test_parameter_counts(image_size, num_classes, attention, generator_count, discriminator_count):
    networks = models.create(configuration(image_size, num_classes, attention))
    counts = [
        models.count_parameters(jax.eval_shape(network.init, jax.random.key(0)))
        for network in networks
    ]
    assert counts == [generator_count, discriminator_count]


@pytest.mark.parametrize('image_size', [32, 48, 64, 96, 128, 256, 512])
@pytest.mark.parametrize('conditioning', ['projection', 'none'])
def test_shapes_at_every_resolution(image_size, conditioning):
    resolutions = (8, 16) if image_size % 3 else (6, 12)
    config = configuration(image_size, 7, resolutions)
    config.model.conditioning = conditioning
    config.model.generator_width = config.model.discriminator_width = 4
    generator, discriminator = models.create(config)

    def both(key, z, labels):
        g, d = generator.init(key), discriminator.init(key)
        (g_weights, g_spectral), (d_weights, d_spectral) = (
            generator.normalise(g), discriminator.normalise(d)
        )  # fmt: skip
        images, g_stats = generator.apply(g_weights, z, labels, train=True)
        logits, d_stats = discriminator.apply(d_weights, images, labels, train=True)
        return g, d, images, logits, (g_stats, g_spectral), (d_stats, d_spectral)

    g, d, images, logits, g_stats, d_stats = jax.eval_shape(
        both, jax.random.key(0), jnp.zeros((2, config.model.z_dim)), jnp.zeros(2, jnp.int32)
    )
    assert images.shape == (2, image_size, image_size, 3)
    assert logits.shape == (2,)
    assert images.dtype == logits.dtype == jnp.float32
    for variables, stats in ((g, g_stats), (d, d_stats)):
        for name, found in zip(('batch_stats', 'spectral_stats'), stats, strict=True):
            chex.assert_trees_all_equal_shapes(found, variables[name])
        assert {f'attention{k}' for k in resolutions} <= variables['params'].keys()
    unconditional = conditioning == 'none'
    assert ('embed' in d['params']) != unconditional
    assert g['params']['block1']['norm1']['scale'].ndim == (1 if unconditional else 2)


def compiled(config):
    """The networks with compiled functions. Uncompiled, they take half a minute."""
    return [
        network._replace(
            init=jax.jit(network.init),
            normalise=jax.jit(network.normalise),
            apply=jax.jit(network.apply, static_argnames='train'),
        )
        for network in models.create(config)
    ]


@pytest.fixture(scope='module')
def tiny_networks():
    return compiled(tiny.config())


def test_apply_is_pure_and_evaluation_keeps_batch_statistics(tiny_networks):
    generator, discriminator = tiny_networks
    variables = generator.init(jax.random.key(0))
    before = jax.tree.map(np.array, variables)
    z, labels = jax.random.normal(jax.random.key(1), (4, 8)), jnp.array([0, 1, 2, 0])

    weights, spectral_stats = generator.normalise(variables)
    images, batch_stats = generator.apply(weights, z, labels, train=False)
    chex.assert_trees_all_equal(batch_stats, before['batch_stats'])
    assert np.abs(images).max() <= 1

    _, batch_stats = generator.apply(weights, z, labels, train=True)
    chex.assert_trees_all_equal(variables, before)
    for name, after in (('spectral_stats', spectral_stats), ('batch_stats', batch_stats)):
        moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), after, before[name])
        assert all(jax.tree.leaves(moved))

    d_weights, _ = discriminator.normalise(discriminator.init(jax.random.key(0)))
    logits, _ = discriminator.apply(d_weights, images, labels, train=False)
    other, _ = discriminator.apply(d_weights, images, (labels + 1) % 3, train=False)
    assert not np.allclose(logits, other)  # the projection depends on the label


def test_several_labels_per_image():
    config = tiny.config(dataset__num_classes=5)
    _, discriminator = models.create(config)
    weights, _ = discriminator.normalise(discriminator.init(jax.random.key(0)))
    images = np.random.default_rng(0).uniform(-1, 1, (4, 32, 32, 3)).astype(np.float32)
    labels = np.array([[0, 4], [3, 1], [2, 2], [1, 0]], np.int32)
    logits, _ = discriminator.apply(weights, images, labels, train=False)
    for column in range(2):
        alone, _ = discriminator.apply(weights, images, labels[:, column], train=False)
        np.testing.assert_allclose(logits[:, column], alone, rtol=1e-5, atol=1e-5)
    assert abs(logits[0, 0] - logits[0, 1]) > 1e-3


@pytest.mark.parametrize('architecture', ['pyramid', 'dcgan'])
def test_one_channel_equals_three_that_are_the_same(architecture):
    """As three-channel networks whose weights repeat the channel, or do not look at two of them."""
    settings = {'model.architecture': architecture, 'spectral_norm.generator': False}
    if architecture == 'dcgan':
        settings |= {'model.conditioning': 'none'}
        settings |= {f'model.{each}_attention': () for each in ('generator', 'discriminator')}
    networks = {n: compiled(tiny.config(dataset__channels=n, **settings)) for n in (1, 3)}
    variables = [network.init(jax.random.key(n)) for n, network in enumerate(networks[1])]

    def widened(path, leaf):
        if path[0].key == 'conv':  # the generator's last layer
            return jnp.repeat(leaf, 3, -1)
        first = path[-1].key == 'kernel' and leaf.ndim == 4 and leaf.shape[2] == 1
        return jnp.pad(leaf, ((0, 0), (0, 0), (0, 2), (0, 0))) if first else leaf

    wide = [{**each, 'params': jax.tree_util.tree_map_with_path(widened, each['params'])}
            for each in variables]  # fmt: skip
    counts = [models.count_parameters(each) for each in (*variables, *wide)]
    three = [jax.eval_shape(network.init, jax.random.key(0)) for network in networks[3]]
    assert counts[2:] == [models.count_parameters(each) for each in three]
    assert counts[0] < counts[2]
    assert counts[1] < counts[3]

    z, labels = jax.random.normal(jax.random.key(1), (4, 8)), jnp.array([0, 1, 2, 0])
    outputs = {}
    for n, (generator, discriminator), (g, d) in zip(
        networks, networks.values(), (variables, wide), strict=True
    ):
        images, _ = generator.apply(generator.normalise(g)[0], z, labels, train=False)
        weights = discriminator.normalise(d)[0]

        def logits(images, discriminator=discriminator, weights=weights):
            found, _ = discriminator.apply(weights, images, labels, train=False)
            return found.sum(), found

        # The gradient too, for R1 and the generator.
        gradient, found = jax.grad(logits, has_aux=True)(images)
        outputs[n] = images, gradient, found
    chex.assert_trees_all_close(outputs[1], outputs[3], atol=1e-5)
    images, gradient, _ = outputs[1]
    assert images.shape == (4, 32, 32, 3)
    assert images.std() > 0.01
    np.testing.assert_array_equal(images, np.repeat(images[..., :1], 3, -1))
    assert gradient[..., 0].any()
    assert not gradient[..., 1:].any()


def test_apply_refuses_variables_that_are_not_normalised(tiny_networks):
    generator, _ = tiny_networks
    variables = generator.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r'expected weights, .*spectral_stats'):
        generator.apply(variables, np.zeros((4, 8)), np.zeros(4, np.int32), train=False)


@pytest.mark.parametrize('network', ['generator', 'discriminator'])
def test_spectral_normalisation_is_configured_per_network(network):
    config = tiny.config(**{f'spectral_norm__{network}': False})
    variables = [jax.eval_shape(n.init, jax.random.key(0)) for n in models.create(config)]
    empty = [v['spectral_stats'] == {} for v in variables]
    assert empty == [network == 'generator', network == 'discriminator']


def test_parameters_and_outputs_are_float32_with_bfloat16(tiny_networks):
    inputs = jax.random.normal(jax.random.key(1), (4, 8)), jnp.array([0, 1, 2, 0])
    images = {}
    for dtype in ('float32', 'bfloat16'):
        generator, discriminator = compiled(tiny.config(dtype=dtype))
        g, d = generator.init(jax.random.key(0)), discriminator.init(jax.random.key(1))
        weights, _ = generator.normalise(g)
        images[dtype], stats = generator.apply(weights, *inputs, train=True)
        d_weights, _ = discriminator.normalise(d)
        logits, _ = discriminator.apply(d_weights, images[dtype], inputs[1], train=True)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((g, d, stats, logits)))
    difference = np.abs(images['float32'] - images['bfloat16'])
    assert 0 < difference.mean() < 0.02


def test_initialisers():
    def initialise(name, *shape):
        params = {'conv': {'kernel': np.ones(shape), 'bias': np.zeros(shape[-1])}}
        config = tiny.config(model__initializer=name)
        drawn = models._initialiser(config)(jax.random.key(0), params)
        np.testing.assert_array_equal(drawn['conv']['bias'], 0)
        return np.asarray(drawn['conv']['kernel']).reshape(-1, shape[-1])

    kernel = initialise('orthogonal', 3, 3, 8, 16)
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(16), atol=1e-5)
    assert np.std(initialise('normal', 3, 3, 16, 32)) == pytest.approx(0.02, rel=0.05)
    assert (initialise('xavier_uniform', 3, 3, 8, 8) == 1).all()  # the layers draw these


def test_biases_of_linear_layers_and_class_tables_are_drawn_if_asked_for():
    """Biases as PyTorch draws them, and tables like other weights; nothing else changes."""
    params = {
        'dense': {'kernel': np.ones((100, 2000)), 'bias': np.zeros(2000)},
        'conv': {'kernel': np.ones((3, 3, 4, 8)), 'bias': np.zeros(8)},
        'norm1': {'scale': np.zeros((10, 16)), 'bias': np.zeros((10, 16))},
        'norm': {'scale': np.ones(16), 'bias': np.zeros(16)},
    }
    overrides = {'model__initializer': 'orthogonal', 'batch_norm__class_tables': 'drawn'}
    plain = models._initialiser(tiny.config(**overrides))(jax.random.key(0), params)
    config = tiny.config(model__dense_bias='uniform', **overrides)
    drawn = models._initialiser(config)(jax.random.key(0), params)
    bias = drawn['dense'].pop('bias')
    assert 0.095 < np.abs(bias).max() <= 0.1
    assert abs(np.mean(bias)) < 0.005
    assert (plain['dense'].pop('bias') == 0).all()
    chex.assert_trees_all_equal(drawn, plain)
    for table in drawn['norm1'].values():
        np.testing.assert_allclose(table @ table.T, np.eye(10), atol=1e-5)
    chex.assert_trees_all_equal(drawn['norm'], params['norm'])

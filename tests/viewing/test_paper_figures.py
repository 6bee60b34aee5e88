"""The figures of a run: their contents, and refused requests."""

import jax
import numpy as np
import pytest
from PIL import Image

from sagan_jax import figures, models
from sagan_jax.errors import UserError
from sagan_jax.train import train
from sagan_jax.viewing.paper_figures import illustrate
from tests import tiny


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tiny.picture_folder(tmp_path_factory.mktemp('pictures') / 'source')


@pytest.fixture(scope='module')
def run(folder, tmp_path_factory):
    config, workdir = tiny.folder_config(folder), tmp_path_factory.mktemp('run')
    train(config, workdir)
    return config, workdir


def test_all_figures(run):
    config, workdir = run
    names = {path.name for path in illustrate(config, workdir, kinds=['all'])}
    assert names == {
        'attention_generator.png', 'attention_generator.pdf',
        'attention_discriminator.png', 'attention_discriminator.pdf',
        'gamma.png', 'gamma.pdf', 'sigma.png', 'sigma.pdf', 'classes.png', 'evolution.png',
    }  # fmt: skip
    assert {path.name for path in (workdir / 'figures').iterdir()} == names
    with Image.open(workdir / 'figures' / 'attention_generator.png') as image:
        assert image.size == (1440, 1440)  # six images, each beside five maps
    with Image.open(workdir / 'figures' / 'evolution.png') as image:
        assert image.size == (10 * 66 + 2, 2 * 66 + 2)  # checkpoints 2 and 4
    assert (workdir / 'figures' / 'gamma.pdf').read_bytes().startswith(b'%PDF')
    # Both show ten images of each class of the last checkpoint.
    grid = (workdir / 'samples' / '000004.png').read_bytes()
    assert (workdir / 'figures' / 'classes.png').read_bytes() == grid


def test_chosen_classes_and_points(run):
    config, workdir = run
    illustrate(config, workdir, '2', ['classes'], ['class2', '0'])
    with Image.open(workdir / 'figures' / 'classes.png') as image:
        assert image.size == (10 * 66 + 2, 2 * 66 + 2)
    illustrate(config, workdir, 'newest', ['attention'], ['1'], [(0, 0), (31, 16)])
    with Image.open(workdir / 'figures' / 'attention_generator.png') as image:
        assert image.size == (3 * 240, 1440)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((['maps'],), "no figure 'maps': choose among attention, curves"),
        ((['classes'], ['cat']), "no class 'cat': give names such as class0 or indices below 3"),
        ((['classes'], ['3']), "no class '3'"),
        ((['attention'], [], [(3, 32)]), r'point \(3, 32\) lies outside the 32×32 pixels'),
    ],
)
def test_invalid_arguments_are_refused(run, arguments, message):
    with pytest.raises(UserError, match=message):
        illustrate(*run, 'newest', *arguments)


def test_several_checkpoints_are_refused(run):
    with pytest.raises(UserError, match='choose newest, best or a step'):
        illustrate(*run, 'all', ['classes'])


@pytest.mark.parametrize(
    'overrides',
    [
        {'model__generator_attention': (), 'model__discriminator_attention': ()},
        {'model__attention_block': 'residual'},
    ],
)
def test_networks_without_attention(folder, tmp_path, overrides):
    config = tiny.folder_config(folder, **overrides)
    with pytest.raises(UserError, match='no attention to draw'):
        illustrate(config, tmp_path, kinds=['attention'])


# ---- The weights. ------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def maps():
    """A discriminator's attention over a hand-made image, and over its mirror image."""
    config = tiny.config(model__attention_pooling=False)
    discriminator = models.create(config)[1]
    params = jax.jit(discriminator.init)(jax.random.key(0))['params']
    image = np.full((1, 32, 32, 3), -0.5, np.float32)
    image[:, 8:20, 4:12] = (0.9, -0.2, 0.3)
    both = np.concatenate([image, image[:, :, ::-1]])
    # Symmetric kernels treat both images alike.
    params = jax.tree.map(lambda k: (k + k[:, ::-1]) / 2 if k.ndim == 4 else k, params)
    labels = np.zeros(2, np.int32)
    return discriminator.attention({'params': params, 'batch_stats': {}}, both, labels)


def test_weights_sum_to_one_over_the_keys(maps):
    assert list(maps) == [16]
    assert maps[16].shape == (2, 256, 256)
    np.testing.assert_allclose(np.asarray(maps[16]).sum(-1), 1, rtol=1e-5)


def test_a_mirrored_image_has_a_mirrored_map(maps):
    weights = np.asarray(maps[16]).reshape(2, 16, 16, 16, 16)
    np.testing.assert_allclose(weights[1], weights[0][:, ::-1, :, ::-1], rtol=1e-4, atol=1e-7)
    assert np.abs(weights[1] - weights[0]).max() > 1e-3


def test_pooling_leaves_a_quarter_of_the_keys():
    generator, _ = models.create(tiny.config(model__attention_query_block=64))
    variables = jax.jit(generator.init)(jax.random.key(0))
    z, labels = np.ones((3, 8), np.float32), np.zeros(3, np.int32)
    assert generator.attention(variables, z, labels)[16].shape == (3, 256, 64)


def test_spread_points_are_where_maps_differ():
    weights = np.full((64, 4), 0.25, np.float32)
    weights[10], weights[37] = (0.97, 0.01, 0.01, 0.01), (0.01, 0.01, 0.01, 0.97)
    points = figures.spread_points(weights, 3)
    assert {tuple(point) for point in points[:2]} == {(1, 2), (4, 5)}
    assert len({tuple(point) for point in points}) == 3


def test_arrows_point_at_the_peaks():
    attention = np.zeros((8, 8))
    attention[1, 1], attention[1, 2], attention[6, 5], attention[7, 0] = 0.5, 0.4, 0.3, 0.05
    peaks = [tuple(peak) for peak in figures._peaks(attention)]
    assert peaks == [(1, 1), (6, 5)]  # (1, 2) is next to a higher one, (7, 0) too low


def test_curves_of_a_run_killed_while_writing(run):
    config, workdir = run
    path = workdir / 'metrics.jsonl'
    before = path.read_bytes()
    path.write_bytes(before + b'\n\x00\xff\n{"step": 5, "generator_ga')
    written = illustrate(config, workdir, kinds=['curves'])
    path.write_bytes(before)
    assert {path.name for path in written} == {'gamma.png', 'gamma.pdf', 'sigma.png', 'sigma.pdf'}

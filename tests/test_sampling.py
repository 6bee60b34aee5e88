"""Frozen generators and their samples, interpolations and classes."""

import unicodedata

import jax
import numpy as np
import pytest
from absl import flags
from flax import traverse_util
from hypothesis import given
from hypothesis import strategies as st

from sagan_jax import models, sampling
from sagan_jax.errors import UserError
from sagan_jax.streams import Stream
from sagan_jax.system.names import canonical
from tests import tiny


@pytest.fixture(scope='module')
def generator_variables():
    """Variables far from their initial values, as after training."""
    generator, _ = models.create(tiny.config())
    variables = jax.jit(generator.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: (leaf + 0.3 * rng.normal(size=leaf.shape)).astype(np.float32),
        variables['params'],
    )
    return variables | {'params': params}


def test_frozen_weights_have_spectral_norm_one(generator_variables):
    before = jax.tree.map(np.array, generator_variables)
    frozen = sampling.create_freeze(tiny.config())(generator_variables)
    assert frozen.keys() == {'params', 'batch_stats'}
    weights = traverse_util.flatten_dict(frozen['params'])
    kernels = [np.asarray(leaf) for path, leaf in weights.items() if path[-1] == 'kernel']
    assert len(kernels) == 15
    for kernel in kernels:
        sigma = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0]
        np.testing.assert_allclose(sigma, 1, rtol=2e-3)
    # Without standing batches, the running averages stay. The input is not changed.
    for path, leaf in traverse_util.flatten_dict(before['batch_stats']).items():
        np.testing.assert_array_equal(traverse_util.flatten_dict(frozen['batch_stats'])[path], leaf)
    jax.tree.map(np.testing.assert_array_equal, before, generator_variables)


def test_standing_statistics_match_batch_moments(generator_variables):
    """With standing statistics, evaluation mode and training mode give nearly the same images."""
    config = tiny.config(batch_size=64, batch_norm__standing_batches=4)
    generator, _ = models.create(config)
    labels = np.arange(192, dtype=np.int32) % 3
    z = np.random.default_rng(0).normal(size=(192, 8)).astype(np.float32)
    apply = jax.jit(generator.apply, static_argnames='train')

    running = sampling.create_freeze(tiny.config(batch_size=64))(generator_variables)
    standing = sampling.create_freeze(config)(generator_variables)
    expected, _ = apply(standing, z, labels, train=True)
    errors = [
        np.abs(apply(frozen, z, labels, train=False)[0] - expected).mean()
        for frozen in (standing, running)
    ]
    assert errors[0] < 0.1 * errors[1]


def test_sample_rows_are_rounded_images_of_their_index_and_label(generator_variables):
    config = tiny.config()
    frozen = sampling.create_freeze(config)(generator_variables)
    generator, _ = models.create(config)
    sample = sampling.create_sample(generator, z_dim=8, batch_size=4)
    images = sampling.sample_rows(sample, frozen, np.array([2, 0]), columns=3, seed=5)
    assert images.dtype == np.uint8
    assert images.shape == (6, 32, 32, 3)
    numbers, labels = np.array([0, 2, 4, 1, 3, 5]), np.array([2, 2, 2, 0, 0, 0])
    z = sampling.indexed_noise(5, Stream.SAMPLE_NOISE, numbers, 8)
    floats, _ = jax.jit(generator.apply, static_argnames='train')(frozen, z, labels, train=False)
    assert np.abs(images / 127.5 - 1 - floats).max() <= 0.5 / 127.5 + 1e-5
    assert len(np.unique(images.reshape(6, -1), axis=0)) == 6


@pytest.mark.parametrize(
    ('num_classes', 'rows', 'expected'),
    [(3, 10, [0, 1, 2]), (10, 10, list(range(10))), (1000, 3, [0, 500, 999]), (0, 10, [0])],
)
def test_grid_classes(num_classes, rows, expected):
    classes = sampling.grid_classes(num_classes, rows)
    np.testing.assert_array_equal(classes, expected)
    assert classes.dtype == np.int32


def test_slerp_keeps_the_norm():
    start, end = np.array([[3.0, 0], [0, 2]]), np.array([[0, 3.0], [2, 0]])
    path = sampling.slerp(start, end, 4)
    angles = np.arange(4) * np.pi / 6
    np.testing.assert_allclose(
        path[0], 3 * np.stack([np.cos(angles), np.sin(angles)], 1), atol=1e-6
    )
    np.testing.assert_allclose(
        path[1], 2 * np.stack([np.sin(angles), np.cos(angles)], 1), atol=1e-6
    )


def test_mixed_classes_average_the_tables(generator_variables):
    frozen = sampling.create_freeze(tiny.config())(generator_variables)
    half = np.array([[0.5, 0, 0.5]], np.float32)
    _, mixed = sampling.mix_classes(tiny.config(), frozen, half)
    tables = traverse_util.flatten_dict(frozen['params'])
    changed = 0
    for path, value in traverse_util.flatten_dict(mixed['params']).items():
        if value.shape == tables[path].shape:
            np.testing.assert_array_equal(value, tables[path])
        else:
            expected = (tables[path][:1] + tables[path][2:]) / 2
            np.testing.assert_allclose(value, expected, rtol=1e-6)
            changed += 1
    assert changed == 12  # a gain and a bias in each of three blocks' two norms


@pytest.mark.parametrize('form', ['NFC', 'NFD'])
@pytest.mark.parametrize('given_form', ['NFC', 'NFD'])
def test_a_class_is_found_in_either_unicode_form(form, given_form):
    names = ['cafe', unicodedata.normalize(form, 'café'), 'z']
    given = unicodedata.normalize(given_form, 'café')
    assert sampling.class_indices([given, 'z', 0], names).tolist() == [1, 2, 0]


NAMES = st.lists(
    st.text(st.characters(exclude_categories=['C', 'Zl', 'Zp']), min_size=1)
    | st.sampled_from(['0', '1', '2', 'a, b', ' z', 'z ', '"q"', 'a"b', "it's", '-', '9' * 5000]),
    min_size=1,
    max_size=6,
    unique_by=lambda name: canonical(name).strip(),
).filter(lambda names: all(canonical(name).strip() for name in names))


@given(NAMES)
def test_every_class_can_be_named_on_the_command_line(names):
    """With quotation marks, as the help of --classes says; a name counts before an index."""
    values = flags.FlagValues()
    classes = flags.DEFINE_list('classes', [], '', flag_values=values)
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    values(['program', '--classes=' + ','.join(quoted)])
    assert sampling.class_indices(classes.value, names).tolist() == list(range(len(names)))
    for index, name in enumerate(names):
        assert sampling.class_indices([name], names).tolist() == [index]


@pytest.mark.parametrize('unknown', ['3', '-1', '9' * 5000, '1.0', '٠', 'a', ''])
def test_an_unknown_class_is_refused_with_names_as_they_can_be_given(unknown):
    with pytest.raises(UserError, match=r'There is no class .*: give names such as "a, b" or'):
        sampling.class_indices([unknown], ['a, b', 'q' * 99, 'r' * 99])


def test_an_integer_is_an_index_and_a_text_a_name():
    names = ['2', '1', '0']
    for index in range(3):
        assert sampling.class_indices([index, np.int64(index)], names).tolist() == [index] * 2
        assert sampling.class_indices([names[index]], names).tolist() == [index]
    assert sampling.class_indices(['3', 3], [*names, 'x']).tolist() == [3, 3]

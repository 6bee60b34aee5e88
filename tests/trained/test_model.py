"""A trained model: images by seed and index, interpolations, logits and refused arguments."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import scipy.stats

import sagan_jax
from sagan_jax import models, sampling
from sagan_jax.errors import UserError
from sagan_jax.run import checkpoints, provenance
from sagan_jax.run.folder import RunFolder
from sagan_jax.state import create_state
from sagan_jax.streams import Stream
from sagan_jax.trained.model import load
from tests import tiny


@pytest.fixture(scope='module')
def run(trained_workdir):
    return RunFolder(trained_workdir).config(), trained_workdir


@pytest.fixture(scope='module')
def model(run):
    return sagan_jax.load(run[1])


def assert_close(actual, expected):
    """Asserts that uint8 images are equal up to rounding."""
    assert actual.shape == expected.shape
    difference = np.abs(actual.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


# ---- Images. -----------------------------------------------------------------------------------


def test_the_configuration_is_read_from_the_folder(model):
    assert model.config.to_json() == tiny.config(ema__decay=0.5).to_json()
    assert model.config.model.generator_attention == (16,)
    assert model.class_names == ('class0', 'class1', 'class2')
    assert model.step == 7


def test_images_equal_those_of_the_averaged_generator_drawn_one_by_one(run, model):
    config, workdir = run
    manager = checkpoints.open_manager(workdir / 'checkpoints')
    state = checkpoints.restore(manager, jax.eval_shape(lambda: create_state(config)), 7, config)
    manager.close()
    frozen = sampling.create_freeze(config)(state.averaged)
    generator, _ = models.create(config)
    images = model.sample(classes=['class2', 0], n=5, seed=3)
    assert images.dtype == np.uint8
    stream_key = jax.random.fold_in(jax.random.key(3), Stream.SAMPLE_NOISE)
    apply = jax.jit(generator.apply, static_argnames='train')
    for index, label in enumerate([2, 0, 2, 0, 2]):
        z = jax.random.normal(jax.random.fold_in(stream_key, index), (1, 8))
        image, _ = apply(frozen, z, np.array([label]), train=False)
        assert_close(images[index], np.round((np.asarray(image[0]) + 1) * 127.5))
    assert len(np.unique(images.reshape(5, -1), axis=0)) == 5


@pytest.mark.parametrize(('devices', 'batch_size'), [(1, 64), (8, 64), (8, 5)])
def test_images_do_not_depend_on_devices_or_batch_size(
    run, model, devices, batch_size, monkeypatch
):
    config, workdir = run
    config = config.copy_and_resolve_references().unlock()
    config.evaluation.batch_size = batch_size
    expected = model.sample(n=21, seed=1)
    monkeypatch.setattr(jax, 'local_devices', lambda: jax.devices()[:devices])
    found = load(workdir, config=config).sample(n=21, seed=1)
    assert_close(found, expected)


def test_an_image_depends_on_its_index_and_not_on_other_images(model):
    images = model.sample(classes=[1], n=20, seed=5)
    some = np.array([17, 3])
    assert_close(np.concatenate(list(model.stream(some, np.array([1, 1]), 5))), images[some])
    assert_close(model.sample(classes=[1], n=4, seed=5), images[:4])
    assert (model.sample(classes=[1], n=4, seed=6) != images[:4]).mean() > 0.5
    assert (model.sample(classes=[2], n=4, seed=5) != images[:4]).mean() > 0.1


def test_a_stream_draws_only_the_batches_that_are_read(model):
    count = 10**7  # drawing all would take hours
    first = next(model.stream(np.arange(count), model.labels(n=count), 0))
    assert first.shape == (8 * 64, 32, 32, 3)  # 64 for each of eight devices


def test_classes_cycle(model):
    np.testing.assert_array_equal(model.labels(n=7), [0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(model.labels(['class2', '0', 1], 4), [2, 0, 1, 2])
    np.testing.assert_array_equal(model.labels('class1', 2), [1, 1])
    named = dataclasses.replace(
        model, class_names=('1', '2', '3')
    )  # names take precedence over indices
    np.testing.assert_array_equal(named.labels(['1', '3', '0'], 3), [0, 2, 0])
    np.testing.assert_array_equal(named.labels(n=4), [0, 1, 2, 0])


def test_samples_are_the_rounded_images_of_generate(model):
    z, labels = model.noise(6, seed=2), model.labels(n=6)
    floats = model.generate(z, labels)
    assert floats.dtype == np.float32
    assert np.abs(floats).max() <= 1
    assert_close(model.sample(n=6, seed=2), np.round((floats + 1) * 127.5))


def test_truncation_resamples_and_does_not_rescale(model):
    for threshold in (0.5, 2):
        z = model.noise(2000, seed=0, truncation=threshold).ravel()
        assert np.abs(z).max() <= threshold
        expected = scipy.stats.truncnorm(-threshold, threshold)
        assert scipy.stats.kstest(z, expected.cdf).pvalue > 1e-3
    assert np.abs(model.noise(2000, seed=0)).max() > 3
    assert_close(
        model.sample(n=3, truncation=0.5),
        np.round((model.generate(model.noise(3, truncation=0.5), model.labels(n=3)) + 1) * 127.5),
    )


# ---- Interpolations. ---------------------------------------------------------------------------


def test_noise_interpolations_start_and_end_at_samples(model):
    rows = model.interpolate_noise(['class1'], n=3, seed=4, steps=5)
    assert rows.shape == (3, 5, 32, 32, 3)
    samples = model.sample(['class1'], n=6, seed=4)
    assert_close(rows[:, 0], samples[::2])
    assert_close(rows[:, -1], samples[1::2])
    assert (rows[:, 1:] != rows[:, :-1]).any((2, 3, 4)).all()


def test_class_interpolations_pass_through_each_class(model):
    rows = model.interpolate_classes([2, 0, 1], n=2, seed=4, steps=5)
    assert rows.shape == (2, 5, 32, 32, 3)
    for column, label in ((0, 2), (2, 0), (4, 1)):
        assert_close(rows[:, column], model.sample([label], n=2, seed=4))
    assert (rows[:, 1:] != rows[:, :-1]).any((2, 3, 4)).all()


def test_discriminate_returns_the_logits_of_the_discriminator(run, model):
    images, labels = model.sample(n=6), model.labels(n=6)
    _, discriminator = models.create(run[0])
    weights, _ = discriminator.normalise(model.discriminator)
    apply = jax.jit(discriminator.apply, static_argnames='train')
    expected, _ = apply(weights, images / np.float32(127.5) - 1, labels, train=False)
    np.testing.assert_allclose(model.discriminate(images, labels), expected, rtol=1e-4, atol=1e-4)
    other = model.discriminate(images, (labels + 1) % 3)
    assert np.abs(other - expected).max() > 1e-2


# ---- Mistakes. ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'classes': ['99999']}, "no class '99999': give names such as class0 or indices below 3"),
        ({'classes': [-1]}, "no class '-1'"),
        ({'classes': ['clas1']}, "no class 'clas1': give names such as class1, "),
        ({'n': 0}, 'Cannot draw 0 images'),
        ({'n': -3}, 'Cannot draw -3 images'),
        ({'seed': -1}, 'seed -1 is out of range: choose'),
        ({'seed': 2**32}, 'seed 4294967296 is out of range'),
        ({'truncation': 0}, 'truncation 0 is out of range'),
        ({'truncation': -0.5}, 'truncation -0.5 is out of range'),
        ({'truncation': float('nan')}, 'truncation nan is out of range'),
        ({'truncation': 1e6}, 'at most 5'),
    ],
)
def test_invalid_arguments_are_refused(model, arguments, message):
    for draw in (model.sample, model.interpolate_noise):
        with pytest.raises(UserError, match=message):
            draw(**arguments)


def test_classes_are_refused_for_a_generator_without_classes(model):
    config = tiny.config(model__conditioning='none', dataset__num_classes=1)
    without = dataclasses.replace(model, config=config, class_names=('all',))
    np.testing.assert_array_equal(without.labels(n=3), [0, 0, 0])
    with pytest.raises(UserError, match='without classes'):
        without.labels(['all'], 3)
    with pytest.raises(UserError, match='at least two, not 1'):
        model.interpolate_classes(['class1'])


def test_missing_runs_and_checkpoints_are_refused(run, tmp_path):
    with pytest.raises(UserError, match=f'no run in {tmp_path}'):
        sagan_jax.load(tmp_path)
    config, workdir = run
    with pytest.raises(UserError, match='best: train first'):
        sagan_jax.load(workdir, 'best')
    with pytest.raises(UserError, match='choose newest, best'):
        sagan_jax.load(workdir, 'all')
    with pytest.raises(UserError, match='no checkpoint 8'):
        sagan_jax.load(workdir, 8)
    other = config.copy_and_resolve_references().unlock()
    other.model.z_dim = 9
    with pytest.raises(UserError, match='another configuration, model'):
        load(workdir, config=other)
    RunFolder(tmp_path).write_record(
        provenance.record(config) | {'data': {'class_names': ['a', 'b', 'c']}}
    )
    with pytest.raises(UserError, match='no checkpoint in'):
        sagan_jax.load(tmp_path)


def test_a_run_without_recorded_class_names_uses_indices(run, tmp_path):
    config = tiny.config(dataset__num_classes=12)
    RunFolder(tmp_path).write_record(provenance.record(config) | {'data': {'class_names': []}})
    path = tmp_path / 'config.json'
    path.write_text(path.read_text().replace('class_names', 'nothing'))
    names = RunFolder(tmp_path).class_names()
    assert names[:3] == ('00', '01', '02')
    assert len(names) == 12


def test_a_run_of_an_older_version_without_later_keys_can_be_loaded(run, model, tmp_path):
    shutil.copytree(run[1], tmp_path / 'old')
    record = json.loads((tmp_path / 'old' / 'config.json').read_text())
    for key in ('mismatch_weight', 'mode_seeking_weight', 'diff_augment', 'lecam_weight'):
        del record['config'][key]
    del record['config']['optimizer']['decay_from']
    del record['config']['distributed'], record['data'], record['version']
    (tmp_path / 'old' / 'config.json').write_text(json.dumps(record))
    old = sagan_jax.load(tmp_path / 'old')
    assert old.config.to_dict() == model.config.to_dict()
    np.testing.assert_array_equal(old.sample(n=3), model.sample(n=3))

"""Statistics of real images: their values, and when a cached file is used."""

import numpy as np
import pytest

from sagan_jax import data
from sagan_jax.errors import UserError
from sagan_jax.evaluation import real_statistics
from sagan_jax.metrics import in_domain
from tests import tiny


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    return tiny.config(
        dataset__name='image_folder',
        dataset__source_dir=str(tiny.picture_folder(folder / 'source')),
        dataset__data_dir=str(folder / 'prepared'),
    )


@pytest.fixture(scope='module')
def source(config):
    return data.load(config.dataset)


@pytest.fixture(scope='module')
def networks(config, source):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_domain, 'STEPS', 30)
        return real_statistics.load_networks(config, source)


def statistics(source, networks, splits=2, keep=10, batch_size=16):
    return real_statistics.load_statistics(source, networks, splits, keep, batch_size)


def files(source, kind):
    return sorted((source.folder / 'sagan_jax').glob(f'{kind}_*.npz'))


def test_the_classifier_is_cached(config, source, networks, monkeypatch, capsys):
    assert networks.classifier is networks.features
    monkeypatch.setattr(in_domain, 'fit', None)
    again = real_statistics.load_networks(config, source)
    assert again.features.sha256 == networks.features.sha256
    # The classes differ in brightness, and there is no test split.
    assert '3 classes: 100.0% of train images correct' in capsys.readouterr().out


def test_statistics_cover_all_images(source, networks):
    images = np.stack([example['image'] for example in source.examples])
    labels = np.array([example['label'] for example in source.examples])
    found = in_domain.apply(networks.features.variables, images)
    for _ in range(2):  # computed, then read
        collected, shares = statistics(source, networks)
        assert collected.moments.count == collected.splits.total == 36
        np.testing.assert_allclose(
            collected.moments.covariance, np.cov(found['features'], rowvar=False), atol=1e-5
        )
        np.testing.assert_allclose(collected.features, found['features'][:10], atol=1e-5)
        assert shares == {'class_share': np.mean(found['logits'].argmax(-1) == labels)}
    assert len(files(source, 'statistics')) == 1

    features, kept_labels = real_statistics.load_features(source, networks, batch_size=16)
    np.testing.assert_allclose(features, found['features'], atol=1e-5)
    np.testing.assert_array_equal(kept_labels, labels)


def test_settings_have_separate_files(source, networks):
    before = len(files(source, 'statistics'))
    statistics(source, networks, splits=3)
    statistics(source, networks, keep=11)
    statistics(source, networks, keep=11, batch_size=5)  # changes nothing
    assert len(files(source, 'statistics')) == before + 2


def test_statistics_of_another_resolution_are_refused(source, networks):
    statistics(source, networks, keep=12)
    newest = max(files(source, 'statistics'), key=lambda path: path.stat().st_mtime_ns)
    with np.load(newest) as archive:
        arrays = dict(archive)
    arrays['record'] = np.array(
        str(arrays['record']).replace('"image_size": 32', '"image_size": 64')
    )
    np.savez(newest, **arrays)
    with pytest.raises(
        UserError, match=f'{newest.name} has another record .image_size 64, not 32.: remove it'
    ):
        statistics(source, networks, keep=12)
    newest.unlink()


def test_a_damaged_file_is_computed_again(source, networks, capsys):
    expected = statistics(source, networks, keep=13)
    newest = max(files(source, 'statistics'), key=lambda path: path.stat().st_mtime_ns)
    for content in (newest.read_bytes()[:-100], b'', b'PK\x03\x04 nothing'):
        newest.write_bytes(content)
        found = statistics(source, networks, keep=13)
        assert f'{newest.name} cannot be read' in capsys.readouterr().out
        np.testing.assert_array_equal(found.collected.features, expected.collected.features)


def test_statistics_of_an_unwritable_folder_are_computed(source, networks, tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    elsewhere = source.__class__(**source.__dict__ | {'folder': tmp_path / 'file'})
    collected, _ = statistics(elsewhere, networks)
    assert collected.moments.count == 36
    assert 'cannot be written: ' in capsys.readouterr().out

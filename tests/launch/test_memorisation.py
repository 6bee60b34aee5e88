"""What a generator and a discriminator know by heart shows in the numbers."""

import json
import shutil

import numpy as np
import pytest

from launch import memorisation
from sagan_jax import data
from sagan_jax.errors import UserError
from sagan_jax.metrics import in_domain
from sagan_jax.run import provenance
from sagan_jax.run.folder import RunFolder
from sagan_jax.train import train
from sagan_jax.trained.model import Model
from tests import tiny

CLASSES = ('ant', 'bee')


@pytest.fixture(scope='module')
def folders(tmp_path_factory, small_networks):
    """A run with two checkpoints, and a folder with its images, more of them, and others."""
    folder = tmp_path_factory.mktemp('few')
    few = tiny.photographs(folder / 'few', 12, CLASSES, width=32, height=32)
    shutil.copytree(few, folder / 'all' / 'train')
    rng = np.random.default_rng(1)
    for split, count in (('train', 36), ('test', 8)):
        for name in CLASSES:
            (folder / 'all' / split / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                tiny.photograph(rng).save(folder / 'all' / split / name / f'other{index}.png')
    config = tiny.folder_config(few, dataset__num_classes=2, num_train_steps=4, **tiny.SMALL)
    train(config.lock(), folder / 'run')
    return folder


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(in_domain, 'STEPS', 5)
    monkeypatch.setattr(memorisation, 'SUBSET_SIZE', 20)


def test_a_line_for_each_checkpoint(folders, capsys):
    run, whole = str(folders / 'run'), str(folders / 'all')
    memorisation.main([run, '--source_dir', whole, '--num_images', '64'])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row['step'] for row in rows] == [2, 4]
    for row in rows:
        assert row['run'] == run
        assert row['fid'] > 0
        assert all(0 <= row[name] <= 1 for name in ('nearest', 'train', 'test'))


@pytest.mark.parametrize(('drawn', 'nearest'), [('few', 1), ('all', 0)])
def test_samples_that_are_training_images_and_samples_that_are_not(
    folders, monkeypatch, drawn, nearest
):
    config = RunFolder(folders / 'run').config()
    known, _ = data.all_examples(data.load(config.dataset))
    config.unlock()
    config.dataset.source_dir = str(folders / 'all')
    held_out, _ = data.all_examples(data.load(config.dataset, 'test'))
    others, _ = data.all_examples(data.load(config.dataset))
    recognised = {image.tobytes() for image in known}
    others = np.stack([image for image in others if image.tobytes() not in recognised])
    assert (len(known), len(others), len(held_out)) == (24, 72, 16)
    samples = np.resize(known if drawn == 'few' else others, (72, 8, 8, 3))
    monkeypatch.setattr(Model, 'sample', lambda self, n: samples[:n])

    def by_heart(self, images, labels):
        assert len(images) == len(labels)
        return np.array([image.tobytes() in recognised for image in images], np.float32)

    monkeypatch.setattr(Model, 'discriminate', by_heart)
    *_, row = memorisation.score(RunFolder(folders / 'run'), str(folders / 'all'), 72)
    assert row['nearest'] == nearest
    assert row['train'] == (0.5 if drawn == 'few' else 1)
    assert row['test'] == (0 if drawn == 'few' else 0.5)


def test_shares_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 40), rng.integers(0, 5, 30)
    pairs = (a[:, None] > b) + 0.5 * (a[:, None] == b)
    assert memorisation._share_of_pairs(a, b) == pytest.approx(pairs.mean())


def test_too_few_images_are_refused_at_once(folders):
    with pytest.raises(UserError, match=r'^19 generated images are too few for KID: set --num_im'):
        next(memorisation.score(RunFolder(folders / 'run'), str(folders / 'all'), 19))


def test_a_run_of_another_data_set_is_compared_with_the_folder(folders, tmp_path):
    """Not with its own data set, which takes no folder."""
    run = RunFolder(tmp_path)
    run.write_record(provenance.record(tiny.config(dataset__num_classes=10)))
    with pytest.raises(UserError, match=r'all has 2 classes but dataset.num_classes is 10'):
        next(memorisation.score(run, str(folders / 'all'), 64))


def test_other_classes_are_refused(folders, tmp_path):
    tiny.photographs(tmp_path / 'all' / 'train', 2, ('ant', 'cow'))
    tiny.photographs(tmp_path / 'all' / 'test', 2, ('ant', 'cow'))
    with pytest.raises(UserError, match=r'The classes of .* are not those of .*: give a folder'):
        next(memorisation.score(RunFolder(folders / 'run'), str(tmp_path / 'all'), 64))

"""Own images in one command: the folder decides the classes, and the networks fit any size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from sagan_jax.errors import UserError
from sagan_jax.evaluation import evaluate as evaluation
from sagan_jax.metrics import in_domain
from sagan_jax.run.folder import RunFolder
from sagan_jax.state import create_state
from sagan_jax.system.replicas import replicate
from sagan_jax.train import train
from sagan_jax.train_step import create_train_step
from sagan_jax.trained.model import load
from sagan_jax.viewing import paper_figures
from tests import tiny

ROOT = Path(__file__).parents[1]
OPEN = {
    'dataset__num_classes': None,
    'model__generator_attention': None,
    'model__discriminator_attention': None,
    'diff_augment': 'auto',
}


def test_a_folder_of_photographs_without_any_other_flag(tmp_path):
    """The flags beside the folder only make it cheap: two steps of narrow networks."""
    photographs = tiny.photographs(tmp_path / 'own', 300)
    cheap = ('num_train_steps=2', 'batch_size=8', 'model.generator_width=1')
    command = [
        *(sys.executable, '-m', 'sagan_jax.main', '--config', ROOT / 'configs/image_folder.py'),
        f'--config.dataset.source_dir={photographs}',
        *(f'--config.{flag}' for flag in (*cheap, 'model.discriminator_width=1')),
    ]
    env = os.environ | {'PYTHONPATH': str(ROOT), 'HOME': str(tmp_path)}
    result = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert 'image_folder: 300 images of 64×64 without classes' in result.stdout
    assert 'attention at 16' in result.stdout
    augmented = (
        'diff_augment   color,translation,cutout, because there are fewer than 10,000 images'
    )
    assert augmented in result.stdout
    assert 'warning' not in result.stdout
    workdir = tmp_path / 'runs' / 'image_folder'
    config = json.loads((workdir / 'config.json').read_text())['config']
    assert config['dataset']['num_classes'] == 1
    assert config['model']['conditioning'] == 'none'
    assert config['model']['generator_attention'] == [16]
    assert config['diff_augment'] == 'color,translation,cutout'
    assert (workdir / 'report.html').exists()
    assert (workdir / 'samples' / '000002.png').exists()


@pytest.fixture(scope='module')
def twelve(tmp_path_factory):
    """A folder of twelve classes, and a run of two steps at 48×48 that was not told of them."""
    folder = tmp_path_factory.mktemp('twelve')
    names = [f'class{n:02}' for n in range(12)]
    tiny.photographs(folder / 'own', 10, names, width=48, height=48)
    config = tiny.folder_config(
        folder / 'own', dataset__image_size=48, num_train_steps=2, sample_every=2, **OPEN
    )
    train(config.lock(), folder / 'run')
    return config, folder / 'run'


def test_classes_that_the_folder_has_are_recorded(twelve, capsys):
    config, workdir = twelve
    assert config.dataset.num_classes is None
    found = RunFolder(workdir).config()
    assert (found.dataset.num_classes, found.model.conditioning) == (12, 'projection')
    assert found.model.generator_attention == found.model.discriminator_attention == (12,)
    assert found.diff_augment == 'color,translation,cutout'
    assert len(RunFolder(workdir).class_names()) == 12
    assert all(np.isfinite(list(line.values())).all() for line in RunFolder(workdir).metrics())


@pytest.mark.parametrize('given', [None, 12])
def test_the_run_resumes_with_and_without_the_number(twelve, given, capsys):
    config, workdir = twelve
    again = config.copy_and_resolve_references()
    again.dataset.num_classes = given
    train(again, workdir)
    printed = capsys.readouterr().out
    assert 'resumes' in printed
    assert '2 of 2 steps are done' in printed


def test_another_number_is_refused(twelve, tmp_path):
    config, workdir = twelve
    other = config.copy_and_resolve_references()
    other.dataset.num_classes = 10
    with pytest.raises(UserError, match=r'has 12 classes .* is 10: .*num_classes=12.$'):
        train(other, tmp_path / 'run')
    with pytest.raises(UserError, match=r'num_classes \(12 there, 10 here\)'):
        train(other, workdir)
    assert not (tmp_path / 'run' / 'config.json').exists()


def test_what_uses_the_run_takes_the_number_from_it(twelve, monkeypatch):
    """With the configuration that trained it, and without the images."""
    config, workdir = twelve
    config = config.copy_and_resolve_references()
    config.dataset.source_dir = '/nowhere'
    model = load(workdir, config=config)
    assert model.config.dataset.num_classes == 12
    assert model.sample(classes=['class11'], n=1).shape == (1, 48, 48, 3)
    drawn = paper_figures.illustrate(config, workdir, kinds=['curves'])
    assert drawn

    scored = []
    monkeypatch.setattr(evaluation.training_data, 'load', lambda *_: None)
    monkeypatch.setattr(
        evaluation,
        'create_evaluator',
        lambda config, *_: scored.append(config.dataset.num_classes) or (lambda *_: []),
    )
    assert list(evaluation.evaluate(config, workdir)) == [2]
    assert scored == [12]


def test_a_record_without_the_number_is_damaged(twelve, tmp_path):
    _, workdir = twelve
    record = json.loads((workdir / 'config.json').read_text())
    record['config']['dataset']['num_classes'] = None
    (tmp_path / 'config.json').write_text(json.dumps(record))
    with pytest.raises(
        UserError, match='the number of classes, the attention or diff_augment is missing'
    ):
        RunFolder(tmp_path).config()


@pytest.mark.thorough  # to compile
def test_two_steps_at_96():
    config = tiny.config(
        dataset__image_size=96,
        model__architecture='sagan',
        model__generator_width=1,
        model__discriminator_width=1,
        model__generator_attention=(12,),
        model__discriminator_attention=(12,),
    )
    devices = jax.devices()[:1]
    step, state = create_train_step(config, devices), replicate(create_state(config), devices)
    for seed in range(2):
        state, metrics = step(state, *tiny.batch(config, seed))
        assert all(np.isfinite(value).all() for value in metrics.values())
    assert int(np.asarray(state.step).ravel()[0]) == 2


def test_grey_images_train_one_channel(tmp_path, small_networks):
    """Coloured files too: what is trained, drawn and scored is grey everywhere."""
    config = tiny.folder_config(
        tiny.photographs(tmp_path / 'own', 20, ('ant', 'bee')),
        dataset__channels=1,
        dataset__num_classes=None,
        num_train_steps=2,
        sample_every=2,
        evaluate_every=2,
        **tiny.SMALL,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_domain, 'STEPS', 2)
        train(config.lock(), tmp_path / 'run')
    model = load(tmp_path / 'run')
    assert model.generator['params']['conv']['kernel'].shape[-1] == 1
    assert model.discriminator['params']['block1']['conv1']['kernel'].shape[2] == 1
    for name in ('samples/000002.png', 'samples/reals.png'):
        assert (np.ptp(np.asarray(Image.open(tmp_path / 'run' / name)), -1) == 0).all()
    assert (np.ptp(model.sample(n=2), -1) == 0).all()
    other = tiny.folder_config(
        tmp_path / 'own', dataset__num_classes=2, init__run=str(tmp_path / 'run'), **tiny.SMALL
    )
    with pytest.raises(
        UserError, match=r'networks .* differ .*: set --config.dataset.channels=1\.'
    ):
        train(other, tmp_path / 'other')

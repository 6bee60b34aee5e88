"""Exports are loaded from folders and from the hub, and what is not one is refused."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save

import sagan_jax
from sagan_jax.errors import UserError
from sagan_jax.run.folder import RunFolder
from sagan_jax.trained import export
from tests import model_hub_server


class Program:
    """In place of a program, which takes seconds to build and is not read here."""

    def serialize(self):
        return b'program'


@pytest.fixture(scope='module')
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp('exported') / 'export'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, 'program', lambda model: Program())
        export.export(model, folder.parent, folder)
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of the two files that are read."""
    copy = tmp_path / 'copy'
    copy.mkdir()
    for name in ('generator.json', 'generator.safetensors'):
        shutil.copy(exported / name, copy)
    return copy


# ---- Folders. ----------------------------------------------------------------------------------


def test_an_export_draws_the_images_of_its_run(model, exported):
    loaded = sagan_jax.load(str(exported))
    np.testing.assert_array_equal(loaded.sample(['class2', 0], n=5, seed=3),
                                  model.sample(['class2', 0], n=5, seed=3))  # fmt: skip
    assert loaded.class_names == model.class_names
    assert (loaded.step, loaded.sha256) == (model.step, model.sha256)
    assert loaded.config.model.to_dict() == model.config.model.to_dict()
    with pytest.raises(UserError, match=r'has no discriminator, because it was exported, .*\.$'):
        loaded.discriminate(np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int32))


def test_an_export_has_one_checkpoint(folder):
    assert sagan_jax.load(folder, 7).step == 7
    with pytest.raises(UserError, match=r'has step 7 alone, and not the checkpoint best: leave'):
        sagan_jax.load(folder, 'best')


def test_commands_that_need_a_run_say_that_an_export_is_none(folder):
    with pytest.raises(UserError, match=r'is an export, which has a generator alone: give the fo'):
        RunFolder(folder).config()


def edited(folder, change):
    path = folder / 'generator.json'
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


def rehashed(folder, weights):
    """Weights that somebody else put in their place, with their SHA-256."""
    content = save(weights)
    (folder / 'generator.safetensors').write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    edited(folder, lambda found: found['files'].update({'generator.safetensors': sha256}))


DESCRIPTIONS = {
    'no JSON': lambda folder: (folder / 'generator.json').write_text('{'),
    'a list': lambda folder: (folder / 'generator.json').write_text('[]'),
    'no configuration': lambda folder: edited(folder, lambda found: found.pop('config')),
    'no files': lambda folder: edited(folder, lambda found: found.pop('files')),
    'a step of text': lambda folder: edited(folder, lambda found: found.update(step='7')),
    'no SHA-256': lambda folder: edited(folder, lambda found: found.update(checkpoint_sha256=1)),
    'too few names': lambda folder: edited(folder, lambda found: found['class_names'].pop()),
    'a wrong origin': lambda folder: edited(folder, lambda found: found.update(origin=[1])),
    'a wrong width': lambda folder: edited(
        folder, lambda found: found['config']['model'].update(generator_width=-1)
    ),
}
WEIGHTS = {
    'half a file': lambda folder: (folder / 'generator.safetensors').write_bytes(b'12'),
    'no file': lambda folder: (folder / 'generator.safetensors').unlink(),
    'no safetensors': lambda folder: edited(
        folder,
        lambda found: (
            found['files'].update({'generator.safetensors': hashlib.sha256(b'12').hexdigest()})
            or (folder / 'generator.safetensors').write_bytes(b'12')
        ),
    ),
    'another array': lambda folder: rehashed(
        folder, load_file(folder / 'generator.safetensors') | {'x': np.zeros(1, np.float32)}
    ),
    'float64': lambda folder: rehashed(
        folder,
        {k: v.astype(float) for k, v in load_file(folder / 'generator.safetensors').items()},
    ),
    'another architecture': lambda folder: edited(
        folder, lambda found: found['config']['model'].update(generator_width=5)
    ),
}


@pytest.mark.parametrize('name', DESCRIPTIONS)
def test_a_damaged_description_is_refused(folder, name):
    DESCRIPTIONS[name](folder)
    with pytest.raises(UserError, match=r'generator.json does not describe an export \(.*\): exp'):
        sagan_jax.load(folder)


@pytest.mark.parametrize('name', WEIGHTS)
def test_damaged_weights_are_refused(folder, name):
    WEIGHTS[name](folder)
    with pytest.raises(UserError, match=r'The weights in .*tensors cannot be used \(.*\): exp'):
        sagan_jax.load(folder)


def test_an_export_of_a_later_version_is_refused(folder):
    edited(folder, lambda found: found['config']['model'].update(later=1))
    with pytest.raises(UserError, match=r'another version .* has model\.later: use that version'):
        sagan_jax.load(folder)


def test_a_run_is_loaded_as_a_run(trained_workdir, folder, tmp_path):
    both = tmp_path / 'both'
    shutil.copytree(trained_workdir, both)
    shutil.copy(Path(folder) / 'generator.json', both)
    assert sagan_jax.load(both).discriminator is not None


def test_an_export_is_loaded_from_the_hub(exported, model, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    with model_hub_server.serving(monkeypatch) as hub:
        hub.files = {path.name: path.read_bytes() for path in exported.iterdir()}
        loaded = sagan_jax.load('hf://me/shapes')
    assert loaded.sha256 == model.sha256
    fetched = [path.rpartition('/')[2] for _, path, _ in hub.requests if '/resolve/' in path]
    assert fetched == ['generator.json', 'generator.safetensors']  # no program of the hub's

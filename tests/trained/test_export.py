"""An exported generator draws the same images in programs that do not use this package."""

import dataclasses
import datetime
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

from sagan_jax import models
from sagan_jax.errors import UserError
from sagan_jax.evaluation import evaluate
from sagan_jax.run.folder import RunFolder
from sagan_jax.trained import export
from tests.tiny import ROW


@pytest.fixture(scope='module')
def folder(model, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('scores')
    evaluate.write(RunFolder(workdir), 7, [ROW])
    export.export(model, workdir, workdir / 'export')
    return workdir / 'export'


def test_the_example_of_the_card_runs_without_this_package(model, folder):
    card = (folder / 'README.md').read_text()
    lines = '\n'.join(re.findall('```python\n(.*?)```', card, re.DOTALL))
    assert len(lines.splitlines()) < 12
    without = ('sagan_jax', 'configs', 'flax', 'optax', 'orbax', 'safetensors', 'ml_collections')
    program = f"""
import sys
for name in {without}:
    sys.modules[name] = None  # so that its import fails
{lines}
assert images.dtype == np.float32 and pixels.shape == (8, 32, 32, 3)
np.testing.assert_allclose(images, generate(z, labels), atol=1e-5)
results = {{'lines': pixels}}
for n in (1, 3, 8, 21):
    z = np.random.default_rng(n).standard_normal((n, 8), np.float32)
    results[str(n)] = fast(z, np.arange(n, dtype=np.int32) % 3)
np.savez('results.npz', **results)
"""
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    subprocess.run([sys.executable, '-c', program], cwd=folder, env=environment, check=True)
    results = np.load(folder / 'results.npz')
    for n in (1, 3, 8, 21):
        z = np.random.default_rng(n).standard_normal((n, 8), np.float32)
        expected = model.generate(z, np.arange(n, dtype=np.int32) % 3)
        assert results[str(n)].shape == (n, 32, 32, 3)
        np.testing.assert_allclose(results[str(n)], expected, atol=1e-5)
    assert results['lines'].std() > 1


def test_the_program_supports_all_platforms_and_batch_sizes(folder):
    program = jax.export.deserialize((folder / 'generator.stablehlo').read_bytes())
    assert program.platforms == ('cpu', 'cuda', 'tpu')
    (images,) = program.out_avals
    assert str(images.shape) == '(n, 32, 32, 3)'
    assert images.dtype == np.float32


def test_exported_weights_draw_the_same_images(model, folder):
    frozen = unflatten_dict(load_file(folder / 'generator.safetensors'), sep='/')
    jax.tree.map(np.testing.assert_array_equal, frozen, jax.device_get(model.generator))
    config = ml_collections.ConfigDict(
        json.loads((folder / 'generator.json').read_text())['config']
    )
    generator, _ = models.create(config)
    z, labels = model.noise(5), model.labels(n=5)
    apply = jax.jit(generator.apply, static_argnames='train')
    images, _ = apply(frozen, z, labels, train=False)
    np.testing.assert_allclose(images, model.generate(z, labels), atol=1e-5)


def test_the_description_has_what_the_generator_is(folder):
    record = json.loads((folder / 'generator.json').read_text())
    assert record['scores'] == [ROW]
    assert record['class_names'] == ['class0', 'class1', 'class2']
    assert 'data_dir' not in record['config']['dataset']
    today = datetime.datetime.now(datetime.UTC).date()
    assert today - datetime.date.fromisoformat(record['date']) <= datetime.timedelta(days=1)
    assert {path.name for path in folder.iterdir()} - {'results.npz', '__pycache__'} == {
        'README.md', 'samples.png', 'generator.py',
        'generator.json', 'generator.safetensors', 'generator.stablehlo',
    }  # fmt: skip


# ---- Files. ------------------------------------------------------------------------------------


class Program:
    """In place of a program, which takes seconds to build."""

    def serialize(self):
        return b'program'


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(export, 'program', lambda model: Program())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_earlier_export_is_replaced_and_nothing_else(model, quick, tmp_path):
    folder = tmp_path / 'export'
    folder.mkdir()
    export.export(model, tmp_path, folder)
    first = contents(folder)
    assert first.keys() == set(export.FILES)
    export.export(dataclasses.replace(model, step=8), tmp_path, folder)
    second = contents(folder)
    assert b'"step": 8' in second['generator.json']
    assert b'step 8:' in second['README.md']
    assert os.listdir(tmp_path) == ['export']
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask()

    for change in (
        lambda: (folder / 'README.md').write_text('My own.'),
        lambda: (folder / 'generator.json').write_bytes(first['generator.json']),
        lambda: (folder / 'generator.json').write_text('[]'),
        lambda: (folder / 'generator.json').unlink(),
        lambda: edit(folder / 'generator.json', '"step": 8', '"step": 9'),
        lambda: (folder / '.notes').write_text('mine'),
        lambda: (folder / 'more').mkdir(),
        lambda: in_cache(folder, 'mine.pyc'),
        lambda: link(folder / 'samples.png'),
    ):
        change()
        before = contents_of_any(folder)
        with pytest.raises(UserError, match=r'this program did not write.*: choose .*\.$'):
            export.export(model, tmp_path, folder)
        assert contents_of_any(folder) == before
        shutil.rmtree(folder)
        folder.mkdir()
        for name, content in second.items():
            (folder / name).write_bytes(content)
    (folder / '__pycache__').mkdir()  # as `import generator` leaves it
    (folder / '__pycache__' / 'generator.cpython-313.pyc').write_bytes(b'')
    export.export(model, tmp_path, folder)  # the copy is the program's own
    assert contents(folder) == first


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def in_cache(folder, name):
    (folder / '__pycache__').mkdir()
    (folder / '__pycache__' / name).write_text('mine')


def link(path):
    path.rename(path.parent.parent / 'elsewhere.png')
    path.symlink_to('nowhere')


def contents_of_any(folder):
    return {
        path.name: path.read_bytes() if path.is_file() else path.is_symlink()
        for path in folder.iterdir()
    }


@pytest.mark.parametrize('name', export.FILES)
def test_a_full_disk_leaves_the_earlier_export(model, quick, tmp_path, monkeypatch, name):
    folder = tmp_path / 'export'
    export.export(model, tmp_path, folder)
    before = contents(folder)

    def fails_after(write):
        def full(path, *args, **kwargs):
            if path.name == name:
                raise OSError(errno.ENOSPC, 'No space left on device', str(path))
            return write(path, *args, **kwargs)

        return full

    for writer in ('write_bytes', 'write_text'):
        monkeypatch.setattr(Path, writer, fails_after(getattr(Path, writer)))
    monkeypatch.setattr(export, 'save_png', fails_after(export.save_png))
    with pytest.raises(UserError, match=r'export cannot be written \(No space left on device\): '):
        export.export(model, tmp_path, folder)
    assert contents(folder) == before
    assert os.listdir(tmp_path) == ['export']


def test_an_interruption_leaves_the_earlier_export(model, quick, tmp_path, monkeypatch):
    folder = tmp_path / 'export'
    export.export(model, tmp_path, folder)
    before = contents(folder)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, 'save_png', interrupted)
    with pytest.raises(KeyboardInterrupt):
        export.export(model, tmp_path, folder)
    assert contents(folder) == before
    assert os.listdir(tmp_path) == ['export']


def test_a_folder_that_cannot_be_renamed_stays(model, quick, tmp_path, monkeypatch):
    folder = tmp_path / 'export'
    export.export(model, tmp_path, folder)
    before, rename = contents(folder), Path.rename

    def fails(path, target):
        if path.name.startswith('.sagan_jax'):
            raise OSError(errno.EBUSY, 'Device or resource busy')
        return rename(path, target)

    monkeypatch.setattr(Path, 'rename', fails)
    with pytest.raises(UserError, match='Device or resource busy'):
        export.export(model, tmp_path, folder)
    assert contents(folder) == before
    assert os.listdir(tmp_path) == ['export']


def test_files_and_names_of_files_are_refused(model, tmp_path):
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(UserError, match=r'file cannot be read as a folder \(Not a directory\)'):
        export.export(model, tmp_path, tmp_path / 'file')
    with pytest.raises(UserError, match=r'model\.onnx is not a folder, and \.onnx is not a format'):
        export.export(model, tmp_path, tmp_path / 'model.onnx')
    assert os.listdir(tmp_path) == ['file']

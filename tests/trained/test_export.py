"""An exported generator draws the same images in programs that do not use this package."""

import json
import os
import re
import subprocess
import sys

import jax
import ml_collections
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

import sagan_jax
from sagan_jax import models
from sagan_jax.errors import UserError
from sagan_jax.evaluation import evaluate
from sagan_jax.run.folder import RunFolder
from sagan_jax.trained import export

ROW = {
    'name': 'fid10k_train', 'value': 12.3456, 'step': 7, 'num_fake': 10_000, 'num_real': 20_000,
    'data': 'made/1.0.0', 'split': 'train', 'features': 'inception-2015-12-05',
    'resize': 'bilinear', 'rounding': 'uint8', 'labels': 'uniform over 3', 'seed': 0,
}  # fmt: skip


@pytest.fixture(scope='module')
def model(trained_workdir):
    return sagan_jax.load(trained_workdir)


@pytest.fixture(scope='module')
def folder(model, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('scores')
    evaluate.write(RunFolder(workdir), 7, [ROW])
    export.export(model, workdir, workdir / 'export')
    return workdir / 'export'


def test_the_example_of_the_card_runs_without_this_package(model, folder):
    lines = re.search('```python\n(.*?)```', (folder / 'README.md').read_text(), re.DOTALL)[1]
    assert len(lines.splitlines()) < 12
    without = ('sagan_jax', 'configs', 'flax', 'optax', 'orbax', 'safetensors', 'ml_collections')
    program = f"""
import sys
for name in {without}:
    sys.modules[name] = None  # so that its import fails
{lines}
assert images.dtype == np.float32 and pixels.shape == (8, 32, 32, 3)
results = {{'lines': pixels}}
for n in (1, 3, 8, 21):
    z = np.random.default_rng(n).standard_normal((n, 8), np.float32)
    results[str(n)] = program.call(z, np.arange(n, dtype=np.int32) % 3)
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


def test_the_card_describes_the_generator(model, folder):
    card = (folder / 'README.md').read_text()
    assert 'Classes: 0 class0, 1 class1, 2 class2.' in card
    assert '| `fid10k_train` | 12.35 | – | 10,000 samples; 20,000 images of made/1.0.0' in card
    assert 'model.z_dim=8\n' in card
    assert model.sha256 in card
    record = json.loads((folder / 'generator.json').read_text())
    assert record['scores'] == [ROW]
    assert record['class_names'] == ['class0', 'class1', 'class2']
    assert 'data_dir' not in record['config']['dataset']
    files = {path.name for path in folder.iterdir()} - {'results.npz'}
    assert files == {
        'README.md', 'samples.png',
        'generator.json', 'generator.safetensors', 'generator.stablehlo',
    }  # fmt: skip
    assert 'has not been scored' in export.card(model, [])


def test_an_unwritable_folder_is_reported(model, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r'file/generator\.stablehlo cannot be written'):
        export.export(model, tmp_path, tmp_path / 'file')

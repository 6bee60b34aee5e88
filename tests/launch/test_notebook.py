"""The notebook in a clean kernel with a tiny network: a few steps, then a resumed run."""

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def settings(tmp_path_factory):
    folder = tiny.scored_folder(tmp_path_factory.mktemp('images'))
    config = tiny.folder_config(folder / 'source', evaluation__pair_samples=30)
    _, _, _, workdir, *overrides = tiny.arguments(config, folder / 'run')
    overrides = [each for each in overrides if '.source_dir=' not in each]
    archive = shutil.make_archive(str(folder / 'images'), 'zip', folder / 'source')
    return {'IMAGES': archive, 'WORKDIR': workdir, 'OVERRIDES': overrides}


def execute(settings, steps, cells=None):
    """Runs the notebook's first cells with other parameters; returns their text and images."""
    notebook = nbformat.read(ROOT / 'launch' / 'colab_tpu.ipynb', 4)
    notebook.cells = notebook.cells[:cells]
    (parameters,) = [c for c in notebook.cells if 'parameters' in c.metadata.get('tags', ())]
    overrides = [*settings['OVERRIDES'], f'--config.num_train_steps={steps}']
    lines = {**settings, 'OVERRIDES': overrides}
    parameters.source += '\n' + '\n'.join(f'{name} = {value!r}' for name, value in lines.items())
    client = NotebookClient(
        notebook, timeout=300, resources={'metadata': {'path': str(ROOT / 'launch')}}
    )
    # Images are unpacked into a folder for temporary files.
    temporary = str(Path(settings['WORKDIR']).parent)
    client.execute(env=os.environ | {'JAX_NUM_CPU_DEVICES': '1', 'TMPDIR': temporary})
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
    texts = [output.get('text', '') for output in outputs]
    images = [output for output in outputs if 'image/png' in output.get('data', {})]
    return '\n'.join(texts), images


def test_from_top_to_bottom_and_again(settings):
    text, images = execute(settings, steps=2)
    assert 'done' in text
    assert 'in_domain_fid50_train' in text
    assert len(images) == 3  # while it trains, samples of a seed, and their attention
    text, _ = execute(settings, steps=4, cells=8)  # training is the last of these
    assert 'step 4/4' in text
    assert 'resumes in' in Path(settings['WORKDIR'], 'notebook.txt').read_text()

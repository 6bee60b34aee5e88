"""Sample files: each is written once and whole, also after an interruption."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sagan_jax.errors import UserError
from sagan_jax.images import image_grid
from sagan_jax.system.files import locked, partial_path
from sagan_jax.trained.sample_files import write_samples
from tests import tiny


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def files(folder):
    """The files in a folder and its subfolders, without the lock file."""
    found = (path for path in folder.rglob('*') if path.is_file() and path.name != '.lock')
    return sorted(str(path.relative_to(folder)) for path in found)


def assert_complete(folder, model, n, seed=0):
    """Asserts that the folder holds each image of the seed, in the folder of its class, only."""
    names = [f'class{index % 3}/{index:06d}.png' for index in range(n)]
    assert files(folder) == sorted([*names, 'samples.json'])
    found = np.stack([read(folder / name) for name in names]).astype(int)
    assert np.abs(found - model.sample(n=n, seed=seed)).max() <= 1


# ---- Folders. ----------------------------------------------------------------------------------


def test_an_unfinished_folder_is_completed(model, tmp_path, capsys):
    folder = tmp_path / 'deep' / 'folder'
    write_samples(model, folder, n=70)
    assert_complete(folder, model, 70)

    for name in ('class1/000001.png', 'class2/000068.png'):
        (folder / name).unlink()
    partial_path(folder / 'class1' / 'a.png').write_bytes(b'half an image')
    before = {name: (folder / name).stat().st_mtime_ns for name in files(folder)}
    write_samples(model, folder, n=70)
    assert_complete(folder, model, 70)
    assert '68 of 70 exist already' in capsys.readouterr().out
    written = {n for n in files(folder) if before.get(n) != (folder / n).stat().st_mtime_ns}
    assert written == {'class1/000001.png', 'class2/000068.png', 'samples.json'}

    write_samples(model, folder, n=75)
    assert_complete(folder, model, 75)


def test_a_killed_command_resumes(trained_workdir, model, tmp_path):
    folder, n = tmp_path / 'folder', 2000
    flags = ['--workdir', str(trained_workdir), '--output', str(folder), '--num_images', str(n)]
    command = [sys.executable, '-m', 'sagan_jax.main', '--mode', 'sample', *flags]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, cwd=root, env=os.environ | {'PYTHONPATH': str(root)})
    deadline = time.monotonic() + 120
    while len(list(folder.rglob('0*.png'))) < 100 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 100 <= len(list(folder.rglob('0*.png'))) < n
    write_samples(model, folder, n=n)
    assert_complete(folder, model, n)


def test_a_generator_without_classes_needs_no_class_folders(model, tmp_path):
    config = tiny.config(model__conditioning='none', dataset__num_classes=1)
    without = dataclasses.replace(model, config=config, class_names=('all',))
    write_samples(without, tmp_path / 'folder', n=2)
    assert files(tmp_path / 'folder') == ['000000.png', '000001.png', 'samples.json']


def test_classes_of_any_name_stay_below_the_folder(model, tmp_path):
    for names in (('..', '../../up', ''), ('a/b', 'a_b', 'A_B'), ('samples.json', '/x', '\0')):
        folder = tmp_path / 'deep' / str(len(names[0]))
        write_samples(dataclasses.replace(model, class_names=names), folder, n=6)
        found = [name for name in files(folder) if name != 'samples.json']
        assert sorted(Path(name).name for name in found) == [f'00000{n}.png' for n in range(6)]
        assert {name.count('/') for name in found} == {1}
        assert len({Path(name).parent for name in found}) == 3
    assert os.listdir(tmp_path) == ['deep']


def test_a_folder_of_other_samples_is_refused(model, tmp_path):
    folder = tmp_path / 'folder'
    write_samples(model, folder, n=2, classes=['class1'])
    before = files(folder)
    for settings, message in (
        ({'seed': 1}, r'\(seed 0, not 1\): choose another --output'),
        ({'truncation': 0.5}, 'truncation None, not 0.5'),
        ({'classes': ['2']}, r"classes \['class1'\], not \['class2'\]"),
        ({'n': 1}, 'num_images 2, not 1'),
    ):
        with pytest.raises(UserError, match=message):
            write_samples(model, folder, **{'n': 2, 'classes': ['class1']} | settings)
    assert files(folder) == before

    record = folder / 'samples.json'
    record.write_text(json.dumps(json.loads(record.read_text()) | {'sha256': 'another'}))
    with pytest.raises(UserError, match='sha256 another, not '):
        write_samples(model, folder, n=2, classes=['class1'])
    record.write_text('{}')
    with pytest.raises(UserError, match=r'samples\.json cannot be read'):
        write_samples(model, folder, n=2, classes=['class1'])
    record.unlink()
    with pytest.raises(UserError, match=r'there is no samples\.json'):
        write_samples(model, folder, n=2)
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r'cannot be written \(File exists\)'):
        write_samples(model, (tmp_path / 'file'), n=2)


def test_two_processes_cannot_write_to_one_folder(model, tmp_path):
    busy = pytest.raises(UserError, match=f'Another process is writing to {tmp_path}')
    with locked(tmp_path / '.lock'), busy:
        write_samples(model, tmp_path, n=2)
    write_samples(model, tmp_path, n=2)


def test_refused_arguments_write_no_files(model, tmp_path):
    for settings in ({'n': 0}, {'truncation': 0.0}, {'seed': -1}, {'classes': ['9']}):
        with pytest.raises(UserError):
            write_samples(model, tmp_path / 'folder', **settings)
    assert files(tmp_path) == []
    with pytest.raises(UserError, match=r'ends in \.png'):
        write_samples(model, tmp_path / 'folder', 'ranking')
    with pytest.raises(UserError, match="Cannot draw 'maps': choose samples, noise_inter"):
        write_samples(model, tmp_path / 'maps.png', 'maps')
    with pytest.raises(UserError, match='3,000 images are too many'):
        write_samples(model, tmp_path / 'all.png', n=3000)


# ---- Files. ------------------------------------------------------------------------------------


def test_an_npz_file_holds_images_labels_and_class_names(model, tmp_path):
    write_samples(model, tmp_path / 'all.npz', classes=['1', '0'], n=70, seed=2, truncation=1.5)
    with np.load(tmp_path / 'all.npz') as arrays:
        expected = model.sample(['1', '0'], n=70, seed=2, truncation=1.5)
        np.testing.assert_array_equal(arrays['images'], expected)
        np.testing.assert_array_equal(arrays['labels'], [1, 0] * 35)
        assert list(arrays['class_names']) == ['class0', 'class1', 'class2']


def test_a_grid_shows_one_class_per_row(model, tmp_path):
    write_samples(model, tmp_path / 'grid.png', n=6)
    expected = model.sample(n=6)[[0, 3, 1, 4, 2, 5]]
    np.testing.assert_array_equal(read(tmp_path / 'grid.png'), image_grid(expected, 2))
    write_samples(model, tmp_path / 'grid.png', n=7)
    expected = image_grid(model.sample(n=7), 3)
    np.testing.assert_array_equal(read(tmp_path / 'grid.png'), expected)


def test_a_ranking_starts_with_the_highest_logit(model, tmp_path):
    write_samples(model, tmp_path / 'ranking.png', 'ranking', n=6)
    images = model.sample(n=6)
    order = np.argsort(model.discriminate(images, model.labels(n=6)))[::-1]
    expected = image_grid(images[order], 3)
    np.testing.assert_array_equal(read(tmp_path / 'ranking.png'), expected)


@pytest.mark.parametrize('name', ['grid.jpg', 'grid.JPEG', 'all.npy', 'all.tfrecord', 'a.b.zip'])
def test_formats_that_are_not_written_make_no_folders(model, tmp_path, name):
    message = rf'{re.escape(name)} is not a folder, and {Path(name).suffix} is not a format'
    with pytest.raises(UserError, match=message):
        write_samples(model, tmp_path / name, n=2)
    assert os.listdir(tmp_path) == []
    (tmp_path / name).mkdir()
    write_samples(model, tmp_path / name, n=2)
    assert len(files(tmp_path / name)) == 3


def test_names_that_are_accepted(model, tmp_path):
    write_samples(model, tmp_path / 'GRID.PNG', n=2)
    assert read(tmp_path / 'GRID.PNG').shape[2] == 3
    write_samples(model, tmp_path / 'ALL.NPZ', n=2)
    assert np.load(tmp_path / 'ALL.NPZ')['images'].shape == (2, 32, 32, 3)
    write_samples(model, tmp_path / 'truncation0.5', n=2)
    assert len(files(tmp_path / 'truncation0.5')) == 3


def test_interpolations_show_one_row_each(model, tmp_path):
    write_samples(model, tmp_path / 'noise.png', 'noise_interpolation', n=2)
    assert read(tmp_path / 'noise.png').shape == (2 * 66 + 2, 8 * 66 + 2, 3)
    write_samples(model, tmp_path / 'classes.png', 'class_interpolation', ['0', '2'], n=3)
    assert read(tmp_path / 'classes.png').shape == (3 * 66 + 2, 8 * 66 + 2, 3)

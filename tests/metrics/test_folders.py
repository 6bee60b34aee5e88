import numpy as np
import pytest
from PIL import Image

from sagan_jax.errors import UserError
from sagan_jax.metrics import folders


@pytest.fixture
def folder(tmp_path):
    """Seven images, some in a subfolder, whose first pixel is their index; and other files."""
    for i in range(7):
        path = tmp_path / ('sub' if i % 2 else '.') / f'{i}.{"PNG" if i < 4 else "bmp"}'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 6, 3), i, np.uint8)).save(path)
    (tmp_path / 'notes.txt').write_text('not an image')
    (tmp_path / 'folder.png').mkdir()
    return tmp_path


def indices(paths):
    return [int(path.stem) for path in paths]


def test_all_images_are_found_in_an_order_that_depends_on_the_seed(folder):
    found = indices(folders.find(folder, seed=0).paths)
    assert sorted(found) == list(range(7))
    assert found == indices(folders.find(folder, seed=0).paths)
    assert len({tuple(indices(folders.find(folder, seed).paths)) for seed in range(5)}) > 1


@pytest.mark.parametrize('batch_size', [1, 3, 7, 50])
def test_batches_have_all_images_in_order(folder, batch_size):
    paths = folders.find(folder, seed=0).paths
    batches = list(folders.batches(paths, batch_size, same_size_as=paths[0]))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    images = np.concatenate(batches)
    assert images.shape == (7, 4, 6, 3)
    assert images.dtype == np.uint8
    assert images[:, 0, 0, 0].tolist() == indices(paths)


def test_images_are_not_read_far_ahead(folder, monkeypatch):
    read, taken = folders.read, []
    monkeypatch.setattr(folders, 'read', lambda path: taken.append(path) or read(path))
    paths = folders.find(folder, seed=0).paths * 10
    batches = folders.batches(paths, batch_size=2, same_size_as=paths[0])
    next(batches)
    assert len(taken) <= 1 + 3 * 2
    batches.close()


@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'LA', '1'])
def test_other_modes_become_rgb(tmp_path, mode):
    path = tmp_path / 'x.png'
    Image.new(mode, (6, 4)).save(path)
    assert folders.read(path).shape == (4, 6, 3)


def test_a_missing_or_empty_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=f'There is no folder {tmp_path}/x: give two folders'):
        folders.find(tmp_path / 'x', seed=0)
    (tmp_path / 'notes.txt').touch()
    with pytest.raises(UserError, match=f'folder {tmp_path} has no images: give a folder'):
        folders.find(tmp_path, seed=0)


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
@pytest.mark.parametrize('suffix', ['png', 'jpg', 'gif', 'bmp', 'webp', 'tiff'])
def test_a_truncated_image_is_named(tmp_path, suffix):
    path = tmp_path / f'x.{suffix}'
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError) as error:
            folders.read(path)
        assert str(error.value).startswith(f'Cannot read the image {path} (')
        assert '\n' not in str(error.value)


def test_hidden_files_are_ignored_and_others_are_named(folder):
    (folder / '._0.png').write_bytes(b'macOS metadata')
    (folder / '__MACOSX').mkdir()
    (folder / '__MACOSX' / 'x.png').touch()
    (folder / 'sub' / 'gone.png').symlink_to(folder / 'nowhere.png')
    found = folders.find(folder, seed=0)
    assert sorted(indices(found.paths)) == list(range(7))
    assert sorted(found.passed_over) == [
        '1 not used, broken links: sub/gone.png (No such file or directory)',
        '1 not used, files that are not images: notes.txt',
    ]


def test_linked_class_folders_are_read(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp('other')
    for i in range(7, 12):
        Image.fromarray(np.full((4, 6, 3), i, np.uint8)).save(other / f'{i}.png')
    (folder / 'linked').symlink_to(other)
    assert sorted(indices(folders.find(folder, seed=0).paths)) == list(range(12))


@pytest.mark.parametrize('count', [2, 14])
def test_all_images_that_cannot_be_used_are_named_at_once(folder, count):
    for number in range(count):
        Image.new('RGB', (8, 4)).save(folder / f'odd{number:02}.png')
    first = folder / '0.PNG'
    message = f'^{count} images have another size: {folder}/odd00.png is 8×4 pixels, .*odd01.png'
    with pytest.raises(UserError, match=message) as error:
        list(folders.batches(folders.find(folder, 0).paths, 2, first))
    assert ('and 4 more have other sizes but' in str(error.value)) == (count == 14)
    for number in range(count):
        (folder / f'bad{number:02}.png').touch()
    with pytest.raises(UserError, match=f'^Cannot read {count} images, .*the file is empty'):
        list(folders.batches(folders.find(folder, 0).paths, 2, first))


def test_the_first_image_may_be_unreadable(folder):
    first = folder / '0.PNG'
    first.write_bytes(b'')
    with pytest.raises(UserError, match=f'Cannot read the image {first} .the file is empty.: '):
        list(folders.batches(folders.find(folder, 0).paths, 2, first))


def test_an_image_of_another_size_is_named(folder):
    odd = folder / 'odd.png'
    Image.new('RGB', (8, 4)).save(odd)
    first = folder / '0.PNG'
    with pytest.raises(UserError, match=f'{odd} is 8×4 pixels but {first} is 6×4: resize all'):
        list(folders.batches([first, odd], 2, first))

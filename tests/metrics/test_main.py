import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from sagan_jax import metrics
from sagan_jax.errors import UserError
from sagan_jax.metrics.__main__ import main

NAMES = ['fid8', 'is8', 'kid8', 'precision8', 'recall8', 'density8', 'coverage8']


def images(n, seed, size=32):
    """Smooth noise, so that the features differ."""
    r = np.random.default_rng(seed)
    return r.integers(0, 256, (n, size // 8, size // 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)


def save(folder, generated):
    for i, image in enumerate(generated):
        path = folder / f'class{i % 2}' / f'{i:03}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


@pytest.fixture
def folders(tmp_path):
    """7 real images and 8 generated ones."""
    real, fake = tmp_path / 'real', tmp_path / 'fake'
    save(real, images(7, seed=0))
    save(fake, images(8, seed=1) // 2)
    return real, fake


def test_two_folders_are_scored_with_their_protocol(folders, seeded_graph, tmp_path, capsys):
    real, fake = map(str, folders)
    (folders[0] / 'class0' / 'notes.txt').write_text('not an image')
    lines = tmp_path / 'scores.json'
    options = ['--weights', str(seeded_graph), '--batch_size', '8', '--splits', '1']
    main([real, fake, *options, '--json', str(lines)])
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert json.loads(lines.read_text()) == rows
    assert [row['name'] for row in rows] == NAMES
    assert '8/8' in err  # the progress
    assert 'real: 1 not used, files that are not images: class0/notes.txt' in err
    assert 'img/s' in err
    assert 'Warning: FID from 7 real and 8 fake samples of 2048 features' in err

    # These scores do not depend on the order of the images.
    features = metrics.inception.load(seeded_graph, batch_size=8)
    x, y = features(images(7, seed=0)), features(images(8, seed=1) // 2)
    a, b = x['2048'], y['2048']
    with pytest.warns(UserWarning, match='7 real'):
        fid = metrics.fid(a, b)
    expected = [
        fid,
        metrics.inception_score(y['logits_unbiased'], 1)[0],
        *metrics.precision_recall(a, b, 3),
        *metrics.density_coverage(a, b, 5),
    ]
    values = [row['value'] for row in rows if row['name'] != 'kid8']
    assert values == pytest.approx(expected, rel=1e-4)
    assert rows[2]['subset_size'] == 7
    with pytest.warns(UserWarning, match='no error bar'):
        kid, _ = metrics.kid(a, b, 1000, 7)
    assert rows[2]['value'] == pytest.approx(kid, rel=0.1)  # other subsets of 8 fakes
    assert 'std' not in rows[2]
    assert 'Warning: KID over 100 subsets of 7 of 7 real and 8 fake samples has no error bar' in err

    _, sha256 = metrics.inception.load_variables(seeded_graph)
    for row in rows:
        assert (row['num_real'], row['num_fake']) == (7, 8)
        assert row['weights_sha256'] == sha256
        assert row['features'] == 'inception-2015-12-05'
        assert row['resize'] == 'tf1-bilinear-299'
        assert row['image_size'] == [32, 32]
        assert (row['real'], row['fake']) == (real, fake)
        assert {'jax', 'numpy', 'scipy'} <= set(row['versions'])


def without_images(real, fake):
    for path in fake.rglob('*.png'):
        path.unlink()
    return 'has no images'


def with_few_images(real, fake):
    for path in sorted(real.rglob('*.png'))[5:]:
        path.unlink()
    return f'{real} has 5 images'


def with_a_corrupt_image(real, fake):
    path = fake / 'class0' / '000.png'
    path.write_bytes(path.read_bytes()[:60])
    return str(path)


def with_a_larger_image(real, fake):
    save(fake / 'more', images(1, seed=2, size=64))
    return '64×64'


def with_larger_fakes(real, fake):
    save(fake, images(8, seed=2, size=64))
    return '64×64'


def with_no_folder(real, fake):
    real.rename(real.with_name('moved'))
    return f'There is no folder {real}'


@pytest.mark.parametrize(
    'spoil',
    [
        without_images,
        with_few_images,
        with_a_corrupt_image,
        with_a_larger_image,
        with_larger_fakes,
        with_no_folder,
    ],
)
def test_a_mistake_ends_with_one_sentence(folders, seeded_graph, capsys, spoil):
    problem = spoil(*folders)
    options = ['--weights', str(seeded_graph), '--splits', '2', '--batch_size', '8']
    with pytest.raises(UserError) as error:
        main([*map(str, folders), *options])
    assert capsys.readouterr().out == ''
    assert problem in str(error.value)
    assert str(error.value).endswith('.')


def test_a_mistake_ends_the_program_without_a_traceback(folders, tmp_path):
    real, fake = folders
    command = [
        sys.executable,
        '-m',
        'sagan_jax.metrics',
        real,
        fake,
        '--splits=1',
        '--weights',
        tmp_path / 'x.pb',
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stdout == ''
    assert ended.stderr.splitlines() == [
        f'error: There is no file of Inception weights at {tmp_path}/x.pb: give the path of '
        'inception-2015-12-05.tgz or of the classify_image_graph_def.pb inside it.'
    ]


def test_max_images_limits_the_images(folders, seeded_graph, capsys):
    options = ['--weights', str(seeded_graph), '--batch_size', '8', '--splits', '2']
    main([*map(str, folders), *options, '--max_images', '6'])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row['num_real'], row['num_fake']) for row in rows] == [(6, 6)] * 7
    assert rows[0]['name'] == 'fid6'


def test_scores_are_printed_even_if_they_cannot_be_written(folders, seeded_graph, capsys):
    real, fake = map(str, folders)
    target = f'{real}/class0/000.png/scores.json'  # below a file
    options = ['--weights', str(seeded_graph), '--batch_size', '8', '--splits', '1']
    with pytest.raises(UserError) as error:
        main([real, fake, *options, '--json', target])
    assert len(capsys.readouterr().out.splitlines()) == 7
    assert str(error.value).startswith(f'{target} cannot be written (')


@pytest.mark.parametrize('option', [['--splits', '0'], ['--seed', '-1'], ['--batch_size', 'x']])
def test_numbers_out_of_range_end_with_status_2(option, capsys):
    with pytest.raises(SystemExit, match='2'):
        main(['real', 'fake', *option])
    assert f'{option[1]} is not an integer of at least' in capsys.readouterr().err

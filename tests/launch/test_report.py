"""The report of a sweep: its numbers, one protocol per column, self-contained files."""

import base64
import io
import json
import re
import shutil
import xml.etree.ElementTree

import numpy as np
import pytest
from PIL import Image

from launch import report
from launch.sweep import paper, results, runs
from launch.sweep.runs import Run
from sagan_jax.errors import UserError
from sagan_jax.run.entries import score_of
from sagan_jax.viewing.page import IMAGE_WIDTH
from tests.viewing.test_report import Page

PROTOCOL = {
    'num_fake': 10_000,
    'num_real': 20_000,
    'data': 'shapes/1.0.0',
    'split': 'train',
    'image_size': 32,
    'features': 'in-domain-1',
    'features_sha256': 'a' * 64,
    'resize': 'none',
    'rounding': 'uint8',
    'labels': 'uniform over 10',
}
# What `config.json` holds of keys that a configuration may leave open.
RESOLVED = {
    'dataset': {'num_classes': 10},
    'model': {'generator_attention': [16], 'discriminator_attention': [16]},
}
VALUES = {'no_attention': (31.5, 28.25, 40.0), 'feat16': (18.0, 17.0, 21.0)}


def row(name, value, run, step, **changes):
    found = {'value': value, 'std': 0.5, 'real_value': 9.5, 'versions': {'jax': '0.10.2'}}
    system = {'seed': run.seed, 'step': step, 'ema': run.seed / 10, 'batch_statistics': run.variant}
    return {'name': name, **found, **system, **PROTOCOL, **changes}


def write_run(run, value, steps=100, of=100):
    """Writes a run with `steps` of `of` steps, scored during training; done if it has all."""
    run.folder.mkdir(parents=True)
    settings = {'num_train_steps': of, 'batch_size': 16, 'discriminator_steps': 2} | RESOLVED
    (run.folder / 'config.json').write_text(json.dumps({'config': settings}))
    lines = [{'step': 0, 'discriminator_loss': 1.0}]  # the first call of a run has no rate
    for step in range(25, steps + 1, 25):
        (run.folder / 'checkpoints' / str(step)).mkdir(parents=True)
        # 32 images per step: ten steps per second, then five.
        rate = 320.0 if step <= 50 else 160.0
        lines.append({'step': step, 'discriminator_loss': 1.0, 'images_per_second': rate})
        lines.append({'step': step, 'fid2k': 1.0})
        rows = [row('in_domain_fid2k_train', value + of - step, run, step, num_fake=2000)]
        if step == of:
            rows += [
                row('in_domain_fid10k_train', value, run, step),
                row('in_domain_is10k', value / 4, run, step, splits=10),
                row('in_domain_kid10k_train', value / 100, run, step, subsets=100),
            ]
        write_rows(run, step, rows)
        if step in (25, steps):
            picture = Image.new('RGB', (800, 400), (value, 2 * value, step))
            (run.folder / 'samples').mkdir(exist_ok=True)
            picture.save(run.folder / 'samples' / f'{step:06d}.png')
    (run.folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    (run.folder / runs.LOG).write_text('devices        2 × cpu\n')
    if steps == of:
        runs.record_end(run, 'evaluate', 0)


def write_rows(run, step, rows):
    path = run.folder / 'evaluation' / f'{step:06d}.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows))


def record(workdir, names):
    sweep = {'config': 'configs/shapes.py', 'overrides': ['--config.batch_size=16'], 'runs': names}
    (workdir / runs.RECORD).write_text(json.dumps(sweep))


@pytest.fixture
def workdir(tmp_path):
    """Two variants with three seeds each, all done."""
    for variant, values in VALUES.items():
        for seed, value in enumerate(values):
            write_run(Run(variant, seed, tmp_path), int(value))
            path = tmp_path / variant / f'seed{seed}' / 'evaluation' / '000100.json'
            path.write_text(
                path.read_text().replace(f'"value": {int(value)},', f'"value": {value},')
            )
    record(tmp_path, [[variant, seed] for seed in range(3) for variant in VALUES])
    return tmp_path


def tables(workdir):
    """Every table of report.md as {heading: {row: {column: cell}}}."""
    report.write(workdir)
    found, heading = {}, None
    lines = (workdir / 'report.md').read_text().splitlines()
    for line in lines:
        if line.startswith('#'):
            heading, header = line.strip('# '), None
        elif line.startswith('|'):
            cells = [cell.strip() for cell in line.strip('|').split('|')]
            if header is None:
                header = cells
            elif not cells[0].startswith('---'):
                found.setdefault(heading, {})[cells[0]] = dict(zip(header, cells, strict=True))
    return found


# ---- Numbers. ----------------------------------------------------------------------------------


def test_mean_and_deviation_over_the_seeds(workdir):
    scores = tables(workdir)['Scores']
    for variant, values in VALUES.items():
        mean, deviation = np.mean(values), np.std(values, ddof=1)
        assert scores[variant]['in_domain_fid10k_train ↓'] == f'{mean:.1f} ± {deviation:.1f}'
        assert scores[variant]['seeds'] == '3'
    assert scores['*real images*']['in_domain_is10k ↑'] == '*9.5*'


def test_the_papers_scores_are_marked(workdir):
    header = list(tables(workdir)['Scores']['feat16'])
    assert header == [
        'variant',
        'seeds',
        'in_domain_fid10k_train ↓',
        '*paper fid*',
        'in_domain_is10k ↑',
        '*paper is*',
    ]
    scores = tables(workdir)['Scores']
    assert scores['no_attention']['*paper fid*'] == '*22.96*'
    assert scores['feat16']['*paper is*'] == '*45.94*'
    text = (workdir / 'report.md').read_text()
    assert 'ImageNet at 128×128' in text
    assert paper.SAGAN_NOTE not in text


def test_training_scores_and_further_scores_have_their_own_tables(workdir):
    found = tables(workdir)
    assert 'in_domain_kid10k_train ↓' in found['Further scores']['feat16']
    assert 'in_domain_fid2k_train ↓' in found['Scores of fewer images']['feat16']


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('features_sha256', 'b' * 64),
        ('features', 'inception-2015-12-05'),
        ('num_fake', 5000),
        ('num_real', 10_000),
        ('data', 'shapes/2.0.0'),
        ('split', 'test'),
        ('image_size', 64),
        ('resize', 'tf1'),
        ('rounding', 'none'),
        ('labels', 'as in the data'),
        ('something_new', 1),
    ],
)
def test_each_protocol_has_its_own_column(workdir, key, value):
    run = Run('feat16', 1, workdir)
    rows = run.files.all_scores()[100]
    rows = [r | ({key: value} if r['name'] == 'in_domain_fid10k_train' else {}) for r in rows]
    write_rows(run, 100, rows)
    _, variants = results.read_sweep(workdir)
    columns = [c for c in results.columns(variants) if c.title.startswith('in_domain_fid10k_train')]
    assert sorted(c.title[-3:] for c in columns) == ['(1)', '(2)']
    values = sorted(sorted(c.of(variants['feat16'])) for c in columns)
    assert values == [[17.0], [18.0, 21.0]]
    text = json.dumps(tables(workdir), ensure_ascii=False)
    assert text.count('(1 of 3)') == text.count('(2 of 3)') == 1
    text = (workdir / 'report.md').read_text()
    assert str(value)[:12] in text
    assert text.count('*paper fid*') == 1


def test_systems_and_results_share_a_column(workdir):
    """In the fixture, seeds, averages, statistics, values and deviations differ."""
    _, variants = results.read_sweep(workdir)
    assert len(results.columns(variants)) == 4


@pytest.mark.parametrize(
    ('values', 'text'),
    [
        ((), '–'),
        ((12.3456,), '12.35'),
        ((5.0, 5.0), '5 ± 0'),
        ((100.0, 300.0), '200 ± 141'),
        ((0.00123, 0.00126), '0.001245 ± 0.000021'),
        ((0.5, 0.5000001), '0.5 ± 7e-08'),
        ((1.0, float('nan')), 'nan ± nan'),
    ],
)
def test_mean_and_deviation(values, text):
    assert results.mean_and_deviation(values) == text


@pytest.mark.parametrize(
    ('name', 'score'),
    [
        ('fid50k_train', 'fid'),
        ('is50k', 'is'),
        ('in_domain_fid10k_train', 'fid'),
        ('in_domain_fid_infinity9999_test', 'fid_infinity'),
        ('in_domain_intra_fid5k_train', 'intra_fid'),
        ('colour_agreement10k', 'colour_agreement'),
    ],
)
def test_score_of(name, score):
    assert score_of(name) == score


def test_time_and_steps(workdir):
    # 50 steps at ten per second and 50 at five.
    row = tables(workdir)['Runs']['feat16']
    assert row['time of a run'] == '0 min 15 s'
    assert row['images/s'] == f'{3200 / 15:.0f}'
    assert row['steps'] == '100'
    assert row['devices'] == '2 × cpu'


def test_training_time_with_missing_rates_and_lines_of_scores(workdir):
    # 32 images per step. The first line has no rate: the median gives two seconds per step.
    lines = [(1, None), (2, 8.0), (4, 16.0), (6, None, 'fid2k'), (8, 32.0)]
    run = Run('feat16', 0, workdir)
    with (run.folder / 'metrics.jsonl').open('w') as file:
        for step, rate, *score in lines:
            values = {'fid2k': 1.0} if score else {'discriminator_loss': 1.0}
            values |= {'images_per_second': rate} if rate else {}
            file.write(json.dumps({'step': step, **values}) + '\n')
    _, variants = results.read_sweep(workdir)
    assert results.seconds_of_training(variants['feat16'][0]) == 2 + 4 + 2 * 2 + 4 * 1


# ---- Runs that are not finished. ---------------------------------------------------------------


def test_unfinished_runs_are_listed_and_excluded_from_the_means(workdir):
    failed, stopped = Run('feat16', 1, workdir), Run('no_attention', 0, workdir)
    for run in (failed, stopped):
        shutil.rmtree(run.folder)
        write_run(run, 99, steps=50)
    (failed.folder / runs.LOG).write_text('step 50\nerror: Training diverged.\n')
    runs.record_end(failed, 'train', 2)
    record(workdir, [[v, s] for v in VALUES for s in range(3)] + [['feat8', 0]])
    scores = tables(workdir)['Scores']
    text = (workdir / 'report.md').read_text()
    assert re.search(r'- feat16/seed1 +failed +step  50/100  Training diverged\.', text)
    assert re.search(r'- no_attention/seed0 +stopped +step  50/100', text)
    assert '- feat8/seed0  waiting' in text
    assert '4 of 7 runs are done' in text
    assert scores['feat16']['seeds'] == '2'
    assert scores['feat16']['in_domain_fid10k_train ↓'] == '19.5 ± 2.1'
    assert scores['feat8']['in_domain_fid10k_train ↓'] == '–'
    assert scores['feat8']['*paper fid*'] == '*22.98*'
    assert 'alt="no_attention, seed 1, step 100"' in (workdir / 'report.html').read_text()


def test_a_sweep_that_has_just_begun(tmp_path):
    record(tmp_path, [['feat16', 0], ['feat16', 1]])
    report.write(tmp_path)
    assert '0 of 2 runs are done' in (tmp_path / 'report.md').read_text()
    write_run(Run('feat16', 0, tmp_path), 9, steps=0)
    report.write(tmp_path)
    assert 'feat16/seed0  stopped   step   0/100' in (tmp_path / 'report.md').read_text()


@pytest.mark.parametrize('kind', ['empty', 'missing', 'a run'])
def test_a_folder_without_a_sweep_is_refused(kind, tmp_path):
    folder = tmp_path / 'folder'
    if kind == 'a run':
        write_run(Run('feat16', 0, folder), 9)
    elif kind == 'empty':
        folder.mkdir()
    before = set(tmp_path.rglob('*'))
    with pytest.raises(UserError, match=f'^{folder} holds no sweep.*[.]$'):
        report.main([str(folder)])
    assert set(tmp_path.rglob('*')) == before


# ---- The page. ---------------------------------------------------------------------------------


def test_the_page_is_self_contained(workdir):
    report.write(workdir)
    text = (workdir / 'report.html').read_text()
    sources = re.findall(r'(?:src|href|srcset|data)\s*=\s*["\']?([^"\' >]+)', text)
    assert sources
    assert all(source.startswith(('data:image/webp;base64,', 'data:,')) for source in sources)
    assert '://' not in text
    assert 'url(' not in text
    assert '@import' not in text
    assert 'prefers-color-scheme: dark' in text
    assert 'name="viewport"' in text


def test_the_last_samples_of_one_seed_of_each_variant(workdir):
    shutil.copy(
        workdir / 'feat16' / 'seed0' / 'samples' / '000025.png',
        workdir / 'no_attention' / 'seed0' / 'samples' / 'reals.png',
    )
    report.write(workdir)
    text = (workdir / 'report.html').read_text()
    pictures = re.findall(r'<img alt="([^"]+)" src="data:image/webp;base64,([^"]+)"', text)
    assert [caption for caption, _ in pictures] == [
        'no_attention, seed 0, step 100',
        'feat16, seed 0, step 100',
        'real images',
    ]
    images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for _, data in pictures]
    colours = [image[9, 9] for image in images]
    np.testing.assert_allclose(colours, [[31, 62, 100], [18, 36, 100], [18, 36, 25]], atol=4)
    assert all(image.shape == (332, IMAGE_WIDTH, 3) for image in images)


def test_curves_of_every_variant(workdir):
    report.write(workdir)
    text = (workdir / 'report.html').read_text()
    # Only scores of several steps have a curve.
    (chart,) = re.findall(r'<svg viewBox="0 0 480.*?</svg>', text, re.DOTALL)
    root = xml.etree.ElementTree.fromstring(chart)
    groups = root.findall('g')
    assert [group.find('title').text for group in groups] == list(VALUES)
    for group in groups:
        lines = [line.get('points').split() for line in group.findall('polyline')]
        assert [len(line) for line in lines] == [4] * 4  # three seeds and their mean
        heights = np.array([[float(point.split(',')[1]) for point in line] for line in lines])
        assert (np.diff(heights) > 0).all()  # the score falls, so y grows in the SVG
    assert 'in_domain_fid2k_train' in chart


def test_curves_leave_out_nan(workdir):
    run = Run('feat16', 0, workdir)
    for step in (25, 50):
        rows = [{**row, 'value': float('nan')} for row in run.files.all_scores()[step]]
        write_rows(run, step, rows)
    report.write(workdir)
    assert 'nan' not in (workdir / 'report.html').read_text().partition('<body>')[2].lower()


HOSTILE = '<img src=x onerror=alert(1)> & "q" \'a\' *b*'


def test_names_are_escaped(tmp_path):
    """Names of variants, scores, protocols, devices and the configuration stay text."""
    run = Run(HOSTILE, 0, tmp_path)
    write_run(run, 9)
    rows = run.files.all_scores()
    for step in rows:
        write_rows(run, step, [found | {HOSTILE: HOSTILE} for found in rows[step]])
    (run.folder / runs.LOG).write_text(f'devices        {HOSTILE}\n')
    sweep = {'config': HOSTILE, 'overrides': [HOSTILE], 'runs': [[HOSTILE, 0], [HOSTILE, 1]]}
    (tmp_path / runs.RECORD).write_text(json.dumps(sweep))
    report.write(tmp_path)
    page = Page((tmp_path / 'report.html').read_text())
    assert page.text.count(f'Sweep of {HOSTILE}') == 2
    for part in (
        f'--config {HOSTILE} --variants {HOSTILE} --seeds 0,1',
        f'0 min 15 s213{HOSTILE}',
        f'{HOSTILE} {HOSTILE}',
        f'{HOSTILE}/seed1 waiting',
    ):
        assert part in page.text, part
    captions = [image['alt'] for image in page.all('img')]
    assert captions == [f'{HOSTILE}, seed 0, step 100']
    assert [tag for tag, attributes in page.tags if 'onerror' in attributes] == []
    assert len(page.all('script')) == 1


def test_cited_cells_are_in_italics(workdir):
    report.write(workdir)
    text = (workdir / 'report.html').read_text()
    assert '<th><em>paper fid</em></th>' in text
    assert '<td><em>22.96</em></td>' in text
    assert '<td><em>real images</em></td>' in text
    assert '<th>in_<wbr>domain_<wbr>is10k ↑</th>' in text

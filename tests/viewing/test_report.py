"""The report of a run: self-contained, escaped, and complete without optional files."""

import base64
import hashlib
import html.parser
import json
import re
import shutil
import time
from pathlib import Path

import jinja2
import numpy as np
import pytest

from sagan_jax.errors import UserError
from sagan_jax.evaluation import evaluate
from sagan_jax.images import image_grid, save_png
from sagan_jax.run import provenance
from sagan_jax.run.folder import RunFolder
from sagan_jax.viewing import charts, page, report
from tests import tiny

NAMES = ['<script>alert(1)</script>', 'cat & "dog"', 'class2']
HOSTILE = "<i>x\"> & 'y' onload=alert(1)"
ROW = {'step': 0, 'num_fake': 50, 'num_real': 36, 'data': 'x', 'split': 'train', 'versions': {}}


class Page(html.parser.HTMLParser):
    """The tags of a page with their attributes, and its text outside scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], '', []
        self.feed(text)
        self.close()
        self.text = ' '.join(self.text.split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ('meta', 'link', 'img', 'input', 'wbr'):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] not in ('script', 'style'):
            self.text += text

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def read(workdir, **kwargs):
    return Page(report.html(workdir, **kwargs))


def random_images(step):
    rng = np.random.default_rng(step)
    return rng.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A run of 1,000 log lines, 30 sample grids and 3 evaluations, as training leaves it."""
    workdir = tmp_path_factory.mktemp('finished')
    data = {'name': 'folder', 'count': 1234, 'class_names': NAMES}
    RunFolder(workdir).write_record(
        provenance.record(tiny.config(num_train_steps=6000)) | {'data': data}
    )
    names = ('generator_loss', 'discriminator_loss', 'real_logit', 'fake_logit', 'generator_sigma')
    gammas = ('generator_gamma8', 'generator_gamma16', 'discriminator_gamma16')
    lines = [
        {'step': 5 * i} | {name: i / 1000 + k for k, name in enumerate(names + gammas)}
        for i in range(1, 1001)
    ]
    lines.insert(500, {'step': 2500, 'fid50_train': 12.5})
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (workdir / 'metrics.jsonl').write_text(text + '{"step": 5005, "gener')
    for step in range(0, 6000, 200):
        path = workdir / 'samples' / f'{step:06d}.png'
        save_png(path, image_grid(random_images(step), 10))
    save_png(workdir / 'samples' / 'reals.png', image_grid(random_images(1), 10))
    for step in (1000, 2000, 5000):
        row = ROW | {'step': step, 'resize': 'tf1'}
        fid = row | {'name': 'fid50_train', 'value': step / 70, 'features': 'inception'}
        other = fid | {'features': '<b>other</b>', 'value': 1.0}
        share = row | {'name': 'class_share50', 'value': 0.5, 'real_value': 0.75, 'std': 0.125}
        evaluate.write(RunFolder(workdir), step, [fid, share] + ([other] if step == 5000 else []))
    return workdir


def test_sections(finished):
    page = read(finished)
    for heading in ('Samples', 'Classes', 'Scores', 'Curves', 'Attention maps'):
        assert heading in page.text
    for fact in (
        'folder: 1,234 images of 32×32 in 3 classes',
        'hinge loss',
        'Step 5,000 of 6,000',
    ):
        assert fact in page.text
    assert 'evaluation.batch_size' in page.text  # of the whole configuration


def test_the_report_is_self_contained(finished):
    report.write(finished)
    text = (finished / 'report.html').read_text()
    page = Page(text)
    sources = [
        (name, value)
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ('src', 'href', 'srcset', 'action', 'poster', 'style') or name.startswith('on')
    ]
    assert len(sources) > 30
    assert all(value.startswith('data:') for _, value in sources)
    assert '://' not in text
    assert 'url(' not in text
    (policy,) = (tag['content'] for tag in page.all('meta') if 'http-equiv' in tag)
    assert policy.startswith("default-src 'none'; connect-src 'none'; img-src data:; ")
    assert 'unsafe' not in policy
    for tag in ('style', 'script'):
        (content,) = re.findall(f'<{tag}>(.*?)</{tag}>', text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in policy
    assert page.all('meta')[0] == {'charset': 'utf-8'}
    assert any(tag.get('name') == 'viewport' for tag in page.all('meta'))
    assert 'prefers-color-scheme: dark' in text


def test_names_are_escaped(finished, tmp_path):
    """Names of the run, its data, classes, metrics and scores, and the configuration stay text."""
    workdir = tmp_path / HOSTILE
    shutil.copytree(finished, workdir)
    config = tiny.config(dataset__data_dir=HOSTILE, model__z_dim=8)
    RunFolder(workdir).write_record(
        provenance.record(config) | {'data': {'name': HOSTILE, 'class_names': NAMES}}
    )
    with (workdir / 'metrics.jsonl').open('a') as file:
        for step in (5010, 5015):
            file.write('\n' + json.dumps({'step': step, HOSTILE: 1.0}))
    page = read(workdir)
    assert len(page.all('script')) == 1
    assert page.all('b') == page.all('i') == []
    for text in (*NAMES, '<b>other</b>', f'trained on {HOSTILE}: images', json.dumps(HOSTILE)):
        assert text in page.text
    assert page.text.count(HOSTILE) == 5  # the run and the metric twice, the data once
    assert f'{NAMES[0]}, samples' in [image['alt'] for image in page.all('img')]
    assert f'{HOSTILE} over steps' in [svg.get('aria-label') for svg in page.all('svg')]
    assert not any(name.startswith('on') for _, found in page.tags for name in found)


def test_a_long_run_shows_a_subset_of_grids_and_points(finished):
    page = read(finished)
    steps = [tag for tag in page.all('img') if tag['alt'].startswith('step ')]
    assert len(steps) == 24
    assert (steps[0]['alt'], steps[-1]['alt']) == ('step 0', 'step 5,800')
    assert ['hidden' in tag for tag in steps] == [True] * 23 + [False]
    (slider,) = (tag for tag in page.all('input') if tag['type'] == 'range')
    assert (slider['max'], slider['value']) == ('23', '23')
    groups = [tag['data-values'].split() for tag in page.all('g')]
    metrics = [group for group in groups if len(group) > 3]
    assert [len(group) for group in metrics] == [300] * 8
    assert all(group[0].startswith('5:') and group[-1].startswith('5000:') for group in metrics)


def test_writing_a_long_run_takes_less_than_a_second(finished):
    report.write(finished)
    since = time.process_time()  # not affected by load
    report.write(finished)
    assert time.process_time() - since < 1
    assert (finished / 'report.html').stat().st_size < 5e6


def test_each_network_has_a_colour(finished):
    text = report.html(finished)
    shown = dict(re.findall(r'<title>([^<]+)</title>\s*<polyline [^>]*stroke="([^"]+)"', text))
    blue, red = charts.COLOURS[:2]
    assert shown['generator'] == shown['fake'] == shown['generator 8'] == blue
    assert shown['discriminator'] == shown['real'] == shown['discriminator 16'] == red
    assert re.search(r'<title>generator 16</title>\s*<polyline [^>]*stroke-dasharray', text)


def test_scores_and_their_protocols(finished):
    page = read(finished)
    for part in ('fid50_train (1)', 'fid50_train (2)', '0.5 ± 0.12', '0.75'):
        assert part in page.text
    assert 'in commonstep 5000, num fake 50, num real 36, data x, split train' in page.text
    assert 'fid50_train (2)features <b>other</b>' in page.text
    titles = re.findall(r'class="title">([^<]+)<', report.html(finished))
    assert titles[:2] == ['fid50_train (1)', 'class_share50']  # the third was measured once
    assert 'fid50_train' not in titles  # and metrics contain no scores


def test_rows_of_classes(finished):
    alts = [image['alt'] for image in read(finished).all('img')]
    assert [alt for alt in alts if alt.startswith('class2')] == [
        'class2, samples', 'class2, real images',
    ]  # fmt: skip


def test_attention_maps(finished, tmp_path):
    assert '--mode figures' in read(finished).text
    workdir = tmp_path / 'run'
    shutil.copytree(finished, workdir)
    save_png(workdir / 'figures' / 'attention_generator.png', random_images(0)[0])
    page = read(workdir)
    assert '--mode figures' not in page.text
    assert 'generator' in [image['alt'] for image in page.all('img')]
    RunFolder(workdir).write_record(
        provenance.record(tiny.config(model__attention_block='residual')) | {'data': {}}
    )
    assert 'have no attention' in read(workdir).text


@pytest.mark.parametrize('conditioning', ['none', 'projection'])
def test_a_run_that_has_just_begun(conditioning, tmp_path):
    config = tiny.config(model__conditioning=conditioning)
    with pytest.raises(UserError, match='There is no run in'):
        report.write(tmp_path)
    assert list(tmp_path.iterdir()) == []
    RunFolder(tmp_path).write_record(provenance.record(config) | {'data': {}})
    page = read(tmp_path)
    for part in ('Step 0 of 4', 'No samples yet', 'No scores yet', 'Too few steps'):
        assert part in page.text
    grid = image_grid(random_images(0)[: 10 if conditioning == 'none' else 30], 10)
    save_png(tmp_path / 'samples' / '000000.png', grid)
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "generator_loss": NaN}\n')
    page = read(tmp_path)
    assert 'Step 1 of 4' in page.text
    assert ('Classes' in page.text) == (conditioning == 'projection')


def test_steps_are_sorted_by_number(tmp_path):
    RunFolder(tmp_path).write_record(
        provenance.record(tiny.config(num_train_steps=1_000_000)) | {'data': {}}
    )
    for step in (1_000_000, 250_000, 0):
        grid = image_grid(random_images(step), 10)
        save_png(tmp_path / 'samples' / f'{step:06d}.png', grid)
        evaluate.write(
            RunFolder(tmp_path), step, [ROW | {'step': step, 'name': 'fid50_train', 'value': 1.0}]
        )
    page = read(tmp_path)
    alts = [image['alt'] for image in page.all('img') if image['alt'].startswith('step')]
    assert alts == ['step 0', 'step 250,000', 'step 1,000,000']
    assert 'fid50_train' + '1' + '1,000,000' in page.text  # the cells of name, value and step


def test_a_missing_value_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        page.render('run.html', served=False)


def test_all_but_style_and_scripts_is_escaped():
    templates = Path(page.__file__).parent / 'templates'
    trusted = {
        path.name: re.findall(r'\{\{ (.*?)\|\s*safe\b|\{% (autoescape false)', path.read_text())
        for path in templates.iterdir()
    }
    assert trusted.pop('document.html') == [('style ', ''), ('code ', '')]
    assert trusted.pop('sweep.md') == [('', 'autoescape false')]
    assert 'run.html' in trusted
    assert not any(trusted.values())
    assert 'Markup' not in Path(page.__file__).read_text()


def test_a_served_report_updates_itself(finished):
    text = report.html(finished, served=True)
    assert "connect-src 'self'" in text
    assert 'setInterval' in text
    assert 'draw' in [tag['href'] for tag in Page(text).all('a')]
    assert 'setInterval' not in report.html(finished)

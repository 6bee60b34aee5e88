"""The model card: what it says, and that names from outside stay text."""

import dataclasses
import math
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sagan_jax.errors import UserError
from sagan_jax.trained import export
from sagan_jax.trained.card import card
from tests.tiny import ROW


def card_of(model, scores=()):
    return card(model, export.describe(model, list(scores)))


def test_the_card_describes_the_generator(model):
    text = card_of(model, [ROW])
    assert 'Classes: 0 class0, 1 class1, 2 class2.' in text
    assert '| fid10k\\_train | 12.35 | – | 10,000 samples; 20,000 images of made/1.0.0' in text
    assert 'model.z_dim=8\n' in text
    assert model.sha256 in text
    assert 'has not been scored' in card_of(model)


def test_the_card_says_how_long_the_program_can_be_read(model):
    description = export.describe(model, []) | {'date': '2026-11-26'}
    description['versions'] |= {'jax': '0.10.2'}
    text = ' '.join(card(model, description).split())
    assert 'exported on 2026-11-26 with JAX 0.10.2.' in text
    assert "`pip install 'jax==0.10.2' flatbuffers`, or call `generate`" in text
    assert 'or later' not in text


# ---- Names from outside. -----------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
LIKELY = st.text('a`*_[]()<>|\\!&#:/. \n', max_size=20)
YAML = st.text('a-:{}[],"\'\\&*!|>%@#\n ', max_size=20)


def one_line(text):
    return ' '.join(''.join(c if c.isprintable() else ' ' for c in text).split())


def shown(markdown):
    """What Markdown shows of a text whose every special character is escaped."""
    assert 'www.' not in markdown
    text, rest = '', iter(markdown)
    for character in rest:
        assert character not in '`*_[]<>|!&#~$@:"^{}?', markdown
        text += next(rest) if character == '\\' else character
    return text


@settings(deadline=None)
@given(st.lists(st.one_of(TEXT, LIKELY), min_size=3, max_size=3))
@example(['<script>alert(1)</script>', '[a](https://b.c) ![d](e) www.f.g', '|\n\n# h\n```'])
def test_the_card_shows_names_as_they_are(model, names):
    text = card_of(dataclasses.replace(model, class_names=tuple(names)))
    line = next(line for line in text.split('\n') if line.startswith('Classes: '))
    expected = ', '.join(f'{label} {one_line(name)}' for label, name in enumerate(names))
    assert shown(line.removeprefix('Classes: ').removesuffix('.')) == expected
    assert len(text.splitlines()) == len(card_of(model).splitlines())


# ---- What the Hugging Face hub reads. ----------------------------------------------------------


def metadata_of(model, scores=(), license=None):
    text = card(model, export.describe(model, list(scores), license))
    found = ModelCard(text)  # raises ValueError if it cannot parse the block
    assert found.text.startswith('\n# A generator of 32×32 images')
    return found.data


def with_data(model, name):
    config = model.config.copy_and_resolve_references().unlock()
    config.dataset.name = name
    return dataclasses.replace(model, config=config)


def test_the_hub_reads_tags_licence_data_and_scores(model):
    data = metadata_of(with_data(model, 'cifar10'), [ROW], 'cc-by-4.0')
    assert data.library_name == 'jax'
    assert data.pipeline_tag == 'unconditional-image-generation'
    assert {'gan', 'jax'} < {*data.tags}
    assert data.license == 'cc-by-4.0'
    assert data.datasets == ['uoft-cs/cifar10']
    (score,) = data.eval_results
    assert (score.metric_type, score.metric_name) == ('fid', 'fid10k_train')
    assert score.metric_value == ROW['value']
    assert score.dataset_type == 'uoft-cs/cifar10'
    assert score.dataset_name == 'made/1.0.0'
    assert '10,000 samples; 20,000 images of made/1.0.0' in score.metric_args['protocol']


def test_the_hub_is_told_nothing_that_is_not_known(model):
    data = metadata_of(model)
    assert data.license == 'unknown'
    assert data.datasets is None
    assert data.eval_results is None
    assert metadata_of(model, [ROW | {'value': math.nan}]).eval_results is None
    assert metadata_of(with_data(model, 'hf:a/b-c/default')).datasets == ['a/b-c']
    origin = {'project': 'p', 'files': [], 'networks': [], 'licence': 'Apache-2.0'}
    converted = dataclasses.replace(with_data(model, 'cifar10'), origin=origin)
    assert metadata_of(converted).license == 'apache-2.0'
    assert metadata_of(converted).datasets is None
    origin['licence'] = 'that of whoever trained them'
    assert metadata_of(converted).license == 'other'
    with pytest.raises(UserError, match=r'--license=a: b is not the identifier .* apache-2\.0\.$'):
        export.export(model, None, None, 'a: b')


NUMBERS = st.floats(0, 1e30) | st.integers(0, 10**6) | st.just(1e-7)


@settings(deadline=None)
@given(st.lists(st.one_of(TEXT, LIKELY, YAML), min_size=4, max_size=4), NUMBERS)
@example(['"]}\n---\n', ': {', '- &a *a !!python/object', '\ud800\x7f\u2028'], 1e22)
def test_names_do_not_break_out_of_the_metadata(model, texts, value):
    name, data, split, features = texts
    row = ROW | {'data': data, 'split': split, 'features': features, 'value': value}
    found = metadata_of(with_data(model, name), [row])
    assert {*found.to_dict()} <= {
        'library_name', 'pipeline_tag', 'tags', 'license', 'datasets', 'model-index',
    }  # fmt: skip
    (score,) = found.eval_results
    assert score.metric_value == value
    assert score.dataset_name == one_line(data)
    assert score.dataset_split == one_line(split)


def test_the_line_that_uploads_an_export_is_understood():
    page = (Path(__file__).parents[2] / 'docs' / 'run.md').read_text()
    (line,) = re.findall(r'^hf (upload .*)$', page, re.MULTILINE)
    program = Path(sys.executable).parent / 'hf'
    words = shlex.split(line)
    found = subprocess.run([program, *words, '--help'], capture_output=True, text=True, check=True)
    assert all(word in found.stdout for word in words if word.startswith('--'))

"""A converted run is used like any other."""

import json
import threading
import urllib.request

import jax
import numpy as np
import pytest

import sagan_jax
from sagan_jax.configuration import defaults
from sagan_jax.errors import UserError
from sagan_jax.evaluation.evaluate import evaluate
from sagan_jax.metrics import in_domain
from sagan_jax.published import conversion, writing
from sagan_jax.run.folder import RunFolder
from sagan_jax.train import train
from sagan_jax.trained.card import card
from sagan_jax.trained.export import describe, export
from sagan_jax.trained.sample_files import write_samples
from sagan_jax.viewing import paper_figures, report, serve
from tests import tiny
from tests.published.test_conversion import files, golden

FOLDER = 'tiny_mmgen_32_ema'


def write(output, paths, config=None):
    writing.write(conversion.convert(paths, config or defaults.get_config()), output)
    return output


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    return write(tmp_path_factory.mktemp('converted') / 'run', files(FOLDER))


@pytest.fixture(scope='module')
def model(workdir):
    return sagan_jax.load(workdir)


def test_a_loaded_model_computes_what_pytorch_computes(model):
    z, labels, images, _ = golden(FOLDER)
    np.testing.assert_allclose(model.generate(z, labels), images, atol=1e-5)
    assert model.step == 1000
    assert model.class_names == tuple('0123456789')


def test_its_attention_maps_sum_to_one(model):
    (found,) = model.attention(3, 5, (0.5, 0.25)).items()
    resolution, weights = found
    assert (resolution, weights.shape) == (16, (8, 8))
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    assert weights.std() > 0


def test_provenance_and_model_card_name_the_origin(workdir, model):
    record = RunFolder(workdir).record()
    (path,) = files(FOLDER)
    (file,) = record['origin']['files']
    assert (file['name'], file['bytes']) == (path.name, path.stat().st_size)
    text = card(model, describe(model, [])).replace('\\', '')  # without Markdown's escapes
    for part in ('trained with mmgeneration', file['sha256'], 'Apache-2.0', 'generator_ema'):
        assert part in text
    assert 'generator_lr' not in text  # of no training that there was
    assert 'model.generator_attention' in text


@pytest.mark.parametrize(
    'damaged',
    [
        None,
        [],
        {'project': 'x'},
        {'files': [{'name': 5, 'sha256': 'x'}]},
        {'files': 'all'},
        {'networks': 'generator'},
        {'left_out': [None]},
    ],
)
def test_a_damaged_origin_is_refused_in_one_sentence(workdir, tmp_path, damaged):
    record = RunFolder(workdir).record()
    changed = damaged if not damaged or 'project' in damaged else record['origin'] | damaged
    (tmp_path / 'config.json').write_text(json.dumps(record | {'origin': changed}))
    with pytest.raises(UserError, match='origin should be as the run wrote it') as error:
        RunFolder(tmp_path).record()
    assert '\n' not in str(error.value)


def test_a_model_without_a_discriminator_says_so(tmp_path):
    workdir = write(tmp_path / 'run', files('tiny_studiogan_32')[:1])
    model = sagan_jax.load(workdir)
    with pytest.raises(UserError, match='has no discriminator'):
        model.discriminate(np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int32))
    assert RunFolder(workdir).record()['origin']['networks'] == ['generator']


def test_a_converted_run_is_neither_replaced_nor_trained(workdir):
    converted = conversion.convert(files(FOLDER), defaults.get_config())
    with pytest.raises(UserError, match='exists: choose another --output'):
        writing.write(converted, workdir)
    before = sorted(path for path in workdir.rglob('*'))
    with pytest.raises(UserError, match='converted from published weights'):
        train(RunFolder(workdir).config(), workdir)
    assert [path for path in sorted(workdir.rglob('*')) if 'run.lock' not in path.name] == before
    assert not list(workdir.parent.glob('.sagan_jax-*'))


@pytest.mark.thorough
def test_every_mode_takes_a_converted_run(tmp_path, monkeypatch):
    """Samples, figures, scores, an export and pages of a run that was converted with its data."""
    monkeypatch.setattr(in_domain, 'STEPS', 10)
    pictures = tiny.picture_folder(tmp_path / 'source', classes=10)
    config = tiny.folder_config(pictures, dataset__num_classes=10)
    workdir = write(tmp_path / 'run', files(FOLDER), config)
    config, model = RunFolder(workdir).config(), sagan_jax.load(workdir)
    write_samples(model, tmp_path / 'grid.png', 'samples', [], 10, 0, None)
    write_samples(model, tmp_path / 'ranking.png', 'ranking', [], 10, 0, None)
    drawn = {path.name for path in paper_figures.illustrate(config, workdir)}
    assert {'attention_generator.png', 'attention_discriminator.pdf', 'classes.png'} < drawn
    (rows,) = evaluate(config, workdir).values()
    assert {'in_domain_fid50_train'} < {row['name'] for row in rows}
    export(model, workdir, tmp_path / 'export')
    program = jax.export.deserialize((tmp_path / 'export/generator.stablehlo').read_bytes())
    z, labels, images, _ = golden(FOLDER)
    np.testing.assert_allclose(program.call(z, labels), images, atol=1e-5)
    described = json.loads((tmp_path / 'export/generator.json').read_text())
    assert described['origin']['project'] == 'mmgeneration'
    report.write(workdir)
    server = serve.create_server(workdir, '127.0.0.1', 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    url = f'http://127.0.0.1:{server.server_port}'
    assert b'in_domain' in urllib.request.urlopen(f'{url}/', timeout=60).read()
    server.shutdown()
    thread.join()


@pytest.mark.thorough
def test_attention_maps_of_a_converted_run_need_no_data(tmp_path):
    config = tiny.config(dataset__name='image_folder')
    without = write(tmp_path / 'run', files(FOLDER), config)
    found = paper_figures.illustrate(RunFolder(without).config(), without, kinds=['attention'])
    assert {path.name for path in found} == {'attention_generator.png', 'attention_generator.pdf'}

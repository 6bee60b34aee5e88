"""Converted networks against what the original PyTorch code computes with the same files."""

import json
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import cifar10
from sagan_jax import models
from sagan_jax.configuration import defaults
from sagan_jax.errors import UserError
from sagan_jax.published import conversion, projects, pth, weights
from sagan_jax.published.conversion import Options
from tests.published import pth_files

GOLDEN = Path(__file__).parents[1] / 'golden' / 'published'
FOLDERS = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
# The files of two folders are called after neither of what decides this.
OPTIONS = {'tiny_mmgen_32_inplace': Options(skip='relu')}


def files(folder):
    """The file of the generator, then that of the discriminator if it is another one."""
    found = [path for path in (GOLDEN / folder).glob('*.pth') if path.name != 'state_dict.pth']
    return sorted(found, key=lambda path: path.name.removeprefix('model='), reverse=True)


@cache
def convert(folder, options=None):
    return conversion.convert(
        files(folder), defaults.get_config(), options or OPTIONS.get(folder, Options())
    )


@cache
def networks(described):
    """Compiled once for folders with the same networks."""
    config = defaults.get_config()
    config.update_from_flattened_dict(json.loads(described))
    return [
        jax.jit(lambda variables, *inputs, network=network: network.apply(
            {name: variables[name] for name in ('params', 'batch_stats')}, *inputs, train=False
        )[0])
        for network in models.create(config)
    ]  # fmt: skip


def compiled(config):
    described = {f'model.{key}': value for key, value in config.model.items()}
    described |= {
        f'batch_norm.{key}': config.batch_norm[key] for key in ('epsilon', 'class_tables')
    }
    described |= {f'dataset.{key}': config.dataset[key] for key in ('image_size', 'num_classes')}
    return networks(json.dumps(described, sort_keys=True))


def golden(folder):
    """z, labels, images in RGB and NHWC, and logits: of the averaged generator if there is one."""
    found = np.load(GOLDEN / folder / 'golden.npz')
    ema = '_ema' if 'images_ema' in found else ''
    images = found[f'images{ema}'].transpose(0, 2, 3, 1)
    images = images[..., ::-1] if folder.startswith('tiny_mmgen') else images
    return found['z'], found['labels'].astype(np.int32), images, found[f'logits{ema}']


def image_error(folder, converted):
    z, labels, images, _ = golden(folder)
    return np.abs(compiled(converted.config)[0](converted.generator, z, labels) - images).max()


def logit_error(folder, converted):
    """Relative."""
    _, labels, images, logits = golden(folder)
    found = compiled(converted.config)[1](converted.discriminator, images, labels)
    return (np.abs(found - logits) / np.abs(logits)).max()


@pytest.mark.parametrize('folder', FOLDERS)
def test_images_and_logits_are_those_of_pytorch(folder):
    converted = convert(folder)
    assert image_error(folder, converted) < 1e-5
    assert logit_error(folder, converted) < 1e-5
    assert converted.step == (0 if 'ajbrock' in folder else 1000)


# ---- Misreadings. ------------------------------------------------------------------------------


def by_svd(parts):
    name = 'weight_orig' if 'weight_orig' in parts else 'weight'
    weight = weights._take(parts, name)
    for other in set(parts) - {'bias'}:
        parts.pop(other)
    return weight / np.linalg.norm(weight.reshape(len(weight), -1), 2)


def iterated(parts):
    """With one iteration more than PyTorch makes."""
    weight = weights._take(parts, 'weight_orig')
    u, _ = weights._take(parts, 'weight_u'), parts.pop('weight_v')
    matrix = weight.reshape(len(weight), -1)
    v = weights._unit(u @ matrix)
    return weight / (weights._unit(matrix @ v) @ matrix @ v)


def not_iterated(parts):
    """With one iteration fewer than BigGAN-PyTorch makes."""
    weight = weights._take(parts, 'weight')
    if 'u0' not in parts:
        return weight
    return weight / np.linalg.norm(weights._take(parts, 'u0') @ weight.reshape(len(weight), -1))


def swapped():
    found = dict(projects._MODULES)
    query, key = (name for name, path in found.items() if path in ('{0}/query', '{0}/key'))
    return found | {query: '{0}/key', key: '{0}/query'}


def without_average(content, find=projects.find_networks):
    project, found, others = find(content)
    return project, {name: found[name] for name in found if name != 'generator_ema'}, others


STUDIOGAN, AJBROCK, AVERAGED = 'tiny_studiogan_32', 'tiny_ajbrock_32', 'tiny_mmgen_32_ema'
WRONG = {
    'the true singular value': (STUDIOGAN, weights, '_weight', by_svd),
    'one iteration more': (STUDIOGAN, weights, '_weight', iterated),
    'one iteration fewer': (AJBROCK, weights, '_weight', not_iterated),
    'features in the order of PyTorch': (
        *(STUDIOGAN, weights, '_reorder_first_features', lambda arrays: None),
    ),
    'query for key': (STUDIOGAN, projects, '_MODULES', swapped()),
    'another epsilon': (AVERAGED, conversion, '_usual_epsilon', lambda *_: 1e-4),
    'BGR for RGB': (AVERAGED, weights, '_turn_colours', lambda arrays: None),
    'the last weights for the averaged': (*(AVERAGED, projects, 'find_networks', without_average),),
}


@pytest.mark.parametrize('name', WRONG)
def test_a_misreading_of_the_generator_shows(monkeypatch, name):
    folder, module, attribute, wrong = WRONG[name]
    monkeypatch.setattr(module, attribute, wrong)
    assert image_error(folder, convert.__wrapped__(folder)) > 2e-5


def test_a_misreading_of_the_discriminator_shows():
    converted = convert('tiny_studiogan_32', Options(skip='input'))
    assert logit_error('tiny_studiogan_32', converted) > 1e-3


def test_gains_are_one_plus_the_table():
    generator = convert('tiny_studiogan_32').generator['params']
    with pth.opened(files('tiny_studiogan_32')[0]) as content:
        tensors = {key: tensor.array() for key, tensor in content['state_dict'].items()}
    module = 'blocks.0.0.bn1.gain'
    table, u, v = (tensors[f'{module}.weight_{part}'] for part in ('orig', 'u', 'v'))
    expected = 1 + table.T / (u @ table @ v)
    np.testing.assert_allclose(generator['block1']['norm1']['scale'], expected, rtol=1e-6)


# ---- What the files do not say, and what they cannot be. ---------------------------------------


def test_settings_are_found_in_the_files():
    config = convert('tiny_mmgen_32_ema').config
    assert (config.dataset.image_size, config.dataset.num_classes, config.model.z_dim) == (
        32,
        10,
        16,
    )
    assert config.model.generator_width == config.model.discriminator_width == 4
    assert config.model.generator_attention == config.model.discriminator_attention == (16,)
    assert config.batch_norm.epsilon == 1e-5
    assert config.model.discriminator_skip == 'input'
    config = convert('tiny_studiogan_v1_32').config
    assert config.batch_norm.epsilon == 1e-4
    assert config.model.discriminator_skip == 'relu'
    assert convert('tiny_ajbrock_32').config.model.discriminator_attention == ()


def test_settings_of_another_recipe_do_not_stay():
    """The configuration that gives the data may have networks of its own."""
    base = cifar10.get_config('best_public')
    base.update({'steps_per_call': 20, 'model': {'attention_value_divisor': 8}})
    converted = conversion.convert(files('tiny_mmgen_32_ema'), base)
    assert converted.config.dataset.name == 'cifar10'
    assert image_error('tiny_mmgen_32_ema', converted) < 1e-5


def test_the_origin_names_all_that_is_there():
    origin = convert('tiny_mmgen_32_ema').origin
    assert origin['networks'] == ['generator_ema', 'discriminator']
    assert origin['left_out'] == ['meta', 'generator']
    assert origin['colours'].startswith('BGR')
    (file,) = origin['files']
    assert file['bytes'] == files('tiny_mmgen_32_ema')[0].stat().st_size
    assert len(file['sha256']) == 64
    origin = convert('tiny_studiogan_32').origin
    assert {'optimizer', 'best_fid', 'seed'} < set(origin['left_out'])
    assert [file['name'][:7] for file in origin['files']] == ['model=G', 'model=D']


def test_names_of_files_say_what_the_files_do_not(tmp_path):
    (path,) = files('tiny_mmgen_32_inplace')
    for name, bgr, skip in (
        ('sagan_32_wReLUinplace_is-iter5_20210730-4008a9ca.pth', True, 'relu'),
        ('sagan_32_woReLUinplace.pth', True, 'input'),
        ('sagan_32_convert-studio-rgb.pth', False, 'relu'),
    ):
        renamed = tmp_path / name
        renamed.write_bytes(path.read_bytes())
        converted = conversion.convert([renamed], defaults.get_config())
        assert converted.config.model.discriminator_skip == skip
        assert converted.origin['colours'].startswith('BGR') == bgr


def changed(folder, change):
    """The networks of a folder's first file as a value to write, after `change(state)`."""
    with pth.opened(files(folder)[0]) as content:
        state = {
            key: tensor.array()
            for key, tensor in content.get('state_dict', content).items()
            if isinstance(tensor, pth.Tensor)
        }
    change(state)
    return {
        'state_dict': {
            key: pth_files.tensor(pth_files.storage(array, str(index)), array.shape)
            for index, (key, array) in enumerate(state.items())
        }
    }


REFUSED = {
    'a missing bias': (lambda state: state.pop('conv2d5.bias'), r'lacks params/conv/bias'),
    'a missing u': (lambda state: state.pop('conv2d5.weight_u'), 'lacks conv2d5.weight_u'),
    'a missing block': (
        lambda state: [state.pop(key) for key in list(state) if key.startswith('blocks.3.')],
        r'channels, which is no SAGAN of 16×16|lacks',
    ),
    'another key': (
        lambda state: state.update({'shared.weight': np.ones(3)}),
        'another architecture',
    ),
    'another tensor': (
        lambda state: state.update({'conv2d5.weight_bar': np.ones(3)}),
        r'conv2d5.weight_bar is not part',
    ),
    'another width': (
        lambda state: state.update({'bn4.weight': np.ones(7, np.float32)}),
        r'shape \(7,\), which should be \(16,\)',
    ),
    'a kernel of two axes': (
        lambda state: state.update({'conv2d5.weight_orig': np.ones((3, 144), np.float32)}),
        'fits no SAGAN',
    ),
    'nothing': (lambda state: state.clear(), 'not the weights of a SAGAN'),
    'another project': (
        lambda state: [state.update({f'x{key}': state.pop(key)}) for key in list(state)],
        'not the weights of a SAGAN',
    ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_is_no_sagan_is_refused_in_one_sentence(tmp_path, name):
    change, message = REFUSED[name]
    path = tmp_path / 'x.pth'
    pth_files.write_zip(path, changed('tiny_studiogan_32', change))
    with pytest.raises(UserError, match=message) as error:
        conversion.convert([path], defaults.get_config())
    assert '\n' not in str(error.value)


def test_files_that_do_not_belong_together_are_refused():
    generator, discriminator = files('tiny_studiogan_32')
    for paths, message in (
        ([discriminator], 'no generator in these files'),
        ([generator, generator], 'Two files hold a generator'),
        ([generator, files('tiny_ajbrock_32')[1]], 'of different projects'),
    ):
        with pytest.raises(UserError, match=message):
            conversion.convert(paths, defaults.get_config())

"""`generator.py` of an export draws the images of the exported program, with NumPy alone."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from sagan_jax import models
from sagan_jax.models import official
from sagan_jax.models.architectures import ARCHITECTURES
from sagan_jax.trained import export, standalone
from sagan_jax.trained.model import Model
from tests import tiny

GOLDEN = Path(__file__).parents[1] / 'golden'

# Every kind of layer that a generator can have, in few networks.
CONFIGURATIONS = {
    'sagan': {
        'model.generator_attention': (8, 16),
        'model.attention_pooling': False,
        'model.attention_value_divisor': 8,
    },
    'sagan of 24×24 with drawn tables': {
        'dataset.image_size': 24,
        'model.conditioning': 'acgan',
        'batch_norm.class_tables': 'drawn',
        'batch_norm.epsilon': 1e-2,
        'model.generator_attention': (),
    },
    'pyramid of one channel': {'dataset.channels': 1},
    'pyramid of 48×48': {'dataset.image_size': 48, 'model.generator_attention': (24, 12)},
    'pyramid with a residual block': {
        'model.conditioning': 'none',
        'model.attention_block': 'residual',
    },
    'dcgan': {'model.conditioning': 'none', 'model.generator_attention': ()},
    'dcgan of one channel': {
        'dataset.channels': 1,
        'model.conditioning': 'none',
        'model.generator_attention': (),
        'model.generator_width': 12,  # enough contrast
    },
    'dcgan of 24×24': {
        'dataset.image_size': 24,
        'model.conditioning': 'none',
        'model.generator_attention': (),
    },
}


def made_model(overrides, architecture):
    """A model of random weights, without a run."""
    config = tiny.config(model__architecture=architecture)
    config.update_from_flattened_dict({'model.generator_width': 2} | overrides)
    networks, rng = models.create(config), np.random.default_rng(0)

    def made(path, leaf):
        if path.endswith('var'):
            return rng.uniform(0.5, 2, leaf.shape).astype(np.float32)
        fan_in = np.prod(leaf.shape[:-1]) if path.endswith('kernel') else 1
        return rng.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)

    shapes = jax.eval_shape(networks[0].init, jax.random.key(0))
    del shapes['spectral_stats']
    generator = jax.tree_util.tree_map_with_path(
        lambda path, leaf: made(path[-1].key, leaf), shapes
    )
    last = generator['params']['conv']  # most images would be black and white
    generator['params']['conv'] = {name: 0.2 * value for name, value in last.items()}
    return Model(
        run=None,
        config=config,
        class_names=('a', 'b', 'c'),
        step=0,
        sha256='0' * 64,
        generator=generator,
        discriminator=None,
        origin=None,
        networks=networks,
        programs=None,
    )


def write(model, folder, program=b''):
    """What `generator.py` reads, without the rest of an export."""
    folder.mkdir(exist_ok=True)
    shutil.copy(standalone.__file__, folder / 'generator.py')
    (folder / 'generator.stablehlo').write_bytes(program)
    (folder / 'generator.json').write_text(json.dumps(export.describe(model, [])))
    weights = flatten_dict(jax.tree.map(np.asarray, model.generator), sep='/')
    save_file(weights, folder / 'generator.safetensors', {'format': 'np'})


def imported(folder):
    spec = importlib.util.spec_from_file_location('generator', folder / 'generator.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inputs(model, n=3):
    z = np.random.default_rng(n).standard_normal((n, model.config.model.z_dim), np.float32)
    return z, np.arange(n, dtype=np.int32)[::-1] % 3


def test_every_architecture_is_tested():
    assert {name.split()[0] for name in CONFIGURATIONS} == ARCHITECTURES.keys()


@pytest.mark.parametrize('name', CONFIGURATIONS)
def test_images_equal_those_of_the_exported_program(name, tmp_path):
    model = made_model(CONFIGURATIONS[name], name.split()[0])
    write(model, tmp_path)
    z, labels = inputs(model)
    images = imported(tmp_path).generate(z, labels)
    assert images.dtype == np.float32
    assert images.std() > 0.05
    assert (np.abs(images) < 0.99).mean() > 0.3
    np.testing.assert_allclose(images, export.program(model).call(z, labels), atol=1e-5)


def test_images_equal_those_of_the_original_tensorflow_graph(tmp_path, monkeypatch):
    found = np.load(GOLDEN / 'official_feat32.npz')
    width, _, classes, z_dim, _ = found['meta'].tolist()
    config = tiny.config(model__architecture='sagan', dataset__image_size=128)
    config.model.update(generator_width=width, z_dim=z_dim, generator_attention=(32,))
    config.model.discriminator_attention = (32,)
    config.dataset.num_classes, config.model.discriminator_width = classes, width
    variables = {name[4:]: found[name] for name in found.files if name.startswith('var|')}
    network = flatten_dict(official.convert(config, variables)[0], sep='/')
    write(made_model({}, 'pyramid'), tmp_path)
    generator = imported(tmp_path)
    weights = {path.partition('/')[2]: np.array(value) for path, value in network.items()}
    for path in [path for path in weights if path.endswith('/u')]:
        kernel = path.removesuffix('/u')
        matrix = weights[kernel].reshape(-1, weights[kernel].shape[-1])
        v = matrix @ weights[path] / np.linalg.norm(matrix @ weights[path])
        weights[kernel] /= np.linalg.norm(v @ matrix)  # σ after one power iteration
    monkeypatch.setattr(generator, '_weights', lambda: weights)
    described = {'config': json.loads(config.to_json())}
    monkeypatch.setattr(generator, '_description', lambda: described)
    images = generator.generate(found['z'], found['labels'])
    np.testing.assert_allclose(images, found['out|g_eval'], atol=1e-5)


def test_activations_in_bfloat16_differ_by_their_rounding(tmp_path):
    model = made_model({'dtype': 'bfloat16', 'dataset.image_size': 24}, 'pyramid')
    write(model, tmp_path)
    z, labels = inputs(model)
    expected = np.asarray(export.program(model).call(z, labels))
    difference = np.abs(imported(tmp_path).generate(z, labels) - expected)
    assert difference.mean() < 0.02


def test_only_numpy_is_needed(tmp_path):
    model = made_model(CONFIGURATIONS['pyramid with a residual block'], 'pyramid')
    write(model, tmp_path)
    program = """
import sys
for name in ('jax', 'jaxlib', 'sagan_jax', 'flax', 'safetensors', 'scipy', 'ml_collections'):
    sys.modules[name] = None  # so that its import fails
import numpy as np
from generator import generate
np.save('images.npy', generate(np.load('z.npy'), [0, 0, 0]))
"""
    np.save(tmp_path / 'z.npy', inputs(model)[0])
    subprocess.run([sys.executable, '-c', program], cwd=tmp_path, env={}, check=True)
    expected = imported(tmp_path).generate(*inputs(model))
    np.testing.assert_array_equal(np.load(tmp_path / 'images.npy'), expected)


# ---- Programs that a version of JAX cannot read. -----------------------------------------------


def refusal(folder, program):
    (folder / 'generator.stablehlo').write_bytes(program)
    description = json.loads((folder / 'generator.json').read_text())
    description['date'] = '2024-06-18'
    description['versions']['jax'] = '0.4.30'
    (folder / 'generator.json').write_text(json.dumps(description))
    with pytest.raises(RuntimeError) as caught:
        imported(folder).program()
    return str(caught.value)


@pytest.fixture(scope='module')
def model():
    return made_model({'dataset.image_size': 24, 'model.generator_attention': ()}, 'pyramid')


@pytest.fixture(scope='module')
def program(model):
    return bytes(export.program(model).serialize())


ADVICE = "pip install 'jax==0.4.30' flatbuffers, or call generate, which needs only NumPy."


def test_a_program_in_a_format_of_another_time_is_refused(model, program, tmp_path):
    write(model, tmp_path, program)
    np.testing.assert_allclose(
        imported(tmp_path).program()(*inputs(model)),
        imported(tmp_path).generate(*inputs(model)),
        atol=1e-5,
    )
    assert b'constant_v1' in program  # operations of StableHLO carry their version
    for content in (program.replace(b'_v1', b'_v9'), program[:100], b''):
        message = refusal(tmp_path, content)
        start = f'JAX {jax.__version__} cannot use generator.stablehlo, which JAX 0.4.30 exported'
        assert message.startswith(f'{start} on 2024-06-18 (')
        assert message.endswith(ADVICE)


@pytest.mark.skipif(
    jax.version.__version_info__ < (0, 11, 1), reason='this JAX reads programs of any age'
)
def test_a_program_older_than_six_months_is_refused_with_what_to_do(model, tmp_path):
    """The file is `tanh(z @ ones) + labels`, as JAX 0.4.30 of June 2024 exported it."""
    write(model, tmp_path)
    old = (GOLDEN / 'program_of_jax_0_4_30.stablehlo').read_bytes()
    message = refusal(tmp_path, old)
    assert '6-month' in message
    assert message.endswith(ADVICE)

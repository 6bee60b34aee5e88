"""What the training step compiles to on accelerators. Needs launch/compile/requirements.txt."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from flax.traverse_util import flatten_dict

from launch.benchmark import scaling
from sagan_jax import models
from sagan_jax.models.architectures import ARCHITECTURES
from tests import tiny

ROOT = Path(__file__).parents[3]
ARCH = ARCHITECTURES['pyramid'][32]
UPS, DOWNS = len(ARCH.generator) - 1, ARCH.downs
SKIP = ('skip', 'bias')

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec('libtpu'),
    reason='needs a compiler: pip install -r launch/compile/requirements.txt',
)


def compiled(folder, *arguments):
    """The rows of the command's JSON. It does not get the flags of the tests, which are a CPU's.

    Compiling takes a minute of CPU, and is repeated only if the program or a version has changed.
    """
    environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    environment['XDG_CACHE_HOME'] = os.environ['JAX_COMPILATION_CACHE_DIR']
    file = folder / 'facts.json'
    command = [sys.executable, '-m', 'launch.compile', '--json', str(file), *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text())['compiled']


def small(**overrides):
    """A small network with attention, and its command line."""
    config = tiny.config(
        model__generator_attention=(16,), model__discriminator_attention=(16,), **overrides
    )
    return config, tiny.arguments(config, Path())[:2] + tiny.arguments(config, Path())[4:]


def check(row, config):
    """What holds on every accelerator."""
    assert row['arrays_not_donated'] == 0
    assert row['host_calls'] == []
    assert not row['uses_float64']
    assert row['written_zeros'] == []
    if row['devices'] == 1:
        assert row['collectives'] == 0
        return
    sent, metrics = scaling.traffic(config), 3 * config.discriminator_steps + 1
    # The bias of a skip has the gradient of the bias that it is added to: XLA sends it once.
    sent_once = 4 * sum(math.prod(leaf.shape) for leaf in skip_biases(config))
    expected = sent.gradient_bytes + sent.moment_bytes + 4 * metrics - sent_once
    assert row['collective_bytes'] == expected
    assert 0 < row['collectives'] <= sent.messages + metrics  # XLA combines some


def skip_biases(config):
    for network in models.create(config):
        params = jax.eval_shape(network.init, jax.random.key(0))['params']
        yield from (leaf for path, leaf in flatten_dict(params).items() if path[-2:] == SKIP)


def windows(row, dilation):
    """The windows of the convolutions of images that are dilated this way."""
    return [
        c['window']
        for c in row['convolutions']
        for _ in range(c['times'])
        if dilation in c['window'] and 'conv_general_dilated' in c['source']
    ]


def test_a_step_on_four_tpus(tmp_path):
    config, arguments = small()
    (row,) = compiled(tmp_path, *arguments, '--target', 'v5e:2x2')
    check(row, config)
    enlarging, kernels = windows(row, 'lhs_dilate'), windows(row, 'rhs_dilate')
    # The updates of D and of G each enlarge in every block of G, and pull back through every
    # block of D that halves the image. The columns are joined in pairs, so that only rows are
    # dilated.
    assert sum('size=4x3' in window for window in enlarging) == 2 * (UPS + DOWNS)
    # The skips of G enlarge likewise, and those of D pull back, except that of the first block to
    # real images.
    assert sum('size=2x1' in window for window in enlarging) == 2 * UPS
    assert sum('size=2x2' in window for window in enlarging) == 2 * DOWNS - 1
    assert len(enlarging) == 2 * (UPS + DOWNS) + 2 * UPS + 2 * DOWNS - 1
    # The kernels of these convolutions have one gradient each.
    assert len(kernels) == 2 * UPS + 2 * DOWNS


@pytest.mark.thorough
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_step_on_two_gpus(tmp_path, dtype):
    """No convolution multiplies by zeros that were written between the rows of an image."""
    if not importlib.util.find_spec('jax_plugins'):
        pytest.skip('needs a compiler: pip install -r launch/compile/requirements.txt')
    config, arguments = small(dtype=dtype)
    (row,) = compiled(tmp_path, *arguments, '--target', 'h100:2')
    check(row, config)
    assert windows(row, 'lhs_dilate') == []


@pytest.mark.thorough
@pytest.mark.parametrize('target', ['v5e:1x1', 'v5e:2x4', 'h100:1', 'h100:8'])
@pytest.mark.parametrize('name', ['quickstart', 'cifar10', 'celeba', 'shapes', 'imagenet128'])
def test_every_configuration_compiles(tmp_path, name, target):
    (row,) = compiled(
        tmp_path, '--config', name, '--target', target, '--width', '8', '--batch_size', '16'
    )
    assert row['arrays_not_donated'] == 0
    assert row['host_calls'] == row['written_zeros'] == []
    assert not row['uses_float64']

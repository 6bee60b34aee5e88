"""Converts variables of the original TensorFlow SAGAN.

The official code is github.com/brain-research/self-attention-gan. Reading one of its checkpoints
takes TensorFlow, which this project does not require: `{name: reader.get_tensor(name) for name in
reader.get_variable_to_shape_map()}` with `reader = tf.train.load_checkpoint(path)`.
"""

import re
from collections.abc import Mapping

import jax
import ml_collections
import numpy as np
from flax import traverse_util

from sagan_jax import models
from sagan_jax.errors import UserError
from sagan_jax.models import Variables

# TensorFlow scope → module path. {attention} is the attention block of the network.
_SCOPES = {
    r'g_snh0': 'dense',
    r'g_block(\d+)/cbn_0': 'block{0}/norm1',
    r'g_block(\d+)/cbn_1': 'block{0}/norm2',
    r'g_block(\d+)/snconv([12])': 'block{0}/conv{1}',
    r'g_block(\d+)/snconv3': 'block{0}/skip',
    r'g_bn': 'norm',
    r'g_snconv_last': 'conv',
    r'd_optimized_block(\d+)/sn_conv([12])': 'block{0}/conv{1}',
    r'd_optimized_block(\d+)/sn_conv3': 'block{0}/skip',
    r'd_block(\d+)/sn_conv([12])': 'block{0}/conv{1}',
    r'd_block(\d+)/sn_conv3': 'block{0}/skip',
    r'd_sn_linear': 'dense',
    r'd_embedding': 'embed',
    r'[gd]_non_local': '{attention}',
    r'[gd]_non_local/sn_conv_theta': '{attention}/query',
    r'[gd]_non_local/sn_conv_phi': '{attention}/key',
    r'[gd]_non_local/sn_conv_g': '{attention}/value',
    r'[gd]_non_local/sn_conv_attn': '{attention}/output',
}

# Last part of a TensorFlow name → collection and last part of the path in it.
_LEAVES = {
    'w': ('params', 'kernel'),
    'Matrix': ('params', 'kernel'),
    'embedding_map': ('params', 'embedding'),
    'biases': ('params', 'bias'),
    'bias': ('params', 'bias'),
    'gamma': ('params', 'scale'),
    'beta': ('params', 'bias'),
    'sigma_ratio': ('params', 'gamma'),
    'mean': ('batch_stats', 'moments/mean'),
    'moving_mean': ('batch_stats', 'moments/mean'),
    'var': ('batch_stats', 'moments/var'),
    'moving_variance': ('batch_stats', 'moments/var'),
    'u': ('spectral_stats', 'u'),
}

# Optimiser slots and counters of a training checkpoint.
_IGNORED = re.compile(r'(^|/)(Adam(_\d+)?|beta[12]_power(_\d+)?|global_step)$')


def convert(
    config: ml_collections.ConfigDict, variables: Mapping[str, np.ndarray]
) -> tuple[Variables, Variables]:
    """Converts variables of the official code to the networks of a configuration.

    Args:
      config: describes the same networks, with at most one attention block in each:
        `configs/imagenet128.py:feat32` for the official defaults.
      variables: arrays by TensorFlow name, under any outer scope. Adam's slots are ignored.

    Returns:
      The variables of the generator and of the discriminator, float32. The official code does not
      store σ; it is 1 until the next pass in training mode.

    Raises:
      UserError: if a variable is unknown or missing or has the wrong shape.
    """
    networks = dict(zip('gd', models.create(config), strict=True))
    attention = {
        'g': [f'attention{k}' for k in config.model.generator_attention],
        'd': [f'attention{k}' for k in config.model.discriminator_attention],
    }
    shapes: dict[str, dict[str, jax.ShapeDtypeStruct]] = {}
    found: dict[str, dict[str, np.ndarray]] = {}
    for network, functions in networks.items():
        tree = jax.eval_shape(functions.init, jax.random.key(0))
        shapes[network] = traverse_util.flatten_dict(tree, sep='/')
        # The official code does not store σ.
        found[network] = {
            path: np.ones((), np.float32) for path in shapes[network] if path.endswith('/sigma')
        }

    for name, value in variables.items():
        if _IGNORED.search(name):
            continue
        network, path = _translate(name, attention)
        if path.startswith('spectral_stats'):  # u has the path of its weight
            scope = path.removeprefix('spectral_stats/').removesuffix('/u')
            weight = 'embedding' if scope == 'embed' else 'kernel'
            path = f'spectral_stats/{scope}/{weight}/u'
        if path not in shapes[network]:
            raise UserError(
                f'{name} is not in the networks of this configuration: check '
                '--config.model.generator_attention and --config.model.discriminator_attention.'
            )
        shape = shapes[network][path].shape
        value = np.asarray(value, np.float32)
        # Moments and u carry axes of length 1 in TensorFlow.
        if path.split('/')[0] != 'params':
            value = value.reshape(value.shape[-1:])
        if value.shape != shape:
            raise UserError(
                f'{name} has shape {value.shape} but this configuration needs {shape}: check its '
                'widths and classes.'
            )
        found[network][path] = value

    for network in 'gd':
        missing = sorted(shapes[network].keys() - found[network].keys())
        if missing:
            raise UserError(
                f'{len(missing)} variables of this configuration are missing, the first of them '
                f'{missing[0]}: check its attention and that the checkpoint is complete.'
            )
    generator, discriminator = (
        {'batch_stats': {}} | traverse_util.unflatten_dict(found[network], sep='/')
        for network in 'gd'
    )
    return generator, discriminator


def _translate(name: str, attention: dict[str, list[str]]) -> tuple[str, str]:
    """The network ('g' or 'd') and the path in it of a TensorFlow variable."""
    scope, _, leaf = name.rpartition('/')
    for pattern, module in _SCOPES.items():
        match = re.fullmatch(rf'(?:.*/)?(?P<scope>{pattern})', scope)
        if match and leaf in _LEAVES:
            network = match['scope'][0]
            block = (attention[network] or ['attention'])[0]
            collection, path = _LEAVES[leaf]
            module = module.format(*match.groups()[1:], attention=block)
            return network, f'{collection}/{module}/{path}'
    raise UserError(f'{name} is not a variable of the official SAGAN: leave it out.')

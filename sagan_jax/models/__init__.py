"""Networks as pairs of pure functions over explicit collections of variables."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from flax import traverse_util

from sagan_jax import spectral_norm
from sagan_jax.configuration import checks
from sagan_jax.errors import UserError
from sagan_jax.models.architectures import (
    architecture,
    discriminator_resolutions,
    generator_resolutions,
)
from sagan_jax.models.attention import ResidualBlock, SelfAttention
from sagan_jax.models.dcgan import DCGANDiscriminator, DCGANGenerator
from sagan_jax.models.discriminator import Discriminator
from sagan_jax.models.generator import Generator

Variables = dict[str, Any]


class Network(NamedTuple):
    """A network as pure functions.

    Attributes:
      init: `init(key) -> variables`, `{'params', 'batch_stats', 'spectral_stats'}`; the last is
        empty where the configuration does not normalise this network.
      apply: `apply(variables, *inputs, train) -> (outputs, stats)`. The generator takes z
        float32 [B, z_dim] and labels int32 [B] and gives images float32 [B, S, S, 3] in [-1, 1];
        the discriminator takes such images and labels and gives logits float32 [B], with the
        conditioning 'acgan' beside the class logits float32 [B, classes]; with 'projection' it
        takes K labels for each image too, int32 [B, K], and gives logits [B, K]. `stats` holds
        the collections other than 'params' as they are after the pass; with `train=False` they
        come back untouched. Without 'spectral_stats' in `variables`, the parameters are taken as
        weights that are normalised already.
      attention: `attention(variables, *inputs) -> {resolution: float32 [B, N, M]}`, in order: what
        each of N positions of a feature map takes from each of M keys, all frozen. `variables` are
        weights that are normalised, and batch statistics.
    """

    init: Callable[[jax.Array], Variables]
    apply: Callable[..., tuple[jax.Array, Variables]]
    attention: Callable[..., dict[int, jax.Array]]


def create(
    config: ml_collections.ConfigDict, axis_name: str | None = None
) -> tuple[Network, Network]:
    """The generator and the discriminator that a configuration describes.

    Args:
      config: see configuration/defaults.py.
      axis_name: the mapped axis over whose replicas batch moments are taken; None for one device
        on its own.

    Raises:
      UserError: for a number out of its range, see configuration/checks.py; an architecture,
        conditioning or attention resolution that does not exist; or a block of queries that does
        not divide them.
    """
    checks.check(config)
    model, image_size = config.model, config.dataset.image_size
    _check_conditioning(config)
    arch = architecture(model.architecture, image_size)
    maps = generator_resolutions(arch), discriminator_resolutions(arch, image_size)
    if model.architecture == 'dcgan':
        maps = [], []
    _check_attention('generator', model.generator_attention, maps[0])
    _check_attention('discriminator', model.discriminator_attention, maps[1])
    _check_query_block(model)
    dtype = _dtype(config.dtype)
    attention_block = _attention_block(model, dtype)
    g_widths = tuple(width * model.generator_width for width in arch.generator)
    d_widths = tuple(width * model.discriminator_width for width in arch.discriminator)
    bn = config.batch_norm
    norm = {'decay': bn.decay, 'epsilon': bn.epsilon, 'axis_name': axis_name, 'dtype': dtype}
    if model.architecture == 'dcgan':
        generator = DCGANGenerator(g_widths, **norm)
        discriminator = DCGANDiscriminator(d_widths, **norm)
    else:
        classes = config.dataset.num_classes
        generator = Generator(
            widths=g_widths,
            attention=tuple(model.generator_attention),
            attention_block=attention_block,
            num_classes=0 if model.conditioning == 'none' else classes,
            last_decay=bn.last_decay,
            **norm,
        )
        discriminator = Discriminator(
            widths=d_widths,
            downs=arch.downs,
            attention=tuple(model.discriminator_attention),
            attention_block=attention_block,
            num_classes=classes if model.conditioning == 'projection' else 0,
            classifier=classes if model.conditioning == 'acgan' else 0,
            dtype=dtype,
        )

    initialise = _initialiser(model.initializer)
    z, labels = jnp.zeros((1, model.z_dim)), jnp.zeros((1,), jnp.int32)
    images = jnp.zeros((1, image_size, image_size, 3))
    sn = config.spectral_norm
    return (
        _network(generator, (z, labels), initialise, sn.generator, sn.epsilon),
        _network(discriminator, (images, labels), initialise, sn.discriminator, sn.epsilon),
    )


def count_parameters(variables: Variables) -> int:
    """How many trainable numbers there are; works on the shapes from `jax.eval_shape` too."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))


def _network(
    module: nn.Module, inputs: tuple, initialise: Callable, normalised: bool, epsilon: float
) -> Network:
    def init(key):
        params_key, spectral_key = jax.random.split(key)
        variables = module.init(params_key, *inputs, train=False)
        params = initialise(params_key, variables['params'])
        spectral = spectral_norm.init(spectral_key, params) if normalised else {}
        return {
            'params': params,
            'batch_stats': variables.get('batch_stats', {}),
            'spectral_stats': spectral,
        }

    def apply(variables, *inputs, train):
        stats = {name: value for name, value in variables.items() if name != 'params'}
        weights, spectral = spectral_norm.normalise(
            variables['params'], stats.get('spectral_stats', {}), epsilon
        )
        outputs, updated = module.apply(
            {'params': weights, 'batch_stats': stats.get('batch_stats', {})},
            *inputs,
            train=train,
            mutable=['batch_stats'],
        )
        after = {'batch_stats': updated.get('batch_stats', {}), 'spectral_stats': spectral}
        return outputs, {name: after[name] if train else stats[name] for name in stats}

    def attention(variables, *inputs):
        _, found = module.apply(
            {name: variables[name] for name in ('params', 'batch_stats')},
            *inputs,
            train=False,
            mutable=['attention'],
        )
        maps = found.get('attention', {})
        return {int(name.removeprefix('attention')): maps[name]['weights'][0] for name in maps}

    return Network(init, apply, attention)


def _initialiser(name: str) -> Callable[[jax.Array, Any], Any]:
    """`initialise(key, params) -> params`; the layers themselves draw Xavier uniform weights."""
    if name == 'xavier_uniform':
        return lambda key, params: params
    initialisers = {
        'orthogonal': nn.initializers.orthogonal(),
        # Drawn flat, for the reason given at `layers.xavier_uniform`.
        'normal': lambda key, shape: (
            0.02 * jax.random.normal(key, (math.prod(shape),)).reshape(shape)
        ),
    }
    if name not in initialisers:
        raise UserError(
            f'There is no initializer {name!r}: choose --config.model.initializer from '
            f'xavier_uniform, {", ".join(initialisers)}.'
        )

    def initialise(key, params):
        flat = traverse_util.flatten_dict(params)
        weights = [path for path in sorted(flat) if path[-1] in ('kernel', 'embedding')]
        for path, path_key in zip(weights, jax.random.split(key, len(weights)), strict=True):
            flat[path] = initialisers[name](path_key, flat[path].shape)
        return traverse_util.unflatten_dict(flat)

    return initialise


def _attention_block(model: ml_collections.ConfigDict, dtype: jnp.dtype) -> Callable:
    """`attention_block(name=…)` makes what stands where the configuration asks for attention."""
    if model.attention_block == 'residual':
        return partial(ResidualBlock, dtype)
    if model.attention_block == 'self_attention':
        return partial(
            SelfAttention,
            dtype,
            value_divisor=model.attention_value_divisor,
            pooling=model.attention_pooling,
            query_block=model.attention_query_block,
        )
    raise UserError(
        f'There is no attention block {model.attention_block!r}: choose '
        '--config.model.attention_block from self_attention and residual.'
    )


def _check_conditioning(config: ml_collections.ConfigDict) -> None:
    model = config.model
    if model.conditioning not in ('projection', 'acgan', 'none'):
        raise UserError(
            f'There is no conditioning {model.conditioning!r}: choose --config.model.conditioning '
            'from projection, acgan and none.'
        )
    if model.conditioning != 'none' and not config.dataset.num_classes:
        raise UserError(
            f'model.conditioning={model.conditioning} needs classes: set '
            '--config.dataset.num_classes, or --config.model.conditioning=none.'
        )
    if model.architecture == 'dcgan' and model.conditioning != 'none':
        raise UserError(
            f'The architecture dcgan has no conditioning {model.conditioning!r}: set '
            '--config.model.conditioning=none.'
        )


def _check_attention(network: str, asked: tuple[int, ...], possible: list[int]) -> None:
    if asked and not possible:
        raise UserError(
            f'This {network} takes no attention: set --config.model.{network}_attention=().'
        )
    for resolution in asked:
        if resolution not in possible:
            raise UserError(
                f'model.{network}_attention asks for {resolution}, but the {network} has feature '
                f'maps of {", ".join(map(str, sorted(set(possible))))}: choose among these.'
            )


def _check_query_block(model: ml_collections.ConfigDict) -> None:
    block = model.attention_query_block
    for resolution in (*model.generator_attention, *model.discriminator_attention):
        queries = resolution**2
        if 0 < block < queries and queries % block:
            raise UserError(
                f'model.attention_query_block={block} does not divide the {queries} queries of the '
                f'attention at {resolution}: take a power of two, or 0 for all at once.'
            )


def _dtype(name: str) -> jnp.dtype:
    if name not in ('float32', 'bfloat16'):
        raise UserError(
            f'There is no dtype {name!r}: choose --config.dtype from float32 and bfloat16.'
        )
    return jnp.dtype(name)

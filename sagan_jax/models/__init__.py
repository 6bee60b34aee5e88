"""The two networks as pure functions of explicit collections of variables."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from flax import traverse_util

from sagan_jax import spectral_norm
from sagan_jax.models.architectures import ARCHITECTURES
from sagan_jax.models.attention import ResidualBlock, SelfAttention
from sagan_jax.models.dcgan import DCGANDiscriminator, DCGANGenerator
from sagan_jax.models.discriminator import Discriminator
from sagan_jax.models.generator import Generator

Variables = dict[str, Any]


class Network(NamedTuple):
    """A network as pure functions.

    Attributes:
      init: `init(key) -> variables`, `{'params', 'batch_stats', 'spectral_stats'}`.
        `spectral_stats` is empty if the configuration does not normalise this network.
      normalise: `normalise(variables) -> (weights, spectral_stats)`, see `spectral_norm.normalise`.
        `weights` are `{'params', 'batch_stats'}` with normalised parameters.
      apply: `apply(weights, *inputs, train) -> (outputs, batch_stats)`. The generator maps z
        float32 [B, z_dim] and labels int32 [B] to images float32 [B, S, S, 3] in [-1, 1]. The
        discriminator maps such images and labels to logits float32 [B]. With the conditioning
        'acgan' it returns a pair, these logits and class logits float32 [B, classes]. With
        'projection' it also accepts K labels per image, int32 [B, K], and returns logits [B, K].
        Only `train=True` updates `batch_stats`. Raises ValueError if `weights` are not normalised.
      attention: `attention(weights, *inputs) -> {resolution: float32 [B, N, M]}`, in the order of
        the layers: the attention of each of N positions of a feature map to each of M keys, as
        with `train=False`.
    """

    init: Callable[[jax.Array], Variables]
    normalise: Callable[[Variables], tuple[Variables, Variables]]
    apply: Callable[..., tuple[jax.Array, Variables]]
    attention: Callable[..., dict[int, jax.Array]]


def create(
    config: ml_collections.ConfigDict, axis_name: str | None = None
) -> tuple[Network, Network]:
    """Creates the generator and the discriminator of a configuration.

    Args:
      config: see configuration/defaults.py. `checks.check` must accept it.
      axis_name: the mapped axis of the replicas that share batch moments. None for the moments of
        one device.
    """
    return create_generator(config, axis_name), create_discriminator(config, axis_name)


def create_generator(
    config: ml_collections.ConfigDict,
    axis_name: str | None = None,
    num_classes: int | None = None,
    momentum: float | None = None,
) -> Network:
    """Creates the generator of a configuration.

    Args:
      config, axis_name: see `create`.
      num_classes: rows in the tables of a conditional generator. The configuration's by default.
      momentum: of all running averages of batch moments. The configuration's by default. With 0,
        the averages after a pass are the moments of that batch.
    """
    model, bn = config.model, config.batch_norm
    arch = ARCHITECTURES[model.architecture][config.dataset.image_size]
    widths = tuple(width * model.generator_width for width in arch.generator)
    channels = config.dataset.channels
    norm = {
        'decay': bn.decay if momentum is None else momentum,
        'epsilon': bn.epsilon,
        'axis_name': axis_name,
        'dtype': jnp.dtype(config.dtype),
    }
    module: nn.Module
    if model.architecture == 'dcgan':
        module = DCGANGenerator(channels, arch.start, widths, **norm)
    else:
        classes = config.dataset.num_classes if num_classes is None else num_classes
        module = Generator(
            channels=channels,
            start=arch.start,
            widths=widths,
            attention=tuple(model.generator_attention),
            attention_block=_attention_block(model, norm['dtype']),
            num_classes=0 if model.conditioning == 'none' else classes,
            last_decay=bn.last_decay if momentum is None else momentum,
            drawn=bn.class_tables == 'drawn',
            unbiased=bn.unbiased_average,
            **norm,
        )
    inputs = jnp.zeros((1, model.z_dim)), jnp.zeros((1,), jnp.int32)
    tables = config.spectral_norm.class_tables
    return _network(config, module, inputs, config.spectral_norm.generator, tables)


def create_discriminator(
    config: ml_collections.ConfigDict, axis_name: str | None = None
) -> Network:
    """Creates the discriminator of a configuration. See `create` for the arguments."""
    model, bn, image_size = config.model, config.batch_norm, config.dataset.image_size
    channels = config.dataset.channels
    arch = ARCHITECTURES[model.architecture][image_size]
    widths = tuple(width * model.discriminator_width for width in arch.discriminator)
    dtype = jnp.dtype(config.dtype)
    module: nn.Module
    if model.architecture == 'dcgan':
        module = DCGANDiscriminator(channels, widths, bn.decay, bn.epsilon, axis_name, dtype)
    else:
        classes = config.dataset.num_classes
        module = Discriminator(
            channels=channels,
            widths=widths,
            downs=arch.downs,
            relu_skip=model.discriminator_skip == 'relu',
            attention=tuple(model.discriminator_attention),
            attention_block=_attention_block(model, dtype),
            num_classes=classes if model.conditioning == 'projection' else 0,
            classifier=classes if model.conditioning == 'acgan' else 0,
            dtype=dtype,
        )
    inputs = jnp.zeros((1, image_size, image_size, 3)), jnp.zeros((1,), jnp.int32)
    return _network(config, module, inputs, config.spectral_norm.discriminator, False)


def count_parameters(variables: Variables) -> int:
    """Counts the trainable parameters. Also accepts the shapes that `jax.eval_shape` returns."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))


def _network(
    config: ml_collections.ConfigDict,
    module: nn.Module,
    inputs: tuple,
    normalised: bool,
    tables: bool,
) -> Network:
    """The functions of a module, initialised with `inputs` of a batch of one.

    `normalised` and `tables` say whether weights and class tables are spectrally normalised.
    """
    initialise, epsilon = _initialiser(config), config.spectral_norm.epsilon

    def init(key):
        params_key, spectral_key = jax.random.split(key)
        variables = module.init(params_key, *inputs, train=False)
        params = initialise(params_key, variables['params'])
        spectral = spectral_norm.init(spectral_key, params, tables) if normalised else {}
        return {
            'params': params,
            'batch_stats': variables.get('batch_stats', {}),
            'spectral_stats': spectral,
        }

    def normalise(variables):
        params, spectral = spectral_norm.normalise(
            variables['params'], variables['spectral_stats'], epsilon
        )
        return {'params': params, 'batch_stats': variables['batch_stats']}, spectral

    def apply(weights, *inputs, train):
        if weights.keys() != {'params', 'batch_stats'}:
            raise ValueError(f'expected weights, see Network.normalise, got {", ".join(weights)}')
        with _precision(config):
            outputs, updated = module.apply(weights, *inputs, train=train, mutable=['batch_stats'])
        return outputs, updated.get('batch_stats', {})

    def attention(weights, *inputs):
        with _precision(config):
            _, found = module.apply(weights, *inputs, train=False, mutable=['attention'])
        maps = found.get('attention', {})
        return {int(name.removeprefix('attention')): maps[name]['weights'][0] for name in maps}

    return Network(init, normalise, apply, attention)


def _precision(config: ml_collections.ConfigDict) -> AbstractContextManager[None]:
    """The precision of the matrix products and convolutions that are traced in this block.

    Their gradients have it too, wherever they are traced.
    """
    if config.matmul_precision == 'default':
        return nullcontext()  # that of JAX_DEFAULT_MATMUL_PRECISION, if it is set
    precision: AbstractContextManager[None] = jax.default_matmul_precision(config.matmul_precision)
    return precision


def _initialiser(config: ml_collections.ConfigDict) -> Callable[[jax.Array, Any], Any]:
    """Builds `initialise(key, params) -> params`, which draws again what the layers have drawn.

    It keeps 'xavier_uniform' parameters, because the layers draw these themselves.
    """
    name, has_drawn_tables = config.model.initializer, config.batch_norm.class_tables == 'drawn'
    initialisers = {
        'orthogonal': nn.initializers.orthogonal(),
        # Drawn flat, see `layers.xavier_uniform` for the reason.
        'normal': lambda key, shape: (
            0.02 * jax.random.normal(key, (math.prod(shape),)).reshape(shape)
        ),
    }

    def is_drawn(path, leaf):
        is_table = has_drawn_tables and spectral_norm.is_class_table(path, leaf)
        return path[-1] in ('kernel', 'embedding') or is_table

    def initialise(key, params):
        flat = traverse_util.flatten_dict(params)
        if name in initialisers:
            weights = [path for path in sorted(flat) if is_drawn(path, flat[path])]
            for path, path_key in zip(weights, jax.random.split(key, len(weights)), strict=True):
                flat[path] = initialisers[name](path_key, flat[path].shape)
        if config.model.dense_bias == 'uniform':
            _draw_dense_biases(jax.random.fold_in(key, 1), flat)
        return traverse_util.unflatten_dict(flat)

    return initialise


def _draw_dense_biases(key: jax.Array, flat: dict[tuple[str, ...], jax.Array]) -> None:
    """Draws the biases of linear layers uniform in ±1/√(fan in), as PyTorch does."""
    kernels = [path for path in sorted(flat) if path[-1] == 'kernel' and flat[path].ndim == 2]
    for path, path_key in zip(kernels, jax.random.split(key, len(kernels)), strict=True):
        bias, limit = (*path[:-1], 'bias'), 1 / math.sqrt(flat[path].shape[0])
        flat[bias] = jax.random.uniform(path_key, flat[bias].shape, minval=-limit, maxval=limit)


def _attention_block(
    model: ml_collections.ConfigDict, dtype: jnp.dtype
) -> Callable[..., nn.Module]:
    """Builds `attention_block(name=…)`, which creates the layer at attention resolutions."""
    if model.attention_block == 'residual':
        return partial(ResidualBlock, dtype)
    return partial(
        SelfAttention,
        dtype,
        value_divisor=model.attention_value_divisor,
        pooling=model.attention_pooling,
        query_block=model.attention_query_block,
    )

"""Networks as pairs of pure functions over explicit collections of variables."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from sagan_jax import spectral_norm
from sagan_jax.errors import UserError
from sagan_jax.models.architectures import (
    architecture,
    discriminator_resolutions,
    generator_resolutions,
)
from sagan_jax.models.discriminator import Discriminator
from sagan_jax.models.generator import Generator

Variables = dict[str, Any]


class Network(NamedTuple):
    """A network as two pure functions.

    Attributes:
      init: `init(key) -> variables`, `{'params', 'batch_stats', 'spectral_stats'}`; the last is
        empty where the configuration does not normalise this network.
      apply: `apply(variables, *inputs, train) -> (outputs, stats)`. The generator takes z
        float32 [B, z_dim] and labels int32 [B] and gives images float32 [B, S, S, 3] in [-1, 1];
        the discriminator takes such images and labels and gives logits float32 [B]. `stats` holds
        the collections other than 'params' as they are after the pass; with `train=False` they
        come back untouched. Without 'spectral_stats' in `variables`, the parameters are taken as
        weights that are normalised already.
    """

    init: Callable[[jax.Array], Variables]
    apply: Callable[..., tuple[jax.Array, Variables]]


def create(
    config: ml_collections.ConfigDict, axis_name: str | None = None
) -> tuple[Network, Network]:
    """The generator and the discriminator that a configuration describes.

    Args:
      config: see configs/common.py.
      axis_name: the mapped axis over whose replicas batch moments are taken; None for one device
        on its own.

    Raises:
      UserError: for an architecture, conditioning or attention resolution that does not exist.
    """
    model, image_size = config.model, config.dataset.image_size
    arch = architecture(model.architecture, image_size)
    _check_attention('generator', model.generator_attention, generator_resolutions(arch))
    _check_attention(
        'discriminator', model.discriminator_attention, discriminator_resolutions(arch, image_size)
    )
    if model.conditioning not in ('projection', 'none'):
        raise UserError(
            f'There is no conditioning {model.conditioning!r}: choose --config.model.conditioning '
            'from projection and none.'
        )
    num_classes = config.dataset.num_classes if model.conditioning == 'projection' else 0
    dtype = _dtype(config.dtype)

    generator = Generator(
        widths=tuple(width * model.generator_width for width in arch.generator),
        attention=tuple(model.generator_attention),
        num_classes=num_classes,
        decay=config.batch_norm.decay,
        last_decay=config.batch_norm.last_decay,
        epsilon=config.batch_norm.epsilon,
        axis_name=axis_name,
        dtype=dtype,
    )
    discriminator = Discriminator(
        widths=tuple(width * model.discriminator_width for width in arch.discriminator),
        downs=arch.downs,
        attention=tuple(model.discriminator_attention),
        num_classes=num_classes,
        dtype=dtype,
    )
    z, labels = jnp.zeros((1, model.z_dim)), jnp.zeros((1,), jnp.int32)
    images = jnp.zeros((1, image_size, image_size, 3))
    sn = config.spectral_norm
    return (
        _network(generator, (z, labels), sn.generator, sn.epsilon),
        _network(discriminator, (images, labels), sn.discriminator, sn.epsilon),
    )


def count_parameters(variables: Variables) -> int:
    """How many trainable numbers there are; works on the shapes from `jax.eval_shape` too."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))


def _network(module: nn.Module, inputs: tuple, normalised: bool, epsilon: float) -> Network:
    def init(key):
        params_key, spectral_key = jax.random.split(key)
        variables = module.init(params_key, *inputs, train=False)
        spectral = spectral_norm.init(spectral_key, variables['params']) if normalised else {}
        return {
            'params': variables['params'],
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

    return Network(init, apply)


def _check_attention(network: str, asked: tuple[int, ...], possible: list[int]) -> None:
    for resolution in asked:
        if resolution not in possible:
            raise UserError(
                f'model.{network}_attention asks for {resolution}, but the {network} has feature '
                f'maps of {", ".join(map(str, sorted(set(possible))))}: choose among these.'
            )


def _dtype(name: str) -> jnp.dtype:
    if name not in ('float32', 'bfloat16'):
        raise UserError(
            f'There is no dtype {name!r}: choose --config.dtype from float32 and bfloat16.'
        )
    return jnp.dtype(name)

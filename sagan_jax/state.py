"""The state of training and its initial value."""

import math
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from sagan_jax import models, optimizers
from sagan_jax.errors import UserError
from sagan_jax.models import Variables
from sagan_jax.streams import Stream, stream_key


class TrainState(NamedTuple):
    """Everything that a training step changes.

    Attributes:
      step: int32 [], completed steps.
      generator, discriminator: the variables of the networks, see `models.Network`. With
        `lecam_weight`, the discriminator's have `logit_averages` too, see `losses.lecam`.
      generator_opt, discriminator_opt: the moments of Adam.
      ema_params: the averaged parameters of the generator. Its statistics are not averaged.
      restarts: int32 [], divergence restarts so far; the noise depends on them.
    """

    step: jax.Array
    generator: Variables
    discriminator: Variables
    generator_opt: optax.OptState
    discriminator_opt: optax.OptState
    ema_params: Variables
    restarts: jax.Array

    @property
    def averaged(self) -> Variables:
        """The averaged generator, as which the generator is sampled, scored and exported."""
        return self.generator | {'params': self.ema_params}


def state_shapes(config: ml_collections.ConfigDict) -> TrainState:
    """`create_state` with shapes and dtypes in place of arrays: what a checkpoint holds.

    Raises:
      UserError: if this machine has less memory than the state takes.
    """
    shapes = jax.eval_shape(lambda: create_state(config))
    needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    present = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    if needed > present:
        raise UserError(
            f'The networks and their optimisers take {needed / 2**30:,.1f} GiB, but this machine '
            f'has {present / 2**30:,.1f} GiB of memory: reduce model.generator_width, '
            'model.discriminator_width, model.z_dim or dataset.num_classes, or use a larger '
            'machine.'
        )
    return shapes


def create_state(config: ml_collections.ConfigDict) -> TrainState:
    """Creates the state before the first step, a function of `config.seed`.

    `state_shapes` refuses one that is too large.
    """
    generator, discriminator = models.create(config)
    generator_optimizer, discriminator_optimizer = optimizers.create(config)

    @jax.jit
    def create(key):
        generator_key, discriminator_key = jax.random.split(key)
        g, d = generator.init(generator_key), discriminator.init(discriminator_key)
        if config.lecam_weight:
            d['logit_averages'] = {'real': jnp.zeros(()), 'fake': jnp.zeros(())}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            generator=g,
            discriminator=d,
            generator_opt=generator_optimizer.init(g['params']),
            discriminator_opt=discriminator_optimizer.init(d['params']),
            ema_params=g['params'],
            restarts=jnp.zeros((), jnp.int32),
        )

    return create(stream_key(config.seed, Stream.PARAMETERS))

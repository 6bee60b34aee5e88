"""What a training step changes, and how it begins."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from sagan_jax import models, optimizers
from sagan_jax.models import Variables
from sagan_jax.streams import Stream, stream_key


class TrainState(NamedTuple):
    """Everything that a step changes.

    Attributes:
      step: int32 [], steps done.
      generator, discriminator: their variables, see `models.Network`.
      generator_opt, discriminator_opt: Adam's moments.
      ema_params: the averaged generator's parameters; parameters only, never statistics.
      restarts: int32 [], how often the run went back after it had diverged; it chooses the noise.
    """

    step: jax.Array
    generator: Variables
    discriminator: Variables
    generator_opt: optax.OptState
    discriminator_opt: optax.OptState
    ema_params: Any
    restarts: jax.Array


def create_state(config: ml_collections.ConfigDict) -> TrainState:
    """The state before the first step, a function of `config.seed`."""
    generator, discriminator = models.create(config)
    generator_optimizer, discriminator_optimizer = optimizers.create(config)

    @jax.jit
    def create(key):
        generator_key, discriminator_key = jax.random.split(key)
        g, d = generator.init(generator_key), discriminator.init(discriminator_key)
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

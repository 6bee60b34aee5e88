"""Adam for both networks, each with its own learning rate (TTUR: SAGAN, section 4.2)."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax


def create(
    config: ml_collections.ConfigDict,
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """The optimisers of the generator and of the discriminator."""
    opt = config.optimizer
    return tuple(
        optax.adam(rate, opt.b1, opt.b2, opt.epsilon)
        for rate in (opt.generator_lr, opt.discriminator_lr)
    )


def decay(config: ml_collections.ConfigDict, step: int | jax.Array) -> jax.Array:
    """The factor of both learning rates in the step after `step`, float32 [].

    1 until the share `optimizer.decay_from` of all steps, then falling linearly to 0.
    """
    left = 1 - step / config.num_train_steps
    return jnp.minimum(1.0, left / (1 - config.optimizer.decay_from))


def apply_gradients(
    config: ml_collections.ConfigDict,
    optimizer: optax.GradientTransformation,
    step: jax.Array,
    grads: Any,
    opt_state: optax.OptState,
    params: Any,
) -> tuple[Any, optax.OptState]:
    """The next parameters and the next state of the optimiser; `step` is int32 [], steps done."""
    updates, opt_state = optimizer.update(grads, opt_state, params)
    if config.optimizer.decay_from < 1:
        updates = optax.tree.scale(decay(config, step), updates)
    return optax.apply_updates(params, updates), opt_state

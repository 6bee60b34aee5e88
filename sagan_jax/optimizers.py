"""Adam for both networks, each with its own learning rate (TTUR: SAGAN, section 4.2)."""

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.typing import ArrayLike


def create(
    config: ml_collections.ConfigDict,
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Creates the optimisers of the generator and of the discriminator."""
    opt = config.optimizer
    generator, discriminator = (
        optax.adam(rate, opt.b1, opt.b2, opt.epsilon)
        for rate in (opt.generator_lr, opt.discriminator_lr)
    )
    return generator, discriminator


def decay(config: ml_collections.ConfigDict, step: ArrayLike) -> jax.Array:
    """The factor of both learning rates after `step` completed steps, float32 [].

    It is 1 for the fraction `optimizer.decay_from` of all steps and then falls linearly to 0.
    """
    left = 1 - step / config.num_train_steps
    return jnp.minimum(1.0, left / (1 - config.optimizer.decay_from))


def apply_gradients(
    config: ml_collections.ConfigDict,
    optimizer: optax.GradientTransformation,
    step: jax.Array,
    grads: optax.Updates,
    opt_state: optax.OptState,
    params: optax.Params,
) -> tuple[optax.Params, optax.OptState]:
    """Returns the next parameters and optimiser state; `step` is int32 [], completed steps."""
    updates, opt_state = optimizer.update(grads, opt_state, params)
    if config.optimizer.decay_from < 1:
        updates = optax.tree.scale(decay(config, step), updates)
    return optax.apply_updates(params, updates), opt_state

"""Gradients of a whole batch: means over the devices and over the parts of an accumulated batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sagan_jax.game import Game, Metrics
from sagan_jax.models import Variables
from sagan_jax.system.replicas import AXIS


def mean_gradients(
    game: Game, loss: Callable, weights: Variables, stats: Any, batch: Any
) -> tuple[Any, Metrics, Variables]:
    """Gradients of `loss(weights, stats, part) -> (value, (stats, metrics))` over a whole batch.

    This device's batch is divided into `gradient_accumulation` parts, computed one after the other.

    Returns:
      The batch statistics after the last part; the metrics; and the gradients with respect to
      `weights`. Metrics and gradients are means over all parts and devices.
    """

    def gradients(stats: Any, part: Any) -> tuple[Any, tuple[Metrics, Variables]]:
        grads, (stats, metrics) = jax.grad(loss, has_aux=True)(weights, stats, part)
        return stats, (metrics, grads)

    stats, means = accumulate(game, gradients, stats, batch)
    metrics, grads = lax.pmean(means, AXIS)
    return stats, metrics, grads


def accumulate(
    game: Game, function: Callable[[Any, Any], tuple[Any, Any]], stats: Any, batch: Any
) -> tuple[Any, Any]:
    """Runs `function(stats, part) -> (stats, values)` over all parts of a batch in turn.

    Returns:
      The statistics after the last part, and the means of the values over the parts.
    """
    count = game.config.gradient_accumulation
    if count == 1:
        return function(stats, batch)

    def add(carry, part):
        stats, sums = carry
        stats, values = function(stats, part)
        return (stats, jax.tree.map(jnp.add, sums, values)), None

    parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
    _, shapes = jax.eval_shape(function, stats, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (stats, sums), _ = game.scan(add, (stats, zeros), parts)
    return stats, jax.tree.map(lambda x: x / count, sums)

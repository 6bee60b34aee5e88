"""Spectral normalisation as a pure function over a parameter tree (Miyato et al., ICLR 2018).

The statistics are a collection of their own, `spectral_stats`: a tree shaped like the parameters
that holds, at each normalised weight, the power iteration's vector `u` and the last estimate
`sigma` of the largest singular value. Nothing in it depends on data.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

Tree = dict[str, Any]

# Convolution and dense kernels, and the discriminator's label embedding; biases, the gammas of
# attention and the tables of conditional batch norm stay as they are.
NORMALISED = ('kernel', 'embedding')


def init(key: jax.Array, params: Tree) -> Tree:
    """Fresh statistics: `u` truncated normal as in the official code, `sigma` 1.

    Args:
      key: a typed PRNG key.
      params: the parameter tree of one network.

    Returns:
      A tree with `{'u': float32 [rows of Wᵀ], 'sigma': float32 []}` at every weight whose name is
      in `NORMALISED`.
    """
    flat = traverse_util.flatten_dict(params)
    stats = {}
    for index, path in enumerate(sorted(path for path in flat if path[-1] in NORMALISED)):
        size = _matrix(path, flat[path]).shape[1]
        u = jax.random.truncated_normal(jax.random.fold_in(key, index), -2, 2, (size,))
        stats[*path, 'u'] = u
        stats[*path, 'sigma'] = jnp.ones(())
    return traverse_util.unflatten_dict(stats)


def normalise(
    params: Tree, spectral_stats: Tree, epsilon: float = 1e-12, iterations: int = 1
) -> tuple[Tree, Tree]:
    """Divides each weight that has statistics by its largest singular value.

    For W [in, out] (a kernel flattened to [-1, out], the embedding transposed), each iteration is
    v = Wu/‖Wu‖, u = Wᵀv/‖Wᵀv‖, and then σ = vᵀWu, all in float32. In the gradient u and v are
    constants, so ∂σ/∂W = vuᵀ (Miyato et al. 2018, section 2.1 and equation 12).

    Args:
      params: the parameter tree.
      spectral_stats: a tree from `init`; where it holds nothing, the parameter is returned as is,
        so that an empty tree means a network without spectral normalisation.
      epsilon: added to the norms; 1e-12 in the official code.
      iterations: power iterations; 1 while training, many to freeze a generator.

    Returns:
      `(weights, next_stats)`: trees shaped like `params` and `spectral_stats`.
    """
    flat, stats = traverse_util.flatten_dict(params), traverse_util.flatten_dict(spectral_stats)
    for path in [path[:-1] for path in stats if path[-1] == 'u']:
        matrix = _matrix(path, flat[path]).astype(jnp.float32)  # [in, out]
        u, v = _power_iteration(
            jax.lax.stop_gradient(matrix), stats[*path, 'u'], epsilon, iterations
        )
        sigma = v @ matrix @ u
        flat[path] = flat[path] / sigma
        stats[*path, 'u'], stats[*path, 'sigma'] = u, jax.lax.stop_gradient(sigma)
    return traverse_util.unflatten_dict(flat), traverse_util.unflatten_dict(stats)


def largest_sigma(spectral_stats: Tree) -> jax.Array:
    """The largest σ at the last normalisation, float32 []; 0 for a network without any."""
    flat = traverse_util.flatten_dict(spectral_stats)
    sigmas = [value for path, value in flat.items() if path[-1] == 'sigma']
    return jnp.max(jnp.stack(sigmas)) if sigmas else jnp.zeros(())


def _matrix(path: tuple[str, ...], weight: jax.Array) -> jax.Array:
    if path[-1] == 'embedding':  # the official code normalises its transpose: u per class
        return weight.T
    return weight.reshape(-1, weight.shape[-1])


def _power_iteration(
    matrix: jax.Array, u: jax.Array, epsilon: float, iterations: int
) -> tuple[jax.Array, jax.Array]:
    def unit(vector):
        return vector / (jnp.linalg.norm(vector) + epsilon)

    for _ in range(iterations):
        v = unit(matrix @ u)  # [in]
        u = unit(v @ matrix)  # [out]
    return u, v

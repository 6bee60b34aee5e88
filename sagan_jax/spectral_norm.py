"""Spectral normalisation as a pure function over a parameter tree (Miyato et al., ICLR 2018).

The statistics are a separate collection, `spectral_stats`: a tree shaped like the parameters. At
each normalised weight it holds the vector `u` of the power iteration and `sigma`, the last estimate
of the largest singular value. They do not depend on data.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

Tree = dict[str, Any]

# Convolution and dense kernels, and the discriminator's label embedding. Biases and the gammas of
# attention are not normalised, and the tables of conditional batch norm only if asked for.
NORMALISED = ('kernel', 'embedding')


def is_class_table(path: tuple[str, ...], leaf: jax.Array) -> bool:
    """Whether a parameter is a table of conditional batch norm, [classes, C]."""
    return path[-1] in ('scale', 'bias') and leaf.ndim == 2


def init(key: jax.Array, params: Tree, tables: bool = False) -> Tree:
    """Initial statistics: `u` truncated normal as in the official code, `sigma` 1.

    Args:
      key: a typed PRNG key.
      params: the parameter tree of one network.
      tables: whether to normalise the tables of conditional batch norm too.

    Returns:
      A tree with `{'u': float32 [rows of Wᵀ], 'sigma': float32 []}` at every weight whose name is
      in `NORMALISED`, and at the tables.
    """
    flat = traverse_util.flatten_dict(params)
    weights = [
        path
        for path, leaf in flat.items()
        if path[-1] in NORMALISED or (tables and is_class_table(path, leaf))
    ]
    sizes = {path: _matrix(path, flat[path]).shape[1] for path in sorted(weights)}
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(sizes)))
    # All in one draw, because each draw takes XLA a tenth of a second to compile.
    draw = partial(jax.random.truncated_normal, lower=-2, upper=2, shape=(max(sizes.values()),))
    stats = {}
    for (path, size), u in zip(sizes.items(), jax.vmap(draw)(keys), strict=True):
        stats[*path, 'u'] = u[:size]
        stats[*path, 'sigma'] = jnp.ones(())
    return traverse_util.unflatten_dict(stats)


def normalise(params: Tree, spectral_stats: Tree, epsilon: float = 1e-12) -> tuple[Tree, Tree]:
    """Divides each weight that has statistics by its largest singular value.

    W is [in, out]: a kernel flattened to [-1, out], or a transposed table of classes. One power
    iteration gives v = Wu/‖Wu‖, the next u = Wᵀv/‖Wᵀv‖ and σ = vᵀWu, all in float32, whatever the
    precision of other matrix products. u and v are constants in the gradient, so ∂σ/∂W = vuᵀ
    (Miyato et al. 2018, section 2.1 and equation 12).

    Args:
      params: the parameter tree.
      spectral_stats: a tree from `init`. Parameters without an entry are returned unchanged; an
        empty tree switches spectral normalisation off.
      epsilon: added to the norms; 1e-12 in the official code.

    Returns:
      `(weights, next_stats)`: trees shaped like `params` and `spectral_stats`.
    """
    flat, stats = traverse_util.flatten_dict(params), traverse_util.flatten_dict(spectral_stats)
    for path in [path[:-1] for path in stats if path[-1] == 'u']:
        matrix = _matrix(path, flat[path]).astype(jnp.float32)  # [in, out]
        v = _unit(_product(jax.lax.stop_gradient(matrix), stats[*path, 'u']), epsilon)  # [in]
        u = _unit(_product(v, jax.lax.stop_gradient(matrix)), epsilon)  # [out]
        sigma = _product(_product(v, matrix), u)
        flat[path] = flat[path] / sigma
        stats[*path, 'u'], stats[*path, 'sigma'] = u, jax.lax.stop_gradient(sigma)
    return traverse_util.unflatten_dict(flat), traverse_util.unflatten_dict(stats)


def converge(
    params: Tree, spectral_stats: Tree, epsilon: float = 1e-12, max_iterations: int = 1000
) -> Tree:
    """Repeats the power iteration until no σ changes by more than a relative 1e-6.

    One iteration per step is enough in training, where parameters move slowly. The weights of a
    frozen network, averaged ones in particular, need the converged σ.

    Args:
      params, spectral_stats, epsilon: as for `normalise`.
      max_iterations: where to stop if σ has not converged.

    Returns:
      A tree shaped like `spectral_stats`.
    """

    def sigmas(stats):
        flat = traverse_util.flatten_dict(stats)
        return jnp.stack([value for path, value in flat.items() if path[-1] == 'sigma'])

    def unfinished(carry):
        count, before, after = carry
        change = jnp.abs(sigmas(after) / sigmas(before) - 1)
        return (count < max_iterations) & (change.max() > 1e-6)

    def iterate(carry):
        count, _, stats = carry
        return count + 1, stats, normalise(params, stats, epsilon)[1]

    if not spectral_stats:
        return spectral_stats
    first = normalise(params, spectral_stats, epsilon)[1]
    return jax.lax.while_loop(unfinished, iterate, (1, spectral_stats, first))[-1]


def largest_sigma(spectral_stats: Tree) -> jax.Array:
    """The largest σ at the last normalisation, float32 []; 0 for empty statistics."""
    flat = traverse_util.flatten_dict(spectral_stats)
    sigmas = [value for path, value in flat.items() if path[-1] == 'sigma']
    return jnp.max(jnp.stack(sigmas)) if sigmas else jnp.zeros(())


def _matrix(path: tuple[str, ...], weight: jax.Array) -> jax.Array:
    # The official code normalises the transpose of a table: u has one entry per class.
    if path[-1] == 'embedding' or is_class_table(path, weight):
        return weight.T
    return weight.reshape(-1, weight.shape[-1])


# The default would be bfloat16 on a TPU and TF32 on an NVIDIA GPU.
_product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def _unit(vector: jax.Array, epsilon: float) -> jax.Array:
    return vector / (jnp.linalg.norm(vector) + epsilon)

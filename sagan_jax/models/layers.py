"""The layers that both networks are made of. Feature maps are NHWC."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp


def xavier_uniform(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Uniform in ±√(6 / (fan in + fan out)) (Glorot & Bengio 2010); [..., in, out] → that shape.

    Drawn flat: the same numbers as Flax's initialiser, but XLA's CPU backend takes two seconds to
    compile a four-dimensional draw, for each of some forty kernels.
    """
    receptive_field = math.prod(shape[:-2])
    limit = math.sqrt(6 / (receptive_field * (shape[-2] + shape[-1])))
    return jax.random.uniform(key, (math.prod(shape),), dtype, -limit, limit).reshape(shape)


# Everywhere in the official code: Xavier uniform weights, biases 0, 'same' padding.
Conv = partial(nn.Conv, kernel_init=xavier_uniform)
Dense = partial(nn.Dense, kernel_init=xavier_uniform)


class BatchNorm(nn.Module):
    """Batch normalisation, with a gain and a bias for each class or for all.

    Moments are biased, in float32 whatever the input's dtype, and over all replicas when
    `axis_name` is given. The running averages are `decay · average + (1 - decay) · moment`.

    Attributes:
      num_classes: rows of the tables (Dumoulin et al. 2017); 0 for plain batch norm.
      axis_name: the mapped axis whose replicas share moments; None for each on its own.
    """

    num_classes: int
    decay: float
    epsilon: float
    axis_name: str | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array, train: bool) -> jax.Array:
        """x [B, H, W, C], labels int [B] (read only where there are classes) → [B, H, W, C]."""
        normalise = nn.BatchNorm(
            use_running_average=not train,
            momentum=self.decay,
            epsilon=self.epsilon,
            use_bias=False,
            use_scale=False,
            axis_name=self.axis_name,
            name='moments',
        )
        shape = (self.num_classes, x.shape[-1]) if self.num_classes else (x.shape[-1],)
        scale = self.param('scale', nn.initializers.ones, shape)
        bias = self.param('bias', nn.initializers.zeros, shape)
        if self.num_classes:
            scale, bias = scale[labels, None, None], bias[labels, None, None]  # [B, 1, 1, C]
        return (normalise(x.astype(jnp.float32)) * scale + bias).astype(self.dtype)


def upsample(x: jax.Array) -> jax.Array:
    """Nearest neighbour ×2: [B, H, W, C] → [B, 2H, 2W, C]."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def average_pool(x: jax.Array) -> jax.Array:
    """2×2 averages: [B, H, W, C] → [B, H/2, W/2, C]."""
    return _windows(x).mean((2, 4))


def max_pool(x: jax.Array) -> jax.Array:
    """2×2 maxima: [B, H, W, C] → [B, H/2, W/2, C].

    A reshape and a maximum: the gradient of XLA's window reduction is not deterministic on a GPU.
    """
    return _windows(x).max((2, 4))


def _windows(x: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c)

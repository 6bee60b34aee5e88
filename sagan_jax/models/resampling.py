"""Resampling by two, and 1×1 convolutions, in the form that each platform computes fastest.

The forms of a function are equal up to the order of additions. Feature maps are NHWC.
"""

import jax
import jax.numpy as jnp
from jax import lax

from sagan_jax.models import column_pairs


def upsample(x: jax.Array) -> jax.Array:
    """Nearest neighbour ×2: [B, H, W, C] → [B, 2H, 2W, C]."""
    return lax.platform_dependent(x, cpu=_repeat, default=_broadcast)


def _repeat(x: jax.Array) -> jax.Array:
    return x.repeat(2, axis=1).repeat(2, axis=2)


def _broadcast(x: jax.Array) -> jax.Array:
    """`_repeat` without writing out an image of half the size."""
    b, h, w, c = x.shape
    y = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
    return y.reshape(b, 2 * h, 2 * w, c)


def project_and_upsample(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """A 1×1 convolution with a bias, then `upsample`.

    They commute, and in this order the convolution costs a quarter.

    Args:
      x: [B, H, W, C].
      kernel: [1, 1, C, D].
      bias: [D].

    Returns:
      [B, 2H, 2W, D].
    """

    def in_turn(x, kernel, bias):
        return upsample(project(x, kernel) + bias)

    return lax.platform_dependent(x, kernel, bias, tpu=_project_into_windows, default=in_turn)


def _project_into_windows(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """As one dilated convolution, which costs a TPU less than to write every value four times."""
    columns = 1 if column_pairs.fit(2 * x.shape[2], kernel.shape[3]) else 2
    if columns == 1:
        kernel = jnp.concatenate([kernel, kernel], 3)
    y = lax.conv_general_dilated(
        x,
        jnp.broadcast_to(kernel, (2, columns, *kernel.shape[2:])),
        window_strides=(1, 1),
        padding=((1, 1), (columns - 1, columns - 1)),
        lhs_dilation=(2, columns),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    return (column_pairs.split(y) if columns == 1 else y) + bias


def average_pool(x: jax.Array) -> jax.Array:
    """2×2 mean pooling: [B, H, W, C] → [B, H/2, W/2, C]."""
    return _windows(x).mean((2, 4))


def max_pool(x: jax.Array) -> jax.Array:
    """2×2 max pooling: [B, H, W, C] → [B, H/2, W/2, C].

    As a reshape and a maximum, because the gradient of XLA's window reduction is not deterministic
    on a GPU.
    """
    return _windows(x).max((2, 4))


def _windows(x: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c)


def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 1×1 convolution: [B, H, W, C] and [1, 1, C, D] → [B, H, W, D]."""
    y = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return y.reshape(*x.shape[:3], kernel.shape[-1])


def pool_and_project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """2×2 mean pooling, then a 1×1 convolution: [B, H, W, C], [1, 1, C, D] → [B, H/2, W/2, D]."""
    return lax.platform_dependent(x, kernel, tpu=_project_windows, default=_project_means)


def _project_means(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return project(average_pool(x), kernel)


def _project_windows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`_project_means` as one convolution with stride 2.

    It multiplies four times as much, which costs a TPU less than to write out the means.
    """
    return lax.conv_general_dilated(
        x,
        jnp.broadcast_to(kernel / 4, (2, 2, *kernel.shape[2:])),
        window_strides=(2, 2),
        padding='VALID',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

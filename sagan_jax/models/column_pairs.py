"""Pairs of columns as channels: what a TPU computes fastest on feature maps of few channels.

A TPU keeps channels, and multiplies them, in rows of 128. A map of 64 channels fills half of each
row, and a convolution from 64 to 64 channels a quarter of the matrix unit. With pairs of columns
joined, [B, H, W, C] → [B, H, W/2, 2C], they fill all of it. XLA cancels the reshapes between two
convolutions on pairs, so that the layers between them are computed on pairs too.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_ROW = 128  # channels


def fit(width: int, channels: int) -> bool:
    """Whether to join the columns of a map: two of them fit into a row."""
    return width % 2 == 0 and 2 * channels <= _ROW


def join(x: jax.Array) -> jax.Array:
    """[B, H, W, C] → [B, H, W/2, 2C]."""
    b, h, w, c = x.shape
    return x.reshape(b, h, w // 2, 2 * c)


def split(x: jax.Array) -> jax.Array:
    """[B, H, W/2, 2C] → [B, H, W, C]."""
    b, h, w, c = x.shape
    return x.reshape(b, h, 2 * w, c // 2)


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`convolution.convolve` on pairs: of the input, and with stride 1 of the output.

    Args:
      x: [B, H, W, C] with an even W.
      kernel: [3, 3, C, D] for stride 1, [4, 4, C, D] for stride 2.

    Returns:
      [B, H, W, D] or [B, H/2, W/2, D].
    """
    stride = len(kernel) - 2
    y = lax.conv_general_dilated(
        join(x),
        _kernel_of_pairs(kernel),
        window_strides=(stride, 1),
        padding=((1, 1), (1, 1)),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    return split(y) if stride == 1 else y


def _kernel_of_pairs(kernel: jax.Array) -> jax.Array:
    """[3, 3, C, D] → [3, 3, 2C, 2D], or [4, 4, C, D] → [4, 3, 2C, D]; half or a third is zero.

    With stride 1, column p of output pair j sees column q of input pair j + k - 1 through tap
    2k + q - p - 1. With stride 2, output column j sees it through tap 2k + q - 1.
    """
    size, _, c, d = kernel.shape
    outputs = 2 if size == 3 else 1
    k, q, p = np.ogrid[:3, :2, :outputs]
    is_tap = np.arange(size)[:, None, None, None] == 2 * k + q - p - 1  # [tap, k, q, p]
    joined = jnp.einsum(
        'htcd,tkqp->hkqcpd', kernel, is_tap.astype(kernel.dtype), precision=lax.Precision.HIGHEST
    )
    return joined.reshape(size, 3, 2 * c, outputs * d)

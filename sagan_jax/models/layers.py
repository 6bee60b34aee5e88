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


class UpConv(nn.Module):
    """Nearest neighbour ×2, then a 3×3 convolution, without the larger image in between.

    Rows 2i and 2i + 1 of the enlarged image are the same, so an output row sees two input rows
    only: an even one rows i - 1 and i with taps w0 and w1 + w2, an odd one rows i and i + 1 with
    w0 + w1 and w2; columns likewise. Four 2×2 convolutions, one for each parity, are the same
    function with 16 in place of 36 multiplications.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] → [B, 2H, 2W, features]."""
        b, h, w, c = x.shape
        kernel = self.param('kernel', xavier_uniform, (3, 3, c, self.features))
        bias = self.param('bias', nn.initializers.zeros, (self.features,))

        def taps(kernel, axis):
            w0, w1, w2 = jnp.split(kernel, 3, axis)
            return jnp.concatenate([w0, w1 + w2], axis), jnp.concatenate([w0 + w1, w2], axis)

        parities = [
            _convolve(x, small, (1, 1), ((1 - odd_row, odd_row), (1 - odd_column, odd_column)))
            for odd_row, rows in enumerate(taps(kernel, 0))
            for odd_column, small in enumerate(taps(rows, 1))
        ]
        y = jnp.stack(parities, axis=3).reshape(b, h, w, 2, 2, self.features)
        y = y.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, self.features)
        return y + bias.astype(self.dtype)


class DownConv(nn.Module):
    """A 3×3 convolution, then 2×2 averages, as one 4×4 convolution with stride 2.

    Its taps along each axis are w0/2, (w0 + w1)/2, (w1 + w2)/2 and w2/2: the same function with
    16 in place of 36 multiplications.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] → [B, H/2, W/2, features]."""
        kernel = self.param('kernel', xavier_uniform, (3, 3, x.shape[-1], self.features))
        bias = self.param('bias', nn.initializers.zeros, (self.features,))
        for axis in (0, 1):
            before = jnp.pad(kernel, [(int(i == axis), 0) for i in range(4)])
            after = jnp.pad(kernel, [(0, int(i == axis)) for i in range(4)])
            kernel = (before + after) / 2
        return _convolve(x, kernel, (2, 2), ((1, 1), (1, 1))) + bias.astype(self.dtype)


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


def _convolve(x: jax.Array, kernel: jax.Array, strides, padding) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel.astype(x.dtype), strides, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

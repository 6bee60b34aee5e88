"""The layers of both networks. Feature maps are NHWC."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from sagan_jax.models.convolution import conv_transpose, convolve
from sagan_jax.models.resampling import pool_and_project, project, project_and_upsample


def xavier_uniform(
    key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """Draws weights uniform in ±√(6 / (fan in + fan out)) (Glorot & Bengio 2010).

    The same numbers as Flax's initialiser, drawn as one axis: XLA's CPU backend takes two seconds
    to compile a four-dimensional draw, for each of about forty kernels.

    Args:
      key: a typed PRNG key.
      shape: [..., in, out].
      dtype: of the weights.
    """
    receptive_field = math.prod(shape[:-2])
    limit = math.sqrt(6 / (receptive_field * (shape[-2] + shape[-1])))
    return jax.random.uniform(key, (math.prod(shape),), dtype, -limit, limit).reshape(shape)


# As in the official code, weights are Xavier uniform, biases 0, and padding is 'same'.
Dense = partial(nn.Dense, kernel_init=xavier_uniform)


class Conv(nn.Module):
    """A convolution.

    Attributes:
      features: channels of the output.
      size: of the kernel: 1 and 3 keep height and width, 4 halves them.
      dtype: of the activations.
      use_bias: whether to add a bias.
    """

    features: int
    size: int
    dtype: jnp.dtype
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] → [B, H, W, features], or [B, H/2, W/2, features]."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param('kernel', xavier_uniform, shape).astype(self.dtype)
        y = project(x, kernel) if self.size == 1 else convolve(x, kernel)
        if self.use_bias:
            y += self.param('bias', nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y


class BatchNorm(nn.Module):
    """Batch normalisation, with a scale and a bias per class or shared by all classes.

    Moments are biased and float32, whatever the input's dtype. Running averages are
    `decay · average + (1 - decay) · moment`. With `unbiased` those of the variance take
    n / (n - 1) times the moment, for the n values over which it was computed, as PyTorch does.

    Attributes:
      num_classes: rows of scale and bias (Dumoulin et al. 2017); 0 for plain batch norm.
      decay: of the running averages.
      epsilon: added to the variance.
      axis_name: the mapped axis whose replicas share moments; None for one replica's moments.
      dtype: of the output.
      drawn: whether the scale of a class is 1 + its row, and rows are drawn like weights. Without,
        the scale is the row, from 1, and the bias is from 0.
      unbiased: see above.
    """

    num_classes: int
    decay: float
    epsilon: float
    axis_name: str | None
    dtype: jnp.dtype
    drawn: bool = False
    unbiased: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array, train: bool) -> jax.Array:
        """x [B, H, W, C], labels int [B] → [B, H, W, C]. Labels are ignored without classes."""
        normalise = nn.BatchNorm(
            use_running_average=not train,
            momentum=self.decay,
            epsilon=self.epsilon,
            use_bias=False,
            use_scale=False,
            axis_name=self.axis_name,
            name='moments',
        )
        drawn = self.drawn and self.num_classes > 0
        shape = (self.num_classes, x.shape[-1]) if self.num_classes else (x.shape[-1],)
        scale = self.param('scale', xavier_uniform if drawn else nn.initializers.ones, shape)
        bias = self.param('bias', xavier_uniform if drawn else nn.initializers.zeros, shape)
        if self.num_classes:
            scale, bias = scale[labels, None, None], bias[labels, None, None]  # [B, 1, 1, C]
        if drawn:
            scale = 1 + scale
        if self.unbiased and train:
            normalised = self._unbiased(normalise, x.astype(jnp.float32))
        else:
            normalised = normalise(x.astype(jnp.float32))
        return (normalised * scale + bias).astype(self.dtype)

    def _unbiased(self, normalise: nn.BatchNorm, x: jax.Array) -> jax.Array:
        """Applies Flax's layer, then corrects the variance that it has averaged."""
        before: jax.Array = normalise.get_variable('batch_stats', 'var')
        y = normalise(x)
        after: jax.Array = normalise.get_variable('batch_stats', 'var')
        replicas = jax.lax.psum(1, self.axis_name) if self.axis_name else 1
        count = x[..., 0].size * replicas
        # `after - decay · before` is (1 - decay) times the biased moment.
        correction = (after - self.decay * before) / (count - 1)
        normalise.put_variable('batch_stats', 'var', after + correction)
        return y


class UpConv(nn.Module):
    """Nearest neighbour ×2, then a 3×3 convolution, as one transposed 4×4 convolution.

    Rows 2i and 2i + 1 of the upsampled image are equal, so an output row depends on two input rows:
    an even row on rows i - 1 and i with taps w0 and w1 + w2, an odd row on rows i and i + 1 with
    taps w0 + w1 and w2. Columns likewise. This takes 16 multiplications instead of 36.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] → [B, 2H, 2W, features]."""
        kernel, bias = _kernel_and_bias(self, 3, x.shape[-1])
        return conv_transpose(x, _four_taps(kernel).astype(self.dtype)) + bias.astype(self.dtype)


class DownConv(nn.Module):
    """A 3×3 convolution, then 2×2 averages, as one 4×4 convolution with stride 2.

    Its taps along each axis are w0/2, (w0 + w1)/2, (w1 + w2)/2 and w2/2. This takes 16
    multiplications instead of 36.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] → [B, H/2, W/2, features]."""
        kernel, bias = _kernel_and_bias(self, 3, x.shape[-1])
        kernel = (_four_taps(kernel) / 4).astype(self.dtype)
        return convolve(x, kernel) + bias.astype(self.dtype)


class PooledConv(nn.Module):
    """2×2 mean pooling, then a 1×1 convolution."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] → [B, H/2, W/2, features]."""
        kernel, bias = _kernel_and_bias(self, 1, x.shape[-1])
        return pool_and_project(x, kernel.astype(self.dtype)) + bias.astype(self.dtype)


class UpsampledConv(nn.Module):
    """A 1×1 convolution, then nearest neighbour ×2."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] → [B, 2H, 2W, features]."""
        kernel, bias = _kernel_and_bias(self, 1, x.shape[-1])
        return project_and_upsample(x, kernel.astype(self.dtype), bias.astype(self.dtype))


def _kernel_and_bias(layer: nn.Module, size: int, channels: int) -> tuple[jax.Array, jax.Array]:
    """A layer's kernel, [size, size, channels, features], and its bias, [features]."""
    shape = (size, size, channels, layer.features)
    kernel = layer.param('kernel', xavier_uniform, shape)
    return kernel, layer.param('bias', nn.initializers.zeros, shape[-1:])


def _four_taps(kernel: jax.Array) -> jax.Array:
    """Taps w0, w0 + w1, w1 + w2, w2 along both axes: [3, 3, C, D] → [4, 4, C, D]."""
    for axis in (0, 1):
        before = jnp.pad(kernel, [(int(i == axis), 0) for i in range(4)])
        after = jnp.pad(kernel, [(0, int(i == axis)) for i in range(4)])
        kernel = before + after
    return kernel

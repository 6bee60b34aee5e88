"""DCGAN (Radford et al. 2016): convolutions alone, without residual blocks and classes."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sagan_jax.models.layers import BatchNorm, Conv, Dense, xavier_uniform


class DCGANGenerator(nn.Module):
    """Noise → feature map, then 4×4 transposed convolutions of stride 2, batch norm, ReLU between.

    Attributes:
      channels: of the image, see `Generator`.
      start: height and width of the first feature map.
      widths: channels of the first feature map, then of each layer but the last one.
      decay, epsilon, axis_name: see `BatchNorm`.
      dtype: of the activations.
    """

    channels: int
    start: int
    widths: tuple[int, ...]
    decay: float
    epsilon: float
    axis_name: str | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z: jax.Array, labels: jax.Array, train: bool) -> jax.Array:
        """z float32 [B, z_dim] → images float32 [B, S, S, 3] in [-1, 1]. Labels are ignored."""

        def activate(x: jax.Array, name: str) -> jax.Array:
            norm = BatchNorm(0, self.decay, self.epsilon, self.axis_name, self.dtype, name=name)
            return nn.relu(norm(x, labels, train))

        def up(features: int, name: str) -> nn.ConvTranspose:
            return nn.ConvTranspose(
                features, (4, 4), (2, 2), dtype=self.dtype, kernel_init=xavier_uniform, name=name
            )

        size, (first, *widths) = self.start, self.widths
        x = Dense(size**2 * first, dtype=self.dtype, name='dense')(z).reshape(-1, size, size, first)
        for number, width in enumerate(widths, start=1):
            x = up(width, f'conv{number}')(activate(x, f'norm{number}'))
        x = up(self.channels, 'conv')(activate(x, 'norm'))
        images = jnp.tanh(x.astype(jnp.float32))  # [B, S, S, channels]
        return jnp.broadcast_to(images, (*images.shape[:3], 3))


class DCGANDiscriminator(nn.Module):
    """4×4 convolutions with stride 2, leaky ReLU, batch norm on all but the first, dense to 1.

    Attributes: see `DCGANGenerator`; it sees the first `channels` of the image, and `widths` are
    those of the convolutions.
    """

    channels: int
    widths: tuple[int, ...]
    decay: float
    epsilon: float
    axis_name: str | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: jax.Array, labels: jax.Array, train: bool) -> jax.Array:
        """images float32 [B, S, S, 3] in [-1, 1] → logits float32 [B]. Labels are ignored."""

        def norm(x: jax.Array, name: str) -> jax.Array:
            norm = BatchNorm(0, self.decay, self.epsilon, self.axis_name, self.dtype, name=name)
            return norm(x, labels, train)

        x = images[..., : self.channels].astype(self.dtype)
        for number, width in enumerate(self.widths, start=1):
            x = Conv(width, 4, self.dtype, name=f'conv{number}')(x)
            x = nn.leaky_relu(norm(x, f'norm{number}') if number > 1 else x, 0.2)
        x = x.reshape(len(x), -1).astype(jnp.float32)  # [B, H·W·C]
        return Dense(1, name='dense')(x)[:, 0]

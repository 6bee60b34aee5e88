"""The generator: noise and labels to images (SAGAN's official code, after SNGAN's ResNet)."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from sagan_jax.models.layers import BatchNorm, Conv, Dense, UpConv, UpsampledConv


class UpBlock(nn.Module):
    """Batch norm → ReLU → ×2 → 3×3 → batch norm → ReLU → 3×3, plus a skip of ×2 → 1×1."""

    features: int
    norm: Callable[..., nn.Module]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array, train: bool) -> jax.Array:
        """x [B, H, W, C], labels int [B] → [B, 2H, 2W, features]."""
        h = nn.relu(self.norm(name='norm1')(x, labels, train))
        h = UpConv(self.features, self.dtype, name='conv1')(h)
        h = nn.relu(self.norm(name='norm2')(h, labels, train))
        h = Conv(self.features, 3, self.dtype, name='conv2')(h)
        # The skip's 1×1 convolution and ×2 commute.
        return h + UpsampledConv(self.features, self.dtype, name='skip')(x)


class Generator(nn.Module):
    """A stack of up blocks from a small feature map to the image.

    Attributes:
      channels: of the image, 3 or 1. A single channel is repeated, which gives a grey image.
      start: height and width of the first feature map.
      widths: channels of the first feature map, then of each up block.
      attention: the resolutions at which an attention block follows the up block.
      attention_block: `attention_block(name=…)` creates self-attention, or what replaces it.
      num_classes: rows of the conditional batch norms; 0 for an unconditional generator.
      decay: of the running averages in the blocks.
      last_decay: the same in the last batch norm, which is not conditional.
      axis_name: the mapped axis whose replicas share batch moments, or None.
      dtype: of the activations; parameters and moments stay float32.
      drawn, unbiased: see `BatchNorm`.
    """

    channels: int
    start: int
    widths: tuple[int, ...]
    attention: tuple[int, ...]
    attention_block: Callable[..., nn.Module]
    num_classes: int
    decay: float
    last_decay: float
    epsilon: float
    axis_name: str | None
    dtype: jnp.dtype
    drawn: bool
    unbiased: bool

    @nn.compact
    def __call__(self, z: jax.Array, labels: jax.Array, train: bool) -> jax.Array:
        """z float32 [B, z_dim], labels int [B] → images float32 [B, S, S, 3] in [-1, 1]."""
        norm = partial(
            BatchNorm,
            epsilon=self.epsilon,
            axis_name=self.axis_name,
            dtype=self.dtype,
            drawn=self.drawn,
            unbiased=self.unbiased,
        )
        first, *widths = self.widths

        x = Dense(self.start**2 * first, dtype=self.dtype, name='dense')(z)
        x = x.reshape(-1, self.start, self.start, first)
        for number, width in enumerate(widths, start=1):
            block_norm = partial(norm, num_classes=self.num_classes, decay=self.decay)
            x = UpBlock(width, block_norm, self.dtype, name=f'block{number}')(x, labels, train)
            if x.shape[1] in self.attention:
                x = self.attention_block(name=f'attention{x.shape[1]}')(x)

        x = nn.relu(norm(num_classes=0, decay=self.last_decay, name='norm')(x, labels, train))
        x = Conv(self.channels, 3, self.dtype, name='conv')(x)
        images = jnp.tanh(x.astype(jnp.float32))  # [B, S, S, channels]
        return jnp.broadcast_to(images, (*images.shape[:3], 3))

"""The discriminator: images and labels to logits (SAGAN's official code, after SNGAN's ResNet)."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from sagan_jax.models.layers import Conv, Dense, DownConv, PooledConv, xavier_uniform


class FirstBlock(nn.Module):
    """3×3 → ReLU → 3×3 → pool, plus a skip of pool → 1×1. Without ReLU on the image itself."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, 3] → [B, H/2, W/2, features]."""
        h = Conv(self.features, 3, self.dtype, name='conv1')(x)
        h = DownConv(self.features, self.dtype, name='conv2')(nn.relu(h))
        return h + PooledConv(self.features, self.dtype, name='skip')(x)


class DownBlock(nn.Module):
    """ReLU → 3×3 → ReLU → 3×3 (→ pool), plus a skip of 1×1 (→ pool).

    The skip is the identity if neither resolution nor width changes. With `relu_skip` it sees
    ReLU(x) in place of x, as in PyTorch where the ReLU overwrites its input.
    """

    features: int
    down: bool
    relu_skip: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] → [B, H/2, W/2, features], or [B, H, W, features] without `down`."""
        h = nn.relu(x)
        if self.relu_skip:
            x = h
        h = Conv(self.features, 3, self.dtype, name='conv1')(h)
        if self.down:
            h = DownConv(self.features, self.dtype, name='conv2')(nn.relu(h))
            # Pooling and the skip's 1×1 convolution commute.
            return h + PooledConv(self.features, self.dtype, name='skip')(x)
        h = Conv(self.features, 3, self.dtype, name='conv2')(nn.relu(h))
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, self.dtype, name='skip')(x)
        return h + x


class Discriminator(nn.Module):
    """A stack of down blocks, then `dense(h) + ⟨embedding(label), h⟩` (Miyato & Koyama 2018).

    With conditioning 'acgan' an auxiliary classifier replaces the projection.

    Attributes:
      channels: the first channels of the image that it sees: 3, or 1 of grey images.
      widths: channels of each block.
      downs: the number of blocks, counted from the image, that halve the resolution.
      relu_skip: see `DownBlock`.
      attention: the resolutions at which an attention block follows the block.
      attention_block: `attention_block(name=…)` creates self-attention, or what replaces it.
      num_classes: rows of the label embedding; 0 for no projection.
      classifier: outputs of the auxiliary classifier; 0 for none.
      dtype: of the activations; the sum over space and the logits are float32.
    """

    channels: int
    widths: tuple[int, ...]
    downs: int
    relu_skip: bool
    attention: tuple[int, ...]
    attention_block: Callable[..., nn.Module]
    num_classes: int
    classifier: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, images: jax.Array, labels: jax.Array, train: bool
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """images float32 [B, S, S, 3] in [-1, 1], labels int [B] → logits float32 [B].

        With K labels per image, [B, K], the logits are [B, K]; this needs a projection. With a
        classifier, returns its class logits too, float32 [B, classifier]. `train` is ignored; it is
        part of the signature that all networks share.
        """
        del train
        x = images[..., : self.channels].astype(self.dtype)
        for number, width in enumerate(self.widths, start=1):
            size, down = x.shape[1], number <= self.downs
            if number == 1:
                x = FirstBlock(width, self.dtype, name='block1')(x)
            else:
                block = DownBlock(width, down, self.relu_skip, self.dtype, name=f'block{number}')
                x = block(x)
            if down and size // 2 in self.attention:
                x = self.attention_block(name=f'attention{size // 2}')(x)

        h = nn.relu(x).astype(jnp.float32).sum((1, 2))  # [B, C]
        logits = Dense(1, name='dense')(h)[:, 0]
        if self.num_classes:
            embed = nn.Embed(
                self.num_classes, h.shape[-1], embedding_init=xavier_uniform, name='embed'
            )
            if labels.ndim == 2:
                logits, h = logits[:, None], h[:, None]
            logits += (embed(labels) * h).sum(-1)
        if self.classifier:
            return logits, Dense(self.classifier, name='classifier')(h)
        return logits

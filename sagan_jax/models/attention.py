"""Self-attention over a feature map (SAGAN, section 3), as the official code has it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sagan_jax.models.layers import Conv, max_pool


class SelfAttention(nn.Module):
    """`x + gamma · o`, where o gathers values from everywhere in the feature map.

    Queries are the paper's f(x), keys g(x), values h(x) and the output v(x), each a 1×1
    convolution without bias: C/8, C/8, C/2 (each at least 1) and C channels. Keys and values are
    max-pooled 2×2, so N positions attend to N/4. Logits are not scaled. Gamma is a learned scalar
    that starts at 0 (equation 3). The softmax is taken in float32.

    Attributes:
      dtype: of the activations.
      value_divisor: values are C over this wide: 2 in the official code, 8 in the paper's text.
      pooling: whether keys and values are pooled: in the official code, not in the paper's text.
      query_block: how many queries attend at a time, see `attention`; 0 for all.
    """

    dtype: jnp.dtype
    value_divisor: int = 2
    pooling: bool = True
    query_block: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] with even H and W → [B, H, W, C]."""
        b, h, w, c = x.shape
        inner, outer = max(c // 8, 1), max(c // self.value_divisor, 1)

        def project(features, name):
            return Conv(features, 1, self.dtype, use_bias=False, name=name)

        pool = max_pool if self.pooling else lambda x: x
        query = project(inner, 'query')(x).reshape(b, h * w, inner)
        key = pool(project(inner, 'key')(x)).reshape(b, -1, inner)
        value = pool(project(outer, 'value')(x)).reshape(b, -1, outer)

        if self.is_mutable_collection('attention') and not self.is_initializing():
            # The weights themselves are asked for: [B, HW, HW/4], or [B, HW, HW] without pooling.
            self.sow('attention', 'weights', nn.softmax(_logits(query, key.swapaxes(1, 2))))
        o = attention(query, key, value, self.query_block).reshape(b, h, w, outer)
        o = project(c, 'output')(o)

        gamma = self.param('gamma', nn.initializers.zeros, ())
        return x + gamma.astype(self.dtype) * o


def attention(query: jax.Array, key: jax.Array, value: jax.Array, block: int = 0) -> jax.Array:
    """Means of the values, weighted by the softmax of each query's products with the keys.

    Args:
      query: [B, Q, C].
      key: [B, K, C].
      value: [B, K, D].
      block: so many queries at a time, whose weights are computed again in the backward pass, so
        that memory grows with block · K and not with Q · K; it divides Q or exceeds it. 0: all at
        once.

    Returns:
      [B, Q, D], of the values' dtype.
    """

    # Their gradients are made in this layout, [B, C, K], which is twice as fast on a CPU; without
    # the barrier XLA turns it back.
    key, value = jax.lax.optimization_barrier((key.swapaxes(1, 2), value.swapaxes(1, 2)))

    def gather(query):
        logits = _logits(query, key)
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
        o = jnp.einsum(
            'bqk,bdk->bqd', weights.astype(value.dtype), value, preferred_element_type=jnp.float32
        )
        # The softmax's division, after the sum over the keys: of fewer numbers by a factor K/D.
        return (o / weights.sum(-1, keepdims=True)).astype(value.dtype)

    b, q, c = query.shape
    if not 0 < block < q:
        return gather(query)
    blocks = query.reshape(b, q // block, block, c).swapaxes(0, 1)
    o = jax.lax.map(jax.checkpoint(gather, prevent_cse=False), blocks)  # [Q/block, B, block, D]
    return o.swapaxes(0, 1).reshape(b, q, -1)


def _logits(query, key):
    return jnp.einsum('bqc,bck->bqk', query, key, preferred_element_type=jnp.float32)


class ResidualBlock(nn.Module):
    """`x + h(x)`, what stands in attention's place in the paper's comparison (Table 1).

    h is ReLU → 3×3 to C/8 → ReLU → 1×1 back to C, without biases: 9·C²/8 + C²/8 = 5·C²/4
    parameters, which is what attention's four projections have, C²/8 + C²/8 + C²/2 + C²/2.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] → [B, H, W, C]."""
        c = x.shape[-1]
        inner = max(c // 8, 1)
        h = Conv(inner, 3, self.dtype, use_bias=False, name='conv1')(nn.relu(x))
        return x + Conv(c, 1, self.dtype, use_bias=False, name='conv2')(nn.relu(h))

"""Self-attention over a feature map (SAGAN, section 3), as in the official code."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from sagan_jax.models.layers import Conv
from sagan_jax.models.resampling import max_pool


class SelfAttention(nn.Module):
    """`x + gamma · o`, where every position of o attends to the whole feature map.

    Queries are the paper's f(x), keys g(x), values h(x) and the output v(x), each a 1×1
    convolution without bias. They have C/8, C/8, C/2 (at least 1) and C channels. Keys and values
    are max-pooled 2×2, so N positions attend to N/4. Logits are not scaled. Gamma is a learned
    scalar, initially 0 (equation 3). The softmax is computed in float32.

    Attributes:
      dtype: of the activations.
      value_divisor: values have C / value_divisor channels; 2 in the official code, 8 in the
        paper's text.
      pooling: whether keys and values are pooled; yes in the official code, no in the paper's text.
      query_block: the number of queries computed at a time, see `attention`; 0 for all.
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

        def project(features: int, name: str) -> Conv:
            return Conv(features, 1, self.dtype, use_bias=False, name=name)

        pool = max_pool if self.pooling else lambda x: x
        query = project(inner, 'query')(x).reshape(b, h * w, inner)
        key = pool(project(inner, 'key')(x)).reshape(b, -1, inner)
        value = pool(project(outer, 'value')(x)).reshape(b, -1, outer)

        if self.is_mutable_collection('attention') and not self.is_initializing():
            # The caller wants the weights: [B, HW, HW/4], or [B, HW, HW] without pooling.
            self.sow('attention', 'weights', nn.softmax(_logits(query, key.swapaxes(1, 2))))
        o = attention(query, key, value, self.query_block).reshape(b, h, w, outer)
        o = project(c, 'output')(o)

        gamma = self.param('gamma', nn.initializers.zeros, ())
        return x + gamma.astype(self.dtype) * o


def attention(query: jax.Array, key: jax.Array, value: jax.Array, block: int = 0) -> jax.Array:
    """Means of the values, weighted by the softmax of the products of query and keys.

    Args:
      query: [B, Q, C].
      key: [B, K, C].
      value: [B, K, D].
      block: the number of queries computed at a time; 0 for all. Blocks are computed again in the
        backward pass, so that memory grows with block · K instead of Q · K. `block` divides Q or
        exceeds it.

    Returns:
      [B, Q, D], of the values' dtype.
    """

    # In this layout, [B, C, K], their gradients are computed twice as fast on a CPU. Without the
    # barrier XLA undoes it.
    key, value = jax.lax.optimization_barrier((key.swapaxes(1, 2), value.swapaxes(1, 2)))

    def attend(query: jax.Array) -> jax.Array:
        logits = _logits(query, key)
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
        o = jnp.einsum(
            'bqk,bdk->bqd', weights.astype(value.dtype), value, preferred_element_type=jnp.float32
        )
        # The softmax's division, after the sum over the keys: K/D times fewer divisions.
        return (o / weights.sum(-1, keepdims=True)).astype(value.dtype)

    b, q, c = query.shape
    if not 0 < block < q:
        return attend(query)
    blocks = query.reshape(b, q // block, block, c).swapaxes(0, 1)
    o = jax.lax.map(jax.checkpoint(attend, prevent_cse=False), blocks)  # [Q/block, B, block, D]
    return o.swapaxes(0, 1).reshape(b, q, -1)


def _logits(query: jax.Array, key: jax.Array) -> jax.Array:
    """[B, Q, C] and [B, C, K] → float32 [B, Q, K]."""
    return jnp.einsum('bqc,bck->bqk', query, key, preferred_element_type=jnp.float32)


class ResidualBlock(nn.Module):
    """`x + h(x)`, which replaces attention in the paper's comparison (Table 1).

    h is ReLU → 3×3 to C/8 → ReLU → 1×1 back to C, without biases. It has as many parameters as the
    four projections of attention: 9·C²/8 + C²/8 = 5·C²/4 = C²/8 + C²/8 + C²/2 + C²/2.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] → [B, H, W, C]."""
        c = x.shape[-1]
        inner = max(c // 8, 1)
        h = Conv(inner, 3, self.dtype, use_bias=False, name='conv1')(nn.relu(x))
        return x + Conv(c, 1, self.dtype, use_bias=False, name='conv2')(nn.relu(h))

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
    """

    dtype: jnp.dtype
    value_divisor: int = 2
    pooling: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] with even H and W → [B, H, W, C]."""
        b, h, w, c = x.shape
        inner, outer = max(c // 8, 1), max(c // self.value_divisor, 1)

        def project(features, name):
            return Conv(features, (1, 1), use_bias=False, dtype=self.dtype, name=name)

        pool = max_pool if self.pooling else lambda x: x
        query = project(inner, 'query')(x).reshape(b, h * w, inner)
        key = pool(project(inner, 'key')(x)).reshape(b, -1, inner)
        value = pool(project(outer, 'value')(x)).reshape(b, -1, outer)

        logits = jnp.einsum('bqc,bkc->bqk', query, key, preferred_element_type=jnp.float32)
        weights = nn.softmax(logits).astype(self.dtype)  # [B, HW, HW/4]: sums to 1 over keys
        o = jnp.einsum('bqk,bkc->bqc', weights, value).reshape(b, h, w, outer)
        o = project(c, 'output')(o)

        gamma = self.param('gamma', nn.initializers.zeros, ())
        return x + gamma.astype(self.dtype) * o


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
        h = Conv(inner, (3, 3), use_bias=False, dtype=self.dtype, name='conv1')(nn.relu(x))
        return x + Conv(c, (1, 1), use_bias=False, dtype=self.dtype, name='conv2')(nn.relu(h))

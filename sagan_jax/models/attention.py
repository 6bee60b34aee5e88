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
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] with even H and W → [B, H, W, C]."""
        b, h, w, c = x.shape
        inner, outer = max(c // 8, 1), max(c // 2, 1)

        def project(features, name):
            return Conv(features, (1, 1), use_bias=False, dtype=self.dtype, name=name)

        query = project(inner, 'query')(x).reshape(b, h * w, inner)
        key = max_pool(project(inner, 'key')(x)).reshape(b, h * w // 4, inner)
        value = max_pool(project(outer, 'value')(x)).reshape(b, h * w // 4, outer)

        logits = jnp.einsum('bqc,bkc->bqk', query, key, preferred_element_type=jnp.float32)
        weights = nn.softmax(logits).astype(self.dtype)  # [B, HW, HW/4]: sums to 1 over keys
        o = jnp.einsum('bqk,bkc->bqc', weights, value).reshape(b, h, w, outer)
        o = project(c, 'output')(o)

        gamma = self.param('gamma', nn.initializers.zeros, ())
        return x + gamma.astype(self.dtype) * o

"""Convolutions in the form that each platform computes fastest.

On an accelerator each function here, and each of its gradients, is one `conv_general_dilated`; on a
TPU it is one on pairs of columns if there are few channels.
XLA's CPU backend is slow at three of them: the gradient with respect to the kernel over a large
batch, whose operands do not fit into the cache; a dilated convolution, which multiplies by every
inserted zero; and a convolution from or to the three channels of an image. (system/cpu.py holds the
settings of the whole process.)

Gradients have the precision of the forward pass, as those of lax: `custom_gradient` traces both at
once, where `custom_vjp` would trace the gradient later.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from sagan_jax.models import column_pairs

_FEW = 4  # channels
_CACHED = 2**20  # elements of an image batch that fit into a CPU's cache: 4 MB in float32

_Gradients = Callable[[jax.Array], tuple[jax.Array, jax.Array]]

_convolve = partial(
    lax.conv_general_dilated,
    window_strides=(1, 1),
    padding=((1, 1), (1, 1)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
)


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3×3 convolution, or a 4×4 one with stride 2, of an image padded with one zero.

    Args:
      x: [B, H, W, C].
      kernel: [3, 3, C, D] or [4, 4, C, D], of x's dtype.

    Returns:
      [B, H, W, D] with the 3×3 kernel, [B, H/2, W/2, D] with the 4×4 one.
    """
    y: jax.Array = _differentiable_convolve(x, kernel)
    return y


@jax.custom_gradient
def _differentiable_convolve(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, _Gradients]:
    def gradients(dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        back = convolve if stride == 1 else conv_transpose
        return back(dy, _transposed(kernel)), _kernel_gradient(x, dy)

    stride = len(kernel) - 2
    forms: dict[str, Callable] = {}
    if stride == 1 and min(kernel.shape[2:]) <= _FEW:
        forms['cpu'] = _convolve_few if kernel.shape[2] <= _FEW else _convolve_to_few
    if _fit_pairs(x, kernel):
        forms['tpu'] = column_pairs.convolve
    if not forms:
        return _convolve_by_stride(x, kernel), gradients
    return lax.platform_dependent(x, kernel, **forms, default=_convolve_by_stride), gradients


def _fit_pairs(x: jax.Array, kernel: jax.Array | jax.ShapeDtypeStruct) -> bool:
    """Whether a TPU computes `convolve` on pairs of columns. With stride 2 its output is single."""
    channels = kernel.shape[2:] if kernel.shape[0] == 3 else kernel.shape[2:3]
    return column_pairs.fit(x.shape[2], max(channels))


def _convolve_by_stride(x: jax.Array, kernel: jax.Array) -> jax.Array:
    stride = len(kernel) - 2
    return _convolve(x, kernel, window_strides=(stride, stride))


def _convolve_few(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3×3 convolution as a matrix product with the 3×3 patches, [B, H, W, 9C].

    In float32, because some versions of XLA accumulate products in bfloat16 on a CPU.
    """
    _, h, w, c = x.shape
    image = jnp.pad(x.astype(jnp.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = [
        image[:, row : row + h, column : column + w] for row in range(3) for column in range(3)
    ]
    product = jnp.concatenate(patches, axis=-1) @ kernel.reshape(9 * c, -1).astype(jnp.float32)
    return product.astype(x.dtype)


def _convolve_to_few(x: jax.Array, kernel: jax.Array) -> jax.Array:
    y = jax.ShapeDtypeStruct((*x.shape[:3], kernel.shape[3]), x.dtype)
    return jax.linear_transpose(lambda y: _convolve_few(y, _transposed(kernel)), y)(x)[0]


def conv_transpose(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A transposed 4×4 convolution with stride 2, which doubles height and width.

    The same as a convolution of x with a zero between its rows and columns and two zeros around it.

    Args:
      x: [B, H, W, C].
      kernel: [4, 4, C, D], of x's dtype.

    Returns:
      [B, 2H, 2W, D].
    """
    y: jax.Array = _differentiable_conv_transpose(x, kernel)
    return y


@jax.custom_gradient
def _differentiable_conv_transpose(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, _Gradients]:
    def gradients(dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        return convolve(dy, _transposed(kernel)), _transposed(_kernel_gradient(dy, x))

    forms: dict[str, Callable] = {'cpu': _conv_transpose_by_parity}
    if column_pairs.fit(2 * x.shape[2], kernel.shape[3]):
        forms['tpu'] = partial(_conv_transpose, convolve=column_pairs.convolve)
    return lax.platform_dependent(x, kernel, **forms, default=_conv_transpose), gradients


def _conv_transpose(
    x: jax.Array, kernel: jax.Array, convolve: Callable = _convolve_by_stride
) -> jax.Array:
    """As the transpose of a convolution with stride 2, which reverses the kernel.

    XLA passes a dilated convolution to cuDNN only if its kernel is a reversed one. Otherwise it
    writes out the image with zeros, and multiplies by every zero on a GPU too.
    """
    b, h, w, _ = x.shape
    y = jax.ShapeDtypeStruct((b, 2 * h, 2 * w, kernel.shape[3]), x.dtype)
    return jax.linear_transpose(lambda y: convolve(y, _transposed(kernel)), y)(x)[0]


def _conv_transpose_by_parity(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`_conv_transpose` as four convolutions, without the zeros.

    Row 2i of the output is rows i - 1 and i of x times taps 0 and 2 of the kernel, row 2i + 1 is
    rows i and i + 1 times taps 1 and 3. Columns likewise.
    """
    b, h, w, _ = x.shape
    parities = [
        _convolve(x, kernel[row::2, column::2], padding=((1 - row, row), (1 - column, column)))
        for row in (0, 1)
        for column in (0, 1)
    ]
    y = jnp.stack(parities, axis=3).reshape(b, h, w, 2, 2, -1)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, -1)


def _kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The gradient of `convolve` with respect to its kernel, from the gradient of its output."""
    stride = x.shape[1] // dy.shape[1]
    c, d = x.shape[-1], dy.shape[-1]
    kernel = jax.ShapeDtypeStruct((stride + 2, stride + 2, c, d), x.dtype)

    def gradient(x, dy, convolve=_convolve_by_stride):
        return jax.linear_transpose(partial(convolve, x), kernel)(dy)[0]

    def on_cpu(x, dy):
        if stride == 1 and c <= _FEW:
            return gradient(x, dy, _convolve_few)
        if stride == 1 and d <= _FEW:
            return _transposed(_kernel_gradient(dy, x))
        images = max(_CACHED * len(x) // x.size, 1)
        starts = range(0, len(x), images)
        parts = [gradient(x[i : i + images], dy[i : i + images]) for i in starts]
        return sum(part.astype(jnp.float32) for part in parts).astype(x.dtype)

    forms: dict[str, Callable] = {'cpu': on_cpu}
    if _fit_pairs(x, kernel):
        forms['tpu'] = partial(gradient, convolve=column_pairs.convolve)
    return lax.platform_dependent(x, dy, **forms, default=gradient)


def _transposed(kernel: jax.Array) -> jax.Array:
    """The kernel of the backward pass: [h, w, C, D] → [h, w, D, C], rotated by 180°."""
    return kernel[::-1, ::-1].swapaxes(2, 3)

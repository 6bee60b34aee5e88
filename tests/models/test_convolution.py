"""Convolutions and their gradients against those of lax."""

import re
from functools import partial

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sagan_jax.models import convolution

RNG = np.random.default_rng(0)


def plain_convolve(x, kernel):
    stride = 1 if len(kernel) == 3 else 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(1, 1)] * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )


def plain_conv_transpose(x, kernel):
    return lax.conv_transpose(
        x, kernel, (2, 2), [(2, 2)] * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )


# Function, the plain one, and the kernel's shape. Few channels take another path on a CPU.
CASES = [
    (convolution.convolve, plain_convolve, (3, 3, 6, 5)),
    (convolution.convolve, plain_convolve, (3, 3, 3, 5)),
    (convolution.convolve, plain_convolve, (3, 3, 6, 3)),
    (convolution.convolve, plain_convolve, (3, 3, 3, 2)),
    (convolution.convolve, plain_convolve, (4, 4, 3, 5)),
    (convolution.conv_transpose, plain_conv_transpose, (4, 4, 6, 3)),
]


def operands(shape, dtype=jnp.float32):
    x = jnp.asarray(RNG.normal(size=(5, 6, 4, shape[2])), dtype)
    return x, jnp.asarray(RNG.normal(size=shape), dtype)


def with_gradients(function):
    """Outputs, and both gradients of their weighted sum."""

    def run(x, kernel):
        y, pull_back = jax.vjp(function, x, kernel)
        weights = np.random.default_rng(1).normal(size=y.shape)
        return y, *pull_back(jnp.asarray(weights, y.dtype))

    return run


# The kernel's gradient over all 5 images; over 2 or 4 and the last one; over 1 at a time.
@pytest.mark.parametrize('cached', [2**20, 300, 1])
@pytest.mark.parametrize(('function', 'plain', 'shape'), CASES)
def test_outputs_and_gradients_equal_those_of_lax(function, plain, shape, cached, monkeypatch):
    monkeypatch.setattr(convolution, '_CACHED', cached)
    x, kernel = operands(shape)
    found = jax.jit(with_gradients(function))(x, kernel)
    chex.assert_trees_all_close(found, with_gradients(plain)(x, kernel), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
@pytest.mark.parametrize(('function', 'plain', 'shape'), CASES)
def test_the_forms_of_accelerators_equal_those_of_lax(
    function, plain, shape, platform, monkeypatch
):
    """Outputs and gradients, computed on a CPU."""
    chosen = []

    def for_accelerator(*operands, default, **forms):
        chosen.append(platform in forms)
        return forms.get(platform, default)(*operands)

    monkeypatch.setattr(lax, 'platform_dependent', for_accelerator)
    x, kernel = operands(shape)
    found = with_gradients(function)(x, kernel)
    chex.assert_trees_all_close(found, with_gradients(plain)(x, kernel), rtol=1e-5, atol=1e-5)
    assert all(chosen) == (platform == 'tpu')  # all of the maps have few channels


# Function, the shapes of x and of the kernel, and whether columns are joined.
WIDTHS = [
    (convolution.convolve, (2, 8, 8, 64), (3, 3, 64, 64), True),
    (convolution.convolve, (2, 8, 8, 64), (3, 3, 64, 65), False),
    (convolution.convolve, (2, 8, 8, 3), (3, 3, 3, 64), True),
    (convolution.convolve, (2, 8, 7, 8), (3, 3, 8, 8), False),
    (convolution.convolve, (2, 8, 8, 64), (4, 4, 64, 256), True),
    (convolution.convolve, (2, 8, 8, 65), (4, 4, 65, 8), False),
    (convolution.conv_transpose, (2, 8, 7, 256), (4, 4, 256, 64), True),
    (convolution.conv_transpose, (2, 8, 8, 8), (4, 4, 8, 65), False),
]


@pytest.mark.parametrize(('function', 'x', 'kernel', 'joined'), WIDTHS)
def test_a_tpu_joins_columns_where_two_fit_into_its_128_lanes(function, x, kernel, joined):
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (x, kernel)]
    run = jax.jit(with_gradients(function))
    text = jax.export.export(run, platforms=['tpu'])(*shapes).mlir_module()
    assert text.count('stablehlo.convolution') == 3
    assert ('stablehlo.dot_general' in text) == joined  # spreads the taps of the kernel over pairs


@pytest.mark.parametrize(('function', 'plain', 'shape'), CASES)
def test_second_derivatives_equal_those_of_lax(function, plain, shape):
    """Of the norm of the gradient at the image, as a gradient penalty has them."""

    def penalty(x, kernel, function):
        gradient = jax.grad(lambda x: jnp.sin(function(x, kernel)).sum())(x)
        return jnp.square(gradient).sum()

    x, kernel = operands(shape)
    found, expected = (
        jax.jit(jax.grad(partial(penalty, function=each), argnums=(0, 1)))(x, kernel)
        for each in (function, plain)
    )
    scale = max(np.abs(array).max() for array in expected)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize(('function', 'plain', 'shape'), CASES)
def test_bfloat16(function, plain, shape):
    x, kernel = operands(shape, jnp.bfloat16)
    found = jax.jit(with_gradients(function))(x, kernel)
    assert all(array.dtype == jnp.bfloat16 for array in found)
    exact = with_gradients(plain)(x.astype(jnp.float32), kernel.astype(jnp.float32))
    for array, expected in zip(found, exact, strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(array.astype(jnp.float32), expected, atol=0.02 * scale)


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
@pytest.mark.parametrize(('function', 'plain', 'shape'), CASES)
def test_an_accelerator_runs_one_convolution_per_output(function, plain, shape, platform):
    """One for the output and one for each of two gradients."""
    text = program(function, shape, platform)
    assert text.count('stablehlo.convolution') == 3


@pytest.mark.parametrize('shape', [(4, 4, 6, 5), (4, 4, 5, 3)])
@pytest.mark.parametrize('function', [convolution.convolve, convolution.conv_transpose])
def test_a_dilated_convolution_has_a_reversed_kernel(function, shape):
    """XLA passes only these to cuDNN, and else multiplies by every inserted zero on a GPU."""
    text = program(function, shape, 'cuda')
    dilated = re.compile(r'stablehlo\.convolution\(%\w+, (%\w+)\).*lhs_dilate = \[2, 2\]')
    (found,) = dilated.finditer(text)  # a convolution's gradient, or a transposed one's output
    kernel = text[: found.start()].rpartition(f'{found[1]} = ')[2]
    assert kernel.startswith('stablehlo.reverse')


def program(function, shape, platform):
    """The program of the outputs and both gradients on a platform, as text of StableHLO."""
    shapes = jax.ShapeDtypeStruct((64, 128, 128, shape[2]), jnp.float32), operands(shape)[1]
    exported = jax.export.export(jax.jit(with_gradients(function)), platforms=[platform])(*shapes)
    return exported.mlir_module()

"""Draws images with the generator in this folder. Needs only NumPy.

    import numpy as np
    from generator import generate

    z = np.random.default_rng(0).standard_normal((8, 128), np.float32)  # 128: see generator.json
    images = generate(z, np.zeros(8, np.int32))  # float32 [8, S, S, 3] in [-1, 1]

`generate` reads `generator.safetensors` and `generator.json` beside this file, and computes in
float32 on the CPU. `program` is the same function, compiled by JAX from `generator.stablehlo`.

This file is part of sagan_jax, under the Apache License 2.0. Feature maps are [n, H, W, C].
"""

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_FOLDER = Path(__file__).resolve().parent


def generate(z: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """z float32 [n, z_dim], labels int [n] → images float32 [n, S, S, 3] in [-1, 1].

    A label is the index of a class name in `generator.json`. A generator without classes ignores
    the labels. The activations of all n images are in memory at once.
    """
    weights, labels, number = _weights(), np.asarray(labels), 1
    is_dcgan = _description()['config']['model']['architecture'] == 'dcgan'
    channels = weights['norm1/scale' if is_dcgan else 'block1/norm1/scale'].shape[-1]
    x = np.asarray(z, np.float32) @ weights['dense/kernel'] + weights['dense/bias']
    side = math.isqrt(x.shape[1] // channels)
    x = x.reshape(-1, side, side, channels)
    while is_dcgan and f'conv{number}/kernel' in weights:
        x = _transposed_convolution(_activated(x, f'norm{number}', labels), f'conv{number}')
        number += 1
    while f'block{number}/conv1/kernel' in weights:
        x = _up_block(x, f'block{number}', labels)
        x = _attention(x, f'attention{x.shape[1]}')
        number += 1
    last = _transposed_convolution if is_dcgan else _convolution
    images = np.tanh(last(_activated(x, 'norm', labels), 'conv'))
    return np.broadcast_to(images, (*images.shape[:3], 3))  # grey ones have one channel


def program() -> Callable[..., Any]:
    """`generator.stablehlo`, a function like `generate`. Needs JAX and flatbuffers.

    Raises:
      RuntimeError: if this JAX cannot read it. JAX reads what was exported in the six months before
        its release, and may read older programs.
    """
    import jax
    from jax import export

    z_dim, versions = _description()['config']['model']['z_dim'], _description()['versions']
    inputs = jax.ShapeDtypeStruct((1, z_dim), 'float32'), jax.ShapeDtypeStruct((1,), 'int32')
    try:
        content = (_FOLDER / 'generator.stablehlo').read_bytes()
        call = jax.jit(export.deserialize(bytearray(content)).call)
        call.lower(*inputs)  # reads the whole program
    except Exception as error:  # of a kind that depends on the version
        raise RuntimeError(
            f'JAX {jax.__version__} cannot use generator.stablehlo, which JAX {versions["jax"]} '
            f'exported on {_description()["date"]} ({error}): pip install '
            f"'jax=={versions['jax']}' flatbuffers, or call generate, which needs only NumPy."
        ) from error
    return call


def _up_block(x: np.ndarray, name: str, labels: np.ndarray) -> np.ndarray:
    """Doubles height and width."""
    h = _activated(x, f'{name}/norm1', labels).repeat(2, axis=1).repeat(2, axis=2)
    h = _activated(_convolution(h, f'{name}/conv1'), f'{name}/norm2', labels)
    skip = _convolution(x, f'{name}/skip').repeat(2, axis=1).repeat(2, axis=2)
    return _convolution(h, f'{name}/conv2') + skip


def _activated(x: np.ndarray, name: str, labels: np.ndarray) -> np.ndarray:
    """Batch norm with fixed moments, then ReLU. Scale and bias may have a row for each class."""
    weights, settings = _weights(), _description()['config']['batch_norm']
    scale, bias = weights[f'{name}/scale'], weights[f'{name}/bias']
    if scale.ndim == 2:
        scale, bias = scale[labels, None, None], bias[labels, None, None]
        if settings['class_tables'] == 'drawn':
            scale = scale + 1
    deviation = np.sqrt(weights[f'{name}/moments/var'] + np.float32(settings['epsilon']))
    return np.maximum((x - weights[f'{name}/moments/mean']) / deviation * scale + bias, 0)


def _attention(x: np.ndarray, name: str) -> np.ndarray:
    """Self-attention, or the residual block that replaces it, or neither."""
    if f'{name}/conv1/kernel' in _weights():
        h = np.maximum(_convolution(np.maximum(x, 0), f'{name}/conv1'), 0)
        return x + _convolution(h, f'{name}/conv2')
    if f'{name}/gamma' not in _weights():
        return x
    query, key, value = (_convolution(x, f'{name}/{part}') for part in ('query', 'key', 'value'))
    if _description()['config']['model']['attention_pooling']:
        key, value = _max_pooled(key), _max_pooled(value)
    query, key, value = (part.reshape(len(x), -1, part.shape[-1]) for part in (query, key, value))
    logits = query @ key.swapaxes(1, 2)  # [n, queries, keys]
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    o = shares / shares.sum(-1, keepdims=True) @ value
    o = _convolution(o.reshape(*x.shape[:3], -1), f'{name}/output')
    return x + _weights()[f'{name}/gamma'] * o


def _max_pooled(x: np.ndarray) -> np.ndarray:
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))


def _convolution(x: np.ndarray, name: str) -> np.ndarray:
    """A 1×1 or 3×3 convolution that keeps height and width."""
    border = len(_weights()[f'{name}/kernel']) // 2
    return _correlation(np.pad(x, ((0, 0), (border, border), (border, border), (0, 0))), name)


def _transposed_convolution(x: np.ndarray, name: str) -> np.ndarray:
    """A 4×4 convolution of x with zeros between rows and columns, and two around it."""
    n, height, width, channels = x.shape
    spread = np.zeros((n, 2 * height + 3, 2 * width + 3, channels), np.float32)
    spread[:, 2:-2:2, 2:-2:2] = x
    return _correlation(spread, name)


def _correlation(x: np.ndarray, name: str) -> np.ndarray:
    """Slides a kernel over x, as one matrix product for each of its taps. Adds a bias, if any."""
    kernel, bias = _weights()[f'{name}/kernel'], _weights().get(f'{name}/bias', np.float32(0))
    size, _, channels, features = kernel.shape
    height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
    y = np.zeros((len(x) * height * width, features), np.float32)
    for row, column in np.ndindex(size, size):
        part = x[:, row : row + height, column : column + width]
        y += part.reshape(-1, channels) @ kernel[row, column]
    return y.reshape(len(x), height, width, features) + bias


@functools.cache
def _description() -> Any:
    return json.loads((_FOLDER / 'generator.json').read_text(encoding='utf-8'))


@functools.cache
def _weights() -> dict[str, np.ndarray]:
    """The arrays in `generator.safetensors`, by layer and name.

    The file is the length of its header, the header in JSON, and the arrays, all float32.
    """
    content = (_FOLDER / 'generator.safetensors').read_bytes()
    start = 8 + int.from_bytes(content[:8], 'little')
    weights = {}
    for path, entry in json.loads(content[8:start]).items():
        if path != '__metadata__':
            first, end = (start + at for at in entry['data_offsets'])
            array = np.frombuffer(content[first:end], '<f4').reshape(entry['shape'])
            weights[path.partition('/')[2]] = array  # without 'params' or 'batch_stats'
    return weights

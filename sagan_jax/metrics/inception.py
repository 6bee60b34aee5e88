"""The Inception network of 2015-12-05, which defines FID and the Inception Score, in Flax.

The parameters have the names and shapes of the constants in the published TensorFlow graph, so they
are loaded without conversion. Inputs are resized as in TensorFlow 1.
"""

import functools
import os
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import ArrayLike

from sagan_jax.errors import UserError
from sagan_jax.metrics import inception_weights
from sagan_jax.metrics.features import FeatureNetwork, Variables
from sagan_jax.system.streaming import on_devices

NAME = 'inception-2015-12-05'
RESIZE = 'tf1-bilinear-299'
SIZE = 299  # of the network's input
CLASSES = 1008
BATCH_NORM_EPSILON = 1e-3

# A step of the network is a convolution, a pool (a function of x), a tuple of steps in sequence,
# or parallel steps.


class Conv(NamedTuple):
    """Convolution without bias, batch normalisation with constant moments, ReLU."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = 'SAME'


class Parallel(NamedTuple):
    """Steps on the same input, whose outputs are concatenated in this order."""

    branches: tuple[Any, ...]


Step = Conv | Parallel | Callable[[jax.Array], jax.Array] | tuple[Any, ...]


def _average(x: jax.Array) -> jax.Array:
    return nn.avg_pool(x, (3, 3), padding='SAME', count_include_pad=False)


def _max(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), padding='SAME')


def _halve(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2), padding='VALID')


def _shrink(features: int) -> Conv:
    return Conv(features, (3, 3), stride=2, padding='VALID')


def _block_35(pooled: int) -> Parallel:
    return Parallel(
        (
            Conv(64),
            (Conv(48), Conv(64, (5, 5))),
            (Conv(64), Conv(96, (3, 3)), Conv(96, (3, 3))),
            (_average, Conv(pooled)),
        )
    )


def _block_17(width: int) -> Parallel:
    across, down = Conv(width, (1, 7)), Conv(width, (7, 1))
    return Parallel(
        (
            Conv(192),
            (Conv(width), across, Conv(192, (7, 1))),
            (Conv(width), down, across, down, Conv(192, (1, 7))),
            (_average, Conv(192)),
        )
    )


def _block_8(pool: Callable) -> Parallel:
    fork = Parallel((Conv(384, (1, 3)), Conv(384, (3, 1))))
    return Parallel(
        (
            Conv(320),
            (Conv(384), fork),
            (Conv(448), Conv(384, (3, 3)), fork),
            (pool, Conv(192)),
        )
    )


# The network, cut after each feature layer. Keys are the names (and widths) of the features.
STAGES: dict[str, tuple[Step, ...]] = {
    '64': (
        _shrink(32),
        Conv(32, (3, 3), padding='VALID'),
        Conv(64, (3, 3)),
        _halve,
    ),
    '192': (Conv(80), Conv(192, (3, 3), padding='VALID'), _halve),
    '768': (
        *map(_block_35, (32, 64, 64)),
        Parallel((_shrink(384), (Conv(64), Conv(96, (3, 3)), _shrink(96)), _halve)),
        *map(_block_17, (128, 160, 160, 192)),
    ),
    '2048': (
        Parallel(
            (
                (Conv(192), _shrink(320)),
                (Conv(192), Conv(192, (1, 7)), Conv(192, (7, 1)), _shrink(192)),
                _halve,
            )
        ),
        _block_8(_average),
        _block_8(_max),  # not a mistake: the last block of the graph does use max pooling
    ),
}


class _ConvUnit(nn.Module):
    conv: Conv

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        features, kernel, stride, padding = self.conv
        shape = (*kernel, x.shape[-1], features)
        weights = self.param('conv2d_params', nn.initializers.zeros, shape)
        gamma, beta, mean, variance = (
            self.param(f'batchnorm/{name}', nn.initializers.zeros, (features,))
            for name in ('gamma', 'beta', 'moving_mean', 'moving_variance')
        )
        x = jax.lax.conv_general_dilated(
            x,
            weights,
            (stride, stride),
            padding,
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            precision=jax.lax.Precision.HIGHEST,  # TF32 or bfloat16 would change the scores
        )
        return nn.relu((x - mean) * (gamma * jax.lax.rsqrt(variance + BATCH_NORM_EPSILON)) + beta)


def _run(step: Step, x: jax.Array, scope: str, taken: Counter[str]) -> jax.Array:
    """Applies `step`, named in `scope` as in TensorFlow: conv, conv_1, …, tower, …, mixed, …"""
    if not isinstance(step, tuple):
        return step(x)
    kind = {Conv: 'conv', Parallel: 'mixed'}.get(type(step), 'tower')
    name = f'{scope}{kind}_{taken[kind]}' if taken[kind] else f'{scope}{kind}'
    taken[kind] += 1

    inside: Counter[str] = Counter()
    match step:
        case Conv():
            return _ConvUnit(step, name=name)(x)
        case Parallel():
            branches = [_run(branch, x, f'{name}/', inside) for branch in step.branches]
            return jnp.concatenate(branches, axis=-1)
        case _:
            return functools.reduce(lambda x, s: _run(s, x, f'{name}/', inside), step, x)


class Inception(nn.Module):
    """images [N, H, W, 3], values from 0 to 255 → the feature layers, float32, by name.

    '64', '192', '768', '2048' [N, that width]: spatial means. 'logits_unbiased' [N, 1008]: without
    the bias of the softmax layer, for the Inception Score. 'logits' [N, 1008]: with it.
    """

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        x = (resize(images.astype(jnp.float32)) - 128) / 128  # [N, 299, 299, 3]
        features: dict[str, jax.Array] = {}
        taken: Counter[str] = Counter()
        for name, steps in STAGES.items():
            # '64' [N, 73, 73, ·], '192' [N, 35, 35, ·], '768' [N, 17, 17, ·], '2048' [N, 8, 8, ·]
            x = functools.reduce(lambda x, step: _run(step, x, '', taken), steps, x)
            features[name] = x.mean((1, 2))
        width = x.shape[-1]
        weights = self.param('softmax/weights', nn.initializers.zeros, (width, CLASSES))
        biases = self.param('softmax/biases', nn.initializers.zeros, (CLASSES,))
        logits = jnp.dot(features['2048'], weights, precision=jax.lax.Precision.HIGHEST)
        return {**features, 'logits_unbiased': logits, 'logits': logits + biases}


def resize(images: jax.Array) -> jax.Array:
    """Resizes float [N, H, W, C] to 299×299 as `tf.compat.v1.image.resize_bilinear` does.

    The source of pixel i is i · in / out, without half-pixel centres and antialiasing. All
    published FIDs depend on this.
    """
    for axis in (2, 1):
        size = images.shape[axis]
        source = np.arange(SIZE, dtype=np.float32) * (np.float32(size) / np.float32(SIZE))
        low = source.astype(np.int32)
        shape = (1, 1, -1, 1) if axis == 2 else (1, -1, 1, 1)
        first = jnp.take(images, low, axis)
        second = jnp.take(images, np.minimum(low + 1, size - 1), axis)
        images = first + (second - first) * (source - low).reshape(shape).astype(np.float32)
    return images


def apply(variables: Variables, images: ArrayLike) -> dict[str, jax.Array]:
    """The network as a pure function of images [N, H, W, 3], uint8 or float from 0 to 255.

    Returns the float32 features that `Inception` lists. Can be called inside jit, pmap or a larger
    program, so that generated images stay on the device.
    """
    return cast(dict[str, jax.Array], Inception().apply(variables, images))


def load_variables(path: str | os.PathLike | None = None) -> tuple[Variables, str]:
    """Reads the weights: variables for `apply` (numpy, float32) and the SHA-256 of the graph.

    Args:
      path: `classify_image_graph_def.pb` or the archive `inception-2015-12-05.tgz` that contains
        it; by default the file that the environment variable SAGAN_JAX_INCEPTION names, or else a
        cached download.

    Raises:
      UserError: if the file is missing, damaged or of another graph.
    """
    parameters = flatten_dict(_parameters())  # path in the tree → shape and dtype
    shapes = {'/'.join(path): leaf.shape for path, leaf in parameters.items()}
    constants, sha256 = inception_weights.read(inception_weights.find(path), shapes)
    tree = unflatten_dict({path: constants['/'.join(path)] for path in parameters})
    return {'params': tree}, sha256


def network(path: str | os.PathLike | None = None) -> FeatureNetwork:
    """The network with its weights, for the scores. `path` is as in `load_variables`."""
    variables, sha256 = load_variables(path)
    return FeatureNetwork(
        NAME, sha256, RESIZE, apply, variables, layer='2048', logits='logits_unbiased'
    )


def _parameters() -> Variables:
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.uint8)
    return jax.eval_shape(Inception().init, jax.random.key(0), images)['params']


def load(
    path: str | os.PathLike | None = None, batch_size: int = 64
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Builds a function that computes features of images on all local devices.

    Args:
      path: as in `load_variables`.
      batch_size: images at a time on each device.

    Returns:
      A function of images uint8 [N, H, W, 3]. It returns float32 arrays with N rows by the names
      that `Inception` lists, and raises UserError for any other input. Each size H × W is compiled
      once.

    Raises:
      UserError: if the weights are unavailable.
    """
    variables, _ = load_variables(path)
    stream = on_devices(apply, batch_size)

    def features(images: np.ndarray) -> dict[str, np.ndarray]:
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not len(images):
            raise UserError(
                f'The Inception network takes images as uint8 [N, H, W, 3], not as {images.dtype} '
                f'{list(images.shape)}: convert them to RGB and round them to 0 … 255 first.'
            )
        parts = list(stream(variables, [images]))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return features

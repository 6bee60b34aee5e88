"""The tensors of a network in PyTorch as arrays of ours, with spectral normalisation folded in."""

from typing import NamedTuple

import numpy as np

from sagan_jax.errors import UserError
from sagan_jax.published.projects import Project, Tensors, modules_of

# Neither weights nor statistics: a counter, and a σ that is written but never read.
_UNUSED = ('num_batches_tracked', 'sv0')

_KERNELS = ('conv', 'conv1', 'conv2', 'skip', 'query', 'key', 'value', 'output')


class Found(NamedTuple):
    """A network.

    Attributes:
      arrays: float32 by path, such as 'params/block1/conv1/kernel'. Attention is called after the
        block before it: 'attention2' follows 'block2'.
      has_normalised_tables: whether a table of conditional batch norm was divided by its σ.
    """

    arrays: dict[str, np.ndarray]
    has_normalised_tables: bool


def read(project: Project, tensors: Tensors, bgr: bool) -> Found:
    """Reads the tensors of a network and converts them.

    A convolution [O, I, h, w] becomes [h, w, I, O] and a linear layer [out, in] [in, out]. Features
    before the generator's first block are ordered (C, 4, 4) there and (4, 4, C) here. Gains are
    1 + table in all of these projects.

    Args:
      project: see `find_networks`.
      tensors: of the network, by key.
      bgr: whether its images are BGR; ours are RGB.

    Raises:
      UserError: naming a key that is not one of a SAGAN or that is missing.
    """
    arrays: dict[str, np.ndarray] = {}
    normalised = False
    for path, (module, parts) in modules_of(tensors).items():
        rest = {name: tensor for name, tensor in parts.items() if name not in _UNUSED}
        try:
            if path.endswith(('/scale', '/bias')):
                normalised = normalised or len(rest) > 1
                table = _weight(rest)
                if project.linear_tables and module.endswith(('.gain', '.bias')):
                    table = table.T
                arrays[f'params/{path}'] = 1 + table if path.endswith('/scale') else table
            else:
                arrays.update(_layer(path, rest))
        except KeyError as error:
            raise UserError(f'The file lacks {module}.{error.args[0]}: it is damaged.') from error
        except ValueError as error:
            raise UserError(f'{module} has a shape that fits no SAGAN ({error}).') from error
        if rest:
            raise UserError(f'{module}.{min(rest)} is not part of a SAGAN: the file is mixed.')
    if 'params/conv/kernel' in arrays:
        _reorder_first_features(arrays)
    if bgr:
        _turn_colours(arrays)
    return Found({path: np.array(array, order='C') for path, array in arrays.items()}, normalised)


def _layer(path: str, parts: Tensors) -> dict[str, np.ndarray]:
    """The arrays of a layer by path; takes out of `parts` what it uses."""
    last, found = path.rpartition('/')[2], {}
    if last in ('dense', 'embed') or last in _KERNELS:
        weight = _weight(parts)
        if last == 'embed':
            found['params/embed/embedding'] = weight
        else:
            axes = (1, 0) if last == 'dense' else (2, 3, 1, 0)
            found[f'params/{path}/kernel'] = weight.transpose(axes)
    elif last == 'norm':
        found['params/norm/scale'] = _take(parts, 'gain' if 'gain' in parts else 'weight')
    elif last.startswith('attention'):
        found[f'params/{path}/gamma'] = _take(parts, 'sigma' if 'sigma' in parts else 'gamma')
        found[f'params/{path}/gamma'] = found[f'params/{path}/gamma'].reshape(())
    if 'bias' in parts:
        found[f'params/{path}/bias'] = _take(parts, 'bias')
    if last.startswith('norm'):
        kind = 'stored' if 'stored_mean' in parts else 'running'
        for moment in ('mean', 'var'):
            found[f'batch_stats/{path}/moments/{moment}'] = _take(parts, f'{kind}_{moment}')
    return found


def _take(parts: Tensors, name: str) -> np.ndarray:
    return parts.pop(name).array().astype(np.float32)


def _weight(parts: Tensors) -> np.ndarray:
    """The weight with which a layer computes at evaluation, by the tensors that it has.

    PyTorch divides by uᵀWv of the vectors that it has stored, whatever they are: no iteration is
    made, and the true singular value would be wrong. BigGAN-PyTorch iterates once more from its u.
    """
    if 'weight_orig' in parts:
        weight = _take(parts, 'weight_orig')
        u, v = (_take(parts, name).astype(np.float64) for name in ('weight_u', 'weight_v'))
        return (weight / (u @ _matrix(weight) @ v)).astype(np.float32)
    weight = _take(parts, 'weight')
    if 'u0' in parts:
        matrix = _matrix(weight)
        v = _unit(_take(parts, 'u0').reshape(-1) @ matrix)
        u = _unit(matrix @ v)
        weight = (weight / (u @ matrix @ v)).astype(np.float32)
    return weight


def _matrix(weight: np.ndarray) -> np.ndarray:
    return weight.reshape(len(weight), -1).astype(np.float64)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def _reorder_first_features(arrays: dict[str, np.ndarray]) -> None:
    for name in ('kernel', 'bias'):
        path = f'params/dense/{name}'
        if path not in arrays:
            raise UserError(f'The file lacks the {name} of the first linear layer: it is damaged.')
        array = arrays[path]
        by_channel = array.reshape(*array.shape[:-1], -1, 16)
        arrays[path] = by_channel.swapaxes(-1, -2).reshape(array.shape)


def _turn_colours(arrays: dict[str, np.ndarray]) -> None:
    for path in ('params/conv/kernel', 'params/conv/bias'):
        if path in arrays:
            arrays[path] = arrays[path][..., ::-1]
    for path in ('params/block1/conv1/kernel', 'params/block1/skip/kernel'):
        if path in arrays and arrays[path].shape[2] == 3:
            arrays[path] = arrays[path][:, :, ::-1]

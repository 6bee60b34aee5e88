"""What a checkpoint says about itself: its arrays' checksums, its step and its configuration."""

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from sagan_jax.errors import UserError
from sagan_jax.run import provenance

FIX = ': remove it, or choose another step.'

# Keys of the record beside the paths of arrays, which contain a slash or are names in the state.
_ORIGIN, _ITSELF = 'saved as', 'itself'


class DamagedError(UserError):
    """A checkpoint that is not what was saved."""


def record(state: Any, step: int, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The record of a checkpoint, JSON values.

    It has the shape, the CRC-32 and the dtype of each array by its path, the step, the keys of the
    configuration that decide results, and the CRC-32 of all this. Version 0.1 had no dtypes.
    """
    checks: dict[str, Any] = {
        name: [list(leaf.shape), _crc32(leaf), str(leaf.dtype)]
        for name, leaf in named_leaves(state).items()
    }
    checks[_ORIGIN] = {'step': step, 'config': provenance.decisive(config)}
    return checks | {_ITSELF: _checksum(checks)}


def check_record(
    path: Path,
    found: Any,
    step: int,
    config: ml_collections.ConfigDict,
    like: Any,
    stored_dtypes: Callable[[], dict[str, str]],
    needs_origin: bool = False,
) -> dict[str, Any]:
    """Checks the record of the checkpoint at `path`; returns the part about its arrays.

    Args:
      path: for messages.
      found: what was read.
      step: the step after which the checkpoint is named.
      config: the run's configuration.
      like: a tree of arrays with the structure, the shapes and the dtypes of the state.
      stored_dtypes: reads the dtypes of the arrays, for a record without them.
      needs_origin: whether to refuse a checkpoint that does not tell its configuration.

    Raises:
      DamagedError: if it is not what was saved.
      UserError: if the checkpoint has another structure or other dtypes than `like`, was saved at
        another step or belongs to another configuration.
    """
    if not isinstance(found, dict) or found.pop(_ITSELF, None) != _checksum(found):
        raise DamagedError(f'The checkpoint {path} is damaged, its checksums have changed{FIX}')
    origin = found.pop(_ORIGIN, None)
    if needs_origin and origin is None:
        raise UserError(
            f'The checkpoint {path} is of a version that did not record the configuration, so that '
            "the run's config.json cannot be written again: restore it, or choose another "
            '--workdir.'
        )
    _check_origin(path, step, origin, config)
    leaves = named_leaves(like)
    shapes = {name: list(leaf.shape) for name, leaf in leaves.items()}
    if {name: shape for name, (shape, *_) in found.items()} != shapes:
        raise UserError(
            f'The checkpoint {path} does not match the generator and the discriminator of this '
            'configuration: remove it, or choose another step or --workdir.'
        )
    has_dtypes = all(len(checks) == 3 for checks in found.values())
    dtypes = {name: checks[2] for name, checks in found.items()} if has_dtypes else stored_dtypes()
    for name, leaf in leaves.items():
        if dtypes[name] != str(leaf.dtype):
            raise UserError(
                f'The checkpoint {path} holds {dtypes[name]} where JAX is set to {leaf.dtype} here '
                f'({name}): unset JAX_ENABLE_X64, or use the settings with which it was saved.'
            )
    return found


def check_arrays(path: Path, state: Any, checks: dict[str, Any]) -> None:
    """Raises DamagedError if an array of the state differs from what was saved."""
    for name, leaf in named_leaves(state).items():
        if _crc32(leaf) != checks[name][1]:
            raise DamagedError(f'The checkpoint {path} is damaged, {name} has changed{FIX}')


def sha256(variables: Any) -> str:
    """The SHA-256 of a tree of arrays and of their names."""
    digest = hashlib.sha256()
    for name, leaf in sorted(named_leaves(variables).items()):
        digest.update(name.encode() + np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path, such as 'generator/params/conv/kernel'."""
    return {
        jax.tree_util.keystr(path, simple=True, separator='/'): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _check_origin(
    path: Path, step: int, origin: dict[str, Any] | None, config: ml_collections.ConfigDict
) -> None:
    """Refuses a checkpoint that was renamed or belongs to another run; accepts old ones without."""
    if origin is None:
        return
    if origin['step'] != step:
        raise UserError(
            f'The checkpoint {path} was saved at step {origin["step"]}: rename it back, or move it '
            'out of the folder.'
        )
    different = provenance.configuration_differences(origin['config'], config)
    if different:
        raise UserError(
            f'The checkpoint {path} belongs to another configuration, {", ".join(different)}: '
            'move it out of the folder.'
        )


def _crc32(leaf: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(leaf).data)


def _checksum(checks: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(checks, sort_keys=True).encode())

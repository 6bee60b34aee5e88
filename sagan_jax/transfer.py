"""Begins a run with the networks of another one: `init.run`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util

from sagan_jax import spectral_norm
from sagan_jax.errors import UserError
from sagan_jax.models import Variables
from sagan_jax.run import checkpoints, integrity
from sagan_jax.run.folder import RunFolder
from sagan_jax.state import TrainState, state_shapes

# Keys on which it depends what the networks compute, beside their classes.
_SAME = (
    'dataset.image_size',
    'dataset.channels',
    'model.architecture',
    'model.generator_width',
    'model.discriminator_width',
    'model.z_dim',
    'model.generator_attention',
    'model.discriminator_attention',
    'model.attention_block',
    'model.attention_value_divisor',
    'model.attention_pooling',
    'model.discriminator_skip',
    'batch_norm.epsilon',
)


class Begun(NamedTuple):
    """The beginning of a run with the networks of another one.

    Attributes:
      state: at step 0, arrays of the host.
      record: where the networks come from, JSON values.
      lines: what was taken over and what is new, for people.
    """

    state: TrainState
    record: dict[str, Any]
    lines: list[str]


def begin(
    config: ml_collections.ConfigDict, fresh: TrainState, class_names: Sequence[str]
) -> Begun:
    """Takes over the networks of the newest checkpoint of the run `init.run`.

    They are taken as they compute: the averaged generator, and both with σ divided out. If the
    classes have other names, each row of their tables begins at the mean of the rows there. The
    optimizers begin afresh. All processes must call it.

    Args:
      config: of the new run.
      fresh: its own state before the first step.
      class_names: of its data.

    Raises:
      UserError: if there is no such run, or its networks are not those of `config`.
    """
    run = RunFolder(Path(config.init.run))
    other, has_discriminator = run.config(), run.has_discriminator()
    _check_networks(config, other, has_discriminator)
    with checkpoints.chosen(other, run, 'newest', state_shapes(other)) as states:
        ((step, state),) = states
    same_classes = run.class_names() == tuple(class_names)
    lines = [f'the networks of {run.path} at step {step:,}; the optimizers are new']
    if not same_classes:
        lines.append('the classes are new, and begin at the mean of those there')
    generator = _take(config, other, state.averaged, fresh.generator, same_classes)
    discriminator = fresh.discriminator
    if has_discriminator:
        taken = _take(config, other, state.discriminator, discriminator, same_classes)
        discriminator = discriminator | taken
    else:
        lines.append('the discriminator is new, because that run has none')
    begun = fresh._replace(
        generator=generator, discriminator=discriminator, ema_params=generator['params']
    )
    record = {'step': step, 'generator_sha256': integrity.sha256(state.averaged)}
    # Arrays of the host, each its own, as a restored state has them: the step donates its state.
    return Begun(jax.tree.map(np.array, begun), record, lines)


def _check_networks(
    config: ml_collections.ConfigDict, other: ml_collections.ConfigDict, has_discriminator: bool
) -> None:
    """Refuses networks that differ in more than their classes, and names the keys to set."""
    different = []
    for key in _SAME:
        section, _, name = key.partition('.')
        if config[section][name] != other[section][name] and (
            has_discriminator or 'discriminator' not in name
        ):
            different.append(f'--config.{key}={other[section][name]}')
    if different:
        raise UserError(
            f'The networks of the run {config.init.run} differ from those of this configuration: '
            f'set {" ".join(different)}.'
        )


def _take(
    config: ml_collections.ConfigDict,
    other: ml_collections.ConfigDict,
    variables: Variables,
    fresh: Variables,
    same_classes: bool,
) -> Variables:
    """Variables of the other run's network as variables of this configuration's."""
    weights = _fold(variables['params'], variables['spectral_stats'], other.spectral_norm.epsilon)
    found = traverse_util.flatten_dict(jax.tree.map(np.asarray, weights))
    offsets = _offset(other), _offset(config)
    params = traverse_util.flatten_dict(fresh['params'])
    for path, leaf in params.items():
        taken = found.get(path)
        if taken is None or (path[0] == 'classifier' and not same_classes):
            continue  # of the classes alone
        if path[-1] == 'embedding' or (2 in (taken.ndim, leaf.ndim) and path[-1] != 'kernel'):
            taken = _class_table(path, taken, leaf.shape, offsets, same_classes)
        params[path] = jnp.asarray(taken.reshape(leaf.shape), leaf.dtype)
    taken_params = traverse_util.unflatten_dict(params)
    spectral_stats = jax.jit(spectral_norm.converge)(
        taken_params, fresh['spectral_stats'], config.spectral_norm.epsilon
    )
    batch_stats = jax.tree.map(jnp.asarray, variables['batch_stats'])
    return {'params': taken_params, 'batch_stats': batch_stats, 'spectral_stats': spectral_stats}


@jax.jit
def _fold(params: Variables, spectral_stats: Variables, epsilon: float) -> Variables:
    converged = spectral_norm.converge(params, spectral_stats, epsilon)
    return spectral_norm.normalise(params, converged, epsilon)[0]


def _offset(config: ml_collections.ConfigDict) -> float:
    """What is added to a table of classes to give gains."""
    return float(config.batch_norm.class_tables == 'drawn')


def _class_table(
    path: tuple[str, ...],
    table: np.ndarray,
    shape: tuple[int, ...],
    offsets: tuple[float, float],
    same_classes: bool,
) -> np.ndarray:
    """A table of classes, [classes, C] or [C] without classes, as one of another shape.

    Args:
      path: of the parameter.
      table: of the other run.
      shape: of the table here.
      offsets: see `_offset`, there and here.
      same_classes: whether the rows stand for the same classes.
    """
    if path[-1] == 'scale':
        there, here = offsets
        table = table + there * (table.ndim == 2) - here * (len(shape) == 2)
    if same_classes and table.shape == shape:
        return table
    row = table.mean(0) if table.ndim == 2 else table
    return np.broadcast_to(row, shape)

"""Writes a converted model as the folder of a run."""

import shutil
from pathlib import Path

import jax
import numpy as np

from sagan_jax.errors import UserError
from sagan_jax.published.conversion import Converted
from sagan_jax.run import checkpoints, provenance
from sagan_jax.run.folder import RunFolder
from sagan_jax.state import TrainState, state_shapes
from sagan_jax.system.files import partial_path


def write(converted: Converted, output: Path) -> None:
    """Writes a run with one checkpoint and with its origin on record. It appears as a whole.

    Raises:
      UserError: if there is such a file or folder, or the disk is full.
    """
    if output.exists():
        raise UserError(f'{output} exists: choose another --output, or remove it.')
    config = converted.config
    config.num_train_steps = max(converted.step, 1)
    partial = partial_path(output)
    try:
        partial.mkdir(parents=True)
        run = RunFolder(partial)
        run.write_record(provenance.record(config) | {'origin': converted.origin})
        manager = checkpoints.open_manager(run.checkpoints, keep=1)
        with checkpoints.closing([manager]):
            checkpoints.finish(manager, converted.step, _state(converted), config)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _state(converted: Converted) -> TrainState:
    """The state of a run: the converted networks, and zeros for what the files do not have."""
    shapes = state_shapes(converted.config)
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return state._replace(
        step=np.asarray(converted.step, np.int32),
        generator=converted.generator,
        discriminator=converted.discriminator or state.discriminator,
        ema_params=converted.generator['params'],
    )

"""What must hold for a state before it is kept: every value finite, every replica equal."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from sagan_jax.errors import UserError
from sagan_jax.run import integrity
from sagan_jax.system import replicas


class DivergedError(UserError):
    """A value of the training state is no longer finite."""


def checked_copy(step: int, state: Any, manager: ocp.CheckpointManager | None) -> Any:
    """A copy on the host of a replicated state, after it was checked. All processes call it.

    Args:
      step: the number of steps done.
      state: arrays, one replica on each device.
      manager: of the checkpoints that an error names; None on processes other than the first.

    Raises:
      DivergedError: if a value is not finite.
      UserError: if the replicas differ.
    """
    single = replicas.single_copy(state)
    jax.copy_to_host_async(single)  # all arrays at once, instead of one after the other
    copy = jax.tree.map(np.array, single)
    leaves = integrity.named_leaves(copy)
    check_replicas(step, list(leaves), replicas.create_checksums()(state), manager)
    check_finite(step, leaves, manager)
    return copy


def check_finite(
    step: int, values: Mapping[str, Any], manager: ocp.CheckpointManager | None
) -> None:
    """Raises DivergedError if one of the named numbers or arrays is not finite."""
    bad = [name for name, value in values.items() if not np.isfinite(value).all()]
    if bad:
        raise DivergedError(
            f'Training diverged, with {", ".join(bad[:3])} not finite at step {step}'
            f'{_last_saved(manager)}: try smaller learning rates or another seed.'
        )


def check_replicas(
    step: int, names: list[str], sums: np.ndarray, manager: ocp.CheckpointManager | None
) -> None:
    """Raises UserError if the rows of `sums`, checksums [devices, leaves], are not all equal."""
    for name, column in zip(names, sums.T, strict=True):
        different = np.flatnonzero(column != column[0])
        if len(different):
            raise UserError(
                f'The replicas of the state have drifted apart: at step {step} {name} differs '
                f'between device 0 and {", ".join(map(str, different[:5]))} of {len(sums)}'
                f'{_last_saved(manager)}: look for a faulty device, and resume from there.'
            )


def _last_saved(manager: ocp.CheckpointManager | None) -> str:
    if manager is None:  # only the first process knows
        return ''
    saved = manager.latest_step()
    return f'; the last good checkpoint is {"none" if saved is None else f"of step {saved}"}'

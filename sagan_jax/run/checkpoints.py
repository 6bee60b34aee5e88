"""Checkpoints of a run."""

import contextlib
import json
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from sagan_jax.errors import UserError
from sagan_jax.run import provenance
from sagan_jax.run.folder import RunFolder, steps_in
from sagan_jax.system import distributed

# What Orbax and the formats below it raise when they cannot write.
_UNWRITABLE = (OSError, ValueError, RuntimeError)
_PAUSES = (0, 10, 60)  # seconds before the last checkpoint of a run is tried again

_MEND = '; remove it, or choose another step.'


class DamagedError(UserError):
    """A checkpoint that is not what was saved."""


def open_manager(folder: Path, keep: int | None = None) -> ocp.CheckpointManager:
    """Orbax's manager of a folder of checkpoints: asynchronous, each step whole or not there.

    Of several processes only the first one has it. A checkpoint is `state`, the arrays, and
    `checks`, by which damage is noticed.

    Args:
      folder: a run's `checkpoints/` or `best/`.
      keep: how many of the newest checkpoints stay; None for one who only reads.
    """
    if keep:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_remains(folder)  # Orbax's own clean-up, should it fail once, fails each later save
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=False,
        save_root_metadata=False,  # it would be read on opening, where a damaged one is fatal
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            active_processes={0}, barrier_sync_key_prefix='first'
        )
        if jax.process_count() > 1
        else ocp.options.MultiprocessingOptions(),
    )
    return ocp.CheckpointManager(folder.absolute(), options=options)


def save(manager: ocp.CheckpointManager | None, step: int, state: Any) -> bool:
    """Starts to save a state of arrays on the host at `step`; the write goes on in the background.

    False, and a warning, if it or the one before cannot be written. Earlier checkpoints stay.
    Without a manager, on processes other than the first, there is nothing to save.
    """
    if manager is None:
        return True
    if has_failed(manager):
        return False
    try:
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), checks=ocp.args.JsonSave(_checks(state))
            ),
        )
    except _UNWRITABLE as error:
        _give_up(manager, error)
        return False
    return True


def has_failed(manager: ocp.CheckpointManager | None) -> bool:
    """Whether the save that was started last has failed; a warning reports it once."""
    if manager is None:
        return False
    try:
        manager.check_for_errors()
    except _UNWRITABLE as error:
        _give_up(manager, error)
        return True
    return False


def finish(manager: ocp.CheckpointManager | None, step: int, state: Any) -> None:
    """Waits until `step` is on disk, saving it if needed. Without a manager nothing is done.

    Raises:
      UserError: if it cannot be written, tried several times.
    """
    if manager is None:
        return
    for pause in _PAUSES:
        time.sleep(pause)
        with _giving_up(manager):
            manager.wait_until_finished()
        if manager.latest_step() != step and save(manager, step, state):
            with _giving_up(manager):
                manager.wait_until_finished()
        if manager.latest_step() == step:
            return
    raise UserError(
        f'The last checkpoint could not be written to {manager.directory}: make room, and give the '
        'same command again.'
    )


@contextlib.contextmanager
def closing(managers: list[ocp.CheckpointManager | None]) -> Iterator[None]:
    """Closes them at the end of the block, when all that is being written is there."""
    try:
        yield
    finally:
        for manager in filter(None, managers):
            with _giving_up(manager):
                manager.close()


@contextlib.contextmanager
def _giving_up(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Gives up a save that fails in the block."""
    try:
        yield
    except _UNWRITABLE as error:
        _give_up(manager, error)


def _give_up(manager: ocp.CheckpointManager, error: Exception) -> None:
    """Tells of a save that failed, and forgets it: its remains would fill the disk further."""
    reason = ' '.join(str(error).split())
    print(f'warning        a checkpoint cannot be written, to be tried again: {reason:.300}')
    _remove_remains(manager.directory)
    with contextlib.suppress(OSError):
        manager.directory.mkdir(parents=True, exist_ok=True)
        manager.reload()


def _remove_remains(folder: Path) -> None:
    """Removes the halves of checkpoints that a killed process or a failed save has left."""
    for remains in folder.glob('*.orbax-checkpoint-tmp'):
        shutil.rmtree(remains, ignore_errors=True)


def restore_newest(manager: ocp.CheckpointManager | None, like: Any) -> Any | None:
    """The newest checkpoint that is whole, see `restore`; None if there is none at all.

    Damaged ones are passed over with a warning and put aside, out of the way of new ones, beside
    the manager's folder. Of several processes all call it, and all get it.

    Raises:
      UserError: if all are damaged, or the newest holds something else than `like`.
    """
    return _everywhere(lambda: _restore_newest(manager, like), like)


def restore(manager: ocp.CheckpointManager | None, like: Any, step: int) -> Any:
    """The checkpoint of a step as host arrays in the structure of `like`, in all processes.

    Raises:
      UserError: if it cannot be read, what is read is not what was saved, or it holds something
        else than `like`.
    """
    return _everywhere(lambda: _restore(manager, like, step), like)


def _everywhere(read: Callable[[], Any | None], like: Any) -> Any | None:
    """What `read` finds in the first process; None everywhere if it finds nothing."""
    state = _blank(like)

    def find():
        nonlocal state
        found = read()
        state = state if found is None else found
        return found is not None

    return distributed.from_first(state) if distributed.on_first(find) else None


def _blank(like: Any) -> Any:
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)


def _restore_newest(manager: ocp.CheckpointManager, like: Any) -> Any | None:
    damaged = []
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            state = _restore(manager, like, step)
        except DamagedError as error:
            print(f'warning        {error}')
            damaged.append(step)
            continue
        for step in damaged:
            aside = RunFolder(Path(manager.directory).parent).damaged_checkpoints
            aside.mkdir(exist_ok=True)
            path = manager.directory / str(step)
            path.rename(aside / f'{step}_{time.time_ns()}')
            print(f'warning        {path} was moved to {aside}')
        manager.reload()
        return state
    if damaged:
        raise UserError(
            f'All checkpoints in {manager.directory} are damaged: choose another --workdir.'
        )
    return None


def _restore(manager: ocp.CheckpointManager, like: Any, step: int) -> Any:
    """`restore`, of which DamagedError is the first two mistakes."""
    path = manager.directory / str(step)

    def read(**item):
        try:
            return manager.restore(step, args=ocp.args.Composite(**item))
        except Exception as error:  # whatever the formats' readers raise at what they meet
            reason = ' '.join(str(error).split())
            raise DamagedError(
                f'The checkpoint {path} cannot be read ({reason:.200}){_MEND}'
            ) from error

    saved = read(checks=ocp.args.JsonRestore())['checks']
    if not isinstance(saved, dict) or saved.pop('itself', None) != _checksum_of(saved):
        raise DamagedError(
            f'The checkpoint {path} is damaged: its checksums are not as saved{_MEND}'
        )
    shapes = {name: list(leaf.shape) for name, leaf in named_leaves(like).items()}
    if {name: shape for name, (shape, _) in saved.items()} != shapes:
        raise UserError(
            f'The checkpoint {path} does not hold the generator and the discriminator of this '
            'configuration: remove it, or choose another step or --workdir.'
        )
    state = read(state=ocp.args.StandardRestore(_blank(like)))['state']
    for name, leaf in named_leaves(state).items():
        if zlib.crc32(np.ascontiguousarray(leaf)) != saved[name][1]:
            raise DamagedError(
                f'The checkpoint {path} is damaged: {name} is not what was saved{_MEND}'
            )
    return state


def _checks(state: Any) -> dict[str, Any]:
    """The shape and the CRC-32 of each array, by its path, and the CRC-32 of all that."""
    checks = {
        name: [list(leaf.shape), zlib.crc32(np.ascontiguousarray(leaf))]
        for name, leaf in named_leaves(state).items()
    }
    return checks | {'itself': _checksum_of(checks)}


def _checksum_of(checks: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(checks, sort_keys=True).encode())


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves by their paths, as 'generator/params/conv/kernel'."""
    return {
        jax.tree_util.keystr(path, simple=True, separator='/'): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def choose(
    config: ml_collections.ConfigDict, run: RunFolder, which: str | int
) -> tuple[ocp.CheckpointManager | None, list[int]]:
    """A manager to read with, and the steps that `which` means: 'newest', 'best', 'all' or one.

    Raises UserError when there are none, or they belong to another configuration.
    """
    folder = run.best if which == 'best' else run.checkpoints
    manager = None

    def find():
        nonlocal manager
        if not steps_in(folder):
            raise UserError(f'There is no checkpoint in {folder}: train first, or check --workdir.')
        provenance.check_configuration(run, config)
        manager = open_manager(folder)
        steps = sorted(manager.all_steps())
        if which == 'all':
            return steps
        if which in ('newest', 'best'):
            return steps[-1:]
        if str(which) in map(str, steps):
            return [int(which)]
        raise UserError(
            f'There is no checkpoint {which} in {folder}: choose newest, best, all or one of '
            f'{", ".join(map(str, steps))}.'
        )

    steps = distributed.on_first(find)
    return manager, steps

"""Saves, restores and chooses checkpoints of a run."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from sagan_jax.errors import UserError
from sagan_jax.run import integrity, provenance
from sagan_jax.run.folder import RunFolder, steps_in
from sagan_jax.run.integrity import DamagedError
from sagan_jax.system import distributed, failures, untrusted

# What Orbax and the formats below it raise when they cannot write.
_UNWRITABLE = (OSError, ValueError, RuntimeError)
_PAUSES = (0, 10, 60)  # seconds before each retry of a run's last checkpoint


def open_manager(folder: Path, keep: int | None = None) -> ocp.CheckpointManager:
    """Opens Orbax's manager of a folder of checkpoints. It saves asynchronously and atomically.

    Only process 0 opens it. A checkpoint has two items: `state`, the arrays, and `checks`, their
    checksums, the step and the keys of the configuration that decide results.

    Args:
      folder: a run's `checkpoints/` or `best/`.
      keep: the number of newest checkpoints to keep; None to open the folder for reading.

    Raises:
      UserError: if there is something else in the folder's place or what is no file in it, which
        a reader would wait for, or if Orbax cannot open it.
    """
    if keep:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise UserError(
                f'{folder} is not a folder: move it elsewhere, or choose another --workdir.'
            ) from error
        _remove_remains(folder)  # if Orbax fails to remove them, all later saves fail
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=False,
        save_root_metadata=False,  # read on opening, where a damaged file would be fatal
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            active_processes={0}, barrier_sync_key_prefix='first'
        )
        if jax.process_count() > 1
        else ocp.options.MultiprocessingOptions(),
    )
    for path in folder.rglob('*'):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f'{path} is a pipe, a socket or a device: move it out of the folder.')
    try:
        return ocp.CheckpointManager(folder.absolute(), options=options)
    except Exception as error:  # what Orbax raises on a damaged file depends on the file
        if failures.explain(error):  # a full disk is no damage
            raise
        raise UserError(
            f'The checkpoints in {folder} cannot be opened ({untrusted.reason(error)}): move '
            'damaged ones out of the folder, or choose another --workdir.'
        ) from error


def save(
    manager: ocp.CheckpointManager | None, step: int, state: Any, config: ml_collections.ConfigDict
) -> bool:
    """Starts to save a state of host arrays at `step`. Writing continues in the background.

    Returns False and prints a warning if this or the previous checkpoint cannot be written. Earlier
    checkpoints are kept. Does nothing without a manager, in processes other than process 0.
    """
    if manager is None:
        return True
    if has_failed(manager):
        return False
    try:
        manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                checks=ocp.args.JsonSave(integrity.record(state, step, config)),
            ),
        )
    except _UNWRITABLE as error:
        _give_up(manager, error)
        return False
    return True


def save_at_once(
    manager: ocp.CheckpointManager | None, step: int, state: Any, config: ml_collections.ConfigDict
) -> bool:
    """As `save`, but waits until the checkpoint is on disk, and returns whether it is."""
    if manager is None:
        return True
    for _ in range(2):  # the first save may only learn that an earlier one had failed
        if save(manager, step, state, config):
            with _giving_up(manager):
                manager.wait_until_finished()
        if manager.latest_step() == step:
            return True
    return False


def has_failed(manager: ocp.CheckpointManager | None) -> bool:
    """Whether the last save has failed. Prints a warning the first time."""
    if manager is None:
        return False
    try:
        manager.check_for_errors()
    except _UNWRITABLE as error:
        _give_up(manager, error)
        return True
    return False


def finish(
    manager: ocp.CheckpointManager | None, step: int, state: Any, config: ml_collections.ConfigDict
) -> None:
    """Waits until `step` is on disk, and saves it again if needed. Does nothing without a manager.

    Raises:
      UserError: if it cannot be written after several attempts.
    """
    if manager is None:
        return
    for pause in _PAUSES:
        time.sleep(pause)
        with _giving_up(manager):
            manager.wait_until_finished()
        if manager.latest_step() != step and save(manager, step, state, config):
            with _giving_up(manager):
                manager.wait_until_finished()
        if manager.latest_step() == step:
            return
    raise UserError(
        f'The last checkpoint cannot be written to {manager.directory}: free space on the disk and '
        'run the same command again.'
    )


@contextlib.contextmanager
def closing(managers: list[ocp.CheckpointManager | None]) -> Iterator[None]:
    """Closes the managers at the end of the block, after their pending writes.

    Removes what a save has left that failed, since its other threads may have written on.
    """
    try:
        yield
    finally:
        for manager in filter(None, managers):
            with _giving_up(manager):
                manager.close()
            _remove_remains(manager.directory)


@contextlib.contextmanager
def _giving_up(manager: ocp.CheckpointManager) -> Iterator[None]:
    """Handles a failed save in the block with `_give_up`."""
    try:
        yield
    except _UNWRITABLE as error:
        _give_up(manager, error)


def _give_up(manager: ocp.CheckpointManager, error: Exception) -> None:
    """Prints a warning about a failed save and removes its remains, which take disk space."""
    reason = ' '.join(str(error).split())
    print(f'warning        a checkpoint cannot be written and is tried again: {reason:.300}')
    _remove_remains(manager.directory)
    with contextlib.suppress(OSError):
        manager.directory.mkdir(parents=True, exist_ok=True)
        manager.reload()


def _remove_remains(folder: Path) -> None:
    """Removes incomplete checkpoints of steps, left by a killed process or a failed save."""
    for remains in folder.glob('*.orbax-checkpoint-tmp'):
        if not remains.stem.isdecimal():
            continue  # somebody may have copied one aside
        for _ in range(3):
            shutil.rmtree(remains, ignore_errors=True)
            if not remains.exists():
                break
            time.sleep(0.1)  # a thread of the failed save writes on


def restore_newest(
    manager: ocp.CheckpointManager | None,
    like: Any,
    config: ml_collections.ConfigDict,
    needs_origin: bool = False,
) -> Any | None:
    """Restores the newest undamaged checkpoint, see `restore`. Returns None if there are none.

    Damaged checkpoints are skipped with a warning and moved beside the manager's folder, so that
    new ones can take their place. All processes must call it, and all get the result. With
    `needs_origin`, a checkpoint that does not tell its configuration is refused.

    Raises:
      UserError: if all checkpoints are damaged, or the newest has another structure than `like`,
        another step or another configuration.
    """
    return _everywhere(lambda: _restore_newest(manager, like, config, needs_origin), like)


def restore(
    manager: ocp.CheckpointManager | None, like: Any, step: int, config: ml_collections.ConfigDict
) -> Any:
    """Restores the checkpoint of a step as host arrays, in all processes.

    Args:
      manager: from `open_manager`; None in all processes except process 0.
      like: a tree of arrays with the same structure, shapes and dtypes.
      step: the checkpoint's step.
      config: the run's configuration.

    Raises:
      UserError: if the checkpoint cannot be read, differs from what was saved, has another
        structure or other dtypes than `like`, or was saved at another step or with another
        configuration.
    """
    return _everywhere(lambda: _restore(manager, like, step, config), like)


def _everywhere(read: Callable[[], Any | None], like: Any) -> Any | None:
    """Returns in all processes what `read` returns in process 0."""
    state = _blank(like)

    def find() -> bool:
        nonlocal state
        found = read()
        state = state if found is None else found
        return found is not None

    return distributed.from_first(state) if distributed.on_first(find) else None


def _blank(like: Any) -> Any:
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)


def _restore_newest(
    manager: ocp.CheckpointManager,
    like: Any,
    config: ml_collections.ConfigDict,
    needs_origin: bool,
) -> Any | None:
    damaged = []
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            state = _restore(manager, like, step, config, needs_origin)
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


def _restore(
    manager: ocp.CheckpointManager,
    like: Any,
    step: int,
    config: ml_collections.ConfigDict,
    needs_origin: bool = False,
) -> Any:
    """As `restore`, in process 0. Raises DamagedError if the checkpoint is damaged."""
    path = manager.directory / str(step)

    def read(make: Callable[[], Any]) -> Any:
        try:
            return make()
        except Exception as error:  # what a reader raises on a damaged file depends on the format
            if failures.is_passing(error) or failures.is_of_memory(error):
                raise
            reason = ' '.join(str(error).split())
            raise DamagedError(
                f'The checkpoint {path} cannot be read ({reason:.200}){integrity.FIX}'
            ) from error

    def restored(**item: Any) -> Any:
        return read(lambda: manager.restore(step, args=ocp.args.Composite(**item)))

    record = restored(checks=ocp.args.JsonRestore())['checks']
    checks = integrity.check_record(
        path,
        record,
        step,
        config,
        like,
        lambda: read(lambda: _stored_dtypes(path / 'state')),
        needs_origin,
    )
    state = restored(state=ocp.args.StandardRestore(_blank(like)))['state']
    integrity.check_arrays(path, state, checks)
    return state


def _stored_dtypes(path: Path) -> dict[str, str]:
    """The dtypes of a state by path, from Orbax's own description."""
    with ocp.StandardCheckpointer() as reader:
        leaves = integrity.named_leaves(reader.metadata(path).item_metadata.tree)
    return {name: str(leaf.dtype) for name, leaf in leaves.items()}


def choose(
    config: ml_collections.ConfigDict, run: RunFolder, which: str | int
) -> tuple[ocp.CheckpointManager | None, list[int]]:
    """Opens a run's checkpoints for reading and chooses among them.

    Args:
      config: the run's configuration.
      workdir: the run's folder.
      which: 'newest', 'best', 'all' or a step.

    Returns:
      The manager, None in all processes except process 0, and the chosen steps.

    Raises:
      UserError: if there are no such checkpoints or they belong to another configuration.
    """
    folder = run.best if which == 'best' else run.checkpoints
    manager = None

    def find() -> list[int]:
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


@contextlib.contextmanager
def chosen(
    config: ml_collections.ConfigDict, run: RunFolder, which: str | int, like: Any
) -> Iterator[Iterator[tuple[int, Any]]]:
    """The steps and states that `which` means, read one by one, in the order of the steps.

    See `choose` and `restore` for the arguments and what is raised.
    """
    manager, steps = choose(config, run, which)
    try:
        yield ((step, restore(manager, like, step, config)) for step in steps)
    finally:
        if manager:
            manager.close()

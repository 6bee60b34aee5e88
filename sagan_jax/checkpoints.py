"""Checkpoints of a run, and the configuration that they belong to."""

import contextlib
import json
import platform
import shutil
import subprocess
import time
import zlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict

from sagan_jax.errors import UserError
from sagan_jax.files import atomic_path

# Keys that say how long, how fast or how talkative a run is, not what it computes.
FREE_KEYS = (
    'num_train_steps',
    'steps_per_call',
    'log_every',
    'sample_every',
    'checkpoint_every',
    'keep_checkpoints',
    'evaluate_every',
    'divergence_restarts',
    'dataset.data_dir',
    'dataset.on_device',
)
FREE_SECTIONS = ('evaluation.',)

# What Orbax and the formats below it raise when they cannot write.
_UNWRITABLE = (OSError, ValueError, RuntimeError)
_PAUSES = (0, 10, 60)  # seconds before the last checkpoint of a run is tried again

_MEND = '; remove it, or choose another step.'

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


class DamagedError(UserError):
    """A checkpoint that is not what was saved."""


def open_manager(folder: Path, keep: int | None = None) -> ocp.CheckpointManager:
    """Orbax's manager of a folder of checkpoints: asynchronous, each step whole or not there.

    A checkpoint is `state`, the arrays, and `checks`, by which damage is noticed.

    Args:
      folder: a run's `checkpoints/` or `best/`.
      keep: how many of the newest checkpoints stay; None for one who only reads.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=keep is not None,
        cleanup_tmp_directories=keep is not None,
        save_root_metadata=False,  # it would be read on opening, where a damaged one is fatal
    )
    return ocp.CheckpointManager(folder.absolute(), options=options)


def save(manager: ocp.CheckpointManager, step: int, state: Any) -> bool:
    """Starts to save a state of arrays on the host at `step`; the write goes on in the background.

    False, and a warning, if it or the one before cannot be written. Earlier checkpoints stay.
    """
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


def has_failed(manager: ocp.CheckpointManager) -> bool:
    """Whether the save that was started last has failed, told once in a warning."""
    try:
        manager.check_for_errors()
    except _UNWRITABLE as error:
        _give_up(manager, error)
        return True
    return False


def finish(manager: ocp.CheckpointManager, step: int, state: Any) -> None:
    """Waits until `step` is on disk, where `save` has brought it or this brings it.

    Raises:
      UserError: if it cannot be written, tried several times.
    """
    for pause in _PAUSES:
        try:
            manager.wait_until_finished()
        except _UNWRITABLE as error:
            _give_up(manager, error)
        if manager.latest_step() == step:
            return
        time.sleep(pause)
        save(manager, step, state)
    raise UserError(
        f'The last checkpoint could not be written to {manager.directory}: make room, and give the '
        'same command again.'
    )


@contextlib.contextmanager
def closing(managers: list[ocp.CheckpointManager]) -> Iterator[None]:
    """Closes them at the end of the block, when all that is being written is there."""
    try:
        yield
    finally:
        for manager in managers:
            try:
                manager.close()
            except _UNWRITABLE as error:
                _give_up(manager, error)


def _give_up(manager: ocp.CheckpointManager, error: Exception) -> None:
    """Tells of a save that failed, and forgets it: its remains would fill the disk further."""
    reason = ' '.join(str(error).split())
    print(f'warning        a checkpoint cannot be written, to be tried again: {reason:.300}')
    for remains in manager.directory.glob('*.orbax-checkpoint-tmp'):
        shutil.rmtree(remains, ignore_errors=True)
    with contextlib.suppress(OSError):
        manager.directory.mkdir(parents=True, exist_ok=True)
        manager.reload()


def restore_newest(manager: ocp.CheckpointManager, like: Any) -> Any | None:
    """The newest checkpoint that is whole, see `restore`; None if there is none at all.

    Damaged ones are passed over with a warning and put aside, out of the way of new ones, beside
    the manager's folder.

    Raises:
      UserError: if all are damaged, or the newest holds something else than `like`.
    """
    damaged = []
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            state = restore(manager, like, step)
        except DamagedError as error:
            print(f'warning        {error}')
            damaged.append(step)
            continue
        for step in damaged:
            aside = manager.directory.with_name(f'damaged_{manager.directory.name}')
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


def restore(manager: ocp.CheckpointManager, like: Any, step: int) -> Any:
    """The checkpoint of a step as host arrays in the structure of `like`.

    Raises:
      DamagedError: if it cannot be read, or what is read is not what was saved.
      UserError: if it holds something else than `like`.
    """
    path = manager.directory / str(step)
    template = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)

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
    state = read(state=ocp.args.StandardRestore(template))['state']
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
    config: ml_collections.ConfigDict, workdir: Path, which: str | int
) -> tuple[ocp.CheckpointManager, list[int]]:
    """A manager to read with, and the steps that `which` means: 'newest', 'best', 'all' or one.

    Raises UserError when there are none, or they belong to another configuration.
    """
    folder = workdir / ('best' if which == 'best' else 'checkpoints')
    if not any(path.name.isdigit() for path in folder.glob('*')):
        raise UserError(f'There is no checkpoint in {folder}: train first, or check --workdir.')
    check_configuration(workdir, config)
    manager = open_manager(folder)
    steps = sorted(manager.all_steps())
    if which == 'all':
        return manager, steps
    if which in ('newest', 'best'):
        return manager, steps[-1:]
    if str(which) in map(str, steps):
        return manager, [int(which)]
    raise UserError(
        f'There is no checkpoint {which} in {folder}: choose newest, best, all or one of '
        f'{", ".join(map(str, steps))}.'
    )


def check_configuration(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Refuses to go on with the checkpoints of another configuration.

    Raises:
      UserError: naming the keys that differ, other than `FREE_KEYS` and those of `FREE_SECTIONS`.
    """
    path = workdir / 'config.json'
    if not any(entry.name.isdigit() for entry in (workdir / 'checkpoints').glob('*')):
        return
    try:
        before = flatten_dict(json.loads(path.read_text())['config'], sep='.')
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f'{workdir} holds checkpoints, but {path} cannot be read: choose another --workdir.'
        ) from error
    now = flatten_dict(json.loads(config.to_json()), sep='.')
    different = [
        f'{key} ({before.get(key, "missing")} there, {now.get(key, "missing")} here)'
        for key in sorted(before.keys() | now.keys())
        if before.get(key, '') != now.get(key, '') and not _is_free(key)
    ]
    if different:
        raise UserError(
            f'The checkpoints in {workdir} belong to another configuration, '
            f'{", ".join(different)}: choose another --workdir or the same configuration.'
        )


def _is_free(key: str) -> bool:
    return key in FREE_KEYS or key.startswith(FREE_SECTIONS)


def write_configuration(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Writes `config.json`: the resolved configuration, the versions and the git commit."""
    record = {
        'config': json.loads(config.to_json()),
        'versions': {name: metadata.version(name) for name in _PACKAGES}
        | {'python': platform.python_version()},
        'commit': _git_commit(),
    }
    with atomic_path(workdir / 'config.json') as temporary:
        temporary.write_text(json.dumps(record, indent=2) + '\n')


def _git_commit() -> str | None:
    """The commit of this source tree, with `-dirty` if it was changed since; None outside git."""
    command = ['git', 'describe', '--always', '--abbrev=40', '--dirty', '--exclude=*']
    try:
        return subprocess.check_output(
            command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return None

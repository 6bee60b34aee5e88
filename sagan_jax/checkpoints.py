"""Checkpoints of a run, and the configuration that they belong to."""

import json
import platform
import subprocess
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
    'dataset.data_dir',
    'dataset.on_device',
)
FREE_SECTIONS = ('evaluation.',)

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


def open_manager(folder: Path, keep: int | None = None) -> ocp.CheckpointManager:
    """Orbax's manager of a folder of checkpoints: asynchronous, each step whole or not there.

    Args:
      folder: a run's `checkpoints/` or `best/`.
      keep: how many of the newest checkpoints stay; None for one who only reads.
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, create=keep is not None, cleanup_tmp_directories=keep is not None
    )
    return ocp.CheckpointManager(folder.absolute(), options=options)


def save(manager: ocp.CheckpointManager, step: int, state: Any) -> None:
    """Starts to save a state of plain arrays at `step`; the write goes on in the background."""
    # A copy on the host: the arrays on the device are donated to the next step.
    manager.save(step, args=ocp.args.StandardSave(jax.tree.map(np.array, state)))


def restore(manager: ocp.CheckpointManager, like: Any, step: int | None = None) -> Any | None:
    """The checkpoint of a step, or the newest, as host arrays in the structure of `like`.

    None if there is none. Raises UserError if it holds something else than `like`.
    """
    step = manager.latest_step() if step is None else step
    if step is None:
        return None
    template = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
    try:
        return manager.restore(step, args=ocp.args.StandardRestore(template))
    except (ValueError, KeyError) as error:
        raise UserError(
            f'The checkpoint {manager.directory / str(step)} does not hold the generator and the '
            'discriminator of this configuration: remove it, or choose another step or --workdir.'
        ) from error


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

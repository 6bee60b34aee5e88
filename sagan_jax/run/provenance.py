"""The record of a run: configuration, versions and code, and checks against it on resuming."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import ml_collections
from flax.traverse_util import flatten_dict

from sagan_jax import __version__
from sagan_jax.errors import UserError
from sagan_jax.run.folder import RunFolder
from sagan_jax.system.records import differences, versions

# Keys that affect duration, speed and logging, but not results.
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
FREE_SECTIONS = ('evaluation.', 'watch.', 'distributed.')

_CODE = Path(__file__).parents[1]  # all of this package


def check_configuration(run: RunFolder, config: ml_collections.ConfigDict) -> None:
    """Refuses to continue from the checkpoints of another configuration.

    Keys that were added after the run count as their defaults.

    Raises:
      UserError: naming the keys that differ, other than `FREE_KEYS` and those of `FREE_SECTIONS`;
        or if the run's configuration cannot be read.
    """
    if not run.checkpoint_steps():
        return
    before = flatten_dict(run.record()['config'], sep='.')
    now = flatten_dict(json.loads(config.to_json()), sep='.')
    different = [
        f'{key} ({there} there, {here} here)'
        for key, there, here in differences(before, now)
        if not _is_free(key, now)
    ]
    if different:
        raise UserError(
            f'The checkpoints in {run.path} belong to another configuration, '
            f'{", ".join(different)}: choose another --workdir or the same configuration.'
        )


def _is_free(key: str, config: dict[str, Any]) -> bool:
    """Whether a resumed run may change `key`; `config` by dotted name."""
    if key == 'num_train_steps' and config['optimizer.decay_from'] < 1:
        return False  # the rates depend on it
    return key in FREE_KEYS or key.startswith(FREE_SECTIONS)


def check_data(run: RunFolder, found: dict[str, Any]) -> None:
    """Refuses to continue with other images than the run began with.

    Raises:
      UserError: naming the data set.
    """
    try:
        before = run.record()['data']
    except (UserError, KeyError):
        return  # nothing has begun, or an older version did not say
    if before != found:
        raise UserError(
            f'The images of {found["name"]} are not those that the run in {run.path} began with '
            f'({before["count"]} there, {found["count"]} here, or other contents): restore them, '
            'or choose another --workdir.'
        )


def record(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The resolved configuration, the versions of libraries, and this package's own code."""
    return {
        'config': json.loads(config.to_json()),
        'version': __version__,
        'versions': versions(),
        'commit': _git_commit(),
        'code_sha256': _code_sha256(),
    }


def _code_sha256() -> str:
    digest = hashlib.sha256()
    for path in sorted(_CODE.rglob('*.py')):
        digest.update(str(path.relative_to(_CODE)).encode() + path.read_bytes())
    return digest.hexdigest()


def _git_commit() -> str | None:
    """The commit of this source tree, with `-dirty` if it was changed since; None outside git."""
    command = ['git', 'describe', '--always', '--abbrev=40', '--dirty', '--exclude=*']
    try:
        return subprocess.check_output(
            command, cwd=_CODE, stderr=subprocess.DEVNULL, text=True
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return None

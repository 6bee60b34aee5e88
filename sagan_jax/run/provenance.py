"""The record of a run: configuration, versions and code, and checks against it on resuming."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import ml_collections
from flax.traverse_util import flatten_dict

from sagan_jax import __version__
from sagan_jax.configuration import defaults
from sagan_jax.errors import UserError
from sagan_jax.run.folder import DamagedRecordError, RunFolder
from sagan_jax.system import numerics
from sagan_jax.system.names import canonical
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
    'deterministic',  # rounding alone; the flag of XLA is recorded
    # Places. `check_data` compares what is there.
    'dataset.data_dir',
    'dataset.source_dir',
    'dataset.revision',
    'dataset.on_device',
)
FREE_SECTIONS = ('evaluation.', 'watch.', 'logging.', 'distributed.')

_CODE = Path(__file__).parents[1]  # all of this package


def check_configuration(
    run: RunFolder, config: ml_collections.ConfigDict, may_give_again: bool = False
) -> bool:
    """Refuses to continue a run with another configuration, from its first moment on.

    A run without checkpoints whose `config.json` cannot be read may start again.

    Args:
      run: the run's folder.
      config: the configuration now.
      may_give_again: whether `config` may take the place of a `config.json` that cannot be read.

    Returns:
      Whether it does. The checkpoints must then tell whether it is the right one.

    Raises:
      UserError: naming the keys that differ, see `configuration_differences`; or if the run has
        checkpoints and its `config.json` cannot be read, unless `may_give_again`.
    """
    has_checkpoints = bool(run.checkpoint_steps())
    try:
        before = flatten_dict(run.record()['config'], sep='.')
    except DamagedRecordError:
        if has_checkpoints and not may_give_again:
            raise
        return has_checkpoints
    different = configuration_differences(before, config)
    if different:
        or_remove = '' if has_checkpoints else ', or remove the folder, which has no checkpoints'
        raise UserError(
            f'The run in {run.path} belongs to another configuration, {", ".join(different)}: '
            f'choose another --workdir or the same configuration{or_remove}.'
        )
    return False


def check_trained_here(run: RunFolder) -> None:
    """Refuses to train a converted run: it has no optimizer, and σ is folded into its weights.

    Raises:
      UserError: if the run was converted from published weights.
    """
    try:
        converted = 'origin' in run.record()
    except UserError:
        return  # nothing has begun
    if converted:
        raise UserError(
            f'The run in {run.path} was converted from published weights, and is not trained in '
            f'its own folder: choose another --workdir, and give --init {run.path}.'
        )


def configuration_differences(
    before: dict[str, Any], config: ml_collections.ConfigDict
) -> list[str]:
    """Where a configuration differs from an earlier one in what decides results, for people.

    Keys that were added since count as their defaults. `FREE_KEYS` and those of `FREE_SECTIONS`
    may differ.

    Args:
      before: JSON values by dotted name; those of free keys may be missing.
      config: the configuration now.
    """
    now, default = _flat(config), _flat(defaults.get_config())
    return [
        f'{key} ({there} there, {here} here)'
        for key, there, here in differences(default | before, now)
        if not _is_free(key, now)
    ]


def decisive(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The keys of a configuration that decide results: JSON values by dotted name."""
    values = _flat(config)
    return {key: value for key, value in values.items() if not _is_free(key, values)}


def _flat(config: ml_collections.ConfigDict) -> dict[str, Any]:
    return flatten_dict(json.loads(config.to_json()), sep='.')


def _is_free(key: str, config: dict[str, Any]) -> bool:
    """Whether a resumed run may change `key`; `config` by dotted name."""
    if key == 'num_train_steps' and config['optimizer.decay_from'] < 1:
        return False  # the rates depend on it
    return key in FREE_KEYS or key.startswith(FREE_SECTIONS)


def check_data(run: RunFolder, found: dict[str, Any]) -> None:
    """Refuses to use other training data for a run than those it began with.

    Compares contents. The place and the time of files do not matter.

    Args:
      run: the run's folder.
      found: see `data.identity`.

    Raises:
      UserError: saying what differs.
    """
    try:
        before = run.record()['data']
    except (UserError, KeyError):
        return  # nothing has begun, or an older version did not say
    different = _data_differences(before, found)
    if different:
        raise UserError(
            f'The images of {found["name"]} are not those that the run in {run.path} began with '
            f'({different}): restore them, or choose another --workdir.'
        )


def _data_differences(before: dict[str, Any], found: dict[str, Any]) -> str:
    """How training data differ from earlier ones, for people; '' if they are the same.

    Version 0.1 recorded a hash of some examples only, and class names in any Unicode form. Later,
    the hash was that of examples as they are stored.
    """
    if 'sha256' in before and before['sha256'] == found.get('sha256_as_stored'):
        before = before | {key: found[key] for key in ('sha256', 'sha256_in_any_order')}
    compared = (before.keys() & found.keys()) - {'name', 'class_names', 'sha256_as_stored'}
    different = {key for key in compared if before[key] != found[key]}
    there, here = map(_class_names, (before, found))
    # A single name is that of the folder or of the data set, which decides nothing.
    if there != here and 'class_names' in before and max(len(there), len(here)) > 1:
        changes = [f'{name} is missing' for name in there if name not in here]
        changes += [f'{name} is new' for name in here if name not in there]
        return f'of the classes, {", ".join(changes) or "the order differs"}'
    if 'count' in different:
        return f'{before["count"]} there, {found["count"]} here'
    if 'sha256' in different and 'sha256_in_any_order' not in different:
        return 'the same images in another order, as if files were renamed'
    return 'the same number, with other contents' if different else ''


def _class_names(record: dict[str, Any]) -> list[str]:
    return [canonical(name) for name in record.get('class_names', [])]


def environment_differences(run: RunFolder) -> list[str]:
    """Where versions, settings and devices differ from those that last trained a run, for people.

    They may differ, but then numbers may not be equal bit for bit. What an older version did not
    record does not count.
    """
    try:
        before = run.record()
    except UserError:
        return []  # nothing has begun
    found = []
    for part, values in {'versions': versions(), 'numerics': numerics.record()}.items():
        there = before.get(part, {})
        found += [
            f'{key} ({there[key] or "unset"} there, {value or "unset"} here)'
            for key, value in values.items()
            if there.get(key, value) != value
        ]
    return found


def record(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The resolved configuration, and what else numbers depend on.

    That is the versions of libraries, settings of JAX, and this package's own code.
    """
    return {
        'config': json.loads(config.to_json()),
        'version': __version__,
        'versions': versions(),
        'numerics': numerics.record(),
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

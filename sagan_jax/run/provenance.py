"""A run's config.json: what it is made of, and whether it is the same still."""

import hashlib
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import ml_collections
from flax.traverse_util import flatten_dict

from sagan_jax.errors import UserError
from sagan_jax.system.files import atomic_path

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
FREE_SECTIONS = ('evaluation.', 'watch.', 'distributed.')

_CODE = Path(__file__).parents[1]  # all of this package
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


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
        if before.get(key, '') != now.get(key, '') and not _is_free(key, now)
    ]
    if different:
        raise UserError(
            f'The checkpoints in {workdir} belong to another configuration, '
            f'{", ".join(different)}: choose another --workdir or the same configuration.'
        )


def _is_free(key: str, config: dict[str, Any]) -> bool:
    """Whether a resumed run may change `key`; `config` by dotted name."""
    if key == 'num_train_steps' and config['optimizer.decay_from'] < 1:
        return False  # the rates depend on it
    return key in FREE_KEYS or key.startswith(FREE_SECTIONS)


def check_data(workdir: Path, found: dict[str, Any]) -> None:
    """Refuses to go on with other pictures than a run began with.

    Raises:
      UserError: naming the data set.
    """
    try:
        before = json.loads((workdir / 'config.json').read_text())['data']
    except (OSError, ValueError, KeyError):
        return  # nothing has begun, or an older version did not say
    if before != found:
        raise UserError(
            f'The pictures of {found["name"]} are not those that the run in {workdir} began with '
            f'({before["count"]} there, {found["count"]} here, or others): bring them back, or '
            'choose another --workdir.'
        )


def record(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The resolved configuration, the versions of libraries, and this package's own code."""
    return {
        'config': json.loads(config.to_json()),
        'versions': {name: metadata.version(name) for name in _PACKAGES}
        | {'python': platform.python_version()},
        'commit': _git_commit(),
        'code_sha256': _code_sha256(),
    }


def write(workdir: Path, config: ml_collections.ConfigDict, data: dict[str, Any]) -> None:
    """Writes `config.json`: the `record` of a run, and what it is trained on."""
    with atomic_path(workdir / 'config.json') as temporary:
        temporary.write_text(json.dumps(record(config) | {'data': data}, indent=2) + '\n')


def _code_sha256() -> str:
    digest = hashlib.sha256()
    for path in sorted(_CODE.rglob('*.py')):
        digest.update(str(path.relative_to(_CODE)).encode() + path.read_bytes())
    return digest.hexdigest()


def read(workdir: Path) -> tuple[ml_collections.ConfigDict, tuple[str, ...]]:
    """The configuration of a run and the names of its classes, as its `config.json` has them.

    But for the processes it ran in, instead of which there is one. Of runs that did not write down
    the names, they are numbers. Raises UserError where there is no such file.
    """
    found = read_record(workdir)
    config = ml_collections.ConfigDict(_with_tuples(found['config']))
    if 'distributed' in config:  # not in those of older versions
        config.distributed.coordinator = ''
    classes = max(config.dataset.num_classes, 1)
    width = len(str(classes - 1))  # so that in alphabetical order they keep theirs
    numbers = [f'{number:0{width}}' for number in range(classes)]
    return config.lock(), tuple(found.get('data', {}).get('class_names', numbers))


def read_record(workdir: Path) -> dict[str, Any]:
    """A run's `config.json`, see `record` and `write`.

    Raises:
      UserError: where there is no such file, or it holds something else.
    """
    path = workdir / 'config.json'
    try:
        found = json.loads(path.read_text())
        found['config']['dataset']['num_classes']
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'There is no run in {workdir}, because {path} cannot be read: train first, or check '
            '--workdir.'
        ) from error
    return found


def _with_tuples(value: Any) -> Any:
    """What JSON has read, with tuples for its lists, as configurations have them."""
    if isinstance(value, dict):
        return {key: _with_tuples(entry) for key, entry in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _git_commit() -> str | None:
    """The commit of this source tree, with `-dirty` if it was changed since; None outside git."""
    command = ['git', 'describe', '--always', '--abbrev=40', '--dirty', '--exclude=*']
    try:
        return subprocess.check_output(
            command, cwd=_CODE, stderr=subprocess.DEVNULL, text=True
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return None

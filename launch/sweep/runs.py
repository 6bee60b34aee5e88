"""The runs of a sweep, and what each is doing, read from its folder alone.

To the files of every run a sweep adds: `log.txt`, the output of the run's processes; `exit.json`,
how the last process ended that a sweep saw end; `.lock`, held while a process of the run lives, so
that sweeps share the runs. The run's own `run.lock` keeps out all others.
"""

import json
import os
import socket
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from sagan_jax.errors import UserError
from sagan_jax.run import lock
from sagan_jax.run.folder import RunFolder
from sagan_jax.run.logs import duration
from sagan_jax.system import files
from sagan_jax.system.untrusted import read_json, reason, warn_once

RECORD = 'sweep.json'  # in the sweep's own folder
LOG, EXIT, LOCK = 'log.txt', 'exit.json', '.lock'


class Run(NamedTuple):
    """A variant with a seed; `workdir` is the sweep's."""

    variant: str
    seed: int
    workdir: Path

    @property
    def name(self) -> str:
        return f'{self.variant}/seed{self.seed}'

    @property
    def folder(self) -> Path:
        return self.workdir / self.variant / f'seed{self.seed}'

    @property
    def files(self) -> RunFolder:
        return RunFolder(self.folder)


class Record(TypedDict):
    """A sweep, as `sweep.json` in its folder has it."""

    config: str  # the configuration file
    overrides: list[str]  # --config.KEY=VALUE
    variants: dict[str, dict[str, Any]]  # their configurations without the seed
    runs: list[list[Any]]  # variant and seed


EMPTY: Record = {'config': '', 'overrides': [], 'variants': {}, 'runs': []}


class End(TypedDict):
    """How a process of a run ended, as `exit.json` has it."""

    mode: str  # 'train' or 'evaluate'
    status: int  # negative for a signal
    error: str  # '' after status 0


class State(NamedTuple):
    """What a run is doing.

    Attributes:
      what: 'waiting' has not begun; 'training' and 'scoring' have a process; 'stopped' has begun,
        is not finished and has no process; 'failed' ended with an error; 'trained' has its last
        checkpoint; 'done' is trained and scored.
      step: the last logged step.
      num_steps: of the whole run; 0 if it has not begun.
      images_per_second: as last logged; 0 if never.
      seconds_left: of training at that rate; None if unknown.
      trained: whether the last checkpoint exists, whatever happened since.
      error: of a failed run.
    """

    what: str
    step: int = 0
    num_steps: int = 0
    images_per_second: float = 0.0
    seconds_left: float | None = None
    trained: bool = False
    error: str = ''


def read_record(workdir: Path) -> Record | None:
    """Reads `sweep.json` of a sweep's folder; None if there is none.

    Raises:
      UserError: if it holds anything else than the record of a sweep.
    """
    path = workdir / RECORD
    try:
        found = read_json(path)
        if not _is_record(found):
            raise ValueError('not the record of a sweep')
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f'{path} cannot be read ({reason(error)}): restore it, or remove it and repeat the '
            'command of the sweep.'
        ) from error
    return found


def _is_record(found: Any) -> bool:
    """Whether a JSON value is a `Record`; that of a report needs no variants."""
    return (
        isinstance(found, dict)
        and isinstance(found.get('config'), str)
        and isinstance(found.get('overrides'), list)
        and all(isinstance(text, str) for text in found['overrides'])
        and isinstance(found.get('variants', {}), dict)
        and all(isinstance(config, dict) for config in found.get('variants', {}).values())
        and isinstance(found.get('runs'), list)
        and all(map(_is_name, found['runs']))
    )


def _is_name(found: Any) -> bool:
    """Whether a JSON value is a variant and a seed that name a folder of the sweep."""
    if not (isinstance(found, list) and [type(each) for each in found] == [str, int]):
        return False
    variant, seed = found
    return variant == Path('/', variant).name and '\0' not in variant and 0 <= seed < 2**32


def state(run: Run) -> State:
    """What a run is doing."""
    config = configuration(run)
    if config is None:
        num_steps, images = 0, 0
    else:
        num_steps, images = config['num_train_steps'], images_per_step(config)
    lines = run.files.metrics(tail=1 << 14)
    step = int(max((line['step'] for line in lines), default=0))
    rates = [line['images_per_second'] for line in lines if line.get('images_per_second')]
    rate = rates[-1] if rates else 0.0
    left = (num_steps - step) * images / rate if rate else None

    trained = is_trained(run)
    ended = how_it_ended(run)
    error = ''
    if holder(run) is not None:
        what = 'scoring' if trained else 'training'
    elif ended and ended['status']:
        what, error = 'failed', ended['error']
    elif trained:
        what = 'done' if ended and ended['mode'] == 'evaluate' else 'trained'
    else:
        what = 'waiting' if config is None else 'stopped'
    return State(what, step, num_steps, rate, left, trained, error)


def configuration(run: Run) -> dict[str, Any] | None:
    """The resolved configuration of a run; None if it has not begun or cannot be read.

    Training writes a configuration that cannot be read again.
    """
    try:
        return run.files.record()['config'] if run.files.config_json.exists() else None
    except UserError as error:
        warn_once(str(error))
        return None


def images_per_step(config: dict[str, Any]) -> int:
    """Real images that a step takes; `images_per_second` counts these."""
    return config['batch_size'] * config['discriminator_steps']


def is_trained(run: Run) -> bool:
    """Whether a run has the complete checkpoint of its last step."""
    config = configuration(run)
    newest = max(run.files.checkpoint_steps(), default=0)
    return config is not None and newest >= config['num_train_steps']


def how_it_ended(run: Run) -> End | None:
    """How the last process of a run ended that a sweep saw end.

    None if there is none since training last started.
    """
    try:
        found = read_json(run.folder / EXIT)
    except (OSError, ValueError):  # missing or damaged
        return None
    is_end = isinstance(found, dict) and found.get('mode') in ('train', 'evaluate')
    is_whole = is_end and type(found.get('status')) is int and isinstance(found.get('error'), str)
    return found if is_whole else None


def record_end(run: Run, mode: str, status: int) -> None:
    """Writes atomically how a process of a run ended; `status` is negative for a signal."""
    error = ''
    if status:
        lines = (run.folder / LOG).read_text(errors='replace').replace('\r', '\n').splitlines()
        last = next((line for line in reversed(lines) if line.strip()), '')
        error = f'killed by signal {-status}' if status < 0 else last.removeprefix('error: ')
    end: End = {'mode': mode, 'status': status, 'error': error}
    with files.atomic_path(run.folder / EXIT) as temporary:
        temporary.write_text(json.dumps(end) + '\n')


def take_lock(run: Run) -> int | None:
    """Locks a run for this sweep, and notes this machine's name in the lock.

    None if another sweep has the lock, or a process that no sweep started uses the run's folder.
    """
    try:
        descriptor = files.take_lock(run.folder / LOCK)
    except OSError as error:
        raise run.files.unwritable(error) from error
    if descriptor is not None and lock.owner(run.files):
        os.close(descriptor)
        return None
    if descriptor is not None:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, socket.gethostname().encode())
    return descriptor


def holder(run: Run) -> str | None:
    """The name of the machine on which a process holds a run's lock or uses its folder; or None."""
    path = run.folder / LOCK
    if files.is_locked(path):
        return path.read_text(errors='replace')
    owner = lock.owner(run.files)
    return owner.host if owner else None


def user(run: Run) -> str:
    """The process that uses a run's folder, for messages; '' if there is none."""
    owner = lock.owner(run.files)
    return f'used by {lock.describe(owner)}' if owner else ''


def line(run: Run, state: State, width: int = 0) -> str:
    """A line about a run and its state, with the name padded to `width`."""
    text = f'{run.name:<{width}}  {state.what:<8}'
    if state.num_steps:
        total = f'{state.num_steps:,}'
        text += f'  step {state.step:>{len(total)},}/{total}'
    if state.what == 'training' and state.seconds_left is not None:
        text += f'  {state.images_per_second:,.0f} images/s  {duration(state.seconds_left)} left'
    if state.error:
        text += f'  {state.error}'
    return text.rstrip()

"""A run's folder: every path in it, and the readers and writers of what it holds."""

import dataclasses
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from sagan_jax.configuration import checks, defaults, resolving
from sagan_jax.errors import UserError
from sagan_jax.run.entries import Row, is_row, parse_metrics, wrong_facts
from sagan_jax.system.files import atomic_path
from sagan_jax.system.untrusted import open_file, read_json, reason, warn_once


class DamagedRecordError(UserError):
    """A `config.json` that cannot be read or used."""


_STEP = re.compile('[0-9]{1,10}')


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The folder of one run. Making one touches no file; any part may be missing.

    Attributes:
      path: the run's `--workdir`.
    """

    path: Path

    # ---- Paths. --------------------------------------------------------------------------------

    @property
    def config_json(self) -> Path:
        return self.path / 'config.json'

    @property
    def lock(self) -> Path:
        return self.path / 'run.lock'

    @property
    def metrics_jsonl(self) -> Path:
        return self.path / 'metrics.jsonl'

    @property
    def tensorboard(self) -> Path:
        return self.path / 'tensorboard'

    @property
    def wandb(self) -> Path:
        return self.path / 'wandb'  # as the package wandb calls it

    @property
    def samples(self) -> Path:
        return self.path / 'samples'

    @property
    def reals(self) -> Path:
        return self.samples / 'reals.png'

    @property
    def evaluation(self) -> Path:
        return self.path / 'evaluation'

    @property
    def checkpoints(self) -> Path:
        return self.path / 'checkpoints'

    @property
    def damaged_checkpoints(self) -> Path:
        return self.path / 'damaged_checkpoints'

    @property
    def best(self) -> Path:
        return self.path / 'best'

    @property
    def figures(self) -> Path:
        return self.path / 'figures'

    @property
    def profile(self) -> Path:
        return self.path / 'profile'

    @property
    def generated(self) -> Path:
        return self.path / 'generated'

    @property
    def export(self) -> Path:
        return self.path / 'export'

    @property
    def report(self) -> Path:
        return self.path / 'report.html'

    def grid(self, step: int) -> Path:
        """The sample grid of a step."""
        return self.samples / step_name(step, '.png')

    def scores_json(self, step: int) -> Path:
        """The scores of a step."""
        return self.evaluation / step_name(step, '.json')

    def unwritable(self, error: OSError) -> UserError:
        """The error that reports that nothing can be written into the folder."""
        return UserError(
            f'The workdir {self.path} cannot be written ({error.strerror}): free disk space, or '
            'choose another --workdir.'
        )

    # ---- Which steps are there. ----------------------------------------------------------------

    def grids(self) -> dict[int, Path]:
        """The sample grids by step, in the order of the steps."""
        return steps_in(self.samples, '.png')

    def checkpoint_steps(self) -> list[int]:
        """The steps in `checkpoints/`, in order."""
        return [step for step, path in steps_in(self.checkpoints).items() if path.is_dir()]

    # ---- The configuration and what belongs to it. ---------------------------------------------

    def record(self) -> dict[str, Any]:
        """`config.json` as `provenance.record` made it, as plain JSON values.

        Keys of the configuration that were added after the run get their defaults.

        Raises:
          DamagedRecordError: if there is no such file, it holds something else, or `checks.check`
            refuses its configuration.
          UserError: if its configuration has keys that this version does not know.
        """
        path = self.config_json
        try:
            found = read_json(path)
            config = complete(found, self.path)
            wrong = wrong_facts(found, max(config.dataset.num_classes, 1))
            if wrong:
                raise DamagedRecordError(f'{", ".join(wrong)} should be as the run wrote it.')
            return found | {'config': json.loads(config.to_json())}
        except FileNotFoundError as error:
            if (self.path / 'generator.json').exists():
                raise DamagedRecordError(
                    f'{self.path} is an export, which has a generator alone: give the folder of '
                    'its run, or draw images in Python with sagan_jax.load.'
                ) from error
            if not self.checkpoint_steps():
                raise DamagedRecordError(
                    f'There is no run in {self.path}, because {path} cannot be read '
                    f'({reason(error)}): train first, or check --workdir.'
                ) from error
            why = reason(error)
        except DamagedRecordError as error:
            why = str(error).removesuffix('.')
        except (OSError, ValueError) as error:
            why = reason(error)
        raise DamagedRecordError(
            f'The configuration of the run, {path}, cannot be used ({why}): correct the file, or '
            'repeat the command that trains, with the same --config, which writes it again.'
        )

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Writes `config.json`: `provenance.record` with 'data', what the run is trained on."""
        with atomic_path(self.config_json, durable=True) as temporary:
            temporary.write_text(json.dumps(record, indent=2) + '\n', encoding='utf-8')

    def config(self) -> ml_collections.ConfigDict:
        """The run's configuration, locked, for a single process. Raises what `record` raises."""
        config = defaults.get_config()
        config.update(_with_tuples(self.record()['config']))
        config.distributed.coordinator = ''
        return config.lock()

    def class_names(self) -> tuple[str, ...]:
        """The names of the classes; numbers if the run did not record any.

        Raises what `record` raises.
        """
        record = self.record()
        classes = max(record['config']['dataset']['num_classes'], 1)
        width = len(str(classes - 1))  # so that the alphabetical order is that of the numbers
        numbers = [f'{number:0{width}}' for number in range(classes)]
        return tuple(record.get('data', {}).get('class_names', numbers))

    def num_classes(self) -> int:
        """The number of classes of the run's data. Raises what `record` raises."""
        return int(self.record()['config']['dataset']['num_classes'])

    def num_images(self) -> int:
        """The number of training images; 0 if the run did not record it.

        Raises what `record` raises.
        """
        return int(self.record().get('data', {}).get('count', 0))

    def has_discriminator(self) -> bool:
        """Whether there is one: a converted run may be of a generator alone.

        Raises what `record` raises.
        """
        origin = self.record().get('origin')
        return origin is None or 'discriminator' in origin['networks']

    # ---- Metrics. ------------------------------------------------------------------------------

    def metrics(self, tail: int = 0) -> list[dict[str, float]]:
        """What `metrics.jsonl` holds: one mapping per step with 'step', in the order of the steps.

        Lines of one step are merged, and where two give the same metric the later one counts.
        Leaves out what cannot be read, with a warning. A killed or running job may leave half a
        line at the end, which is left out without one.

        Args:
          tail: read only this many bytes from the end; 0 for the whole file.
        """
        path = self.metrics_jsonl
        try:
            with open_file(path) as file:
                start = max(0, file.seek(0, 2) - tail) if tail else 0
                file.seek(start)
                lines = file.read().split(b'\n')[1 if start else 0 :]  # the first may be cut
        except FileNotFoundError:
            return []
        except OSError as error:
            warn_once(f'{path} cannot be read ({reason(error)}): there are no curves')
            return []
        found: dict[float, dict[str, float]] = {}
        damaged = []
        for number, line in enumerate(lines, 1):
            values = parse_metrics(line)
            if values:
                found.setdefault(values['step'], {}).update(values)
            elif line.strip() and number < len(lines):  # the last one may be unfinished
                damaged.append(number)
        if damaged and not tail:  # who looks at the end looks often
            warn_once(
                f'{path}: {len(damaged)} of {len(lines) - 1} lines cannot be read and are left '
                f'out, the first is line {damaged[0]}'
            )
        return [found[step] for step in sorted(found)]

    def drop_metrics_after(self, step: int) -> None:
        """Removes the lines of later steps, and a last line that is not finished.

        Raises:
          OSError: if there is something else than a file in its place.
        """
        try:
            with open_file(self.metrics_jsonl) as file:
                *lines, last = file.read().split(b'\n')
        except FileNotFoundError:
            return
        if parse_metrics(last):
            lines.append(last)
        kept = [line for line in lines if not (v := parse_metrics(line)) or v['step'] <= step]
        with atomic_path(self.metrics_jsonl) as temporary:
            temporary.write_bytes(b''.join(line + b'\n' for line in kept))

    # ---- Scores. -------------------------------------------------------------------------------

    def scores(self, step: int) -> list[Row]:
        """The scores of a step with their protocols; none if it was not evaluated.

        Leaves out what cannot be read, with a warning.
        """
        rows, problem = self._read_scores(step)
        if problem:
            warn_once(f'{self.scores_json(step)} {problem}')
        return rows

    def all_scores(self) -> dict[int, list[Row]]:
        """The scores by step, in the order of the steps, see `scores`."""
        return {step: self.scores(step) for step in steps_in(self.evaluation, '.json')}

    def write_scores(self, step: int, rows: Sequence[Row]) -> Path:
        """Writes the scores of a step as a JSON array with one score per line.

        A file that `scores` cannot read as a whole is moved aside.
        """
        path = self.scores_json(step)
        if self._read_scores(step)[1]:
            aside = path.with_name(f'{path.stem}.damaged-{time.time_ns()}.json')
            path.rename(aside)
            print(f'warning        {path} is damaged and was moved to {aside}')
        lines = ',\n'.join(json.dumps(row, ensure_ascii=False) for row in rows)
        with atomic_path(path) as temporary:
            temporary.write_text(f'[\n{lines}\n]\n', encoding='utf-8')
        return path

    def _read_scores(self, step: int) -> tuple[list[Row], str]:
        """The scores of a step, and what is wrong with their file."""
        try:
            found = read_json(self.scores_json(step))
        except FileNotFoundError:
            return [], ''
        except (OSError, ValueError) as error:
            return [], f'cannot be read ({reason(error)}): its scores are left out'
        if not isinstance(found, list):
            return [], 'holds no list of scores: it is left out'
        rows = [row for row in found if is_row(row)]
        damaged = len(found) - len(rows)
        return rows, f'has {damaged} scores that cannot be read: they are left out' * bool(damaged)


def steps_in(folder: Path, suffix: str = '') -> dict[int, Path]:
    """The entries of a folder that are named after steps, in the order of the steps."""
    found = {}
    for path in folder.glob(f'*{suffix}'):
        digits = path.name.removesuffix(suffix)
        if _STEP.fullmatch(digits) and path.name == step_name(int(digits), suffix):
            found[int(digits)] = path
    return dict(sorted(found.items()))


def step_name(step: int, suffix: str = '') -> str:
    """The name of what belongs to a step: a checkpoint, or a file with a suffix."""
    return f'{step:06d}{suffix}' if suffix else str(step)


def complete(record: Any, folder: Path) -> ml_collections.ConfigDict:
    """A recorded configuration, with the defaults of keys that it lacks.

    Args:
      record: the JSON value that holds it, as 'config'.
      folder: where the record is.

    Raises:
      DamagedRecordError: if there is no configuration, or `checks.check` refuses it.
      UserError: if it has keys that this version does not know.
    """
    written = record.get('config') if isinstance(record, dict) else None
    if not isinstance(written, dict):
        raise DamagedRecordError('it holds no configuration')
    unknown = checks.unknown_keys(written)
    if unknown:
        version, commit = record.get('version', 'unknown'), record.get('commit') or 'unknown'
        raise UserError(
            f'The run in {folder} was written by another version of this program '
            f'({version!s:.40}, commit {commit!s:.60}), whose configuration has '
            f'{", ".join(unknown[:10])}: use that version, or train again.'
        )
    config, values = defaults.get_config(), _with_tuples(written)
    try:
        checks.check_types(values)
        config.update(values)
        checks.check(config)
    except UserError as error:
        raise DamagedRecordError(str(error)) from error
    if resolving.is_open(config):
        raise DamagedRecordError('the number of classes, the attention or diff_augment is missing')
    return config


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON values of a configuration, with tuples in place of lists."""

    def value(found: Any) -> Any:
        return tuple(found) if isinstance(found, list) else found

    return {
        name: {key: value(inner) for key, inner in found.items()}
        if isinstance(found, dict)
        else value(found)
        for name, found in values.items()
    }

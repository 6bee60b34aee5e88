"""A run's folder: every path in it, and the readers and writers of what it holds."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import ml_collections

from sagan_jax.configuration import defaults
from sagan_jax.errors import UserError
from sagan_jax.system.files import atomic_path


class Row(TypedDict):
    """A score and its protocol, as `evaluation/<step>.json` holds it."""

    name: str  # see `protocol.row_name`
    value: float
    real_value: NotRequired[float]  # the same score for the real images
    std: NotRequired[float]  # over splits or subsets
    per_class: NotRequired[dict[str, float]]
    splits: NotRequired[int]
    subsets: NotRequired[int]
    subset_size: NotRequired[int]
    k: NotRequired[int]  # neighbours
    step: int
    num_fake: int
    num_real: int
    data: str
    split: str
    image_size: int
    features: NotRequired[str]  # these three are missing if the score is computed from pixels
    features_sha256: NotRequired[str]
    resize: NotRequired[str]
    rounding: str
    labels: str
    ema: float
    batch_statistics: str
    seed: int
    versions: dict[str, str]


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
        return self.samples / f'{step:06d}.png'

    def scores_json(self, step: int) -> Path:
        """The scores of a step."""
        return self.evaluation / f'{step:06d}.json'

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
        return list(steps_in(self.checkpoints))

    # ---- The configuration and what belongs to it. ---------------------------------------------

    def record(self) -> dict[str, Any]:
        """`config.json` as `provenance.record` made it, as plain JSON values.

        Keys of the configuration that were added after the run get their defaults.

        Raises:
          UserError: if there is no such file, it holds something else, or its configuration has
            keys that this version does not know.
        """
        try:
            found = json.loads(self.config_json.read_text(encoding='utf-8'))
            return found | {'config': json.loads(self._complete(found).to_json())}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f'There is no run in {self.path}, because {self.config_json} cannot be read: '
                'train first, or check --workdir.'
            ) from error

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Writes `config.json`: `provenance.record` with 'data', what the run is trained on."""
        with atomic_path(self.config_json) as temporary:
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

    def _complete(self, record: Mapping[str, Any]) -> ml_collections.ConfigDict:
        """A recorded configuration, with the defaults of keys that it lacks."""
        config, written = defaults.get_config(), record['config']
        unknown = _unknown_keys(written, config)
        if unknown:
            version = record.get('version', 'unknown')
            raise UserError(
                f'The run in {self.path} was written by another version of this program '
                f'({version}, commit {record.get("commit") or "unknown"}), whose configuration '
                f'has {", ".join(unknown)}: use that version, or train again.'
            )
        config.update(_with_tuples(written))
        return config

    # ---- Metrics. ------------------------------------------------------------------------------

    def metrics(self, tail: int = 0) -> list[dict[str, float]]:
        """What `metrics.jsonl` holds: one mapping per step with 'step', in the order of the steps.

        Lines of one step are merged, and where two give the same metric the later one counts.
        Lines that are not whole are skipped: a killed or running job may leave half of one.

        Args:
          tail: read only this many bytes from the end; 0 for the whole file.
        """
        try:
            file = self.metrics_jsonl.open('rb')
        except (FileNotFoundError, NotADirectoryError):
            return []
        with file:
            start = max(0, file.seek(0, 2) - tail) if tail else 0
            file.seek(start)
            lines = file.read().split(b'\n')[1 if start else 0 :]  # the first may be cut
        found: dict[float, dict[str, float]] = {}
        for values in filter(None, map(parse_metrics, lines)):
            found.setdefault(values['step'], {}).update(values)
        return [found[step] for step in sorted(found)]

    def drop_metrics_after(self, step: int) -> None:
        """Removes the lines of later steps and those that are not whole."""
        if not self.metrics_jsonl.exists():
            return
        lines = self.metrics_jsonl.read_bytes().split(b'\n')
        kept = [line for line in lines if (v := parse_metrics(line)) and v['step'] <= step]
        with atomic_path(self.metrics_jsonl) as temporary:
            temporary.write_bytes(b''.join(line + b'\n' for line in kept))

    # ---- Scores. -------------------------------------------------------------------------------

    def scores(self, step: int) -> list[Row]:
        """The scores of a step with their protocols; none if it was not evaluated.

        Raises:
          UserError: if the file cannot be read or holds something else.
        """
        path = self.scores_json(step)
        try:
            rows = json.loads(path.read_text(encoding='utf-8'))
            if not all(_is_score(row) for row in rows):
                raise ValueError
        except FileNotFoundError:
            return []
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f'The scores {path} cannot be read: remove the file.') from error
        return rows

    def all_scores(self) -> dict[int, list[Row]]:
        """The scores by step, in the order of the steps. Raises what `scores` raises."""
        return {step: self.scores(step) for step in steps_in(self.evaluation, '.json')}

    def write_scores(self, step: int, rows: Sequence[Row]) -> Path:
        """Writes the scores of a step as a JSON array with one score per line."""
        path = self.scores_json(step)
        lines = ',\n'.join(json.dumps(row, ensure_ascii=False) for row in rows)
        with atomic_path(path) as temporary:
            temporary.write_text(f'[\n{lines}\n]\n', encoding='utf-8')
        return path


def steps_in(folder: Path, suffix: str = '') -> dict[int, Path]:
    """The entries of a folder that are named after steps, in the order of the steps."""
    found = (path for path in folder.glob(f'*{suffix}') if path.suffix == suffix)
    return dict(sorted((int(path.stem), path) for path in found if path.stem.isdecimal()))


def parse_metrics(line: bytes) -> dict[str, float] | None:
    """A line of `metrics.jsonl`; None if it is not whole or holds anything but numbers."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not (isinstance(values, dict) and type(values.get('step')) is int):
        return None
    return values if all(type(value) in (int, float) for value in values.values()) else None


def _is_score(row: Any) -> bool:
    return isinstance(row['name'], str) and type(row['value']) in (int, float)


def _unknown_keys(written: Mapping[str, Any], known: ml_collections.ConfigDict) -> list[str]:
    """The keys of a recorded configuration that `known` lacks, by dotted name."""
    found = []
    for key, value in written.items():
        if key not in known:
            found.append(key)
        elif isinstance(known[key], ml_collections.ConfigDict):
            found += [f'{key}.{name}' for name in _unknown_keys(value, known[key])]
    return found


def _with_tuples(value: Any) -> Any:
    """A JSON value with tuples in place of lists, as configurations have them."""
    if isinstance(value, dict):
        return {key: _with_tuples(entry) for key, entry in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value

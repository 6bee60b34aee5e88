"""The scores of a sweep, in columns of one score under one protocol each."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from launch.sweep import runs
from launch.sweep.runs import Run, State
from sagan_jax.errors import UserError
from sagan_jax.evaluation.protocol import apart_from_counts, conditions, score_of
from sagan_jax.run.folder import Row
from sagan_jax.viewing import protocols

MAIN_SCORES = ('fid', 'is', 'intra_fid', 'class_share', 'colour_agreement')


class Result(NamedTuple):
    """What a run has come to.

    Attributes:
      rows: of `evaluation/<step>.json`, by step.
      config: resolved; None if the run has not begun.
    """

    run: Run
    state: State
    config: dict[str, Any] | None
    rows: dict[int, list[Row]]


class Column(NamedTuple):
    """One score under one protocol.

    Attributes:
      title: the score's name, with a number where several protocols share it.
      score: 'fid', 'is', ….
      protocol: of all rows in it.
      values: of a run and a step.
      real_value: the same of real pictures, if it has one.
    """

    title: str
    score: str
    protocol: dict[str, Any]
    values: dict[tuple[Run, int], float]
    real_value: float | None

    def of(self, results: Sequence[Result]) -> list[float]:
        """The values of runs at their last step."""
        keys = [(result.run, last_step(result)) for result in results]
        return [self.values[key] for key in keys if key in self.values]

    def curve(self, result: Result) -> list[tuple[int, float]]:
        """The values of a run over its steps, as far as they are numbers."""
        values = {step: self.values.get((result.run, step), math.nan) for step in result.rows}
        return [(step, value) for step, value in values.items() if math.isfinite(value)]


def read_sweep(workdir: Path) -> tuple[dict[str, Any], dict[str, list[Result]]]:
    """A sweep's record, and what each of its variants has come to, seed by seed.

    Raises:
      UserError: when the folder is no sweep's.
    """
    path = workdir / runs.RECORD
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f'{workdir} holds no sweep, because {path} cannot be read: give the --workdir of '
            'launch.sweep.'
        ) from error
    results = {}
    for variant, seed in record['runs']:
        run = Run(variant, seed, workdir)
        result = Result(run, runs.state(run), runs.configuration(run), run.files.all_scores())
        results.setdefault(variant, []).append(result)
    return record, results


def last_step(result: Result) -> int | None:
    """The step whose scores stand for a run; None until it is trained."""
    return result.config['num_train_steps'] if result.state.trained else None


def columns(results: dict[str, list[Result]]) -> list[Column]:
    """The scores of all steps, one column for each score and protocol, the main ones first."""
    found = {}
    for result in (result for group in results.values() for result in group):
        for step, rows in result.rows.items():
            for row in rows:
                key = json.dumps(conditions(row), sort_keys=True)
                column = found.setdefault(key, {'row': row, 'values': {}})
                column['values'][result.run, step] = row['value']
    found = sorted(found.values(), key=lambda column: _order(column['row']))
    titles = protocols.numbered([column['row']['name'] for column in found])
    return [
        Column(
            title=title,
            score=score_of(column['row']['name']),
            protocol=conditions(column['row']),
            values=column['values'],
            real_value=column['row'].get('real_value'),
        )
        for title, column in zip(titles, found, strict=True)
    ]


def has_most_samples(column: Column, among: Sequence[Column]) -> bool:
    """Whether no other column has the same score, measured alike, of more generated images."""
    wanted = apart_from_counts(column.protocol)
    alike = [other for other in among if apart_from_counts(other.protocol) == wanted]
    return column.protocol['num_fake'] == max(other.protocol['num_fake'] for other in alike)


def mean_and_deviation(values: Sequence[float]) -> str:
    """'12.3 ± 0.4' with the sample standard deviation; the value alone if it is one."""
    if not values:
        return '–'
    mean, deviation = np.mean(values), np.std(values, ddof=1) if len(values) > 1 else 0.0
    if not (deviation and np.isfinite(deviation)):
        return f'{mean:.4g}' + (f' ± {deviation:g}' if len(values) > 1 else '')
    decimals = max(0, 1 - math.floor(math.log10(deviation)))  # of two digits of the deviation
    if decimals > 6:
        return f'{mean:.4g} ± {deviation:.1g}'
    return f'{mean:.{decimals}f} ± {deviation:.{decimals}f}'


def seconds_of_training(result: Result) -> float:
    """Seconds that the steps took, summed over metrics.jsonl from the rates logged there.

    In them are the drawing of sample grids and the writing of checkpoints, but neither compilation
    nor scores, nor the steps that a killed run lost.
    """
    lines = [line for line in result.run.files.metrics() if 'discriminator_loss' in line]
    rates = [line['images_per_second'] for line in lines if line.get('images_per_second')]
    if not rates:
        return 0.0
    typical, images = float(np.median(rates)), runs.images_a_step(result.config)
    seconds, before = 0.0, 0
    for line in lines:
        rate = line.get('images_per_second') or typical
        seconds += (line['step'] - before) * images / rate
        before = line['step']
    return seconds


def _order(row: Row) -> tuple:
    score = score_of(row['name'])
    rank = MAIN_SCORES.index(score) if score in MAIN_SCORES else len(MAIN_SCORES)
    return rank, -row['num_fake'], row['name'], json.dumps(conditions(row), sort_keys=True)

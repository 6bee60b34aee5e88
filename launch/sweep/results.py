"""The scores of a sweep in columns; each column has one score under one protocol."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from launch.sweep import runs
from launch.sweep.runs import Record, Run, State
from sagan_jax.errors import UserError
from sagan_jax.evaluation.protocol import apart_from_counts, conditions
from sagan_jax.run.entries import Row, score_of
from sagan_jax.viewing import protocols
from sagan_jax.viewing.charts import Points

MAIN_SCORES = ('fid', 'is', 'intra_fid', 'class_share', 'colour_agreement')


class Result(NamedTuple):
    """A run with its state and its scores.

    Attributes:
      config: the resolved configuration; empty if the run has not begun.
      rows: the rows of `evaluation/<step>.json`, by step.
    """

    run: Run
    state: State
    config: dict[str, Any]
    rows: dict[int, list[Row]]


class Column(NamedTuple):
    """One score under one protocol.

    Attributes:
      title: the score's name, with a number where several protocols share it.
      score: 'fid', 'is', ….
      protocol: the protocol of all its values.
      values: by run and step.
      real_value: the score of the real images, if it has one.
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

    def curve(self, result: Result) -> Points:
        """The finite values of a run over its steps."""
        values = {step: self.values.get((result.run, step), math.nan) for step in result.rows}
        return [(step, value) for step, value in values.items() if math.isfinite(value)]


def read_sweep(workdir: Path) -> tuple[Record, dict[str, list[Result]]]:
    """Reads a sweep's record, and the results of each variant seed by seed.

    Raises:
      UserError: when the folder holds no sweep.
    """
    record = runs.read_record(workdir)
    if record is None:
        raise UserError(
            f'{workdir} holds no sweep, because {workdir / runs.RECORD} is missing: give the '
            '--workdir of launch.sweep.'
        )
    results: dict[str, list[Result]] = {}
    for variant, seed in record['runs']:
        run = Run(variant, seed, workdir)
        config = runs.configuration(run) or {}
        result = Result(run, runs.state(run), config, run.files.all_scores())
        results.setdefault(variant, []).append(result)
    return record, results


def last_step(result: Result) -> int | None:
    """The step whose scores count for a run; None until it is trained."""
    return result.config['num_train_steps'] if result.state.trained else None


def columns(results: dict[str, list[Result]]) -> list[Column]:
    """The scores of all steps: one column for each score and protocol, the main scores first."""
    first_rows: dict[str, Row] = {}
    values: dict[str, dict[tuple[Run, int], float]] = {}
    for result in (result for group in results.values() for result in group):
        for step, rows in result.rows.items():
            for row in rows:
                key = json.dumps(conditions(row), sort_keys=True)
                first_rows.setdefault(key, row)
                values.setdefault(key, {})[result.run, step] = row['value']
    found = sorted(first_rows.items(), key=lambda item: _order(item[1]))
    titles = protocols.numbered([row['name'] for _, row in found])
    return [
        Column(
            title=title,
            score=score_of(row['name']),
            protocol=conditions(row),
            values=values[key],
            real_value=row.get('real_value'),
        )
        for title, (key, row) in zip(titles, found, strict=True)
    ]


def has_most_samples(column: Column, among: Sequence[Column]) -> bool:
    """Whether no column has the same score under the same conditions of more generated images."""
    wanted = apart_from_counts(column.protocol)
    alike = [other for other in among if apart_from_counts(other.protocol) == wanted]
    return column.protocol['num_fake'] == max(other.protocol['num_fake'] for other in alike)


def mean_and_deviation(values: Sequence[float]) -> str:
    """'12.3 ± 0.4' with the sample standard deviation; '12.3' for one value, '–' for none."""
    if not values:
        return '–'
    mean, deviation = np.mean(values), np.std(values, ddof=1) if len(values) > 1 else 0.0
    if not (deviation and np.isfinite(deviation)):
        return f'{mean:.4g}' + (f' ± {deviation:g}' if len(values) > 1 else '')
    decimals = max(0, 1 - math.floor(math.log10(deviation)))  # for two digits of the deviation
    if decimals > 6:
        return f'{mean:.4g} ± {deviation:.1g}'
    return f'{mean:.{decimals}f} ± {deviation:.{decimals}f}'


def seconds_of_training(result: Result) -> float:
    """Seconds that the steps took, computed from the rates in metrics.jsonl.

    Includes sample grids and checkpoints. Excludes compilation, scoring, and steps that a killed
    run repeated.
    """
    lines = [line for line in result.run.files.metrics() if 'discriminator_loss' in line]
    rates = [line['images_per_second'] for line in lines if line.get('images_per_second')]
    if not rates:
        return 0.0
    median, images = float(np.median(rates)), runs.images_per_step(result.config)
    seconds, before = 0.0, 0.0
    for line in lines:
        rate = line.get('images_per_second') or median
        seconds += (line['step'] - before) * images / rate
        before = line['step']
    return seconds


def _order(row: Row) -> tuple:
    score = score_of(row['name'])
    rank = MAIN_SCORES.index(score) if score in MAIN_SCORES else len(MAIN_SCORES)
    return rank, -row['num_fake'], row['name'], json.dumps(conditions(row), sort_keys=True)

"""Summarizes the scores of a sweep: python -m launch.report WORKDIR

Writes WORKDIR/report.md and WORKDIR/report.html: the mean ± standard deviation of each variant's
scores over the seeds, beside the paper's scores; curves of the scores over steps; samples. The
sweep may still be running.
"""

from sagan_jax.system import ending

if __name__ == '__main__':
    ending.prepare()  # before the imports that take seconds

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from launch.sweep import paper, results, runs
from launch.sweep.results import Column, Result
from launch.sweep.runs import Record
from sagan_jax.evaluation.protocol import LOW_IS_GOOD
from sagan_jax.system import untrusted
from sagan_jax.system.paths import check_path
from sagan_jax.viewing import charts, page, protocols
from sagan_jax.viewing.charts import Chart
from sagan_jax.viewing.page import Figure


class Cited(NamedTuple):
    """The text of a cell that is not a result of the sweep."""

    cited: str


Cell = str | Cited


class Table(NamedTuple):
    """Rows of text; the first column names them. The notes follow as paragraphs."""

    heading: str
    header: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line. Raises UserError for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog='python -m launch.report',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('workdir', metavar='WORKDIR', help='the --workdir of launch.sweep')
    options = parser.parse_args(arguments)
    check_path(options.workdir, 'WORKDIR')
    for path in write(Path(options.workdir)):
        print(f'written        {path}')


def write(workdir: Path) -> list[Path]:
    """Writes the report of a sweep; returns its files.

    Raises:
      UserError: when the folder does not hold a sweep, or the report cannot be written.
    """
    record, variants = results.read_sweep(workdir)
    values = _values(record, variants)
    paths = []
    for template in ('sweep.md', 'sweep.html'):
        path = (workdir / template).with_stem('report')
        page.write(path, page.render(template, **values))
        paths.append(path)
    return paths


def _values(record: Record, variants: dict[str, list[Result]]) -> dict[str, Any]:
    """The values that the templates show."""
    all_results = [result for group in variants.values() for result in group]
    seeds = sorted({result.run.seed for result in all_results})
    columns = results.columns(variants)
    scored = [column for column in columns if any(column.of(group) for group in variants.values())]
    return {
        'title': f'Sweep of {record["config"]}',
        'command': ' '.join(
            (
                f'python -m launch.sweep --config {record["config"]} --variants',
                f'{",".join(variants)} --seeds {",".join(map(str, seeds))} --workdir WORKDIR',
                *record['overrides'],
            )
        ),
        'total': len(all_results),
        'unfinished': [runs.line(r.run, r.state) for r in all_results if r.state.what != 'done'],
        'scores': _score_tables(variants, scored),
        'charts': _charts(variants, columns),
        'sample_grids': _sample_grids(variants),
        'runs': _runs(variants),
        'protocols': protocols.in_words(
            [column.title for column in scored], [column.protocol for column in scored]
        ),
    }


def _score_tables(variants: dict[str, list[Result]], scored: Sequence[Column]) -> list[Table]:
    full = [column for column in scored if results.has_most_samples(column, scored)]
    main = [column for column in full if column.score in results.MAIN_SCORES]
    further = [column for column in full if column not in main]
    fewer = [column for column in scored if column not in full]
    tables = [
        _score_table('Scores', variants, main, _about_the_scores(variants), with_paper=True),
        _score_table('Further scores', variants, further),
        _score_table('Scores of fewer images', variants, fewer),
    ]
    return [table for table, some in zip(tables, (main, further, fewer), strict=True) if some]


def _score_table(
    heading: str,
    variants: dict[str, list[Result]],
    columns: Sequence[Column],
    notes: Sequence[str] = (),
    with_paper: bool = False,
) -> Table:
    """One variant per row; the paper's values of a score follow the sweep's last column of it."""
    trained = {name: sum(r.state.trained for r in group) for name, group in variants.items()}
    header: list[Cell] = ['variant', 'seeds']
    rows: dict[str, list[Cell]] = {name: [name, str(count)] for name, count in trained.items()}
    real: list[Cell] = [Cited('real images'), '']
    for index, column in enumerate(columns):
        header.append(f'{column.title} {"↓" if column.score in LOW_IS_GOOD else "↑"}')
        real.append('' if column.real_value is None else Cited(f'{column.real_value:.4g}'))
        for name, group in variants.items():
            values = column.of(group)
            some = f' ({len(values)} of {trained[name]})' if 0 < len(values) < trained[name] else ''
            rows[name].append(results.mean_and_deviation(values) + some)
        if not with_paper or column.score in (other.score for other in columns[index + 1 :]):
            continue
        of_paper = {name: paper.SCORES.get(name, {}).get(column.score) for name in variants}
        if any(of_paper.values()):
            header.append(Cited(f'paper {column.score.replace("_", " ")}'))
            real.append('')
            for name, value in of_paper.items():
                rows[name].append(Cited(value.replace(' @', '\u00a0@')) if value else '')
    found = [*rows.values(), real] if any(real[1:]) else list(rows.values())
    return Table(heading, header, found, notes)


def _about_the_scores(variants: dict[str, list[Result]]) -> list[str]:
    text = [
        'Mean ± sample standard deviation over the seeds, each run at its last step, which is '
        'not necessarily its best. ↓: lower is better, ↑: higher is better. Each column has one '
        'protocol, listed below.'
    ]
    if paper.SCORES.keys() & variants.keys():
        text.append(paper.NOTE)
        if variants.keys() & {'acgan', 'sngan_projection'} and 'feat64' not in variants:
            text.append(paper.SAGAN_NOTE)
    return text


def _charts(variants: dict[str, list[Result]], columns: Sequence[Column]) -> list[Chart]:
    """A chart of each main score that was measured at several steps."""
    found = []
    for column in columns:
        if column.score not in results.MAIN_SCORES:
            continue
        drawn = [
            charts.Curve(name, [points for r in group if (points := column.curve(r))], style)
            for style, (name, group) in enumerate(variants.items())
        ]
        if any(len(run) > 1 for curve in drawn for run in curve.runs):
            low_is_good = column.score in LOW_IS_GOOD
            found.append(charts.chart(column.title, drawn, logarithmic=low_is_good))
    return found


def _sample_grids(variants: dict[str, list[Result]]) -> list[Figure]:
    """The last sample grid of each variant, then a grid of real images."""
    figures: list[Figure] = []
    reals = []
    for name, group in variants.items():
        last = [(max(grids), result) for result in group if (grids := result.run.files.grids())]
        if last:
            step, result = max(last, key=lambda each: each[0])
            caption = f'{name}, seed {result.run.seed}, step {step:,}'
            figures += page.figures({result.run.files.grid(step): caption})
            reals.append(result.run.files.reals)
    return figures + page.figures(dict.fromkeys(reals[:1], 'real images'))


def _runs(variants: dict[str, list[Result]]) -> Table:
    rows = []
    for name, group in variants.items():
        begun = [result for result in group if result.config]
        trained = [result for result in begun if result.state.trained]
        seconds = [results.seconds_of_training(result) for result in trained]
        steps = sorted({result.config['num_train_steps'] for result in begun})
        images = sum(r.config['num_train_steps'] * runs.images_per_step(r.config) for r in trained)
        rows.append(
            [
                name,
                ', '.join(f'{result.run.seed} {result.state.what}' for result in group),
                ', '.join(f'{step:,}' for step in steps),
                runs.duration(sum(seconds) / len(seconds)) if seconds else '–',
                f'{images / sum(seconds):,.0f}' if sum(seconds) else '–',
                ', '.join(sorted({_devices(result) for result in begun} - {''})),
            ]
        )
    header = ['variant', 'seeds', 'steps', 'time of a run', 'images/s', 'devices']
    note = (
        'The time of a run is the time of its steps, summed from the images per second in its '
        'metrics.jsonl. It includes sample grids and checkpoints; it excludes compilation, scoring '
        'and steps that a killed run repeated.'
    )
    return Table('Runs', header, rows, [note])


def _devices(result: Result) -> str:
    """The devices that a run printed last in its log."""
    try:
        with untrusted.open_file(result.run.folder / runs.LOG) as log:
            text = log.read().decode(errors='replace')
    except OSError:
        return ''
    return (re.findall(r'^devices +(.+)$', text, re.MULTILINE) or [''])[-1]


if __name__ == '__main__':
    main()

"""Puts the scores of a sweep together: python -m launch.report WORKDIR

Writes WORKDIR/report.md and WORKDIR/report.html: for each variant the mean ± standard deviation of
each score over the seeds, with what the paper reports; curves of the scores over steps; samples. A
sweep that still goes on may be looked at as well.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch import page
from launch.page import Html, Part, Table
from launch.sweep import paper, results, runs
from launch.sweep.results import Column, Result
from sagan_jax.errors import UserError
from sagan_jax.system.files import atomic_path
from sagan_jax.viewing import charts
from sagan_jax.viewing.page import figure


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status, 2 after a mistake of the user's."""
    parser = argparse.ArgumentParser(
        prog='python -m launch.report',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('workdir', metavar='WORKDIR', help='the --workdir of launch.sweep')
    options = parser.parse_args(arguments)
    try:
        for path in write(Path(options.workdir)):
            print(f'written        {path}')
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


def write(workdir: Path) -> list[Path]:
    """Writes the report of a sweep; returns its files.

    Raises:
      UserError: when the folder is no sweep's.
    """
    record, variants = results.read_sweep(workdir)
    parts = report(record, variants)
    title = parts[0].removeprefix('# ')
    paths = [workdir / 'report.md', workdir / 'report.html']
    for path, text in zip(paths, (page.markdown(parts), page.html(title, parts)), strict=True):
        with atomic_path(path) as temporary:
            temporary.write_text(text)
    return paths


def report(record: dict[str, Any], variants: dict[str, list[Result]]) -> list[Part]:
    """The report as the parts of a page."""
    columns = results.columns(variants)
    scored = [column for column in columns if any(column.of(group) for group in variants.values())]
    full = [column for column in scored if results.has_most_samples(column, scored)]
    main = [column for column in full if column.score in results.MAIN_SCORES]
    tables = [
        ('## Scores', main),
        ('## Further scores', [column for column in full if column not in main]),
        ('## Scores of fewer images', [column for column in scored if column not in full]),
    ]
    parts = [*_introduction(record, variants), *_unfinished(variants)]
    for heading, some in tables:
        if some:
            parts += [heading, _scores(variants, some, with_paper=some is main)]
        if some and some is main:
            parts += _about_the_scores(variants)
    return [
        *parts,
        *_curves(variants, columns),
        *_samples(variants),
        '## Runs',
        _runs(variants),
        'The time of a run is that of its steps, summed from the images a second in its '
        'metrics.jsonl: with the sample grids and checkpoints in between, without compilation, '
        'scoring and what a killed run had to do again.',
        *_protocols(scored),
    ]


# ---- Sections. ---------------------------------------------------------------------------------


def _introduction(record: dict[str, Any], variants: dict[str, list[Result]]) -> list[Part]:
    seeds = sorted({result.run.seed for group in variants.values() for result in group})
    command = ' '.join(
        (
            f'python -m launch.sweep --config {record["config"]} --variants {",".join(variants)}',
            f'--seeds {",".join(map(str, seeds))} --workdir WORKDIR',
            *record['overrides'],
        )
    )
    return [f'# Sweep of {record["config"]}', f'`{command}`']


def _unfinished(variants: dict[str, list[Result]]) -> list[Part]:
    everything = [result for group in variants.values() for result in group]
    lines = [
        f'- {runs.line(result.run, result.state)}'
        for result in everything
        if result.state.what != 'done'
    ]
    if not lines:
        return [f'All {len(everything)} runs are done.']
    return [
        f'{len(everything) - len(lines)} of {len(everything)} runs are done. The others, of which '
        'those that are trained stand in the tables:',
        '\n'.join(lines),
    ]


def _scores(
    variants: dict[str, list[Result]], columns: Sequence[Column], with_paper: bool
) -> Table:
    """A row for each variant; what the paper reports of a score stands right of our last one."""
    header, cells = ['variant', 'seeds'], {name: [name] for name in variants}
    trained = {name: sum(r.state.trained for r in group) for name, group in variants.items()}
    for name, count in trained.items():
        cells[name].append(str(count))
    real = ['*real pictures*', '']
    for index, column in enumerate(columns):
        header.append(f'{column.title} {"↓" if column.score in results.LOW_IS_GOOD else "↑"}')
        real.append('' if column.real_value is None else f'*{column.real_value:.4g}*')
        for name, group in variants.items():
            values = column.of(group)
            text = results.mean_and_deviation(values)
            if 0 < len(values) < trained[name]:
                text += f' ({len(values)} of them)'
            cells[name].append(text)
        follows = columns[index + 1].score if index + 1 < len(columns) else None
        of_paper = {name: paper.SCORES.get(name, {}).get(column.score) for name in variants}
        if with_paper and follows != column.score and any(of_paper.values()):
            header.append(f'*paper {column.score.replace("_", " ")}*')
            real.append('')
            for name, value in of_paper.items():
                unbroken = (value or '').replace(' @', '\u00a0@')
                cells[name].append(f'*{unbroken}*' if value else '')
    rows = list(cells.values())
    return Table(header, [*rows, real] if any(real[1:]) else rows)


def _about_the_scores(variants: dict[str, list[Result]]) -> list[Part]:
    parts = [
        'Mean ± sample standard deviation over the seeds, each run at its last step, which need '
        'not be its best. ↓: low is good, ↑: high is good. Each column is of one protocol, see '
        'below.'
    ]
    if paper.SCORES.keys() & variants.keys():
        parts.append(paper.NOTE)
        if variants.keys() & {'acgan', 'sngan_projection'} and 'feat64' not in variants:
            parts.append(paper.SAGAN_NOTE)
    return parts


def _curves(variants: dict[str, list[Result]], columns: Sequence[Column]) -> list[Part]:
    pictures = []
    for column in columns:
        if column.score not in results.MAIN_SCORES:
            continue
        drawn = [
            charts.Curve(name, [points for r in group if (points := column.curve(r))], style)
            for style, (name, group) in enumerate(variants.items())
        ]
        if any(len(run) > 1 for curve in drawn for run in curve.runs):
            low_is_good = column.score in results.LOW_IS_GOOD
            pictures.append(charts.chart(column.title, drawn, logarithmic=low_is_good))
    if not pictures:
        return []
    return [
        Html('<h2>Scores over steps</h2>'),
        Html(
            '<p>Thick: the mean over the seeds, as far as all of them have come. Thin: each of '
            f'them.</p>{charts.legend(drawn)}<div class="charts">{"".join(pictures)}</div>'
        ),
    ]


def _samples(variants: dict[str, list[Result]]) -> list[Part]:
    figures, reals = [], []
    for name, group in variants.items():
        found = [
            (path, result)
            for result in group
            for path in sorted((result.run.folder / 'samples').glob('[0-9]*.png'))[-1:]
        ]
        if found:
            path, result = max(found, key=lambda each: int(each[0].stem))
            caption = f'{name}, seed {result.run.seed}, step {int(path.stem):,}'
            figures.append(figure(path, caption))
            reals.append(result.run.folder / 'samples' / 'reals.png')
    if not figures:
        return []
    figures += [figure(path, 'real pictures') for path in reals[:1] if path.exists()]
    return [
        Html(
            '<h2>Samples</h2><p>Of each variant the last sample grid of the seed that has come '
            'furthest, of the first if several have.</p>'
            f'<div class="pictures">{"".join(figures)}</div>'
        )
    ]


def _runs(variants: dict[str, list[Result]]) -> Table:
    rows = []
    for name, group in variants.items():
        begun = [result for result in group if result.config]
        trained = [result for result in begun if result.state.trained]
        seconds = [results.seconds_of_training(result) for result in trained]
        steps = sorted({result.config['num_train_steps'] for result in begun})
        images = sum(r.config['num_train_steps'] * runs.images_a_step(r.config) for r in trained)
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
    return Table(['variant', 'seeds', 'steps', 'time of a run', 'images/s', 'devices'], rows)


def _devices(result: Result) -> str:
    """The devices that a run last printed to its log."""
    try:
        text = (result.run.folder / runs.LOG).read_text(errors='replace')
    except FileNotFoundError:
        return ''
    return (re.findall(r'^devices +(.+)$', text, re.MULTILINE) or [''])[-1]


def _protocols(columns: Sequence[Column]) -> list[Part]:
    """What all columns share, then what each has besides."""
    if not columns:
        return []

    def words(items):
        return ', '.join(f'{k} {v[:12] if k == "features_sha256" else v}' for k, v in items)

    # The colour agreement is read off the pictures: it has no features and shares all the rest.
    items = [c.protocol for c in columns if c.score != 'colour_agreement'] or [columns[0].protocol]
    shared = [(k, v) for k, v in items[0].items() if all(item.get(k) == v for item in items)]
    lines = []
    for column in columns:
        own = [(k, v) for k, v in column.protocol.items() if (k, v) not in shared and k != 'name']
        lines.append(f'- {column.title}: {words(own)}')
    return [
        '## Protocols',
        f'All columns, as far as they have it: {words(shared)}.',
        '\n'.join(lines),
    ]


if __name__ == '__main__':
    sys.exit(main())

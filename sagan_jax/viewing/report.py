"""The report of a run: `report.html`, one self-contained file."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from flax.traverse_util import flatten_dict

from sagan_jax import sampling
from sagan_jax.errors import UserError
from sagan_jax.evaluation.protocol import identity
from sagan_jax.images import read
from sagan_jax.run.entries import Row
from sagan_jax.run.folder import RunFolder
from sagan_jax.viewing import charts, page, protocols
from sagan_jax.viewing.charts import Chart, Curve, Points
from sagan_jax.viewing.page import Figure

_MAX_POINTS = 300  # of a curve
_MAX_GRIDS = 24  # of the slider

# Metrics in the order of their charts; any others follow under their own names.
_TITLES = {
    'loss': 'losses',
    'logit': 'mean logits',
    'gamma': 'γ of attention',
    'sigma': 'largest σ before normalisation',
    'grad_norm': 'gradient norms',
    'sample_diversity': "diversity of a class's samples",
    'images_per_second': 'images per second',
}
_NETWORKS = ('generator', 'discriminator')

Item = TypeVar('Item')


def write(workdir: Path) -> None:
    """Writes `report.html` into a run's folder.

    Raises:
      UserError: when there is no run, or the file cannot be written.
    """
    page.write(RunFolder(workdir).report, html(workdir))


def html(workdir: Path, served: bool = False) -> str:
    """The report of a run. Reads only the run's folder; the training data are not needed.

    Shows at most 300 points of each curve and 24 sample grids, evenly spaced. Leaves out what
    cannot be read, with a warning.

    Args:
      workdir: the run's folder; only its config.json is required.
      served: whether a server delivers the page, which then asks the server for updates.

    Raises:
      UserError: when there is no run.
    """
    run = RunFolder(workdir)
    record, metrics, scores = run.record(), run.metrics(), _scores(run)
    grids, classes = run.grids(), _grid_rows(run)
    latest = [series[-1] for series in scores]
    titles = protocols.numbered([row['name'] for row in latest])
    return page.render(
        'run.html',
        served=served,
        name=workdir.resolve().name,
        config=record['config'],
        data=record.get('data', {}),
        commit=(record.get('commit') or 'unknown')[:10],
        versions=record.get('versions', {}),
        step=metrics[-1]['step'] if metrics else 0,
        logged=_last_change(run.metrics_jsonl),
        samples=_evolution(grids),
        reals=page.figures({run.reals: 'real images'}),
        class_names=classes,
        class_rows=_class_rows(run, grids, classes),
        scores=[_score_cells(title, row) for title, row in zip(titles, latest, strict=True)],
        score_charts=_score_charts(titles, scores),
        protocols=protocols.in_words(titles, [identity(row) for row in latest]),
        curves=_curves(metrics, {row['name'] for row in latest}),
        attention_maps=page.figures(
            {run.figures / f'attention_{network}.png': network for network in _NETWORKS},
        ),
        settings=_settings(record['config']),
    )


# ---- What the folder holds. --------------------------------------------------------------------


def _scores(run: RunFolder) -> list[list[Row]]:
    """The scores over the steps, one list for each name and protocol."""
    series: dict[str, list[Row]] = {}
    for rows in run.all_scores().values():
        for row in rows:
            key = json.dumps(identity(row) | {'step': None}, sort_keys=True)
            series.setdefault(key, []).append(row)
    return list(series.values())


def _grid_rows(run: RunFolder) -> list[str]:
    """The class of each row of the sample grids; empty without classes."""
    config, names = run.config(), run.class_names()
    if config.model.conditioning == 'none' or len(names) < 2:
        return []
    return [names[label] for label in sampling.grid_classes(config.dataset.num_classes)]


# ---- What the page shows. ----------------------------------------------------------------------


def _last_change(path: Path) -> str:
    try:
        return f'{datetime.fromtimestamp(path.stat().st_mtime, UTC):%Y-%m-%d %H:%M} UTC'
    except (OSError, ValueError, OverflowError):  # no such file, or no such year
        return ''


def _evolution(grids: Mapping[int, Path]) -> list[Figure]:
    steps = _evenly_spaced(list(grids), _MAX_GRIDS)
    return page.figures({grids[step]: f'step {step:,}' for step in steps})


def _class_rows(
    run: RunFolder, grids: Mapping[int, Path], classes: Sequence[str]
) -> list[tuple[str, list[Figure]]]:
    """For each class: its name, and its rows of the last sample grid and of real images."""
    if not classes or not grids:
        return []
    found: list[tuple[str, list[Figure]]] = [(name, []) for name in classes]
    sources = {'samples': grids[max(grids)], 'real images': run.reals}
    for kind, path in sources.items():
        try:
            grid = read(path)
        except UserError:  # the page has named it, if it exists
            continue
        height = len(grid) // len(classes)
        if not height:
            continue
        for index, (name, figures) in enumerate(found):
            row = grid[index * height : (index + 1) * height]
            figures.append(Figure(f'{name}, {kind}', page.data_uri(row)))
    return found


def _score_cells(title: str, row: Row) -> tuple[str, ...]:
    return (
        title,
        f'{row["value"]:.4g}' + (f' ± {row["std"]:.2g}' if 'std' in row else ''),
        f'{row["step"]:,}',
        f'{row["real_value"]:.4g}' if 'real_value' in row else '',
        f'{row["num_fake"]:,}',
        f'{row["num_real"]:,}',
        row.get('features', ''),
    )


def _score_charts(titles: Sequence[str], scores: Sequence[Sequence[Row]]) -> list[Chart]:
    """A chart of each score that was measured at several steps."""
    found = []
    for title, series in zip(titles, scores, strict=True):
        if len(series) > 1:
            curve = _curve(title, [(row['step'], row['value']) for row in series], 0)
            found.append(charts.chart(title, [curve]))
    return found


def _curves(metrics: Iterable[Mapping[str, float]], scores: set[str]) -> list[Chart]:
    """A chart of each kind of metric."""
    groups: dict[str, dict[tuple[str, str], Points]] = {kind: {} for kind in _TITLES}
    for line in metrics:
        for name in (name for name in line if name != 'step' and name not in scores):
            owner, kind, where = _parse(name)
            points = groups.setdefault(kind, {}).setdefault((owner, where), [])
            points.append((line['step'], line[name]))
    found = []
    for kind, group in groups.items():
        curves = _coloured(kind, group)
        if any(len(curve.mean) > 1 for curve in curves):
            found.append(charts.chart(_TITLES.get(kind, kind), curves))
    return found


def _coloured(kind: str, group: Mapping[tuple[str, str], Points]) -> list[Curve]:
    """The curves of one kind: one colour per network, further curves of it dashed."""
    curves: list[Curve] = []
    for owner, where in sorted(group, key=lambda key: (_accent(key[0]), int(key[1] or 0))):
        accent = _accent(owner)
        before = sum(curve.style % len(charts.COLOURS) == accent for curve in curves)
        points = _evenly_spaced(group[owner, where], _MAX_POINTS)
        style = accent + before * len(charts.COLOURS)
        curves.append(_curve(f'{owner} {where}'.strip() or kind, points, style))
    return curves


def _parse(name: str) -> tuple[str, str, str]:
    """The owner, kind and resolution in a metric's name; '' for a part that it lacks."""
    found = re.fullmatch(r'(generator|discriminator|real|fake)_(\D+)([0-9]{0,9})', name)
    return (found[1], found[2], found[3]) if found else ('', name, '')


def _accent(owner: str) -> int:
    """The index of an owner's colour; logits on fakes share the generator's."""
    return int(owner in ('discriminator', 'real'))


def _curve(name: str, points: Points, style: int) -> Curve:
    return Curve(name, [[(x, y) for x, y in points if np.isfinite(y)]], style)


def _settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every key of the configuration with its value."""
    return [(key, json.dumps(value)) for key, value in flatten_dict(config, sep='.').items()]


def _evenly_spaced(items: Sequence[Item], max_items: int) -> list[Item]:
    """At most `max_items` of the items, evenly spaced, including the first and the last."""
    chosen = np.linspace(0, len(items) - 1, min(len(items), max_items)).round().astype(int)
    return [items[index] for index in chosen]

"""A run to look at: `report.html`, one file that needs no other."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from PIL import Image

from sagan_jax import sampling
from sagan_jax.evaluation import evaluate
from sagan_jax.evaluation.evaluate import Row
from sagan_jax.run import provenance
from sagan_jax.system.files import atomic_path
from sagan_jax.viewing import charts, page

_MOST_POINTS = 300  # of a curve
_MOST_PICTURES = 24  # of a slider

# Metrics in the order of their charts; any others follow under their own names.
_TITLES = {
    'loss': 'losses',
    'logit': 'mean logits',
    'gamma': 'γ of attention',
    'sigma': 'largest σ before normalisation',
    'grad_norm': 'gradient norms',
    'sample_diversity': "diversity of a class's samples",
    'images_per_second': 'images a second',
}
_NETWORKS = ('generator', 'discriminator')


def write(workdir: Path) -> None:
    """Writes `report.html` of what lies in a run's folder; raises what `html` does."""
    with atomic_path(workdir / 'report.html') as temporary:
        temporary.write_text(html(workdir), encoding='utf-8')


def html(workdir: Path, served: bool = False) -> str:
    """The report of a run, made of what lies in its folder alone.

    Of long runs it holds some hundred points of each curve and two dozen of the sample grids.

    Args:
      workdir: the run's folder, in which everything but config.json may be missing still.
      served: whether it comes from a server, which it asks for news; otherwise it needs nobody.

    Raises:
      UserError: where there is no run.
      OSError: where a picture cannot be read.
    """
    record = provenance.read_record(workdir)
    metrics, scores = _metrics(workdir), _scores(workdir)
    grids = _by_step(workdir / 'samples', '.png')
    rows = _grid_rows(workdir)
    parts = [
        _introduction(workdir, record, metrics, served),
        _evolution(workdir, grids, rows),
        _classes(workdir, grids, rows),
        _scores_section(scores),
        _curves(metrics, {row['name'] for series in scores for row in series}),
        _attention(workdir, record['config'], served),
        _configuration(record),
    ]
    title = f'{workdir.resolve().name} – sagan_jax'
    body = '\n'.join(('<main>', *parts, '</main>'))
    return page.document(title, body, 'live.js' if served else '', served)


# ---- What lies in the folder. ------------------------------------------------------------------


def _metrics(workdir: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl; one that a killed run has left half-written is passed over."""
    path, found = workdir / 'metrics.jsonl', []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def _scores(workdir: Path) -> list[list[Row]]:
    """The scores over the steps, a list for each name and protocol."""
    series = {}
    for step in _by_step(workdir / 'evaluation', '.json'):
        for row in evaluate.read(workdir, step):
            key = json.dumps(evaluate.protocol(row) | {'step': None}, sort_keys=True)
            series.setdefault(key, []).append(row)
    return list(series.values())


def _by_step(folder: Path, suffix: str) -> dict[int, Path]:
    """The files of a folder that are named after steps, in the order of these."""
    found = {int(p.stem): p for p in folder.glob(f'*{suffix}') if p.stem.isdecimal()}
    return dict(sorted(found.items()))


def _grid_rows(workdir: Path) -> list[str]:
    """What the rows of the sample grids are called; nothing without classes."""
    config, names = provenance.read(workdir)
    if config.model.conditioning == 'none' or len(names) < 2:
        return []
    return [names[label] for label in sampling.grid_labels(config, sampling.GRID_ROWS, 1)]


# ---- Sections. ---------------------------------------------------------------------------------


def _introduction(workdir: Path, record: Mapping, metrics: Sequence[Mapping], served: bool) -> str:
    config, data = record['config'], record.get('data', {})
    model, rates = config['model'], config['optimizer']
    size, classes = config['dataset']['image_size'], config['dataset']['num_classes']
    step, last = metrics[-1]['step'] if metrics else 0, config['num_train_steps']
    count = f'{data["count"]:,} ' if 'count' in data else ''
    kinds = f'{classes:,} classes' if model['conditioning'] != 'none' else 'no classes'
    where = [', '.join(map(str, model[f'{network}_attention'])) or 'none' for network in _NETWORKS]
    facts = {
        'trained on': f'{data.get("name", config["dataset"]["name"])}: {count}pictures of '
        f'{size}×{size} in {kinds}',
        'networks': f'{model["architecture"]}, widths {model["generator_width"]} of the generator '
        f'and {model["discriminator_width"]} of the discriminator, {model["conditioning"]} '
        f'conditioning; {model["attention_block"].replace("_", "-")} at {where[0]} and {where[1]}',
        'training': f'{config["loss"]} loss, batches of {config["batch_size"]}, '
        f'updates of the discriminator a step: {config["discriminator_steps"]}, {config["dtype"]}, '
        f'seed {config["seed"]}',
        'Adam': f'rates {rates["generator_lr"]:g} of the generator and '
        f'{rates["discriminator_lr"]:g} of the discriminator, β {rates["b1"]:g} and '
        f'{rates["b2"]:g}',
        'samples are of': f'parameters averaged with a decay of {config["ema"]["decay"]:g}'
        if config['ema']['decay']
        else 'the parameters as they are, not averaged',
        'made with': f'commit {(record.get("commit") or "unknown")[:10]}, '
        + ', '.join(f'{name} {version}' for name, version in record['versions'].items()),
    }
    if metrics:
        changed = (workdir / 'metrics.jsonl').stat().st_mtime
        facts['last log line'] = f'{datetime.fromtimestamp(changed, UTC):%Y-%m-%d %H:%M} UTC'
    terms = ''.join(f'<dt>{name}</dt><dd>{escape(fact)}</dd>' for name, fact in facts.items())
    draw = '<nav><a href="draw">Draw samples and look at their attention</a></nav>'
    return (
        f'<h1>{escape(workdir.resolve().name)}</h1>{draw if served else ""}'
        f'<p>Step {step:,} of {last:,}</p><progress value="{step}" max="{last}"></progress>'
        f'<dl>{terms}</dl>'
    )


def _evolution(workdir: Path, grids: Mapping[int, Path], rows: Sequence[str]) -> str:
    if not grids:
        return '<h2>Samples</h2><p>None are drawn yet.</p>'
    steps = _evenly(list(grids), _MOST_PICTURES)
    last = len(steps) - 1
    pictures = ''.join(
        f'<img alt="step {step:,}" src="{page.picture(grids[step])}"'
        f'{"" if index == last else " hidden"}>'
        for index, step in enumerate(steps)
    )
    names = ''.join(f'<li>{escape(name)}</li>' for name in rows)
    labels = f'<ol class="rows">{names}</ol>' if rows else ''
    reals = workdir / 'samples' / 'reals.png'
    return (
        '<h2>Samples</h2><p>Of the same noise at every step'
        f'{", a row a class" if rows else ""}.</p><div class="pair"><figure>'
        f'<figcaption><output>step {steps[-1]:,}</output><input class="slider" type="range" min="0"'
        f' max="{last}" value="{last}" aria-label="step"></figcaption>'
        f'<div class="labelled">{labels}<div>{pictures}</div></div></figure>'
        f'{page.figure(reals, "real pictures") if reals.exists() else ""}</div>'
    )


def _classes(workdir: Path, grids: Mapping[int, Path], rows: Sequence[str]) -> str:
    """A row of samples of each class above its real pictures."""
    if not rows or not grids:
        return ''
    sources = {'samples': grids[max(grids)], 'real pictures': workdir / 'samples' / 'reals.png'}
    figures = [''] * len(rows)
    for kind, path in sources.items():
        if not path.exists():
            continue
        with Image.open(path) as image:
            grid = np.asarray(image.convert('RGB'))
        height = len(grid) // len(rows)
        for index, name in enumerate(rows):
            uri = page.data_uri(grid[index * height : (index + 1) * height])
            figures[index] += f'<img alt="{escape(name)}, {kind}" src="{uri}">'
    shown = ''.join(
        f'<figure><figcaption>{escape(name)}</figcaption>{figure}</figure>'
        for name, figure in zip(rows, figures, strict=True)
    )
    return (
        f'<h2>Classes</h2><p>Samples of step {max(grids):,} above real pictures.</p>'
        f'<div class="pictures">{shown}</div>'
    )


def _scores_section(scores: Sequence[Sequence[Row]]) -> str:
    if not scores:
        return (
            '<h2>Scores</h2><p>None are measured yet: <code>--mode evaluate --workdir</code> with '
            'this folder measures them, and <code>--config.evaluate_every</code> does so during '
            'training.</p>'
        )
    latest = [series[-1] for series in scores]
    names = [row['name'] for row in latest]
    titles = [
        name if names.count(name) == 1 else f'{name} ({names[: index + 1].count(name)})'
        for index, name in enumerate(names)
    ]
    header = ('score', 'value', 'step', 'real pictures', 'generated', 'real', 'features')
    lines = [
        (
            title,
            f'{row["value"]:.4g}' + (f' ± {row["std"]:.2g}' if 'std' in row else ''),
            f'{row["step"]:,}',
            f'{row["real_value"]:.4g}' if 'real_value' in row else '',
            f'{row["num_fake"]:,}',
            f'{row["num_real"]:,}',
            row.get('features', ''),
        )
        for title, row in zip(titles, latest, strict=True)
    ]
    drawn = [
        charts.chart(title, [_curve(title, [(r['step'], r['value']) for r in series], 0)])
        for title, series in zip(titles, scores, strict=True)
        if len(series) > 1
    ]
    return (
        f'<h2>Scores</h2>{_table(header, lines)}<p>FID, KID and intra FID are distances, of which '
        'less is better; of all others more is.</p>'
        f'<div class="charts">{"".join(drawn)}</div>{_protocols(titles, latest)}'
    )


def _protocols(titles: Sequence[str], rows: Sequence[Row]) -> str:
    """How each score was measured, first what all that say it have in common."""
    protocols = [evaluate.protocol(row) for row in rows]
    keys = dict.fromkeys(key for protocol in protocols for key in protocol)
    shared = {}
    for key in keys:
        values = [protocol[key] for protocol in protocols if key in protocol]
        if len(values) > 1 and all(value == values[0] for value in values):
            shared[key] = values[0]

    def words(items):
        return escape(', '.join(f'{key.replace("_", " ")} {value}' for key, value in items))

    lines = ''.join(
        '<dt>{}</dt><dd>{}</dd>'.format(
            escape(title),
            words((k, v) for k, v in protocol.items() if k != 'name' and k not in shared) or '–',
        )
        for title, protocol in zip(titles, protocols, strict=True)
    )
    common = f'<dt>all that have it</dt><dd>{words(shared.items())}</dd>' if shared else ''
    return f'<details><summary>Protocols</summary><dl>{common}{lines}</dl></details>'


def _curves(metrics: Sequence[Mapping[str, float]], scores: set[str]) -> str:
    groups = {kind: {} for kind in _TITLES}
    for line in metrics:
        for name in (name for name in line if name != 'step' and name not in scores):
            owner, kind, where = _parse(name)
            points = groups.setdefault(kind, {}).setdefault((owner, where), [])
            points.append((line['step'], line[name]))
    figures = []
    for kind, group in groups.items():
        drawn = []
        for owner, where in sorted(group, key=lambda key: (_accent(key[0]), int(key[1] or 0))):
            accent = _accent(owner)
            before = sum(curve.style % len(charts.COLOURS) == accent for curve in drawn)
            name = f'{owner} {where}'.strip() or kind
            points = _evenly(group[owner, where], _MOST_POINTS)
            drawn.append(_curve(name, points, accent + before * len(charts.COLOURS)))
        if any(len(curve.mean) > 1 for curve in drawn):
            legend = charts.legend(drawn) if len(drawn) > 1 else ''
            chart = charts.chart(_TITLES.get(kind, kind), drawn)
            figures.append(f'<figure>{chart}{legend}</figure>')
    if not figures:
        return '<h2>Curves</h2><p>Too little is logged yet.</p>'
    return f'<h2>Curves</h2><div class="charts">{"".join(figures)}</div>'


def _parse(name: str) -> tuple[str, str, str]:
    """Whose metric it is, what it is and at which resolution, as far as its name says."""
    found = re.fullmatch(r'(generator|discriminator|real|fake)_(\D+)(\d*)', name)
    return found.groups() if found else ('', name, '')


def _accent(owner: str) -> int:
    """The index of a network's colour; of logits, those on fakes have the generator's."""
    return int(owner in ('discriminator', 'real'))


def _curve(name: str, points: list[tuple[float, float]], style: int) -> charts.Curve:
    return charts.Curve(name, [[(x, y) for x, y in points if np.isfinite(y)]], style)


def _attention(workdir: Path, config: Mapping[str, Any], served: bool) -> str:
    heading = '<h2>Attention maps</h2>'
    model = config['model']
    if model['attention_block'] != 'self_attention' or not any(
        model[f'{network}_attention'] for network in _NETWORKS
    ):
        return f'{heading}<p>The networks of this run have no attention.</p>'
    paths = [workdir / 'figures' / f'attention_{network}.png' for network in _NETWORKS]
    figures = [
        page.figure(path, f'of the {network}')
        for network, path in zip(_NETWORKS, paths, strict=True)
        if path.exists()
    ]
    if not figures:
        any_sample = 'Any sample’s are shown <a href="draw">on a click</a>. ' if served else ''
        return (
            f'{heading}<p>{any_sample}None are drawn into figures/ yet: <code>--mode figures '
            '--workdir</code> with this folder draws them.</p>'
        )
    return (
        f'{heading}<p>A row for each image: first the image with its query locations, then for '
        f'each of them what it attends to.</p><div class="pair">{"".join(figures)}</div>'
    )


def _configuration(record: Mapping[str, Any]) -> str:
    flat = flatten_dict(record['config'], sep='.')
    table = _table(('key', 'value'), [(key, json.dumps(value)) for key, value in flat.items()])
    return f'<details><summary>The whole configuration</summary>{table}</details>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [('th', header), *(('td', row) for row in rows)]
    text = ''.join(
        f'<tr>{"".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)}</tr>'
        for tag, row in lines
    )
    return f'<div class="wide"><table>{text}</table></div>'


def _evenly(items: Sequence, most: int) -> list:
    """At most so many of the items, evenly spread, the first and the last among them."""
    chosen = np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(int)
    return [items[index] for index in chosen]

"""The paper's figures, drawn for a run: `--mode figures`."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
from matplotlib.figure import Figure

from sagan_jax import data, figures, sampling
from sagan_jax.configuration import resolving
from sagan_jax.errors import UserError
from sagan_jax.evaluation import training_data
from sagan_jax.images import image_grid, save_png
from sagan_jax.run import lock
from sagan_jax.run.folder import RunFolder
from sagan_jax.trained.model import Model, create_loader, load_one

ROWS, COLUMNS, POINTS = 6, 10, 5

Drawn = Iterator[tuple[str, Figure | np.ndarray]]  # names with figures or uint8 grids [H, W, 3]


class Request(NamedTuple):
    """What the figures show.

    Attributes:
      run: the run's folder.
      load_each: see `create_loader`.
      model: the model of the requested checkpoint.
      labels: the classes to draw, int32 [k].
      points: query locations as (row, column) in pixels; empty to choose them for each image.
    """

    run: RunFolder
    load_each: Callable[[str | int], Iterator[Model]]
    model: Model
    labels: np.ndarray
    points: Sequence[tuple[int, int]]


def illustrate(
    config: ml_collections.ConfigDict,
    workdir: Path,
    which: str | int = 'newest',
    kinds: Sequence[str] = (),
    classes: Sequence[str] = (),
    points: Sequence[tuple[int, int]] = (),
) -> list[Path]:
    """Writes figures of a run to `figures/`: grids of images as PNG, others as PNG and PDF.

    Samples are images 0, 1, … of the run's own seed, as in its sample grids, see `Model.sample`.

    Args:
      config: the run's configuration.
      workdir: the run's folder.
      which: the checkpoint: 'newest', 'best' or a step.
      kinds: keys of `KINDS`; 'all', or an empty sequence, for all that this configuration has.
      classes: names or indices of the classes to draw; evenly spaced among all by default.
      points: query locations as (row, column) in pixels; chosen for each image by default.

    Returns:
      The files written.

    Raises:
      UserError: for an unknown kind, class, point or checkpoint, for attention maps of networks
        without attention, and if another process uses the folder.
    """
    run, written = RunFolder(Path(workdir)), []
    config = resolving.resolve(config, run.num_classes, run.num_images)
    kinds = _chosen_kinds(config, kinds)
    _check_points(points, config.dataset.image_size)
    with lock.owned(run) as confirm:
        load_each = create_loader(workdir, config)
        model = load_one(load_each, which)
        labels = sampling.grid_classes(config.dataset.num_classes, COLUMNS)
        if classes:
            labels = sampling.class_indices(classes, model.class_names)
        request = Request(run, load_each, model, labels, points)
        for kind in kinds:
            for name, drawn in KINDS[kind](request):
                confirm()
                written += _save(run.figures, name, drawn)
    return written


# ---- The kinds of figures. ---------------------------------------------------------------------


def attention_maps(request: Request) -> Drawn:
    """Maps of the last attention block of each network (SAGAN, figures 1 and 5).

    The generator's maps are of its samples, the discriminator's of real images. A converted model
    may come without a discriminator or without these.
    """
    model, labels = request.model, np.resize(request.labels, ROWS)
    generator, discriminator = model.networks
    if model.config.model.generator_attention:
        z = model.noise(ROWS, model.config.seed)
        maps = jax.jit(generator.attention)(model.generator, z, labels)
        yield 'attention_generator', _attention_figure(_images(model, labels), maps, request.points)
    if model.discriminator is None or not model.config.model.discriminator_attention:
        return
    try:
        images, labels = _real_images(model.config, request.run, labels)
    except UserError as error:
        if not model.origin:
            raise
        print(f'left out       attention_discriminator, which shows real images: {error}')
        return
    weights, _ = jax.jit(discriminator.normalise)(model.discriminator)
    scaled = images.astype(np.float32) / 127.5 - 1
    maps = jax.jit(discriminator.attention)(weights, scaled, labels)
    yield 'attention_discriminator', _attention_figure(images, maps, request.points)


def curves(request: Request) -> Drawn:
    """Every gamma, and the largest σ of each network, over training."""
    history = _history(request.run)
    for name, ylabel in (('gamma', 'gamma'), ('sigma', 'largest σ before normalisation')):
        found = {key: curve for key, curve in history.items() if name in key}
        if found:
            yield name, figures.curves_figure(found, ylabel)


def class_rows(request: Request) -> Drawn:
    """Samples, one class per row (SAGAN, figure 6)."""
    model = request.model
    images = model.sample_rows(request.labels, COLUMNS, model.config.seed)
    yield 'classes', image_grid(images, COLUMNS)


def evolution(request: Request) -> Drawn:
    """The same noise at every kept checkpoint, one checkpoint per row (SAGAN, figure 4)."""
    labels = np.resize(request.labels, COLUMNS)
    rows = [_images(model, labels) for model in request.load_each('all')]
    yield 'evolution', image_grid(np.concatenate(rows), COLUMNS)


KINDS: dict[str, Callable[[Request], Drawn]] = {
    'attention': attention_maps,
    'curves': curves,
    'classes': class_rows,
    'evolution': evolution,
}


def _chosen_kinds(config: ml_collections.ConfigDict, kinds: Sequence[str]) -> Sequence[str]:
    model = config.model
    has_attention = model.attention_block == 'self_attention' and bool(
        model.generator_attention or model.discriminator_attention
    )
    for kind in kinds:
        if kind not in (*KINDS, 'all'):
            raise UserError(f'There is no figure {kind!r}: choose among {", ".join(KINDS)}, all.')
    if 'attention' in kinds and not has_attention:
        raise UserError(
            'The networks of this configuration have no attention to draw: choose other --figures.'
        )
    if not kinds or 'all' in kinds:
        return [kind for kind in KINDS if kind != 'attention' or has_attention]
    return kinds


def _check_points(points: Sequence[tuple[int, int]], size: int) -> None:
    for point in points:
        if not all(0 <= value < size for value in point):
            raise UserError(
                f'The point {point} lies outside the {size}×{size} pixels: choose rows and columns '
                f'from 0 to {size - 1}.'
            )


def _save(folder: Path, name: str, drawn: Figure | np.ndarray) -> list[Path]:
    if isinstance(drawn, Figure):
        paths = [folder / f'{name}.png', folder / f'{name}.pdf']
        for path in paths:
            figures.save_figure(path, drawn)
    else:
        paths = [folder / f'{name}.png']
        save_png(paths[0], drawn)
    for path in paths:
        print(f'written        {path}')
    return paths


# ---- The data of the figures. ------------------------------------------------------------------


def _images(model: Model, labels: np.ndarray) -> np.ndarray:
    """Images 0, 1, … of the run's seed with these labels."""
    return np.concatenate(list(model.stream(np.arange(len(labels)), labels, model.config.seed)))


def _attention_figure(
    images: np.ndarray, maps: dict[int, jax.Array], points: Sequence[tuple[int, int]]
) -> Figure:
    resolution = list(maps)[-1]  # the last block's
    weights = np.asarray(maps[resolution])
    if points:
        chosen = np.array(points) * resolution // images.shape[1]
        chosen = np.broadcast_to(chosen, (len(images), *chosen.shape))
    else:
        chosen = np.stack([figures.spread_points(each, POINTS) for each in weights])
    return figures.attention_figure(images, weights, chosen)


def _real_images(
    config: ml_collections.ConfigDict, run: RunFolder, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A real image of each label, and the images' labels.

    Searches the first 2,000 images; a label that is not among them gets an image of another one.
    """
    source = training_data.load(config, run)
    images, seen = next(data.batches(source, config.seed, min(len(source), 2000)))
    rows = [np.flatnonzero(seen == label) for label in labels]
    chosen = [found[i % len(found)] if len(found) else i for i, found in enumerate(rows)]
    return images[chosen], seen[chosen]


def _history(run: RunFolder) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The curves in metrics.jsonl: name → steps and values."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for values in run.metrics():
        for name in values.keys() - {'step'}:
            steps, ys = found.setdefault(name, ([], []))
            steps.append(values['step'])
            ys.append(values[name])
    return {name: (np.array(steps), np.array(ys)) for name, (steps, ys) in sorted(found.items())}

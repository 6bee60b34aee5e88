"""The paper's figures, drawn for a run: `--mode figures`."""

from collections.abc import Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np

from sagan_jax import data, figures, models, sampling, spectral_norm
from sagan_jax.errors import UserError
from sagan_jax.images import image_grid, save_png
from sagan_jax.run import checkpoints
from sagan_jax.run.folder import RunFolder
from sagan_jax.state import create_state

KINDS = ('attention', 'curves', 'classes', 'evolution')
ROWS, COLUMNS, POINTS = 6, 10, 5


def illustrate(
    config: ml_collections.ConfigDict,
    workdir: Path,
    which: str | int = 'newest',
    kinds: Sequence[str] = (),
    classes: Sequence[str] = (),
    points: Sequence[tuple[int, int]] = (),
) -> list[Path]:
    """Writes figures of a run to `figures/`, as PNG and, what is no photograph, as PDF too.

    'attention': maps of the last attention block of the generator, on its samples, and of the
    discriminator, on real pictures (SAGAN, figures 1 and 5). 'curves': every gamma and the largest
    σ over training. 'classes': rows of samples of one class (figure 6). 'evolution': one batch of
    noise at every checkpoint that is there (figure 4).

    Args:
      config: the run's configuration.
      workdir: the run's folder.
      which: the checkpoint: 'newest', 'best' or a step.
      kinds: some of `KINDS`; all that this configuration has by default.
      classes: names or numbers of the classes to draw; evenly among all by default.
      points: query locations, rows and columns in pixels; chosen for each image by default.

    Returns:
      The files written.

    Raises:
      UserError: for a kind, class, point or checkpoint that does not exist, and for attention of
        networks without any.
    """
    run = RunFolder(Path(workdir))
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f'There is no figure {kind!r}: choose among {", ".join(KINDS)}.')
    has_attention = _attends(config)
    if 'attention' in kinds and not has_attention:
        raise UserError(
            'The networks of this configuration have no attention to draw: choose other --figures.'
        )
    kinds = kinds or [kind for kind in KINDS if kind != 'attention' or has_attention]
    manager, steps = checkpoints.choose(config, run, which)
    like = jax.eval_shape(lambda: create_state(config))
    state = checkpoints.restore(manager, like, steps[-1])
    freeze, sample = sampling.create_freeze(config), sampling.create_sampler(config)

    def frozen(state):
        return freeze(state.generator | {'params': state.ema_params})

    source = data.load(config.dataset, 'train')
    written = []

    def save(name, figure, suffixes=('.png', '.pdf')):
        for suffix in suffixes:
            path = run.figures / f'{name}{suffix}'
            figures.save_figure(path, figure)
            written.append(path)

    def save_grid(name, images):
        path = run.figures / f'{name}.png'
        save_png(path, image_grid(images, COLUMNS))
        written.append(path)

    labels = _labels(config, source, classes)  # a row of samples each
    if 'attention' in kinds:
        row_labels = np.resize(labels, ROWS) if len(labels) < ROWS else labels[:ROWS]
        z = sampling.fixed_noise(config, row_labels)
        weights = frozen(state)
        generator, discriminator = models.create(config)
        maps = jax.jit(generator.attention)(weights, z, row_labels)
        _attention(save, 'attention_generator', sample(weights, z, row_labels), maps, points)
        reals, real_labels = _real_pictures(source, config.seed, row_labels)
        d = state.discriminator
        d_weights, _ = spectral_norm.normalise(
            d['params'], d['spectral_stats'], config.spectral_norm.epsilon
        )
        maps = jax.jit(discriminator.attention)(
            {'params': d_weights, 'batch_stats': d['batch_stats']},
            reals.astype(np.float32) / 127.5 - 1,
            real_labels,
        )
        _attention(save, 'attention_discriminator', reals, maps, points)
    if 'curves' in kinds:
        history = _history(run)
        for name, ylabel in (('gamma', 'gamma'), ('sigma', 'largest σ before normalisation')):
            found = {key: curve for key, curve in history.items() if name in key}
            if found:
                save(name, figures.curves_figure(found, ylabel))
    if 'classes' in kinds:
        every = np.repeat(labels, COLUMNS)
        save_grid('classes', sample(frozen(state), sampling.fixed_noise(config, every), every))
    if 'evolution' in kinds:
        row = np.resize(labels, COLUMNS)
        z = sampling.fixed_noise(config, row)
        states = (checkpoints.restore(manager, like, step) for step in sorted(manager.all_steps()))
        save_grid('evolution', np.concatenate([sample(frozen(s), z, row) for s in states]))
    manager.close()
    for path in written:
        print(f'written        {path}')
    return written


def _attends(config) -> bool:
    model = config.model
    return model.attention_block == 'self_attention' and bool(
        model.generator_attention and model.discriminator_attention
    )


def _attention(save, name: str, images, maps: dict[int, jax.Array], points) -> None:
    resolution = list(maps)[-1]  # the last block's
    weights = np.asarray(maps[resolution])
    size = images.shape[1]
    if points:
        for point in points:
            if not all(0 <= value < size for value in point):
                raise UserError(f'The point {point} lies outside the {size}×{size} pixels.')
        chosen = np.array(points) * resolution // size
        chosen = np.broadcast_to(chosen, (len(images), *chosen.shape))
    else:
        chosen = np.stack([figures.spread_points(w, POINTS) for w in weights])
    save(name, figures.attention_figure(images, weights, chosen))


def _labels(config, source: data.Source, classes: Sequence[str]) -> np.ndarray:
    if not classes:
        return sampling.grid_labels(config, COLUMNS, 1)
    return sampling.class_numbers(classes, source.class_names)


def _real_pictures(source: data.Source, seed: int, labels: np.ndarray):
    """A picture of each label, as far as the first ones have any."""
    images, seen = next(data.batches(source, seed, min(len(source), 2000)))
    rows = [np.flatnonzero(seen == label) for label in labels]
    chosen = [found[i % len(found)] if len(found) else i for i, found in enumerate(rows)]
    return images[chosen], seen[chosen]


def _history(run: RunFolder) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The curves in metrics.jsonl: name → steps and values."""
    curves = {}
    for values in run.metrics():
        for name in values.keys() - {'step'}:
            steps, ys = curves.setdefault(name, ([], []))
            steps.append(values['step'])
            ys.append(values[name])
    return {name: tuple(map(np.array, curves[name])) for name in sorted(curves)}

"""Scores checkpoints: sample → features → metrics, with the protocol attached to every number."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from sagan_jax import data
from sagan_jax.configuration import checks
from sagan_jax.data import shapes
from sagan_jax.errors import UserError
from sagan_jax.evaluation import real_statistics
from sagan_jax.metrics import scores
from sagan_jax.metrics.comparison import Score, compare
from sagan_jax.metrics.features import FeatureNetwork, on_devices
from sagan_jax.metrics.in_domain import NAME as IN_DOMAIN
from sagan_jax.models import Variables
from sagan_jax.run import checkpoints
from sagan_jax.run.folder import RunFolder
from sagan_jax.sampling import create_draw, create_freeze
from sagan_jax.state import create_state
from sagan_jax.streams import Stream, stream_key
from sagan_jax.system import distributed
from sagan_jax.system.records import versions
from sagan_jax.system.signals import Interrupted

Row = dict[str, Any]  # a score: its name, its value and its protocol

_LEAST_PAIRS = 30  # of FID∞, the most demanding
_FAKES_ALONE = ('is', 'class_share', *shapes.SCORES)  # no real pictures enter these


def evaluate(
    config: ml_collections.ConfigDict, workdir: Path, which: str | int = 'newest'
) -> dict[int, list[Row]]:
    """Scores checkpoints of a run, prints the scores and writes `evaluation/<step>.json`.

    Args:
      config: the run's configuration; what `config.evaluation` says is free to change.
      workdir: the run's folder.
      which: 'newest', 'best', 'all' or a step.

    Returns:
      The rows of each step.

    Raises:
      UserError: when there is no such checkpoint or none of this configuration; when the real
        pictures, the features' weights or the samples asked for do not suffice.
    """
    run = RunFolder(Path(workdir))
    manager, steps = checkpoints.choose(config, run, which)
    settings = config.evaluation
    score = create_evaluator(
        config, settings.num_samples, settings.pair_samples, settings.intra_fid_samples
    )
    like = jax.eval_shape(lambda: create_state(config))
    results = {}
    for step in steps:
        print(f'checkpoint     step {step:,}')
        state = checkpoints.restore(manager, like, step)
        rows = score(step, state.generator | {'params': state.ema_params})
        print('\n'.join(f'  {describe(row)}' for row in rows))
        if distributed.is_first():
            print(f'written        {write(run, step, rows)}')
        results[step] = rows
    if manager:
        manager.close()
    return results


def create_evaluator(
    config: ml_collections.ConfigDict,
    num_samples: int,
    pair_samples: int = 0,
    intra_fid_samples: int = 0,
    progress: bool = True,
    stop: Callable[[], Any] = lambda: False,
) -> Callable[[int, Variables], list[Row]]:
    """Builds `score(step, variables) -> rows`, with all that does not depend on a checkpoint.

    Images are drawn and their features taken in one program over all devices, and only
    features come back. Image i depends on the configuration's seed and i alone: neither the number
    of devices nor `evaluation.batch_size` changes a score by more than rounding.

    Args:
      config: see configuration/defaults.py.
      num_samples: generated images.
      pair_samples: features kept on either side for scores over pairs; 0 for FID, Inception Score
        and the shares alone, which need memory for none.
      intra_fid_samples: further images of each class, for intra FID; 0 for none.
      progress: whether to show a bar while generating.
      stop: asked between batches; once it holds, scoring ends with `Interrupted`.

    Returns:
      A function of the step, which goes into the rows, and the generator's variables.

    Raises:
      UserError: see `evaluate`.
    """
    settings = config.evaluation
    _check(config, num_samples, pair_samples, intra_fid_samples)
    source = data.load(config.dataset, settings.split)
    _check_pictures(source, settings.splits, pair_samples)
    trained = source if settings.split == 'train' else data.load(config.dataset, 'train')
    networks = real_statistics.load_networks(config, trained)
    distributed.check_agreement({'data': source.name, 'networks': networks.sha256})
    real = real_statistics.load_statistics(
        source, networks, settings.splits, pair_samples, settings.batch_size
    )
    if intra_fid_samples:
        real_features, real_labels = real_statistics.load_features(
            source, networks, settings.batch_size
        )

    freeze, draw = create_freeze(config), create_draw(config)
    classes = max(config.dataset.num_classes, 1)
    labels = np.asarray(
        jax.random.randint(
            stream_key(config.seed, Stream.EVALUATION_LABELS), (num_samples,), 0, classes
        )
    )

    def draw_and_describe(variables, asked):
        return networks.apply(variables['networks'], draw(variables['generator'], asked))

    stream = on_devices(draw_and_describe, settings.batch_size, distributed.all_devices())

    def fakes(frozen, first, labels, title, leave=True) -> Iterator[dict[str, np.ndarray]]:
        asked = np.stack([np.arange(first, first + len(labels)), labels], 1).astype(np.int32)
        variables = {'generator': frozen, 'networks': networks.variables}
        hidden = not (progress and distributed.is_first())
        bar = tqdm(desc=title, total=len(labels), unit='img', leave=leave, disable=hidden)
        with bar:
            for part in stream(variables, [asked]):
                yield part
                bar.update(len(part['features']))
                if stop():
                    raise Interrupted

    def intra_fid(frozen) -> Score:
        """A class at a time, so that memory holds the generated features of one."""
        per_class, n = {}, intra_fid_samples
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            for label, name in enumerate(source.class_names):
                parts = fakes(frozen, num_samples + label * n, np.full(n, label), name, leave=False)
                fake = np.concatenate([part['features'] for part in parts])
                per_class[name] = scores.fid(real_features[real_labels == label], fake)
        if caught:
            warnings.warn(f'intra FID, {len(caught)} classes: {caught[0].message}', stacklevel=2)
        mean = float(np.mean(list(per_class.values())))
        counts = len(real_features), n * len(per_class)
        return Score('intra_fid', mean, *counts, {'per_class': per_class})

    def score(step, variables):
        frozen = freeze(variables)
        parts = fakes(frozen, 0, labels, 'generated')
        fake = real_statistics.gather(
            parts, lambda: labels, num_samples, settings.splits, pair_samples
        )
        counts = real.collected.moments.count, num_samples
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f'warning        {message}')
            found = compare(real.collected, fake.collected, config.seed)
            if pair_samples:
                some = fake.collected.features
                value = scores.fid_infinity(real.collected.moments, some, config.seed)
                found.append(Score('fid_infinity', value, counts[0], len(some), {}))
            if intra_fid_samples:
                found.append(intra_fid(frozen))
        shares = [Score(name, value, *counts, {}) for name, value in fake.shares.items()]

        def network(score):
            return networks.classifier if score.name == 'class_share' else networks.features

        of_real = real.shares | {'is': scores.score_of_splits(real.collected.splits)[0]}
        return [
            _row(config, step, source, network(s), s, of_real.get(s.name))
            for s in (*found, *shares)
            if _means_something(config, s, networks)
        ]

    return score


def row_name(config: ml_collections.ConfigDict, score: str, num_samples: int) -> str:
    """The name that a score carries: 'fid50k_train', 'is50k', 'in_domain_fid50k_train'."""
    name = scores.score_name(score, num_samples)
    if score not in _FAKES_ALONE:
        name = f'{name}_{config.evaluation.split}'
    in_domain = config.evaluation.features == 'in_domain' or score == 'class_share'
    return f'in_domain_{name}' if in_domain and score not in shapes.SCORES else name


def write(run: RunFolder, step: int, rows: list[Row]) -> Path:
    """Writes the scores of a step into the run's folder.

    Scores of other protocols that are already there stay; one of the same protocol is replaced.
    """
    fresh = [protocol(row) for row in rows]
    kept = [row for row in run.scores(step) if protocol(row) not in fresh]
    return run.write_scores(step, [*kept, *rows])


def is_best(
    config: ml_collections.ConfigDict, run: RunFolder, rows: list[Row], before: int | None
) -> bool:
    """Whether these scores are better than those of the step `before`, the best so far."""
    name = row_name(config, config.evaluation.best, config.evaluation.training_samples)

    def value(rows):
        return next((row['value'] for row in rows if row['name'] == name), None)

    best = None if before is None else value(run.scores(before))
    if best is None:
        return True
    return value(rows) > best if config.evaluation.best == 'is' else value(rows) < best


def describe(row: Row) -> str:
    """A score for people: its name, its value, and that of the real pictures if it has one."""
    text = f'{row["name"]:<36} {row["value"]:.4g}'
    if 'std' in row:
        text += f' ± {row["std"]:.2g}'
    if 'real_value' in row:
        text += f'  (real pictures: {row["real_value"]:.4g})'
    return text


def _means_something(config, score: Score, networks: real_statistics.Networks) -> bool:
    if score.name == 'class_share':
        return config.model.conditioning != 'none'
    # The rotations that a classifier without classes tells apart are all alike in the samples.
    return score.name != 'is' or networks.features.name != IN_DOMAIN or bool(networks.classifier)


def _row(
    config: ml_collections.ConfigDict,
    step: int,
    source: data.Source,
    network: FeatureNetwork,
    score: Score,
    real_value: float | None,
) -> Row:
    standing = config.batch_norm.standing_batches
    conditional = config.model.conditioning != 'none'
    return {
        'name': row_name(config, score.name, score.num_fake),
        'value': score.value,
        **({} if real_value is None else {'real_value': real_value}),
        **score.details,
        'step': step,
        'num_fake': score.num_fake,
        'num_real': score.num_real,
        'data': source.name,
        'split': source.split,
        'image_size': source.image_size,
        **(
            {}
            if score.name in shapes.SCORES
            else {
                'features': network.name,
                'features_sha256': network.sha256,
                'resize': network.resize,
            }
        ),
        'rounding': 'uint8' if config.evaluation.round_to_uint8 else 'none',
        'labels': f'uniform over {config.dataset.num_classes}' if conditional else 'none',
        'ema': config.ema.decay,
        'batch_statistics': f'{standing} standing batches of {config.batch_size}'
        if standing
        else 'running averages',
        'seed': config.seed,
        'versions': versions(),
    }


def protocol(row: Row) -> Row:
    """How a score was measured, without what came out."""
    results = ('value', 'real_value', 'std', 'per_class', 'versions')
    return {key: value for key, value in row.items() if key not in results}


def _check(config, num_samples: int, pair_samples: int, intra_fid_samples: int) -> None:
    """Refuses what could only fail after the images were drawn."""
    checks.check(config)
    settings = config.evaluation
    least = max(settings.splits, 2)
    if num_samples < least:
        raise UserError(
            f'{num_samples} generated images are too few for {settings.splits} splits of the '
            f'Inception Score: take {least} or more.'
        )
    if settings.split not in ('train', 'test'):
        raise UserError(f'evaluation.split={settings.split!r} should be train or test.')
    if settings.best not in ('fid', 'is'):
        raise UserError(f'evaluation.best={settings.best!r} should be fid or is.')
    if pair_samples and pair_samples < _LEAST_PAIRS:
        raise UserError(
            f'evaluation.pair_samples={pair_samples} is too few for FID∞: take {_LEAST_PAIRS} or '
            'more, or 0 to leave out the scores over pairs.'
        )
    if intra_fid_samples and config.model.conditioning == 'none':
        raise UserError(
            'A generator without classes has no intra FID: set evaluation.intra_fid_samples=0.'
        )


def _check_pictures(source: data.Source, splits: int, pair_samples: int) -> None:
    least = max(splits, _LEAST_PAIRS if pair_samples else 2)
    if len(source) < least:
        raise UserError(
            f'The data set {source.name} has {len(source)} {source.split} pictures, but the scores '
            f'need {least} or more: take another evaluation.split, fewer evaluation.splits, or '
            'evaluation.pair_samples=0.'
        )

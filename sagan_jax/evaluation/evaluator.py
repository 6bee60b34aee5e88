"""Scores a generator: samples → features → metrics."""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from sagan_jax import data, models
from sagan_jax.configuration import checks
from sagan_jax.errors import UserError
from sagan_jax.evaluation import protocol, real_statistics
from sagan_jax.evaluation.real_statistics import Networks, Statistics
from sagan_jax.metrics import scores
from sagan_jax.metrics.comparison import Score, compare
from sagan_jax.models import Variables
from sagan_jax.run.entries import Row
from sagan_jax.sampling import create_draw, create_freeze
from sagan_jax.streams import Stream, stream_key
from sagan_jax.system import distributed
from sagan_jax.system.signals import Interrupted
from sagan_jax.system.streaming import on_devices


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
    """Scores generators of one configuration: `evaluator(step, variables) -> rows`.

    One program over all devices draws images and computes their features; only the features reach
    the host. Image i depends only on the configuration's seed and on i, so neither the number of
    devices nor `evaluation.batch_size` changes a score by more than rounding.

    Attributes:
      config, num_samples, pair_samples, intra_fid_samples, progress, stop: see `create_evaluator`.
      source: the real images.
      networks: applied to every image, see `Networks`.
      real: statistics of the real images.
      real_features: for intra FID, features float32 [N, d] and labels int32 [N] of real images.
      freeze: see `sampling.create_freeze`.
      stream: see `on_devices`; the rows are indices and labels of images, int32 [n, 2].
      labels: of the generated images, int32 [num_samples].
    """

    config: ml_collections.ConfigDict
    num_samples: int
    pair_samples: int
    intra_fid_samples: int
    progress: bool
    stop: Callable[[], Any]
    source: data.Source
    networks: Networks
    real: Statistics
    real_features: tuple[np.ndarray, np.ndarray] | None
    freeze: Callable[[Variables], Variables]
    stream: Callable[[Variables, Iterable[np.ndarray]], Iterator[dict[str, np.ndarray]]]
    labels: np.ndarray

    def __call__(self, step: int, variables: Variables) -> list[Row]:
        """Scores a generator.

        Args:
          step: recorded in the rows.
          variables: of the generator, see `TrainState.averaged`.

        Raises:
          Interrupted: if `stop` returns a true value.
        """
        frozen = self.freeze(variables)
        fake = self._statistics(frozen)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f'warning        {message}')
            found = self._scores(frozen, fake)
        conditional = self.config.model.conditioning != 'none'
        features, has_classes = self.networks.features.name, bool(self.networks.classifier)
        return [
            self._row(step, score)
            for score in found
            if protocol.is_meaningful(score.name, conditional, features, has_classes)
        ]

    def _fakes(
        self, frozen: Variables, first: int, labels: np.ndarray, title: str, leave: bool = True
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields the networks' outputs for images `first`, `first` + 1, … with these labels."""
        rows = np.stack([np.arange(first, first + len(labels)), labels], 1).astype(np.int32)
        variables = {'generator': frozen, 'networks': self.networks.variables}
        hidden = not (self.progress and distributed.is_first())
        bar = tqdm(desc=title, total=len(labels), unit='img', leave=leave, disable=hidden)
        with bar:
            for part in self.stream(variables, [rows]):
                yield part
                bar.update(len(part['features']))
                if self.stop():
                    raise Interrupted

    def _statistics(self, frozen: Variables) -> Statistics:
        parts = self._fakes(frozen, 0, self.labels, 'generated')
        splits = self.config.evaluation.splits
        return real_statistics.gather(
            parts, lambda: self.labels, self.num_samples, splits, self.pair_samples
        )

    def _scores(self, frozen: Variables, fake: Statistics) -> list[Score]:
        real, seed = self.real.collected, self.config.seed
        found = compare(real, fake.collected, seed)
        if self.pair_samples:
            features = fake.collected.features
            value = scores.fid_infinity(real.moments, features, seed)
            found.append(Score('fid_infinity', value, real.moments.count, len(features), {}))
        if self.real_features:
            found.append(self._intra_fid(frozen, *self.real_features))
        counts = real.moments.count, self.num_samples
        return found + [Score(name, value, *counts, {}) for name, value in fake.shares.items()]

    def _intra_fid(
        self, frozen: Variables, real_features: np.ndarray, real_labels: np.ndarray
    ) -> Score:
        """Generates class by class, so that memory holds the features of one class only."""
        per_class, n = {}, self.intra_fid_samples
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            for label, name in enumerate(self.source.class_names):
                first = self.num_samples + label * n
                parts = self._fakes(frozen, first, np.full(n, label), name, leave=False)
                fake = np.concatenate([part['features'] for part in parts])
                per_class[name] = scores.fid(real_features[real_labels == label], fake)
        if caught:
            warnings.warn(f'intra FID, {len(caught)} classes: {caught[0].message}', stacklevel=2)
        mean = float(np.mean(list(per_class.values())))
        counts = len(real_features), n * len(per_class)
        return Score('intra_fid', mean, *counts, {'per_class': per_class})

    def _row(self, step: int, score: Score) -> Row:
        networks, real = self.networks, self.real
        of_classes = networks.classifier if score.name == 'class_share' else None
        network = of_classes or networks.features
        real_values = real.shares | {'is': scores.score_of_splits(real.collected.splits)[0]}
        real_value = real_values.get(score.name)
        return protocol.make_row(self.config, step, self.source, network, score, real_value)


def create_evaluator(
    config: ml_collections.ConfigDict,
    trained: data.Source,
    num_samples: int,
    pair_samples: int = 0,
    intra_fid_samples: int = 0,
    progress: bool = True,
    stop: Callable[[], Any] = lambda: False,
) -> Evaluator:
    """Creates an evaluator: loads and compiles everything that does not depend on a checkpoint.

    Args:
      config: see configuration/defaults.py.
      trained: the training images, see `training_data.load`.
      num_samples: the number of generated images.
      pair_samples: the number of features to keep, of real and of generated images each, for scores
        over pairs. 0 for FID, the Inception Score and the shares only, which keep none.
      intra_fid_samples: the number of further images per class, for intra FID. 0 for no intra FID.
      progress: whether to show a progress bar.
      stop: called after each batch; if it returns a true value, scoring ends with `Interrupted`.

    Raises:
      UserError: see `evaluate.evaluate`.
    """
    settings = config.evaluation
    source = trained if settings.split == 'train' else data.load(config.dataset, settings.split)
    _check_images(source, settings.splits, pair_samples)
    networks = real_statistics.load_networks(config, trained)
    distributed.check_agreement({'data': source.name, 'networks': networks.sha256})
    batch_size, real_features = settings.batch_size, None
    real = real_statistics.load_statistics(
        source, networks, settings.splits, pair_samples, batch_size
    )
    if intra_fid_samples:
        real_features = real_statistics.load_features(source, networks, batch_size)
        _check_classes(source, real_features[1])
    key, classes = stream_key(config.seed, Stream.EVALUATION_LABELS), config.dataset.num_classes
    return Evaluator(
        config=config,
        num_samples=num_samples,
        pair_samples=pair_samples,
        intra_fid_samples=intra_fid_samples,
        progress=progress,
        stop=stop,
        source=source,
        networks=networks,
        real=real,
        real_features=real_features,
        freeze=create_freeze(config),
        stream=_create_stream(config, networks, max(num_samples, intra_fid_samples)),
        labels=np.asarray(jax.random.randint(key, (num_samples,), 0, max(classes, 1))),
    )


def _create_stream(
    config: ml_collections.ConfigDict, networks: Networks, total: int
) -> Callable[[Variables, Iterable[np.ndarray]], Iterator[dict[str, np.ndarray]]]:
    """Builds the program that draws images and applies the networks to them, on all devices.

    `total`: the images of the longest stream.
    """
    settings, (generator, _) = config.evaluation, models.create(config)
    draw = create_draw(generator, config.seed, config.model.z_dim, settings.round_to_uint8)

    def apply(variables, rows):
        return networks.apply(variables['networks'], draw(variables['generator'], rows))

    return on_devices(apply, settings.batch_size, distributed.all_devices(), total)


def _check_images(source: data.Source, splits: int, pair_samples: int) -> None:
    required = max(splits, checks.MIN_PAIRS if pair_samples else 2)
    if len(source) < required:
        raise UserError(
            f'The data set {source.name} has {len(source)} {source.split} images, but the scores '
            f'need at least {required}: choose another evaluation.split, fewer evaluation.splits, '
            'or evaluation.pair_samples=0.'
        )


def _check_classes(source: data.Source, labels: np.ndarray) -> None:
    """Refuses intra FID before any image is generated."""
    counts = np.bincount(labels, minlength=len(source.class_names))
    few = [name for name, count in zip(source.class_names, counts, strict=True) if count < 2]
    if few:
        named = ', '.join(few[:10]) + (' and others' if len(few) > 10 else '')
        raise UserError(
            f'Intra FID needs two {source.split} images of each class of {source.name}, but '
            f'{len(few)} classes have fewer ({named}): add images, choose another '
            'evaluation.split, or set --config.evaluation.intra_fid_samples=0.'
        )

"""The feature networks, and statistics of real images.

Both are computed once and cached beside the prepared data. The name of a cache file is a hash of
everything that its content depends on, and the file also contains this record: a file with another
record is refused. Files are written atomically.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from tqdm import tqdm

from sagan_jax import data
from sagan_jax.data import shapes
from sagan_jax.errors import UserError
from sagan_jax.metrics import in_domain, inception, scores
from sagan_jax.metrics.features import Collected, FeatureNetwork, Variables, collect
from sagan_jax.system import distributed, failures
from sagan_jax.system.files import atomic_path
from sagan_jax.system.records import differences
from sagan_jax.system.streaming import on_devices, rows_at_a_time
from sagan_jax.system.untrusted import open_file, parse_json, reason

MAX_TESTED = 10_000  # images for the accuracy of the classifier


class Networks(NamedTuple):
    """The networks that are applied to every image.

    Attributes:
      features: computes the features of the scores.
      classifier: predicts the class; None if the data have no classes.
      colours: whether to measure colours too, for the data set 'shapes' unless it is grey.
    """

    features: FeatureNetwork
    classifier: FeatureNetwork | None
    colours: bool

    @property
    def variables(self) -> Variables:
        classifier = self.classifier.variables if self.classifier else {}
        return {'features': self.features.variables, 'classifier': classifier}

    @property
    def sha256(self) -> list[str]:
        return [network.sha256 for network in (self.features, self.classifier) if network]

    def apply(self, variables: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Applies the networks to images [N, S, S, 3], uint8 or float from 0 to 255.

        Returns:
          'features' [N, d] and 'logits' [N, classes]; with a classifier 'predictions' int32 [N];
          with colours 'agreements' bool [N] and 'hues' float32 [N].
        """
        found = self.features.apply(variables['features'], images)
        rows = {'features': found[self.features.layer], 'logits': found[self.features.logits]}
        if self.classifier is self.features:
            rows['predictions'] = rows['logits'].argmax(-1)
        elif self.classifier:
            logits = self.classifier.apply(variables['classifier'], images)['logits']
            rows['predictions'] = logits.argmax(-1)
        if self.colours:
            rows['agreements'] = shapes.colours_agree(images)
            rows['hues'] = shapes.hues(images)
        return rows


class Statistics(NamedTuple):
    """Statistics of one set of images.

    Attributes:
      collected: moments, sums for the Inception Score, and the features that were kept.
      shares: 'class_share', the share of images whose class the classifier predicts, if there are
        classes; `shapes.SCORES` with `Networks.colours`.
    """

    collected: Collected
    shares: dict[str, float]


def load_networks(config: ml_collections.ConfigDict, source: data.Source) -> Networks:
    """Loads the networks that `config.evaluation` names. Trains the classifier if it is not cached.

    Args:
      config: the run's configuration.
      source: the training split.

    Raises:
      UserError: if the Inception weights are unavailable.
    """
    dataset = config.dataset
    colours = dataset.name == 'shapes' and dataset.channels == 3
    has_classes = dataset.num_classes > 1
    if config.evaluation.features == 'in_domain':
        classifier = _classifier(config, source)
        return Networks(classifier, classifier if has_classes else None, colours)
    # First, so that missing weights are reported before a classifier is trained.
    features = inception.network(config.evaluation.inception_weights)
    return Networks(features, _classifier(config, source) if has_classes else None, colours)


def load_statistics(
    source: data.Source, networks: Networks, splits: int, keep: int, batch_size: int
) -> Statistics:
    """Loads the statistics of a split of real images, or computes them over all devices.

    Args:
      source: the real images.
      networks: see `load_networks`.
      splits: of the Inception Score.
      keep: the number of images whose features are kept, for scores over pairs.
      batch_size: images at a time on each device. Does not affect the statistics.

    Raises:
      UserError: if there are fewer images than `splits`, or if the cached statistics have another
        record.
    """
    record = _record(source, networks) | {'splits': splits, 'keep': min(keep, len(source))}

    def compute():
        statistics = _gather_real(source, networks, splits, keep, batch_size)
        moments, sums, features = statistics.collected
        return {
            **{f'moments/{name}': value for name, value in moments._asdict().items()},
            **{f'splits/{name}': value for name, value in sums._asdict().items()},
            **{f'shares/{name}': value for name, value in statistics.shares.items()},
            'features': features,
        }

    stored = unflatten_dict(_cached(source.folder, 'statistics', record, compute), sep='/')
    moments, sums = stored['moments'], stored['splits']
    collected = Collected(
        scores.Moments(**moments | {'count': int(moments['count'])}),
        scores.SplitSums(**sums | {'total': int(sums['total']), 'seen': int(sums['seen'])}),
        stored['features'],
    )
    return Statistics(collected, {k: float(v) for k, v in stored.get('shares', {}).items()})


def load_features(
    source: data.Source, networks: Networks, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Loads or computes features float32 [N, d] and labels int32 [N] of a split of real images.

    Args and errors are those of `load_statistics`.
    """

    def compute():
        labels: list[np.ndarray] = []
        layer = networks.features.layer
        network = networks.features
        parts = _stream(network.apply, network.variables, source, batch_size, labels)
        parts = _progress(parts, len(source), layer)
        features = np.concatenate([part[layer] for part in parts])
        return {'features': features, 'labels': np.concatenate(labels)}

    stored = _cached(source.folder, 'features', _record(source, networks), compute)
    return stored['features'], stored['labels']


def features_of(network: FeatureNetwork, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Features float32 [n, d] of images uint8 [n, S, S, 3], over the local devices."""
    stream = on_devices(network.apply, batch_size, total=len(images))
    return np.concatenate([part[network.layer] for part in stream(network.variables, [images])])


def gather(
    parts: Iterable[dict[str, np.ndarray]],
    labels: Callable[[], np.ndarray],
    total: int,
    splits: int,
    keep: int,
) -> Statistics:
    """Gathers statistics of `total` images from batches of what `Networks.apply` returns.

    Args:
      parts: the batches.
      labels: called after the last batch; returns the classes of the images, int32 [total].
      total: the number of images.
      splits, keep: see `load_statistics`.
    """
    outputs: dict[str, list[np.ndarray]] = {'predictions': [], 'agreements': [], 'hues': []}

    def read():
        for part in parts:
            for name, values in outputs.items():
                if name in part:
                    values.append(part[name])
            yield part

    collected = collect(read(), 'features', 'logits', total, splits, keep)
    shares = {}
    if outputs['predictions']:
        shares['class_share'] = float((np.concatenate(outputs['predictions']) == labels()).mean())
    if outputs['agreements']:
        shares['colour_agreement'] = float(np.concatenate(outputs['agreements']).mean())
        variety = shapes.hue_variety(np.concatenate(outputs['hues']), labels())
        shares |= {'hue_variety': float(variety.mean()), 'hue_variety_min': float(variety.min())}
    return Statistics(collected, shares)


def _gather_real(
    source: data.Source, networks: Networks, splits: int, keep: int, batch_size: int
) -> Statistics:
    labels: list[np.ndarray] = []
    total = len(source)
    parts = _stream(networks.apply, networks.variables, source, batch_size, labels)
    parts = _progress(parts, total, 'features')
    return gather(parts, lambda: np.concatenate(labels), total, splits, keep)


def _stream(
    apply: Callable[[Variables, jax.Array], dict[str, jax.Array]],
    variables: Variables,
    source: data.Source,
    batch_size: int,
    labels: list[np.ndarray],
) -> Iterator[dict[str, np.ndarray]]:
    """Applies a network to all images of a split, and appends their labels to the list."""
    settings = batch_size, distributed.all_devices(), len(source)

    def images():
        for images, batch_labels in data.one_pass(source, rows_at_a_time(*settings)):
            labels.append(batch_labels)
            yield images

    return on_devices(apply, *settings)(variables, images())


def _bar(*args: Any, **kwargs: Any) -> tqdm:
    return tqdm(*args, **kwargs, disable=not distributed.is_first())


def _progress(
    parts: Iterable[dict[str, np.ndarray]], total: int, layer: str
) -> Iterator[dict[str, np.ndarray]]:
    with _bar(desc='real images', total=total, unit='img') as bar:
        for part in parts:
            yield part
            bar.update(len(part[layer]))


def _classifier(config: ml_collections.ConfigDict, source: data.Source) -> FeatureNetwork:
    """Loads the in-domain classifier of a data set, or trains it on the training split."""
    classes = config.dataset.num_classes
    record = {
        'data': source.name,
        'split': source.split,
        'image_size': source.image_size,
        'network': in_domain.NAME,
    }

    def compute():
        batch_size, steps = in_domain.BATCH_SIZE, in_domain.STEPS
        batches = data.batches(source, in_domain.SEED, batch_size, stop=steps)
        bar = _bar(batches, desc='in-domain classifier', total=steps, unit='step')
        variables = in_domain.fit(bar, classes)
        try:
            tested = data.load(config.dataset, 'test')
        except UserError:  # no test split
            tested = source
        count = min(MAX_TESTED, len(tested)) // batch_size * batch_size
        batches = data.batches(tested, in_domain.SEED, batch_size, stop=max(1, count // batch_size))
        accuracy = in_domain.accuracy(variables, batches, classes)
        return flatten_dict(variables, sep='/') | {'accuracy': accuracy, 'tested': tested.split}

    stored = _cached(source.folder, 'classifier', record, compute)
    accuracy, tested = float(stored.pop('accuracy')), str(stored.pop('tested'))
    task = f'{classes} classes' if classes > 1 else '4 rotations'
    print(f'classifier     {in_domain.NAME}, {task}: {accuracy:.1%} of {tested} images correct')
    return in_domain.network(unflatten_dict(stored, sep='/'))


def _record(source: data.Source, networks: Networks) -> dict[str, Any]:
    """Everything that statistics of real images depend on."""
    return {
        'data': source.name,
        'split': source.split,
        'count': len(source),
        'image_size': source.image_size,
        'features': networks.features.name,
        'layer': networks.features.layer,
        'resize': networks.features.resize,
        'features_sha256': networks.features.sha256,
        'classifier_sha256': networks.classifier and networks.classifier.sha256,
        'shapes': list(shapes.SCORES) if networks.colours else [],
    }


def _cached(
    folder: Path, kind: str, record: dict[str, Any], compute: Callable[[], dict[str, Any]]
) -> dict[str, np.ndarray]:
    """Reads arrays from `folder/sagan_jax/`, or computes them and stores them there."""
    text = json.dumps(record, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = folder / 'sagan_jax' / f'{kind}_{key}.npz'
    stored = _read(path, record)
    is_missing_somewhere = distributed.vote(stored is None)()
    if stored is not None and not is_missing_somewhere:
        return stored
    # At least one process lacks the file. `compute` is collective, so all processes compute, and
    # each writes its own file.
    arrays = {name: np.asarray(value) for name, value in compute().items()}
    arrays = distributed.from_first(arrays)
    try:
        with atomic_path(path) as temporary:
            np.savez(temporary, record=text, **arrays)
    except Exception as error:
        reason = failures.unwritable(error)
        if reason is None:
            raise
        print(f'warning        {path} cannot be written: {reason}')
    return arrays


def _read(path: Path, record: dict[str, Any]) -> dict[str, np.ndarray] | None:
    try:
        with open_file(path) as file, np.load(file) as archive:
            stored = dict(archive)
        found = parse_json(str(stored.pop('record')).encode())
        if not isinstance(found, dict):
            raise ValueError('its record is damaged')
    except FileNotFoundError:
        return None
    except Exception as error:  # what NumPy raises depends on the damage
        print(f'warning        {path} cannot be read and is computed again ({reason(error)})')
        return None
    _check_record(path, found, record)
    return stored


def _check_record(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    different = [
        f'{key} {stored}, not {expected}' for key, stored, expected in differences(found, wanted)
    ]
    if different:
        raise UserError(
            f'{path} has another record ({"; ".join(different)}): remove it, and it is computed '
            'again.'
        )

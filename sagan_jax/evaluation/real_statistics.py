"""What generated images are compared with: networks and statistics of the real pictures.

Both are computed once and stored beside the prepared data, under a name and with a record of
everything that they depend on. A file is whole or not there; one with another record is refused.
"""

import hashlib
import json
import zipfile
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
from sagan_jax.metrics.features import Collected, FeatureNetwork, collect
from sagan_jax.system import distributed
from sagan_jax.system.files import atomic_path
from sagan_jax.system.records import differences
from sagan_jax.system.streaming import on_devices

MAX_TESTED = 10_000  # pictures, at most, that the classifier's accuracy is taken from


class Networks(NamedTuple):
    """What is asked of every image: its features, its class, and for 'shapes' its colours."""

    features: FeatureNetwork
    classifier: FeatureNetwork | None  # where there are classes to tell apart
    colours: bool

    @property
    def variables(self) -> dict:
        classifier = self.classifier.variables if self.classifier else {}
        return {'features': self.features.variables, 'classifier': classifier}

    @property
    def sha256(self) -> list[str]:
        return [network.sha256 for network in (self.features, self.classifier) if network]

    def apply(self, variables: dict, images: jax.Array) -> dict[str, jax.Array]:
        """Images [N, S, S, 3], uint8 or float from 0 to 255 → one row for each.

        'features' [N, d], 'logits' [N, classes], 'guesses' int32 [N], 'agreements' bool [N] and
        'hues' float32 [N].
        """
        found = self.features.apply(variables['features'], images)
        rows = {'features': found[self.features.layer], 'logits': found[self.features.logits]}
        if self.classifier is self.features:
            rows['guesses'] = rows['logits'].argmax(-1)
        elif self.classifier:
            logits = self.classifier.apply(variables['classifier'], images)['logits']
            rows['guesses'] = logits.argmax(-1)
        if self.colours:
            rows['agreements'] = shapes.colours_agree(images)
            rows['hues'] = shapes.hues(images)
        return rows


class Statistics(NamedTuple):
    """What is kept of one set of images.

    Attributes:
      collected: moments, sums for the Inception Score, and some of the features.
      shares: 'class_share' of images in which the classifier sees their class, and
        `shapes.SCORES`; each where it applies.
    """

    collected: Collected
    shares: dict[str, float]


def load_networks(config: ml_collections.ConfigDict, source: data.Source) -> Networks:
    """The networks that `config.evaluation` asks for; `source` is the training split.

    Raises:
      UserError: for Inception weights that are unavailable.
    """
    colours, has_classes = config.dataset.name == 'shapes', config.dataset.num_classes > 1
    if config.evaluation.features == 'in_domain':
        classifier = _classifier(config, source)
        return Networks(classifier, classifier if has_classes else None, colours)
    # Before a classifier is trained: weights may be missing.
    features = inception.network(config.evaluation.inception_weights)
    return Networks(features, _classifier(config, source) if has_classes else None, colours)


def load_statistics(
    source: data.Source, networks: Networks, splits: int, keep: int, batch_size: int
) -> Statistics:
    """Statistics of a whole split of real pictures, of which `keep` features stay whole.

    Computed over all devices, or read from the file that an earlier call left. Raises UserError
    for fewer pictures than `splits`, and for a file of other statistics.
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
    """Features float32 [N, d] and labels int32 [N] of a whole split, cached likewise."""

    def compute():
        labels: list[np.ndarray] = []
        layer = networks.features.layer
        stream = on_devices(networks.features.apply, batch_size, distributed.all_devices())
        images = _noting(data.one_pass(source, batch_size), labels)
        parts = _progress(stream(networks.features.variables, images), len(source), layer)
        features = np.concatenate([part[layer] for part in parts])
        return {'features': features, 'labels': np.concatenate(labels)}

    stored = _cached(source.folder, 'features', _record(source, networks), compute)
    return stored['features'], stored['labels']


def gather(
    parts: Iterable[dict[str, np.ndarray]],
    labels: Callable[[], np.ndarray],
    total: int,
    splits: int,
    keep: int,
) -> Statistics:
    """Statistics of `total` images from what `Networks.apply` said of them, part by part.

    `labels()` is asked for their classes, int32 [total], at the end.
    """
    noted: dict[str, list[np.ndarray]] = {'guesses': [], 'agreements': [], 'hues': []}

    def note():
        for part in parts:
            for name, seen in noted.items():
                if name in part:
                    seen.append(part[name])
            yield part

    collected = collect(note(), 'features', 'logits', total, splits, keep)
    shares = {}
    if noted['guesses']:
        shares['class_share'] = float((np.concatenate(noted['guesses']) == labels()).mean())
    if noted['agreements']:
        shares['colour_agreement'] = float(np.concatenate(noted['agreements']).mean())
        variety = shapes.hue_variety(np.concatenate(noted['hues']), labels())
        shares |= {'hue_variety': float(variety.mean()), 'hue_variety_min': float(variety.min())}
    return Statistics(collected, shares)


def _gather_real(
    source: data.Source, networks: Networks, splits: int, keep: int, batch_size: int
) -> Statistics:
    labels: list[np.ndarray] = []
    stream = on_devices(networks.apply, batch_size, distributed.all_devices())
    total = len(source)
    images = _noting(data.one_pass(source, batch_size), labels)
    parts = _progress(stream(networks.variables, images), total, 'features')
    return gather(parts, lambda: np.concatenate(labels), total, splits, keep)


def _noting(
    batches: Iterable[tuple[np.ndarray, np.ndarray]], labels: list[np.ndarray]
) -> Iterator[np.ndarray]:
    """Yields the images of batches; appends their labels to the list."""
    for images, batch_labels in batches:
        labels.append(batch_labels)
        yield images


def _bar(*args: Any, **kwargs: Any) -> tqdm:
    return tqdm(*args, **kwargs, disable=not distributed.is_first())


def _progress(
    parts: Iterable[dict[str, np.ndarray]], total: int, layer: str
) -> Iterator[dict[str, np.ndarray]]:
    with _bar(desc='real pictures', total=total, unit='img') as bar:
        for part in parts:
            yield part
            bar.update(len(part[layer]))


def _classifier(config: ml_collections.ConfigDict, source: data.Source) -> FeatureNetwork:
    """The in-domain classifier of a data set, trained on its training split if it is new."""
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
        except UserError:  # there is no such split
            tested = source
        count = min(MAX_TESTED, len(tested)) // batch_size * batch_size
        batches = data.batches(tested, in_domain.SEED, batch_size, stop=max(1, count // batch_size))
        accuracy = in_domain.accuracy(variables, batches, classes)
        return flatten_dict(variables, sep='/') | {'accuracy': accuracy, 'tested': tested.split}

    stored = _cached(source.folder, 'classifier', record, compute)
    accuracy, tested = float(stored.pop('accuracy')), str(stored.pop('tested'))
    task = f'the class of {classes}' if classes > 1 else 'the rotation of 4'
    print(f'classifier     {in_domain.NAME} finds {task} in {accuracy:.1%} of {tested} pictures')
    return in_domain.network(unflatten_dict(stored, sep='/'))


def _record(source: data.Source, networks: Networks) -> dict:
    """Everything that numbers about real pictures depend on."""
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
    folder: Path, kind: str, record: dict, compute: Callable[[], dict]
) -> dict[str, np.ndarray]:
    """Arrays from `folder/sagan_jax/`, or from `compute()`, which are then stored there."""
    text = json.dumps(record, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = folder / 'sagan_jax' / f'{kind}_{key}.npz'
    stored = _stored(path, record)
    is_missing_somewhere = distributed.vote(stored is None)()
    if stored is not None and not is_missing_somewhere:
        return stored
    # Some process has no such file: all compute, as they must together, and each keeps its own.
    arrays = {name: np.asarray(value) for name, value in compute().items()}
    arrays = distributed.from_first(arrays)
    try:
        with atomic_path(path) as temporary:
            np.savez(temporary, record=text, **arrays)
    except OSError as error:
        print(f'{path} cannot be written ({error.strerror or error}), so it is not kept')
    return arrays


def _stored(path: Path, record: dict) -> dict[str, np.ndarray] | None:
    if not path.exists():
        return None
    try:
        with np.load(path) as archive:
            stored = dict(archive)
        found = json.loads(str(stored.pop('record')))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        print(f'{path} cannot be read and is made again')
        return None
    _check_record(path, found, record)
    return stored


def _check_record(path: Path, found: dict, wanted: dict) -> None:
    different = [
        f'{key} {stored}, not {asked}' for key, stored, asked in differences(found, wanted)
    ]
    if different:
        raise UserError(f'{path} is of {"; ".join(different)}: remove it, and it is made again.')

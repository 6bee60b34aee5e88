"""Rows of scores with their protocol, and the keys that make two scores comparable."""

from collections.abc import Mapping
from typing import Any, cast

import ml_collections

from sagan_jax import data
from sagan_jax.data import shapes
from sagan_jax.metrics import scores
from sagan_jax.metrics.comparison import Score
from sagan_jax.metrics.features import FeatureNetwork
from sagan_jax.metrics.in_domain import NAME as IN_DOMAIN
from sagan_jax.run.entries import Row, score_of
from sagan_jax.system.records import versions

LOW_IS_GOOD = ('fid', 'intra_fid', 'kid', 'fid_infinity')  # high values of all other scores are

# Results. All other keys of a row say how the score was measured.
_RESULTS = ('value', 'real_value', 'std', 'per_class', 'versions')
# The system under test. The choice of generator, averaged or not and with which batch statistics,
# is part of it.
_SYSTEM = ('seed', 'step', 'ema', 'batch_statistics')
# Keys that depend on the number of generated images.
_COUNTS = ('name', 'num_fake', 'num_real', 'subset_size')
# The keys in `main_conditions`, besides the counts and the data.
_MAIN_CONDITIONS = ('features', 'resize', 'rounding', 'labels', 'batch_statistics')

_FAKES_ALONE = ('is', 'class_share', *shapes.SCORES)  # computed without real images


# ---- What makes scores comparable. -------------------------------------------------------------


def identity(row: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured and how: a row without its results."""
    return {key: value for key, value in row.items() if key not in _RESULTS}


def conditions(row: Mapping[str, Any]) -> dict[str, Any]:
    """How a score was measured. Two scores are comparable if and only if these keys are equal."""
    return {key: value for key, value in identity(row).items() if key not in _SYSTEM}


def apart_from_counts(row: Mapping[str, Any]) -> dict[str, Any]:
    """The score and its conditions, except for the number of images."""
    kept = {key: value for key, value in conditions(row).items() if key not in _COUNTS}
    return kept | {'score': score_of(row['name'])}


# ---- Names. ------------------------------------------------------------------------------------


def row_name(score: str, num_samples: int, split: str, in_domain: bool) -> str:
    """The name of a row: 'fid50k_train', 'is50k', 'in_domain_fid50k_train'.

    Args:
      score: 'fid', 'is', ….
      num_samples: the number of generated images.
      split: of the real images. Not part of the name if the score needs no real images.
      in_domain: whether the classifier computes the features.
    """
    name = scores.score_name(score, num_samples)
    if score not in _FAKES_ALONE:
        name = f'{name}_{split}'
    return f'in_domain_{name}' if in_domain and score not in shapes.SCORES else name


# ---- Rows. -------------------------------------------------------------------------------------


def is_meaningful(score: str, conditional: bool, features: str, has_classes: bool) -> bool:
    """Whether a score is meaningful for a generator and its data.

    Args:
      score: 'fid', 'is', ….
      conditional: whether the generator is conditioned on classes.
      features: the name of the feature network.
      has_classes: whether the data have classes. If not, the classifier predicts rotations.
    """
    if score == 'class_share':
        return conditional
    # Without classes all samples have the same rotation, and the Inception Score is meaningless.
    return score != 'is' or features != IN_DOMAIN or has_classes


def make_row(
    config: ml_collections.ConfigDict,
    step: int,
    source: data.Source,
    network: FeatureNetwork,
    score: Score,
    real_value: float | None,
) -> Row:
    """Combines a score with its protocol.

    Args:
      config: the run's configuration.
      step: of the checkpoint.
      source: the real images.
      network: the network on whose outputs the score is computed.
      score: see `metrics.comparison`.
      real_value: the same score for the real images; None if it is not defined for them.
    """
    standing = config.batch_norm.standing_batches
    conditional = config.model.conditioning != 'none'
    found = {
        'name': row_name(score.name, score.num_fake, source.split, network.name == IN_DOMAIN),
        'value': score.value,
    }
    if real_value is not None:
        found['real_value'] = real_value
    found |= score.details | {
        'step': step,
        'num_fake': score.num_fake,
        'num_real': score.num_real,
        'data': source.name,
        'split': source.split,
        'image_size': source.image_size,
    }
    if score.name not in shapes.SCORES:
        found |= {
            'features': network.name,
            'features_sha256': network.sha256,
            'resize': network.resize,
        }
    found |= {
        'rounding': 'uint8' if config.evaluation.round_to_uint8 else 'none',
        'labels': f'uniform over {config.dataset.num_classes}' if conditional else 'none',
        'ema': config.ema.decay,
        'batch_statistics': f'{standing} standing batches of {config.batch_size}'
        if standing
        else 'running averages',
        'seed': config.seed,
        'versions': versions(),
    }
    return cast(Row, found)


# ---- As text. ----------------------------------------------------------------------------------


def describe(row: Row) -> str:
    """One line with the name and value of a score, and the real images' value if there is one."""
    text = f'{row["name"]:<36} {row["value"]:.4g}'
    if 'std' in row:
        text += f' ± {row["std"]:.2g}'
    if 'real_value' in row:
        text += f'  (real images: {row["real_value"]:.4g})'
    return text


def main_conditions(row: Row) -> str:
    """The main conditions of a score, in one line."""
    how = identity(row)
    return '; '.join([
        f'{row["num_fake"]:,} samples',
        f'{row["num_real"]:,} images of {row["data"]} ({row["split"]})',
        *(f'{key} {how[key]}' for key in _MAIN_CONDITIONS if key in how),
    ])  # fmt: skip

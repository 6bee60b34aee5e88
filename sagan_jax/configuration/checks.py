"""Checks of a configuration: ranges of numbers, choices of names, and keys that must agree.

The commands, `train` and `load` check a configuration once; the functions below them trust it.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from sagan_jax.errors import UserError
from sagan_jax.losses import LOSSES
from sagan_jax.models.architectures import (
    ARCHITECTURES,
    discriminator_resolutions,
    generator_resolutions,
)


class Range(NamedTuple):
    """An inclusive range, in numbers and in words."""

    minimum: float
    maximum: float
    words: str


SEED = Range(0, 2**32 - 1, 'from 0 to 4294967295')  # seeds that give different keys in JAX
COUNT = Range(1, np.inf, '1 or more')
NUMBER = Range(0, np.inf, '0 or more')
POSITIVE = Range(2.0**-126, 2.0**127, 'above 0')  # normal numbers of float32
RATE = Range(0, 2.0**127, '0 or more, and finite')
SHARE = Range(0, 1, 'from 0 to 1')
MOMENTUM = Range(0, 1 - 2.0**-24, 'at least 0 and below 1')

RANGES = {
    'seed': SEED,
    'num_train_steps': COUNT,
    'batch_size': COUNT,
    'steps_per_call': COUNT,
    'gradient_accumulation': COUNT,
    'discriminator_steps': COUNT,
    'mismatch_weight': RATE,
    'mode_seeking_weight': RATE,
    'dataset.num_classes': NUMBER,
    'model.generator_width': COUNT,
    'model.discriminator_width': COUNT,
    'model.z_dim': COUNT,
    'model.attention_value_divisor': COUNT,
    'model.attention_query_block': NUMBER,
    'model.acgan_weight': RATE,
    'spectral_norm.epsilon': POSITIVE,
    'batch_norm.decay': SHARE,
    'batch_norm.last_decay': SHARE,
    'batch_norm.epsilon': POSITIVE,
    'batch_norm.standing_batches': NUMBER,
    'optimizer.generator_lr': RATE,
    'optimizer.discriminator_lr': RATE,
    'optimizer.b1': MOMENTUM,
    'optimizer.b2': MOMENTUM,
    'optimizer.epsilon': POSITIVE,
    'optimizer.decay_from': SHARE,
    'ema.decay': SHARE,
    'ema.start_step': NUMBER,
    'log_every': COUNT,
    'sample_every': COUNT,
    'checkpoint_every': COUNT,
    'divergence_restarts': NUMBER,
    'keep_checkpoints': COUNT,
    'watch.max_logit_gap': POSITIVE,
    'watch.max_sigma': POSITIVE,
    'watch.min_diversity': RATE,
    'distributed.num_processes': COUNT,
    'distributed.process_id': NUMBER,
    'evaluate_every': NUMBER,
    'evaluation.num_samples': COUNT,
    'evaluation.training_samples': COUNT,
    'evaluation.pair_samples': NUMBER,
    'evaluation.intra_fid_samples': NUMBER,
    'evaluation.splits': COUNT,
    'evaluation.batch_size': COUNT,
}


CHOICES: dict[str, Iterable[str]] = {
    'dtype': ('float32', 'bfloat16'),
    'loss': LOSSES,
    'model.architecture': ARCHITECTURES,
    'model.attention_block': ('self_attention', 'residual'),
    'model.conditioning': ('projection', 'acgan', 'none'),
    'model.initializer': ('xavier_uniform', 'orthogonal', 'normal'),
    'evaluation.features': ('inception', 'in_domain'),
    'evaluation.split': ('train', 'test'),
    'evaluation.best': ('fid', 'is'),
}

MIN_PAIRS = 30  # for FID∞, which needs the most of all scores over pairs


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses an invalid configuration before it causes some other error much later.

    Raises:
      UserError: naming the first key that is missing, that is out of its range, that is none of its
        choices, or that disagrees with another key.
    """
    for key, (minimum, maximum, words) in RANGES.items():
        value = _value(config, key)
        if not minimum <= value <= maximum:  # refuses NaN too
            raise UserError(f'{key}={value} should be {words}.')
    for key, choices in CHOICES.items():
        value = _value(config, key)
        if value not in choices:
            raise UserError(f'{key}={value!r} should be {_one_of(choices)}.')
    _check_schedule(config)
    _check_conditioning(config)
    _check_networks(config)
    _check_evaluation(config)


def check_batch(config: ml_collections.ConfigDict, devices: int) -> None:
    """Refuses a batch size that is not divisible among the devices.

    Raises:
      UserError: naming the divisor.
    """
    pairs = 2 if config.mode_seeking_weight else 1
    divisor = devices * config.gradient_accumulation * pairs
    if config.batch_size % divisor:
        parts = f'the {devices} devices'
        if config.gradient_accumulation > 1:
            parts += f' times gradient_accumulation={config.gradient_accumulation}'
        if pairs == 2:
            parts += ' times the 2 images of a pair (mode_seeking_weight)'
        raise UserError(
            f'batch_size={config.batch_size} is not divisible by {parts}: '
            f'set it to a multiple of {divisor}.'
        )


def _value(config: ml_collections.ConfigDict, key: str) -> Any:
    section, _, name = key.rpartition('.')
    try:
        return (config[section] if section else config)[name]
    except KeyError as error:
        raise UserError(
            f'The configuration has no {key}, perhaps because it is of an older version: give '
            '--config, or train again.'
        ) from error


def _one_of(choices: Iterable[Any]) -> str:
    """'a', 'a or b', 'a, b or c'."""
    *names, last = map(str, choices)
    return f'{", ".join(names)} or {last}' if names else last


def _check_schedule(config: ml_collections.ConfigDict) -> None:
    in_steps = ('num_train_steps', 'log_every', 'sample_every', 'checkpoint_every')
    for key in (*in_steps, 'evaluate_every'):  # evaluate_every=0 stands for never
        if config[key] % config.steps_per_call:
            raise UserError(
                f'{key}={config[key]} is not a multiple of '
                f'steps_per_call={config.steps_per_call}: change one of the two.'
            )


def _check_conditioning(config: ml_collections.ConfigDict) -> None:
    model, classes = config.model, config.dataset.num_classes
    if model.conditioning != 'none' and not classes:
        raise UserError(
            f'model.conditioning={model.conditioning} needs classes: set '
            '--config.dataset.num_classes, or --config.model.conditioning=none.'
        )
    if model.conditioning != 'none' and model.architecture == 'dcgan':
        raise UserError(
            f'The architecture dcgan has no conditioning {model.conditioning!r}: set '
            '--config.model.conditioning=none.'
        )
    if config.mismatch_weight and not (model.conditioning == 'projection' and classes > 1):
        raise UserError(
            f'mismatch_weight={config.mismatch_weight} needs '
            '--config.model.conditioning=projection and at least two classes: set '
            'both, or --config.mismatch_weight=0.'
        )


def _check_networks(config: ml_collections.ConfigDict) -> None:
    model, image_size = config.model, config.dataset.image_size
    sizes = ARCHITECTURES[model.architecture]
    if image_size not in sizes:
        raise UserError(
            f'The architecture {model.architecture!r} has no networks for '
            f'dataset.image_size={image_size}: choose --config.dataset.image_size from '
            f'{", ".join(map(str, sizes))}.'
        )
    arch = sizes[image_size]
    maps = generator_resolutions(arch), discriminator_resolutions(arch, image_size)
    if model.architecture == 'dcgan':
        maps = [], []
    _check_attention('generator', model.generator_attention, maps[0])
    _check_attention('discriminator', model.discriminator_attention, maps[1])
    block = model.attention_query_block
    for resolution in (*model.generator_attention, *model.discriminator_attention):
        queries = resolution**2
        if 0 < block < queries and queries % block:
            raise UserError(
                f'model.attention_query_block={block} does not divide the {queries} queries of the '
                f'attention at {resolution}: choose a power of two, or 0 for all queries at once.'
            )


def _check_attention(network: str, asked: Sequence[int], possible: Sequence[int]) -> None:
    if asked and not possible:
        raise UserError(
            f'This architecture takes no attention: set --config.model.{network}_attention=().'
        )
    for resolution in asked:
        if resolution not in possible:
            raise UserError(
                f'model.{network}_attention asks for {resolution}, but the {network} has feature '
                f'maps of {", ".join(map(str, sorted(set(possible))))}: choose among these.'
            )


def _check_evaluation(config: ml_collections.ConfigDict) -> None:
    settings = config.evaluation
    minimum = max(settings.splits, 2)
    for key in ('num_samples', 'training_samples') if config.evaluate_every else ('num_samples',):
        if settings[key] < minimum:
            raise UserError(
                f'evaluation.{key}={settings[key]} is too few for {settings.splits} splits of the '
                f'Inception Score: set it to {minimum} or more.'
            )
    if 0 < settings.pair_samples < MIN_PAIRS:
        raise UserError(
            f'evaluation.pair_samples={settings.pair_samples} is too few for FID∞: set '
            f'it to {MIN_PAIRS} or more, or to 0 to leave out the scores over pairs.'
        )
    if settings.intra_fid_samples and config.model.conditioning == 'none':
        raise UserError(
            'A generator without classes has no intra FID: set '
            '--config.evaluation.intra_fid_samples=0.'
        )

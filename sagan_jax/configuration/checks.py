"""Checks of a configuration: ranges of numbers, choices of names, and keys that must agree.

The commands, `train` and `load` check a configuration once; the functions below them trust it.
"""

import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from sagan_jax.augmentation import AUGMENTATIONS
from sagan_jax.configuration import defaults
from sagan_jax.errors import UserError
from sagan_jax.losses import LOSSES
from sagan_jax.models.architectures import ARCHITECTURES, attention_resolutions


class Range(NamedTuple):
    """An inclusive range, in numbers and in words."""

    minimum: float
    maximum: float
    words: str


def _up_to(maximum: int, minimum: int = 1) -> Range:
    return Range(minimum, maximum, f'from {minimum} to {maximum}')


SEED = _up_to(2**32 - 1, 0)  # seeds that give different keys in JAX
COUNT = _up_to(2**31 - 1)  # of int32
NUMBER = _up_to(2**31 - 1, 0)
POSITIVE = Range(2.0**-126, 2.0**127, 'above 0')  # normal numbers of float32
RATE = Range(0, 2.0**127, '0 or more, and finite')
SHARE = Range(0, 1, 'from 0 to 1')
MOMENTUM = Range(0, 1 - 2.0**-24, 'at least 0 and below 1')

RANGES = {
    'seed': SEED,
    'num_train_steps': COUNT,
    'batch_size': _up_to(10**6),
    'steps_per_call': _up_to(10**6),
    'gradient_accumulation': COUNT,
    'discriminator_steps': _up_to(10**4),
    'mismatch_weight': RATE,
    'mode_seeking_weight': RATE,
    'lecam_weight': RATE,
    'r1_weight': RATE,
    'r1_every': COUNT,
    'dataset.num_classes': _up_to(10**6, 0),
    'model.generator_width': _up_to(2**16),
    'model.discriminator_width': _up_to(2**16),
    'model.z_dim': _up_to(2**16),
    'model.attention_value_divisor': COUNT,
    'model.attention_query_block': NUMBER,
    'model.acgan_weight': RATE,
    'spectral_norm.epsilon': POSITIVE,
    'batch_norm.decay': SHARE,
    'batch_norm.last_decay': SHARE,
    'batch_norm.epsilon': POSITIVE,
    'batch_norm.standing_batches': _up_to(10**5, 0),
    'optimizer.generator_lr': RATE,
    'optimizer.discriminator_lr': RATE,
    'optimizer.b1': MOMENTUM,
    'optimizer.b2': MOMENTUM,
    'optimizer.epsilon': POSITIVE,
    'optimizer.decay_from': SHARE,
    'optimizer.frozen_discriminator_blocks': NUMBER,
    'ema.decay': SHARE,
    'ema.start_step': NUMBER,
    'log_every': COUNT,
    'sample_every': COUNT,
    'checkpoint_every': COUNT,
    'divergence_restarts': _up_to(10**6, 0),
    'keep_checkpoints': COUNT,
    'watch.max_logit_gap': POSITIVE,
    'watch.max_sigma': POSITIVE,
    'watch.min_diversity': RATE,
    'distributed.num_processes': _up_to(10**6),
    'distributed.process_id': NUMBER,
    'evaluate_every': NUMBER,
    'evaluation.num_samples': _up_to(10**8),
    'evaluation.training_samples': _up_to(10**8),
    'evaluation.pair_samples': _up_to(10**6, 0),
    'evaluation.intra_fid_samples': _up_to(10**6, 0),
    'evaluation.splits': _up_to(10**6),
    'evaluation.batch_size': _up_to(2**16),
}


CHOICES: dict[str, Iterable[Any]] = {
    'dtype': ('float32', 'bfloat16'),
    'matmul_precision': ('default', 'high', 'highest'),
    'loss': LOSSES,
    'dataset.channels': (1, 3),
    'model.architecture': ARCHITECTURES,
    'model.attention_block': ('self_attention', 'residual'),
    'model.conditioning': ('projection', 'acgan', 'none'),
    'model.dense_bias': ('zeros', 'uniform'),
    'model.discriminator_skip': ('input', 'relu'),
    'batch_norm.class_tables': ('constant', 'drawn'),
    'model.initializer': ('xavier_uniform', 'orthogonal', 'normal'),
    'evaluation.features': ('inception', 'in_domain'),
    'evaluation.split': ('train', 'test'),
    'evaluation.best': ('fid', 'is'),
}

_SECTIONS = (ml_collections.ConfigDict, dict)
_TYPES = {
    bool: 'True or False',
    int: 'an integer',
    float: 'a number below 1e308',
    str: 'text',
    tuple: 'a tuple of integers',
    type(None): 'None',
    ml_collections.ConfigDict: 'a section with keys',
}

_LONGEST = 60  # characters of a value in a message

MIN_PAIRS = 30  # for FID∞, which needs the most of all scores over pairs


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses an invalid configuration before it causes some other error much later.

    What is left open, see `resolving.resolve`, is accepted.

    Raises:
      UserError: naming the first key that is missing or unknown, that has another type than its
        default, that is out of its range, that is none of its choices, or that disagrees with
        another key.
    """
    unknown = unknown_keys(config)
    if unknown:
        raise UserError(
            f'The configuration has {", ".join(unknown)}, which nothing reads: leave out all keys '
            'that are not in sagan_jax/configuration/defaults.py.'
        )
    check_types(config)
    for key, (minimum, maximum, words) in RANGES.items():
        value = _value(config, key)
        if value is not None and not minimum <= value <= maximum:  # refuses NaN too
            raise UserError(f'{key}={_shown(value)} should be {words}.')
    for key, choices in CHOICES.items():
        value = _value(config, key)
        if value not in choices:
            raise UserError(f'{key}={_shown(value)} should be {_one_of(choices)}.')
    _check_schedule(config)
    _check_augmentation(config)
    _check_conditioning(config)
    _check_networks(config)
    _check_evaluation(config)


def unknown_keys(config: Mapping[str, Any]) -> list[str]:
    """The dotted names of keys, of a configuration or its JSON values, that the defaults lack."""
    known = {key for key, _, _ in _with_types(defaults.get_config())} | {*defaults.get_config()}
    return [key[:_LONGEST] for key, _, _ in _with_types(config) if key not in known]


def check_types(config: Mapping[str, Any]) -> None:
    """Refuses values of another type than the default's. Keys may be missing.

    Args:
      config: a configuration, or its JSON values with tuples in place of lists; it has no
        `unknown_keys`.

    Raises:
      UserError: naming the first such key.
    """
    for key, value, wanted in _with_types(config):
        if not _has_type(value, wanted):
            words = ' or '.join(_TYPES[each] for each in wanted)
            raise UserError(f'{key}={_shown(value)} should be {words}.')


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


def _with_types(config: Mapping[str, Any]) -> Iterator[tuple[str, Any, tuple[type, ...]]]:
    """The keys of a configuration by dotted name, each with its value and the types it may have.

    Keys that the defaults lack may have none.
    """
    known = defaults.get_config()
    for name, value in config.items():
        if isinstance(value, _SECTIONS) and isinstance(known.get(name), _SECTIONS):
            for key, inner in value.items():
                yield f'{name}.{key}', inner, _types_of(known[name], key)
        else:
            yield name, value, _types_of(known, name)


def _types_of(section: ml_collections.ConfigDict, key: str) -> tuple[type, ...]:
    if key not in section:
        return ()
    none = (type(None),) if section[key] is None else ()  # a placeholder
    return (section.get_type(key), *none)


def _has_type(value: Any, wanted: Sequence[type]) -> bool:
    """Whether a value is of one of these types, which are among `_TYPES`."""
    if isinstance(value, bool):
        return bool in wanted
    if isinstance(value, tuple):
        return tuple in wanted and all(_has_type(each, (int,)) for each in value)
    if isinstance(value, int) and float in wanted:
        return value.bit_length() < sys.float_info.max_exp  # what float can represent
    return isinstance(value, tuple(wanted))


def _shown(value: Any) -> str:
    """A value for a message, however large it is."""
    if isinstance(value, int) and value.bit_length() > 128:
        return 'an integer of more than 128 bits'
    if value is None or isinstance(value, (bool, int, float, str)):
        text = repr(value)
        return text if len(text) <= _LONGEST else f'{text[:_LONGEST]}…'
    if isinstance(value, _SECTIONS):
        return 'a section with keys'
    simple = isinstance(value, tuple) and all(isinstance(each, (int, str)) for each in value)
    return repr(value) if simple and len(value) < 10 else 'a list'


def _one_of(choices: Iterable[Any]) -> str:
    """'a', 'a or b', 'a, b or c'."""
    *names, last = map(str, choices)
    return f'{", ".join(names)} or {last}' if names else last


def _check_schedule(config: ml_collections.ConfigDict) -> None:
    in_steps: tuple[str, ...]
    in_steps = ('num_train_steps', 'log_every', 'sample_every', 'checkpoint_every')
    if config.r1_weight:
        in_steps += ('r1_every',)
    for key in (*in_steps, 'evaluate_every'):  # evaluate_every=0 stands for never
        if config[key] % config.steps_per_call:
            raise UserError(
                f'{key}={config[key]} is not a multiple of '
                f'steps_per_call={config.steps_per_call}: change one of the two.'
            )


def _check_augmentation(config: ml_collections.ConfigDict) -> None:
    policy = config.diff_augment
    names = policy.split(',') if policy not in ('', 'auto') else []
    if len({*names} & {*AUGMENTATIONS}) < len(names):
        raise UserError(
            f'diff_augment={_shown(policy)} should be names from {", ".join(AUGMENTATIONS)}, each '
            "at most once, with commas and no spaces between, or 'auto', or '' for none."
        )


def _check_conditioning(config: ml_collections.ConfigDict) -> None:
    model, classes = config.model, config.dataset.num_classes
    if model.conditioning != 'none' and classes == 0:
        raise UserError(
            f'model.conditioning={model.conditioning} needs classes: set '
            '--config.dataset.num_classes, or --config.model.conditioning=none.'
        )
    if model.conditioning != 'none' and model.architecture == 'dcgan':
        raise UserError(
            f'The architecture dcgan has no conditioning {model.conditioning!r}: set '
            '--config.model.conditioning=none.'
        )
    _check_class_tables(config)
    enough = classes is None or classes > 1
    if config.mismatch_weight and not (model.conditioning == 'projection' and enough):
        raise UserError(
            f'mismatch_weight={config.mismatch_weight} needs '
            '--config.model.conditioning=projection and at least two classes: set '
            'both, or --config.mismatch_weight=0.'
        )


def _check_class_tables(config: ml_collections.ConfigDict) -> None:
    drawn = config.batch_norm.class_tables == 'drawn'
    if drawn and config.model.conditioning == 'none':
        raise UserError(
            'A generator without classes has no class tables: set '
            '--config.batch_norm.class_tables=constant.'
        )
    if config.spectral_norm.class_tables and not (drawn and config.spectral_norm.generator):
        raise UserError(
            'spectral_norm.class_tables needs --config.spectral_norm.generator=True and '
            '--config.batch_norm.class_tables=drawn: set both, or '
            '--config.spectral_norm.class_tables=False.'
        )


def _check_networks(config: ml_collections.ConfigDict) -> None:
    model, image_size = config.model, config.dataset.image_size
    sizes = ARCHITECTURES[model.architecture]
    if image_size not in sizes:
        nearest = sorted(sorted(sizes, key=lambda size: abs(size - image_size))[:2])
        raise UserError(
            f'There are no networks for dataset.image_size={_shown(image_size)}: set '
            f'--config.dataset.image_size={_one_of(nearest)}, the nearest of '
            f'{", ".join(map(str, sizes))}.'
        )
    maps = attention_resolutions(model.architecture, image_size)
    dcgan = model.architecture == 'dcgan'
    blocks = 0 if dcgan else len(sizes[image_size].discriminator)
    frozen = config.optimizer.frozen_discriminator_blocks
    if frozen > blocks:
        raise UserError(
            f'optimizer.frozen_discriminator_blocks={frozen} exceeds the {blocks} residual blocks '
            f'of the discriminator: set it to {blocks} or less.'
        )
    asked = model.generator_attention or (), model.discriminator_attention or ()
    _check_attention('generator', asked[0], maps[0])
    _check_attention('discriminator', asked[1], maps[1])
    block = model.attention_query_block
    for resolution in itertools.chain(*asked):
        queries = resolution**2
        if 0 < block < queries and queries % block:
            raise UserError(
                f'model.attention_query_block={block} does not divide the {queries} queries of the '
                f'attention at {resolution}: choose a divisor, such as {math.gcd(block, queries)}, '
                'or 0 for all queries at once.'
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
                f'maps of {", ".join(map(str, possible))}: choose among these.'
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

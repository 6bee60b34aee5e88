"""Between which values the numbers of a configuration make sense."""

from typing import NamedTuple

import ml_collections
import numpy as np

from sagan_jax.errors import UserError


class Range(NamedTuple):
    """The least and the greatest value, which are allowed themselves, in numbers and in words."""

    least: float
    greatest: float
    words: str


SEED = Range(0, 2**32 - 1, 'from 0 to 4294967295')  # what JAX's keys tell apart
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


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses a number that means nothing, before it shows much later as some other error.

    Raises:
      UserError: naming the first such key, its value and what would make sense; or a key that is
        missing.
    """
    for key, (least, greatest, words) in RANGES.items():
        section, _, name = key.rpartition('.')
        try:
            value = (config[section] if section else config)[name]
        except KeyError as error:
            raise UserError(
                f'The configuration has no {key}, as one of an older version: give --config, or '
                'train anew.'
            ) from error
        if not least <= value <= greatest:  # nor does NaN lie between anything
            raise UserError(f'{key}={value} should be {words}.')

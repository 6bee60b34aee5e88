"""Trains SAGAN: python -m sagan_jax.main --config configs/quickstart.py

With --mode evaluate it scores the checkpoints of a run instead.

A configuration file may have variants, chosen as --config configs/imagenet128.py:feat32, and any
of its keys can be changed: --config.batch_size=64 --config.optimizer.generator_lr=2e-4
"""

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from sagan_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Path of the configuration, as configs/FILE.py or configs/FILE.py:VARIANT.'
)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder of the run; by default runs/ and the name of the configuration.'
)
_MODE = flags.DEFINE_enum('mode', 'train', ['train', 'evaluate'], 'What to do.')
_CHECKPOINT = flags.DEFINE_string(
    'checkpoint', 'newest', 'What to evaluate: newest, best, all, or the step of a checkpoint.'
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f'Unexpected argument {argv[1]!r}: see --help.')
    if _CONFIG.value is None:
        raise UserError('No configuration was given: try --config configs/quickstart.py.')
    # Imported late, so that --help and mistakes on the command line are answered at once.
    from sagan_jax.evaluate import evaluate
    from sagan_jax.train import train

    workdir = Path(_WORKDIR.value or _default_workdir())
    if _MODE.value == 'evaluate':
        evaluate(_CONFIG.value, workdir, _CHECKPOINT.value)
    else:
        train(_CONFIG.value, workdir)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; what absl or ml_collections would answer with a traceback, or
    with status 1, becomes a `UserError`."""
    try:
        remaining = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            _CONFIG.value.lock()  # a configuration that could not be loaded says so on first use
        return remaining
    except OSError as error:
        path = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')[0]
        if Path(path).exists():
            raise
        raise UserError(
            f'There is no configuration {path}: the folder configs/ holds some.'
        ) from error
    except (AttributeError, KeyError) as error:
        key = str(error).strip('\'"')
        raise UserError(
            f'The configuration has no key {key!r}: configs/common.py lists every key.'
        ) from error
    except flags.Error as error:
        if 'get_config() takes' in str(error):
            raise UserError('This configuration has no variants: leave out the colon.') from error
        raise UserError(f'{str(error).splitlines()[-1]}: see --help.') from error


def _default_workdir() -> Path:
    path, _, variant = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
    return Path('runs') / '_'.join(filter(None, (Path(path).stem, variant)))


def run() -> None:
    """The command line, where a mistake of the user's ends in one sentence and status 2."""
    logging.set_verbosity(logging.WARNING)
    sys.stdout.reconfigure(line_buffering=True)  # progress shows in log files too
    try:
        app.run(main, flags_parser=_parse_flags)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)


if __name__ == '__main__':
    run()

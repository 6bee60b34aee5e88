"""Trains SAGAN: python -m sagan_jax.main --config configs/quickstart.py

With --mode evaluate it scores the checkpoints of a run instead, with --mode figures it draws the
paper's figures for it.

A configuration file may have variants, chosen as --config configs/imagenet128.py:feat32, and any
of its keys can be changed: --config.batch_size=64 --config.optimizer.generator_lr=2e-4
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from sagan_jax import command_line
from sagan_jax.errors import UserError

_CONFIG = command_line.define_config()
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder of the run; by default runs/ and the name of the configuration.'
)
_MODE = flags.DEFINE_enum('mode', 'train', ['train', 'evaluate', 'figures'], 'What to do.')
_CHECKPOINT = flags.DEFINE_string(
    'checkpoint',
    'newest',
    'What to evaluate or draw: newest, best, all (to evaluate), or the step of a checkpoint.',
)
_FIGURES = flags.DEFINE_list(
    'figures', [], 'With --mode figures: some of attention, curves, classes, evolution; or all.'
)
_CLASSES = flags.DEFINE_list('classes', [], 'Names or numbers of the classes to draw.')
_POINTS = flags.DEFINE_list(
    'points', [], 'Query locations of the attention figure as row:column in pixels, as 8:8,20:25.'
)


def main(argv: list[str]) -> None:
    if _CONFIG.value is None:
        raise UserError('No configuration was given: try --config configs/quickstart.py.')
    # Imported late, so that --help and mistakes on the command line are answered at once.
    from sagan_jax.evaluate import evaluate
    from sagan_jax.illustrate import illustrate
    from sagan_jax.train import train

    config, workdir = _CONFIG.value, Path(_WORKDIR.value or _default_workdir())
    if _MODE.value == 'evaluate':
        evaluate(config, workdir, _CHECKPOINT.value)
    elif _MODE.value == 'figures':
        points = [_point(text) for text in _POINTS.value]
        illustrate(config, workdir, _CHECKPOINT.value, _FIGURES.value, _CLASSES.value, points)
    else:
        train(config, workdir)


def _point(text: str) -> tuple[int, int]:
    row, _, column = text.partition(':')
    if not (row.isdecimal() and column.isdecimal()):
        raise UserError(f'{text!r} is not a point: give --points as row:column, as in 8:8,20:25.')
    return int(row), int(column)


def _default_workdir() -> Path:
    path, _, variant = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
    return Path('runs') / '_'.join(filter(None, (Path(path).stem, variant)))


if __name__ == '__main__':
    command_line.run(main, _CONFIG)

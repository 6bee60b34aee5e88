"""Trains SAGAN: python -m sagan_jax.main --config configs/quickstart.py

With --mode evaluate it scores the checkpoints of a run instead, with --mode figures it draws the
paper's figures for it, with --mode sample images of its generator, with --mode export it writes the
generator for other programs, and with --mode serve it shows the run in a browser. For all of these
--workdir is enough.

A configuration file may have variants, chosen as --config configs/imagenet128.py:feat32, and any
of its keys can be changed: --config.batch_size=64 --config.optimizer.generator_lr=2e-4
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from sagan_jax.errors import UserError
from sagan_jax.system import command_line

_CONFIG = command_line.define_config()
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder of the run; by default runs/ and the name of the configuration.'
)
_MODE = flags.DEFINE_enum(
    'mode',
    'train',
    ['train', 'evaluate', 'figures', 'sample', 'export', 'serve'],
    'What to do.',
)
_CHECKPOINT = flags.DEFINE_string(
    'checkpoint',
    'newest',
    'Where not to train: newest, best, all (to evaluate), or the step of a checkpoint.',
)
_FIGURES = flags.DEFINE_list(
    'figures', [], 'With --mode figures: some of attention, curves, classes, evolution; or all.'
)
_CLASSES = flags.DEFINE_list('classes', [], 'Names or numbers of the classes to draw.')
_POINTS = flags.DEFINE_list(
    'points', [], 'Query locations of the attention figure as row:column in pixels, as 8:8,20:25.'
)
_DRAW = flags.DEFINE_string(
    'draw',
    'samples',
    'With --mode sample: samples; noise_interpolation or class_interpolation; nearest, samples '
    'beside the training pictures nearest to them; or ranking, samples in the order of the '
    "discriminator's logits.",
)
_NUM_IMAGES = flags.DEFINE_integer(
    'num_images', None, 'With --mode sample: how many images, or rows of an interpolation.'
)
_SAMPLE_SEED = flags.DEFINE_integer('sample_seed', 0, 'With --mode sample: decides the images.')
_TRUNCATION = flags.DEFINE_float(
    'truncation', None, 'With --mode sample: draw z again where it lies beyond ± this, up to 5.'
)
_OUTPUT = flags.DEFINE_string(
    'output',
    None,
    'With --mode sample: a file that ends in .png or .npz, or a folder for single PNG files. With '
    '--mode export: a folder. By default in the workdir.',
)
_HOST = flags.DEFINE_string(
    'host', '127.0.0.1', 'With --mode serve: the address to listen at; this one is for nobody else.'
)
_PORT = flags.DEFINE_integer(
    'port', 8000, 'With --mode serve: 0 for any that is free.', lower_bound=0, upper_bound=65535
)


def main(argv: list[str]) -> None:
    if _CONFIG.value is None and _MODE.value == 'train':
        raise UserError('No configuration was given: try --config configs/quickstart.py.')
    if _CONFIG.value is None and _WORKDIR.value is None:
        raise UserError('No run was given: try --workdir runs/quickstart.')
    workdir = Path(_WORKDIR.value or _default_workdir())
    if _MODE.value in ('sample', 'export', 'serve'):
        return _use_model(_MODE.value, workdir)
    # Imported late, so that --help and mistakes on the command line are answered at once.
    from sagan_jax.configuration import checks
    from sagan_jax.evaluation.evaluate import evaluate
    from sagan_jax.run.folder import RunFolder
    from sagan_jax.system import distributed
    from sagan_jax.train import train
    from sagan_jax.viewing import report
    from sagan_jax.viewing.paper_figures import illustrate

    config = _CONFIG.value or RunFolder(workdir).config()
    checks.check(config)  # above all whether a run's is as old as to lack keys
    if config.distributed.coordinator and _MODE.value == 'figures':
        raise UserError('--mode figures is for one process: leave out distributed.coordinator.')
    with distributed.joined(config):
        if _MODE.value == 'train':
            return train(config, workdir)
        if _MODE.value == 'evaluate':
            evaluate(config, workdir, _CHECKPOINT.value)
        else:
            points = [_point(text) for text in _POINTS.value]
            illustrate(config, workdir, _CHECKPOINT.value, _FIGURES.value, _CLASSES.value, points)
        if distributed.is_first():
            report.write(workdir)
            print(f'written        {RunFolder(workdir).report}')
    return None


def _use_model(mode: str, workdir: Path) -> None:
    from sagan_jax.run.folder import RunFolder
    from sagan_jax.trained.export import export
    from sagan_jax.trained.model import load
    from sagan_jax.trained.sample_files import generate
    from sagan_jax.viewing.serve import serve

    if mode == 'serve':
        return serve(workdir, _HOST.value, _PORT.value)
    run = RunFolder(workdir)
    model = load(workdir, _CHECKPOINT.value, _CONFIG.value)
    if mode == 'export':
        export(model, workdir, Path(_OUTPUT.value or run.export))
    else:
        output = Path(_OUTPUT.value or run.generated / f'{_DRAW.value}.png')
        settings = _CLASSES.value, _NUM_IMAGES.value, _SAMPLE_SEED.value, _TRUNCATION.value
        generate(model, output, _DRAW.value, *settings)


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

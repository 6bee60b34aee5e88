"""Trains a SAGAN and uses the trained model; --mode says which.

A configuration file may have variants, chosen as --config configs/imagenet128.py:feat32. Each of
its keys can be changed: --config.batch_size=64 --config.optimizer.generator_lr=2e-4

The other modes take the configuration from the folder of the run, --workdir.
"""

from sagan_jax.system import ending

if __name__ == '__main__':
    ending.prepare()  # before the imports that take seconds

import contextlib
from collections.abc import Iterator
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from sagan_jax.errors import UserError
from sagan_jax.system import buckets, command_line, paths
from sagan_jax.system.command_line import Mode

MODES = {
    'train': Mode(
        'trains, or resumes from the newest checkpoint of the workdir; the default',
        'python -m sagan_jax.main --config configs/quickstart.py',
        ('init', 'profile'),
    ),
    'evaluate': Mode(
        'scores checkpoints: FID, the Inception Score and others',
        'python -m sagan_jax.main --mode evaluate --workdir runs/quickstart --checkpoint best',
        ('checkpoint',),
    ),
    'figures': Mode(
        "draws the paper's figures of a run",
        'python -m sagan_jax.main --mode figures --workdir runs/quickstart --figures attention',
        ('checkpoint', 'figures', 'classes', 'points'),
    ),
    'sample': Mode(
        'draws images of the generator',
        'python -m sagan_jax.main --mode sample --workdir runs/quickstart --classes star,cross',
        ('checkpoint', 'draw', 'classes', 'num_images', 'sample_seed', 'truncation', 'output'),
    ),
    'export': Mode(
        'writes the generator for programs that do not have this package',
        'python -m sagan_jax.main --mode export --workdir runs/quickstart',
        ('checkpoint', 'output', 'license'),
    ),
    'serve': Mode(
        'shows the run in a browser',
        'python -m sagan_jax.main --mode serve --workdir runs/quickstart --port 8080',
        ('host', 'port'),
    ),
}

_CONFIG = command_line.define_config()
_WORKDIR = flags.DEFINE_string(
    'workdir',
    None,
    'Folder of the run, or gs://BUCKET/PATH or s3://BUCKET/PATH. By default runs/ and the name of '
    'the configuration.',
)
_MODE = flags.DEFINE_enum('mode', 'train', list(MODES), 'What to do.')
_INIT = command_line.checked_path(
    flags.DEFINE_string(
        'init', None, 'Folder of a run to begin with the networks of, on other images or classes.'
    ),
    paths.check_data_path,
)
_PROFILE = flags.DEFINE_string(
    'profile', None, 'First and last step to trace with jax.profiler, as 100:110.'
)
_CHECKPOINT = flags.DEFINE_string(
    'checkpoint', 'newest', 'newest, best or the step of a checkpoint; to evaluate, also all.'
)
_FIGURES = flags.DEFINE_list(
    'figures', ['all'], 'Some of attention, curves, classes and evolution, or all.'
)
_CLASSES = flags.DEFINE_list(
    'classes',
    [],
    'Names or indices of the classes to draw. By default all classes. A name counts before an '
    'index; one with a comma needs quotation marks, as in \'"a, b",c\'.',
)
_POINTS = flags.DEFINE_list(
    'points', [], 'Query locations of the attention figure as row:column in pixels, as 8:8,20:25.'
)
_DRAW = flags.DEFINE_string(
    'draw',
    'samples',
    'samples; noise_interpolation; class_interpolation; nearest, samples beside the training '
    "images nearest to them; or ranking, samples in the order of the discriminator's logits.",
)
_NUM_IMAGES = flags.DEFINE_integer(
    'num_images', None, 'Number of images, or of rows of an interpolation.'
)
_SAMPLE_SEED = flags.DEFINE_integer('sample_seed', 0, 'Seed of the images.')
_TRUNCATION = flags.DEFINE_float(
    'truncation', None, 'Draw z again where it lies beyond ± this threshold, at most 5.'
)
_OUTPUT = command_line.checked_path(
    flags.DEFINE_string(
        'output',
        None,
        'A folder to write into; for samples also a file that ends in .png or .npz. It may be '
        'gs://BUCKET/PATH or s3://BUCKET/PATH. By default in the workdir.',
    ),
    buckets.parse,
)
_LICENSE = flags.DEFINE_string(
    'license',
    None,
    'Licence of the weights for the model card, as the Hugging Face hub names it: apache-2.0.',
)
_HOST = flags.DEFINE_string(
    'host',
    '127.0.0.1',
    'Address to listen on. The default is reachable from this machine alone.',
)
_PORT = flags.DEFINE_integer(
    'port', 8000, 'Port to listen on; 0 for any free port.', lower_bound=0, upper_bound=65535
)


def main(argv: list[str]) -> None:
    if _CONFIG.value is None and _MODE.value == 'train':
        raise UserError('No configuration was given: try --config configs/quickstart.py.')
    if _CONFIG.value is None and _WORKDIR.value is None:
        raise UserError('No run was given: try --workdir runs/quickstart.')
    asked = _WORKDIR.value or str(_default_workdir())
    place = buckets.parse(asked, '--workdir') or Path(asked)
    if isinstance(place, Path):
        paths.check_data_path(asked, '--workdir')
    # Here and below, imports are where they are used: --help and mistakes on the command line are
    # answered at once, and no mode waits for packages that only others need.
    from sagan_jax.system import compilation, distributed

    if _MODE.value in ('sample', 'export', 'serve'):
        compilation.use_cache()
        return _use_model(_MODE.value, place)
    if _CONFIG.value is not None:
        config = _prepare(_CONFIG.value)
        with (
            distributed.joined(config),
            distributed.entered_by_first(lambda: _opened(place)) as workdir,
        ):
            _use_run(config, workdir or (place if isinstance(place, Path) else place.folder))
        return None
    from sagan_jax.run.folder import RunFolder

    with _opened(place) as workdir:
        _use_run(_prepare(RunFolder(workdir).config()), workdir)
    return None


def _prepare(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Checks a configuration, and sets what it says of the process."""
    from sagan_jax.configuration import checks
    from sagan_jax.system import numerics

    if _INIT.value:
        config.init.run = _INIT.value
    paths.check_config(config)
    checks.check(config)  # one that was read from a run may lack keys
    if config.distributed.coordinator and _MODE.value == 'figures':
        raise UserError('--mode figures is for one process: leave out distributed.coordinator.')
    if config.deterministic:
        numerics.make_deterministic()
    return config


@contextlib.contextmanager
def _opened(place: Path | buckets.Address, reads_only: bool = False) -> Iterator[Path]:
    """Yields the folder of a run, which may be in a bucket."""
    if isinstance(place, Path):
        yield place
        return
    from sagan_jax.run import bucket

    with (bucket.fetched if reads_only else bucket.mirrored)(place) as folder:
        yield folder


def _use_run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    from sagan_jax.system import compilation, distributed

    compilation.use_cache()
    if _MODE.value == 'train':
        from sagan_jax.train import train

        return train(config, workdir, _window(_PROFILE.value) if _PROFILE.value else None)
    if _MODE.value == 'evaluate':
        from sagan_jax.evaluation.evaluate import evaluate

        evaluate(config, workdir, _CHECKPOINT.value)
    else:
        from sagan_jax.viewing.paper_figures import illustrate

        points = [_point(text) for text in _POINTS.value]
        kinds = [] if 'all' in _FIGURES.value else _FIGURES.value
        illustrate(config, workdir, _CHECKPOINT.value, kinds, _CLASSES.value, points)
    if distributed.is_first():
        _write_report(workdir)
    return None


def _write_report(workdir: Path) -> None:
    """Writes report.html, unless another process has begun to use the folder."""
    from sagan_jax.run import lock
    from sagan_jax.run.folder import RunFolder
    from sagan_jax.viewing import report

    run = RunFolder(workdir)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.owned(run))
        except UserError as error:
            print(f'warning        report.html is left as it is: {error}')
            return
        report.write(workdir)
    print(f'written        {run.report}')


def _use_model(mode: str, place: Path | buckets.Address) -> None:
    from sagan_jax.run import lock
    from sagan_jax.run.folder import RunFolder
    from sagan_jax.trained.model import load

    if mode == 'serve':
        from sagan_jax.viewing.serve import serve

        with _opened(place, reads_only=True) as workdir:
            serve(workdir, _HOST.value, _PORT.value)
        return
    run = RunFolder(place if isinstance(place, Path) else place.folder)
    default = run.export if mode == 'export' else run.generated / f'{_DRAW.value}.png'
    asked = buckets.parse(_OUTPUT.value, '--output') if _OUTPUT.value else None
    output = Path(_OUTPUT.value or default)
    if asked and isinstance(place, buckets.Address) and asked.is_below(place):
        output, asked = run.path / asked.path.removeprefix(f'{place.path}/'), None
    is_inside = not asked and output.resolve().is_relative_to(run.path.resolve())
    with contextlib.ExitStack() as stack:
        workdir = stack.enter_context(_opened(place, reads_only=not is_inside))
        if asked:
            output = stack.enter_context(buckets.uploaded(asked))
        if is_inside:
            stack.enter_context(lock.owned(run, 'an --output elsewhere'))
        model = load(workdir, _CHECKPOINT.value, _CONFIG.value)
        if mode == 'export':
            from sagan_jax.trained.export import export

            export(model, workdir, output, _LICENSE.value)
        else:
            from sagan_jax.trained.sample_files import write_samples

            settings = _CLASSES.value, _NUM_IMAGES.value, _SAMPLE_SEED.value, _TRUNCATION.value
            write_samples(model, output, _DRAW.value, *settings)


def _point(text: str) -> tuple[int, int]:
    row, _, column = text.partition(':')
    if not (row.isdecimal() and column.isdecimal()):
        raise UserError(f'{text!r} is not a point: give --points as row:column, as in 8:8,20:25.')
    return int(row), int(column)


def _window(text: str) -> tuple[int, int]:
    first, _, last = text.partition(':')
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UserError(
            f'--profile={text} is not a first and a last step: give them as 100:110, where steps '
            'count from 1.'
        )
    return int(first), int(last)


def _default_workdir() -> Path:
    path, _, variant = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
    return Path('runs') / '_'.join(filter(None, (Path(path).stem, variant)))


if __name__ == '__main__':
    command_line.run(main, _CONFIG, MODES)

"""Converts published weights to a run: python -m launch.convert FILE [FILE] --output RUN

  python -m launch.convert model=G-best.pth model=D-best.pth --output runs/studiogan
  python -m launch.convert --download imagenet128 --output runs/imagenet128_public \\
      --config configs/imagenet128.py --config.dataset.source_dir=IMAGENET

FILE is a .pth file of PyTorch-StudioGAN, mmgeneration, MMagic or BigGAN-PyTorch (with SAGAN's
settings), or the official TensorFlow variables as an .npz file. The project, the sizes and all
settings of the networks are found in the file; nothing in it is run, and PyTorch is not needed.
RUN is then used like any other: --mode sample, figures, evaluate, export and serve, and
sagan_jax.load.

--config gives the data and the settings of evaluation, without which the run cannot be scored.
"""

from sagan_jax.system import ending

if __name__ == '__main__':
    ending.prepare()  # before the imports that take seconds

from pathlib import Path

import ml_collections
from absl import flags

from sagan_jax import models
from sagan_jax.configuration import defaults
from sagan_jax.errors import UserError
from sagan_jax.published import conversion, known, writing
from sagan_jax.published.conversion import Converted, Options
from sagan_jax.system import command_line, paths

CONFIG = command_line.define_config()
OUTPUT = command_line.checked_path(
    flags.DEFINE_string('output', None, 'Folder of the run, which is created.'),
    paths.check_data_path,
)
DOWNLOAD = flags.DEFINE_string(
    'download', None, f'Download a known file: {", ".join(known.FILES)}.'
)
COLOURS = flags.DEFINE_enum(
    'colours',
    None,
    ['rgb', 'bgr'],
    'Order of the channels of the networks; default: bgr for mmgeneration, rgb for others.',
)
SKIP = flags.DEFINE_enum(
    'discriminator_skip',
    None,
    ['input', 'relu'],
    "What the skips of the discriminator's blocks see; default: by the project and the file name.",
)


def main(argv: list[str]) -> None:
    files = [Path(text) for text in argv[1:]]
    if DOWNLOAD.value:
        files.append(known.fetch(DOWNLOAD.value))
    if not 1 <= len(files) <= 2:
        raise UserError(
            f'{len(files)} files were given: give one, or that of the generator and that of the '
            'discriminator.'
        )
    if not OUTPUT.value:
        raise UserError('No folder was given: try --output runs/converted.')
    output = Path(OUTPUT.value)
    if output.exists():
        raise UserError(f'{output} exists: choose another --output, or remove it.')
    config = CONFIG.value.copy_and_resolve_references() if CONFIG.value else _default_config()
    asked = config.dataset.image_size, config.dataset.num_classes  # None is whatever is found
    bgr = None if COLOURS.value is None else COLOURS.value == 'bgr'
    converted = conversion.convert(files, config, Options(bgr, SKIP.value))
    found = config.dataset.image_size, config.dataset.num_classes
    if CONFIG.value and any(a is not None and a != b for a, b in zip(asked, found, strict=True)):
        raise UserError(
            f'The weights make images of {found[0]}×{found[0]} in {found[1]} classes, but --config '
            f'has {asked[0]}×{asked[0]} and {asked[1]}: choose that of their data.'
        )
    _describe(converted)
    writing.write(converted, output)
    print(f'written        {output}')


def _default_config() -> ml_collections.ConfigDict:
    config = defaults.get_config()
    config.dataset.name = 'image_folder'
    return config


def _describe(converted: Converted) -> None:
    config, origin = converted.config, converted.origin
    print(f'project        {origin["project"]}, step {converted.step:,}, {origin["colours"]}')
    for name, variables, attention in (
        ('generator', converted.generator, config.model.generator_attention),
        ('discriminator', converted.discriminator, config.model.discriminator_attention),
    ):
        if variables is None:
            print(f'{name:<14} not in the files')
            continue
        where = f'attention at {", ".join(map(str, attention))}' if attention else 'no attention'
        print(f'{name:<14} {models.count_parameters(variables):,} parameters, {where}')
    print(f'left out       {", ".join(origin["left_out"]) or "nothing"}')
    print(f'licence        {origin["licence"]}')


if __name__ == '__main__':
    command_line.run(main, CONFIG, operands=True)

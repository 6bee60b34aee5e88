"""Predicts memory and speed on accelerators that are not there: python -m launch.compile

  pip install -r launch/compile/requirements.txt
  python -m launch.compile --config configs/imagenet128.py:feat32 --target v5e:1x1,h100:8 \\
      --batch_size 64,256 --dtype float32,bfloat16 --full --json table.json

The training step is compiled for each target and never run. The compiler's own output says how much
memory it takes, which convolutions are executed, what is sent between devices, and how long each
operation is estimated to take. --batch_size is the global batch. Targets are

  v5e:1x1  v5e:2x4  v6e:2x4  v4:2x2x1  v5p:2x2x1   TPU chips of one host, along the torus
  h100:1   h100:8   h200:8                         GPUs of one machine

Compiling a network of full size takes minutes to half an hour on two cores. By default the networks
are therefore narrowed to --width. That shows which operations are executed, not whether a run fits
or how fast it is: for these add --full. What was compiled before is read from the cache.
"""

from sagan_jax.system import ending

if __name__ == '__main__':
    ending.prepare()  # before the imports that take seconds

import itertools
import os
import sys
from typing import Any

from absl import flags

from launch.benchmark import tables
from sagan_jax.errors import UserError
from sagan_jax.system import command_line

CONFIG = command_line.define_config()
TARGET = flags.DEFINE_list('target', 'v5e:1x1', 'Accelerators, see above.')
BATCH_SIZE = flags.DEFINE_list('batch_size', None, 'Global batch sizes; default: configuration.')
DTYPE = flags.DEFINE_list('dtype', None, 'float32, bfloat16 or both; default: configuration.')
FULL = flags.DEFINE_bool('full', False, 'Compile the networks at full width.')
WIDTH = flags.DEFINE_integer('width', 16, 'Width of both networks without --full.', lower_bound=1)
JSON = command_line.checked_path(flags.DEFINE_string('json', None, 'File for all facts.'))

# Several processes may compile, and no machine in Google's cloud is asked what it is.
_ENVIRONMENT = {'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'TPU_SKIP_MDS_QUERY': '1'}


def main(argv: list[str]) -> None:
    if CONFIG.value is None:
        raise UserError('There is no configuration: set --config configs/imagenet128.py.')
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Imported here, so that --help and mistakes on the command line are answered immediately.
    import jax

    from launch.compile import devices, prediction, program

    jax.config.update('jax_platforms', 'cpu')
    targets = [devices.parse_target(text) for text in TARGET.value]
    configs = _grid()
    rows: list[prediction.Row] = []
    for target in targets:
        devices.create_devices(target)  # fails before anything is compiled
    for number, (target, config) in enumerate(itertools.product(targets, configs), start=1):
        of = f'{number} of {len(targets) * len(configs)}'
        named = f'{target.text}, batch {config.batch_size}, {config.dtype}'
        print(f'{of}: {named} …', file=sys.stderr)
        compiled = program.compile_step(config, target, lambda text: print(text, file=sys.stderr))
        rows.append(prediction.predict(config, target, compiled))
        alike = [row for row in rows if _kind(row) == _kind(rows[-1]) and 'refused' not in row]
        prediction.largest_batches(alike)
        facts = {'command': sys.argv, 'config': CONFIG.value.to_dict(), 'compiled': rows}
        command_line.write_json(JSON.value, facts)
    _show(rows)


def _grid() -> list[Any]:
    """The configuration in all combinations of batch sizes and dtypes."""
    from sagan_jax.evaluation import training_data

    config = training_data.resolve(CONFIG.value.copy_and_resolve_references())
    if not FULL.value:
        config.model.generator_width = min(WIDTH.value, config.model.generator_width)
        config.model.discriminator_width = min(WIDTH.value, config.model.discriminator_width)
    configs = []
    for dtype, text in itertools.product(
        DTYPE.value or [config.dtype], BATCH_SIZE.value or [str(config.batch_size)]
    ):
        if not text.isdecimal() or not int(text):
            raise UserError(f'--batch_size={text!r} is not an integer of at least 1: correct it.')
        configs.append(config.copy_and_resolve_references())
        configs[-1].update({'dtype': dtype, 'batch_size': int(text)})
    return configs


def _kind(row: dict[str, Any]) -> tuple[str, str]:
    return row['target'], row['dtype']


def _show(rows: list[dict[str, Any]]) -> None:
    """Prints the tables, and below them what a number rests on."""
    for section in ('memory', 'executed', 'predicted'):
        print(f'\n{section}\n{tables.render(section, rows)}')
    for row in rows:
        if 'refused' in row:
            continue
        print(f'\nmost expensive operations, {row["target"]}, {row["batch_size"]} {row["dtype"]}')
        print(tables.render('operations', row['expensive_operations']))
    model = CONFIG.value.model
    if not FULL.value and max(model.generator_width, model.discriminator_width) > WIDTH.value:
        print(f'\nNarrowed to width {WIDTH.value}: add --full to predict memory and speed.')


if __name__ == '__main__':
    command_line.run(main, CONFIG)

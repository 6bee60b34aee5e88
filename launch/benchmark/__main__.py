"""Measures how fast a configuration trains: python -m launch.benchmark --config FILE --json FILE

  python -m launch.benchmark --config configs/imagenet128.py:feat32 \\
      --batch_size 64,256 --dtype float32,bfloat16 --devices 1,8 --json table.json

All combinations of the batch sizes, dtypes, image sizes and attention resolutions are measured, on
random input. Any other key of the configuration can be set too, as in
--config.model.generator_width=32. --measure chooses among these sections:

  step           the training step: images/s, share of the peak, memory, compilation
  sampling       images from a frozen generator
  evaluation     generating images and computing the features that scores need
  input          reading batches of the configuration's data set
  attention      a single attention layer, time and memory at each --attention resolution
  communication  bytes between devices, and the efficiency predicted for 8, 64 and 512

--cost_only counts operations without compiling. --peer measures the same step in PyTorch, in turns
with ours (needs launch/benchmark/pytorch_requirements.txt).
"""

from sagan_jax.system import ending

if __name__ == '__main__':
    ending.prepare()  # before the imports that take seconds

import importlib.util
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import ml_collections
from absl import flags

from launch.benchmark import tables
from sagan_jax.errors import UserError
from sagan_jax.system import command_line

CONFIG = command_line.define_config()
BATCH_SIZE = flags.DEFINE_list('batch_size', None, 'Global batch sizes; default: configuration.')
DTYPE = flags.DEFINE_list('dtype', None, 'float32, bfloat16 or both; default: configuration.')
IMAGE_SIZE = flags.DEFINE_list('image_size', None, 'Image sizes; default: configuration.')
ATTENTION = flags.DEFINE_list(
    'attention',
    None,
    'Attention resolutions, measured one at a time, or none; default: configuration.',
)
QUERY_BLOCK = flags.DEFINE_list(
    'query_block', None, 'Values of model.attention_query_block; default: configuration.'
)
DEVICES = flags.DEFINE_list(
    'devices', None, 'Numbers of devices, which are virtual on a CPU; default: all devices.'
)
MEASURE = flags.DEFINE_list('measure', 'step', 'Sections, see above.')
COST_ONLY = flags.DEFINE_bool(
    'cost_only', False, 'Count operations and parameters without running.'
)
PEER = flags.DEFINE_bool('peer', False, 'On one device, measure PyTorch too, in turns.')
PROFILE = command_line.checked_path(
    flags.DEFINE_string(
        'profile', None, 'Folder for a trace of a few steps; prints the most expensive operations.'
    )
)
WINDOWS = flags.DEFINE_integer('windows', 5, 'Repetitions of each timing.', lower_bound=1)
WINDOW_SECONDS = flags.DEFINE_float(
    'window_seconds', 2.0, 'Approximate length of each repetition.', lower_bound=0.0
)
JSON = command_line.checked_path(flags.DEFINE_string('json', None, 'File for all measurements.'))


def main(argv: list[str]) -> None:
    if CONFIG.value is None:
        raise UserError('There is no configuration: set --config configs/imagenet128.py.')
    if PEER.value and not importlib.util.find_spec('torch'):
        raise UserError(
            '--peer needs PyTorch, which is not installed: first pip install -r '
            'launch/benchmark/pytorch_requirements.txt.'
        )
    if PEER.value:  # JAX would allocate most of a GPU's memory
        os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
    devices = _integers(DEVICES)
    _make_virtual_devices(max(devices, default=1))
    # Imported here, so that --help and mistakes on the command line are answered immediately.
    import jax

    from launch.benchmark import hardware, sections
    from sagan_jax.configuration import checks

    devices = devices or [jax.local_device_count()]
    if max(devices) > jax.local_device_count():
        raise UserError(
            f'--devices asks for {max(devices)} devices but there are {jax.local_device_count()}: '
            'use at most as many.'
        )
    options = sections.Options(
        devices=tuple(devices),
        windows=WINDOWS.value,
        window_seconds=WINDOW_SECONDS.value,
        peer=PEER.value,
        profile=PROFILE.value,
    )
    machine = hardware.describe()
    results: sections.Results = {}
    print(
        f'{machine["device_count"]} × {machine["device_kind"]}, jax {machine["jax"]}; '
        f'{machine["cpu"]}, {machine["cores"]} cores'
    )
    chosen, configs = _chosen(sections.SECTIONS), list(_grid(CONFIG.value))
    for config in configs:
        checks.check(config)
    configs = [_resolved(config) for config in configs]

    def write() -> None:
        described = {'command': sys.argv, 'machine': machine, 'config': CONFIG.value.to_dict()}
        command_line.write_json(JSON.value, described | results)

    write()  # fails immediately if the file cannot be written
    for name in chosen:
        rows: list[sections.Row] = []
        results[name] = rows
        for number, config in enumerate(configs, start=1):
            print(f'{name}: {number} of {len(configs)} …', file=sys.stderr)
            for row in sections.SECTIONS[name](config, options, results):
                rows.append(row)
                write()
        _show(name, rows)


def _resolved(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A checked configuration with what it leaves to the data."""
    from sagan_jax.configuration import resolving

    def count_classes() -> int:
        from sagan_jax import data  # imports packages that nothing else here needs

        return data.count_classes(config.dataset)

    def count_images() -> int:
        from sagan_jax import data

        return data.count_images(config.dataset)

    return resolving.resolve(config, count_classes, count_images)


def _integers(flag: flags.FlagHolder, minimum: int = 1) -> list[int]:
    return [_integer(flag.name, text, minimum) for text in flag.value or []]


def _integer(name: str, text: str, minimum: int = 1) -> int:
    if not text.isdecimal() or int(text) < minimum:
        raise UserError(f'--{name}={text!r} is not an integer: use integers of at least {minimum}.')
    return int(text)


def _chosen(known: Iterable[str]) -> list[str]:
    """The sections to measure."""
    for name in MEASURE.value:
        if name not in known:
            raise UserError(
                f'There is no section {name!r}: choose --measure from {", ".join(known)}.'
            )
    if not COST_ONLY.value:
        return MEASURE.value
    runs = [name for name in MEASURE.value if name not in ('step', 'cost', 'communication')]
    if runs:
        raise UserError(f'--cost_only cannot measure {runs[0]}: leave it out of --measure.')
    return ['cost' if name == 'step' else name for name in MEASURE.value]


def _grid(config: ml_collections.ConfigDict) -> Iterator[ml_collections.ConfigDict]:
    """The configuration in all combinations of the lists on the command line."""
    attention = [
        () if text == 'none' else (_integer('attention', text),) for text in ATTENTION.value or []
    ]
    axes: dict[tuple[str, ...], list[Any]] = {
        ('dataset.image_size',): _integers(IMAGE_SIZE),
        ('model.generator_attention', 'model.discriminator_attention'): attention,
        ('model.attention_query_block',): _integers(QUERY_BLOCK, minimum=0),
        ('batch_size',): _integers(BATCH_SIZE),
        ('dtype',): DTYPE.value or [],
    }
    axes = {keys: values for keys, values in axes.items() if values}
    for values in itertools.product(*axes.values()):
        variant = config.copy_and_resolve_references()
        for keys, value in zip(axes, values, strict=True):
            variant.update_from_flattened_dict(dict.fromkeys(keys, value))
        yield variant


def _make_virtual_devices(count: int) -> None:
    """Splits the CPU into `count` devices. Call it before JAX first uses the CPU."""
    import jax

    if count > jax.config.values['jax_num_cpu_devices']:
        jax.config.update('jax_num_cpu_devices', count)


def _show(section: str, rows: list[dict[str, Any]]) -> None:
    """Prints a section's table, and below it what does not fit into its columns."""
    print(f'\n{section}\n{tables.render(section, rows)}')
    for source in sorted({row['peak_source'] for row in rows if 'peak_source' in row}):
        print(f'peak: {source}')
    for assumption in dict.fromkeys(row['assumption'] for row in rows if 'assumption' in row):
        print(f'assumed: {assumption}')
    if compared := [row for row in rows if 'ratio_of_medians' in row]:
        print(f'\nin turns with PyTorch\n{tables.render("peer", compared)}')
    for row in rows:
        if 'expensive_operations' in row:
            print(f'\nmost expensive operations, batch {row["batch_size"]} {row["dtype"]}')
            print(tables.render('operations', row['expensive_operations']))


if __name__ == '__main__':
    command_line.run(main, CONFIG)

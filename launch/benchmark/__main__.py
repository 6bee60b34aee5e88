"""Measures how fast a configuration trains: python -m launch.benchmark --config FILE --json FILE

  python -m launch.benchmark --config configs/imagenet128.py:feat32 \\
      --batch_size 64,256 --dtype float32,bfloat16 --devices 1,8 --json table.json

Lists of batch sizes, dtypes, image sizes and attention resolutions are measured in every
combination, on made-up input. Any key of the configuration can be changed besides, as in
--config.model.generator_width=32. What is measured is chosen with --measure:

  step           the training step: images/s, share of the peak, memory, compilation
  sampling       images from a frozen generator
  evaluation     drawing images and taking the features that scores are made of
  input          reading batches of the configuration's data set, with nothing else
  attention      one attention layer on its own, time and memory at each --attention resolution
  communication  bytes between devices, and the efficiency predicted for 8, 64 and 512

--cost_only counts operations and compiles nothing. --peer lets the same step in PyTorch take turns
with ours (needs launch/benchmark/pytorch_requirements.txt).
"""

import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator

import ml_collections
from absl import flags

from launch.benchmark import tables
from sagan_jax.errors import UserError
from sagan_jax.system import command_line
from sagan_jax.system.files import atomic_path

CONFIG = command_line.define_config()
BATCH_SIZE = flags.DEFINE_list(
    'batch_size', None, 'Global batch sizes; default: that of the configuration.'
)
DTYPE = flags.DEFINE_list('dtype', None, 'float32, bfloat16 or both; default: configuration.')
IMAGE_SIZE = flags.DEFINE_list('image_size', None, 'Image sizes; default: configuration.')
ATTENTION = flags.DEFINE_list(
    'attention',
    None,
    'Resolutions, one at a time, or none; default: configuration.',
)
QUERY_BLOCK = flags.DEFINE_list(
    'query_block', None, 'Values of model.attention_query_block; default: configuration.'
)
DEVICES = flags.DEFINE_list(
    'devices', None, 'Numbers of devices, virtual ones on a CPU; default: all there are.'
)
MEASURE = flags.DEFINE_list('measure', 'step', 'Sections, see above.')
COST_ONLY = flags.DEFINE_bool('cost_only', False, 'Count operations and parameters, run nothing.')
PEER = flags.DEFINE_bool('peer', False, 'Take turns with PyTorch, where there is one device.')
PROFILE = flags.DEFINE_string(
    'profile', None, 'Folder for a trace of a few steps; prints the most expensive operations.'
)
WINDOWS = flags.DEFINE_integer('windows', 5, 'How often each timing is repeated.', lower_bound=1)
WINDOW_SECONDS = flags.DEFINE_float(
    'window_seconds', 2.0, 'About how long each repetition takes.', lower_bound=0.0
)
JSON = flags.DEFINE_string('json', None, 'File for everything that was measured.')


def main(argv: list[str]) -> None:
    if CONFIG.value is None:
        raise UserError('No configuration was given: try --config configs/imagenet128.py.')
    if PEER.value and not importlib.util.find_spec('torch'):
        raise UserError(
            'The peer needs PyTorch: first pip install -r '
            'launch/benchmark/pytorch_requirements.txt.'
        )
    if PEER.value:  # JAX would take most of a GPU's memory for itself
        os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
    devices = _integers(DEVICES)
    _make_virtual_devices(max(devices, default=1))
    # Imported late, so that --help and mistakes on the command line are answered at once.
    import jax

    from launch.benchmark import hardware, sections

    devices = devices or [jax.local_device_count()]
    if max(devices) > jax.local_device_count():
        raise UserError(
            f'There are {jax.local_device_count()} devices: ask for no more with --devices.'
        )
    options = sections.Options(
        devices=tuple(devices),
        windows=WINDOWS.value,
        window_seconds=WINDOW_SECONDS.value,
        peer=PEER.value,
        profile=PROFILE.value,
    )
    machine, results = hardware.describe(), {}
    print(
        f'{machine["device_count"]} × {machine["device_kind"]}, jax {machine["jax"]}; '
        f'{machine["cpu"]}, {machine["cores"]} cores'
    )
    chosen, configs = _chosen(sections.SECTIONS), list(_grid(CONFIG.value))

    def write():
        described = {'command': sys.argv, 'machine': machine, 'config': CONFIG.value.to_dict()}
        _write(described | results)

    write()  # a file that cannot be written is told at once
    for name in chosen:
        rows = results[name] = []
        for number, config in enumerate(configs, start=1):
            print(f'{name}: {number} of {len(configs)} …', file=sys.stderr)
            for row in sections.SECTIONS[name](config, options, results):
                rows.append(row)
                write()
        _show(name, rows)


def _integers(flag: flags.FlagHolder, least: int = 1) -> list[int]:
    return [_integer(flag.name, text, least) for text in flag.value or []]


def _integer(name: str, text: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise UserError(f'--{name} takes whole numbers from {least} on, not {text!r}.')
    return int(text)


def _chosen(known: Iterable[str]) -> list[str]:
    """The sections to go through."""
    for name in MEASURE.value:
        if name not in known:
            raise UserError(
                f'There is no section {name!r}: choose --measure from {", ".join(known)}.'
            )
    if not COST_ONLY.value:
        return MEASURE.value
    runs = [name for name in MEASURE.value if name not in ('step', 'cost', 'communication')]
    if runs:
        raise UserError(f'--cost_only runs nothing: leave out --measure {runs[0]}.')
    return ['cost' if name == 'step' else name for name in MEASURE.value]


def _grid(config: ml_collections.ConfigDict) -> Iterator[ml_collections.ConfigDict]:
    """The configuration in every combination of the lists on the command line."""
    attention = [
        () if text == 'none' else (_integer('attention', text),) for text in ATTENTION.value or []
    ]
    axes = {
        ('dataset.image_size',): _integers(IMAGE_SIZE),
        ('model.generator_attention', 'model.discriminator_attention'): attention,
        ('model.attention_query_block',): _integers(QUERY_BLOCK, least=0),
        ('batch_size',): _integers(BATCH_SIZE),
        ('dtype',): DTYPE.value,
    }
    axes = {keys: values for keys, values in axes.items() if values}
    for values in itertools.product(*axes.values()):
        variant = config.copy_and_resolve_references()
        for keys, value in zip(axes, values, strict=True):
            variant.update_from_flattened_dict(dict.fromkeys(keys, value))
        yield variant


def _make_virtual_devices(count: int) -> None:
    """Splits the CPU into so many devices, which has to happen before JAX first uses it."""
    import jax

    if count > jax.config.jax_num_cpu_devices:
        jax.config.update('jax_num_cpu_devices', count)


def _write(content: dict) -> None:
    if JSON.value is None:
        return
    try:
        with atomic_path(JSON.value) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + '\n')
    except OSError as error:
        raise UserError(f'Cannot write {JSON.value} ({error}): name another --json.') from error


def _show(section: str, rows: list[dict]) -> None:
    """Prints a section's table, and beside it what does not fit into its columns."""
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

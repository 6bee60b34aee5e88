"""Formats rows of the benchmark as aligned tables."""

from collections.abc import Callable
from typing import Any, NamedTuple

Row = dict[str, Any]


class Column(NamedTuple):
    """A column of a table.

    Attributes:
      title: with the unit.
      show: `show(row)` is the text of the cell. The cell is empty if the row has no such key or the
        value is None.
      align: '>' for numbers, '<' for text.
    """

    title: str
    show: Callable[[Row], str]
    align: str = '>'


def _number(name: str, form: str, scale: float = 1) -> Callable[[Row], str]:
    return lambda row: format(row[name] * scale, form)


def _spread(name: str, form: str) -> Callable[[Row], str]:
    return lambda row: ' … '.join(format(row[f'{name}{end}'], form) for end in ('_min', '', '_max'))


def _resolutions(row: Row) -> str:
    return ' '.join(map(str, row['attention'])) or 'none'


IDENTITY = (
    Column('image', _number('image_size', 'd')),
    Column('attention', _resolutions),
    Column('query block', lambda row: str(row['query_block'] or '')),
    Column('batch', _number('batch_size', 'd')),
    Column('dtype', lambda row: row['dtype']),
)
TARGET = (
    Column('target', lambda row: row['target'], '<'),
    *IDENTITY[:1],
    Column('widths', lambda row: f'{row["generator_width"]} {row["discriminator_width"]}'),
    *IDENTITY[3:],
)
# Timings on a CPU are unreliable if other processes used it too.
OTHERS = Column('cores of others', _number('cores_of_others', '.2f'))

COLUMNS = {
    'cost': (
        *IDENTITY,
        Column('GFLOP/image', _number('gflop_per_image', '.2f')),
        Column('GFLOP/step', _number('gflop_per_step', ',.0f')),
        Column('parameters G', _number('generator_parameters', ',')),
        Column('parameters D', _number('discriminator_parameters', ',')),
    ),
    'step': (
        *IDENTITY,
        Column('devices', _number('devices', 'd')),
        Column('images/s min … median … max', _spread('images_per_second', ',.1f')),
        Column('steps/s', _number('steps_per_second', '.2f')),
        Column('h/1M steps', _number('hours_per_million_steps', ',.1f')),
        Column('GFLOP/image', _number('gflop_per_image', '.2f')),
        Column('TFLOP/s', _number('tflop_per_second', ',.3f')),
        Column('of peak', _number('share_of_peak', '.1%')),
        Column('program GB', _number('program_bytes', '.2f', 1e-9)),
        Column('device GB', _number('device_peak_bytes', '.2f', 1e-9)),
        Column('host GB', _number('host_peak_bytes', '.2f', 1e-9)),
        Column('compile s', _number('compile_seconds', '.1f')),
        Column('first step s', _number('first_step_seconds', '.1f')),
        OTHERS,
        Column('', lambda row: row['error']),
    ),
    'peer': (
        *IDENTITY,
        Column('ours images/s', _spread('images_per_second', ',.1f')),
        Column('PyTorch images/s', _spread('peer_images_per_second', ',.1f')),
        Column('PyTorch compile s', _number('peer_compile_seconds', '.1f')),
        Column('ratio of medians', _number('ratio_of_medians', '.2f')),
        Column('ratio min … median … max', _spread('ratio_to_peer', '.2f')),
        OTHERS,
    ),
    'sampling': (
        *IDENTITY,
        Column('images/s min … median … max', _spread('images_per_second', ',.1f')),
        Column('freeze s', _number('freeze_seconds', '.3f')),
        Column('first images s', _number('first_images_seconds', '.1f')),
    ),
    'evaluation': (
        *IDENTITY[:1],
        Column('features', lambda row: row['features'], '<'),
        Column('batch', _number('evaluation_batch_size', 'd')),
        Column('images/s min … median … max', _spread('images_per_second', ',.1f')),
        Column('host GB', _number('host_peak_bytes', '.2f', 1e-9)),
    ),
    'input': (
        Column('dataset', lambda row: row['dataset']),
        *IDENTITY[:1],
        *IDENTITY[3:4],
        Column('images/s min … median … max', _spread('images_per_second', ',.1f')),
        Column('cores busy', _number('cores_busy', '.2f')),
        Column('images/s per core', _number('images_per_second_per_core', ',.1f')),
        Column('× what the step takes', _number('ratio_to_step', '.2f')),
    ),
    'attention': (
        *IDENTITY,
        Column('channels', _number('channels', 'd')),
        Column('ms min … median … max', _spread('milliseconds', '.2f')),
        Column('program MB', _number('program_bytes', ',.1f', 1e-6)),
    ),
    'communication': (
        Column('interconnect', lambda row: row['interconnect']),
        Column('GB/s', _number('gigabytes_per_second', '.1f')),
        Column('hop µs', _number('latency_seconds', '.0f', 1e6)),
        Column('between', lambda row: row['device_kind']),
        *IDENTITY[:3],
        Column('batch each', _number('batch_size', 'd')),
        *IDENTITY[4:],
        Column('devices', _number('devices', 'd')),
        Column('gradients MB', _number('gradient_bytes', ',.1f', 1e-6)),
        Column('moments KB', _number('moment_bytes', ',.1f', 1e-3)),
        Column('all-reduces', _number('messages', 'd')),
        Column('computing ms', _number('compute_seconds', '.2f', 1e3)),
        Column('all-reducing ms', _number('all_reduce_seconds', '.2f', 1e3)),
        Column('efficiency', _number('efficiency', '.1%')),
        Column('images/s', _number('images_per_second', ',.0f')),
    ),
    # Of launch.compile.
    'memory': (
        *TARGET,
        Column('compile s', _number('compile_seconds', '.0f')),
        Column('arguments GiB', _number('argument_bytes', '.2f', 2**-30)),
        Column('temporaries GiB', _number('temporary_bytes', '.2f', 2**-30)),
        Column('in all GiB', _number('program_bytes', '.2f', 2**-30)),
        Column('usable GiB', _number('usable_bytes', '.2f', 2**-30)),
        Column('fits', lambda row: 'yes' if row['fits'] else 'no'),
        Column('largest batch', _number('largest_batch', ',d')),
        Column('largest batch is from', lambda row: row['largest_batch_from'], '<'),
        Column('state arrays not donated', _number('arrays_not_donated', 'd')),
        Column('', lambda row: row['refused'], '<'),
    ),
    'executed': (
        *TARGET,
        Column('GFLOP/image', _number('gflop_per_image', '.2f')),
        Column('of convolutions', _number('convolution_gflop_per_image', '.2f')),
        Column('convolutions', _number('convolution_count', 'd')),
        Column('with dilation', _number('dilated_convolution_count', 'd')),
        Column('written zeros', _number('written_zeros_count', 'd')),
        Column('bytes GB', _number('accessed_bytes', ',.2f', 1e-9)),
        Column('kernels', _number('kernels', ',d')),
        Column('collectives', _number('collectives', 'd')),
        Column('sent MB', _number('collective_bytes', ',.1f', 1e-6)),
    ),
    'predicted': (
        *TARGET,
        Column('ms/step', _number('seconds_per_step', ',.2f', 1e3)),
        Column('images/s', _number('images_per_second', ',.0f')),
        Column('days/1M steps', _number('days_per_million_steps', ',.1f')),
        Column('limited by', lambda row: f'{row["limit"]} ({row["limits"][row["limit"]]:.0%})'),
    ),
    'operations': (
        Column('ms per call', _number('seconds', '.2f', 1e3)),
        Column('share', _number('share', '.1%')),
        Column('operation', lambda row: row['operation'], '<'),
        Column('result', lambda row: row['shape'], '<'),
        Column('from', lambda row: row['source'], '<'),
    ),
}


def render(section: str, rows: list[Row]) -> str:
    """Formats rows as a table with aligned columns. Empty columns are left out."""
    lines: list[list[str]] = [[] for _ in range(len(rows) + 1)]
    for column in COLUMNS[section]:
        cells = [_cell(column, row) for row in rows]
        if any(cells):
            width = max(map(len, (column.title, *cells)))
            for line, cell in zip(lines, (column.title, *cells), strict=True):
                line.append(f'{cell:{column.align}{width}}')
    return '\n'.join('  '.join(line).rstrip() for line in lines)


def _cell(column: Column, row: Row) -> str:
    try:
        return column.show(row)
    except (KeyError, TypeError):  # not measured, or None on this device
        return ''

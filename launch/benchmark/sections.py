"""The sections of the benchmark, which turn a configuration into rows of named values.

A section is a generator function `(config, options, results) -> rows`, where `results` has the rows
of all previous sections. `SECTIONS` lists them. tables.py defines the columns that are printed; the
JSON file has all values.
"""

import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import ml_collections
import numpy as np

from launch.benchmark import hardware, measure, scaling, trace

HOURS_PER_MILLION_STEPS = 1e6 / 3600  # times the seconds of a step

Config: TypeAlias = ml_collections.ConfigDict
Row = dict[str, Any]
Results = dict[str, list[Row]]  # section → rows


class Options(NamedTuple):
    """How to measure.

    Attributes:
      devices: numbers of devices.
      windows: repetitions of each timing.
      window_seconds: approximate length of a repetition.
      peer: whether to measure PyTorch too, in turns with the training step.
      profile: a folder for traces, or None.
    """

    devices: tuple[int, ...]
    windows: int
    window_seconds: float
    peer: bool
    profile: str | None


def identity(config: Config) -> Row:
    """The settings that distinguish the rows of a table."""
    return {
        'batch_size': config.batch_size,
        'dtype': config.dtype,
        'image_size': config.dataset.image_size,
        'attention': list(config.model.generator_attention),
        'query_block': config.model.attention_query_block,
    }


def cost(config: Config, options: Options, results: Results) -> Iterator[Row]:
    """The cost of a step from XLA's analysis, without compiling or running it."""
    generator, discriminator = measure.parameter_counts(config)
    gflop = measure.gflop_per_image(config)
    yield identity(config) | {
        'gflop_per_image': gflop,
        'gflop_per_step': gflop * measure.images_per_step(config),
        'generator_parameters': generator,
        'discriminator_parameters': discriminator,
    }


def step(config: Config, options: Options, results: Results) -> Iterator[Row]:
    """The training step, on each number of devices."""
    for count in options.devices:
        devices = jax.local_devices()[:count]
        row = identity(config) | {'devices': count}
        try:
            yield row | _step_row(config, devices, options)
        except RuntimeError as error:  # from JAX or PyTorch
            if not re.search('RESOURCE_EXHAUSTED|out of memory', str(error)):
                raise
            yield row | {'error': 'out of memory'}


def _step_row(config: Config, devices: list[jax.Device], options: Options) -> Row:
    measure.forget_programs()
    hardware.reset_host_peak()
    gflop = measure.gflop_per_image(config)
    ours = measure.training(config, devices)
    memory = measure.memory(devices[0])
    runs = [ours.run]
    if compare := options.peer and len(devices) == 1:
        from launch.benchmark import pytorch_training  # needs torch, which is optional

        peer = pytorch_training.training(config)
        runs.append(peer.run)
    seconds, cores_of_others = measure.cores_of_others(
        lambda: measure.time_in_turns(runs, options.windows, options.window_seconds)
    )
    seconds /= config.steps_per_call

    images, median = measure.images_per_step(config), np.median(seconds[0])
    achieved = gflop * images / median / 1e3
    peak = hardware.peak(devices[0], config.dtype)
    # Virtual CPU devices share the cores that the peak was measured on.
    possible = peak.tflop_per_second * (1 if devices[0].platform == 'cpu' else len(devices))
    row = {
        **spread('images_per_second', images / seconds[0]),
        'steps_per_second': 1 / median,
        'hours_per_million_steps': median * HOURS_PER_MILLION_STEPS,
        'gflop_per_image': gflop,
        'tflop_per_second': achieved,
        'peak_tflop_per_second': possible,
        'peak_source': peak.source,
        'share_of_peak': achieved / possible,
        **memory,
        'compile_seconds': ours.first_call_seconds - median * config.steps_per_call,
        'first_step_seconds': ours.total_seconds,
        'windows': options.windows,
        'cores_of_others': cores_of_others,
    }
    if compare:
        row |= {
            **spread('peer_images_per_second', images / seconds[1]),
            'peer_compile_seconds': peer.first_call_seconds - np.median(seconds[1]),
            **spread('ratio_to_peer', seconds[1] / seconds[0]),
            'ratio_of_medians': np.median(seconds[1]) / median,
        }
    if options.profile:
        executable = measure.largest_program(devices[0])
        row['expensive_operations'] = trace.expensive_operations(
            ours.run, options.profile, executable
        )
    return row


def sampling(config: Config, options: Options, results: Results) -> Iterator[Row]:
    """Sampling from a frozen generator, with the transfer to the host as uint8, and freezing."""
    timed, freeze_seconds = measure.drawing(config)
    (seconds,) = measure.time_in_turns([timed.run], options.windows, options.window_seconds)
    yield identity(config) | {
        **spread('images_per_second', config.batch_size / seconds),
        'freeze_seconds': freeze_seconds,
        'first_images_seconds': timed.total_seconds,
        'windows': options.windows,
    }


def evaluation(config: Config, options: Options, results: Results) -> Iterator[Row]:
    """Generating images and computing their features and moments, without the scores."""
    hardware.reset_host_peak()
    run, name, count = measure.scoring(config)
    (seconds,) = measure.time_in_turns([run], options.windows, options.window_seconds)
    yield identity(config) | {
        'features': name,
        'evaluation_batch_size': count,
        **spread('images_per_second', count / seconds),
        'host_peak_bytes': hardware.host_peak_bytes(),
        'windows': options.windows,
    }


def reading(config: Config, options: Options, results: Results) -> Iterator[Row]:
    """The input pipeline alone: its speed, its cores, and its speed relative to the step."""
    if any(_agree(row, config, 'batch_size', 'image_size') for row in results['input']):
        return  # the input does not depend on the other settings
    timed = measure.reading(config)
    busy = time.process_time()
    start = time.perf_counter()
    (seconds,) = measure.time_in_turns([timed.run], options.windows, options.window_seconds)
    cores_busy = (time.process_time() - busy) / (time.perf_counter() - start)
    images = config.steps_per_call * measure.images_per_step(config) / seconds
    consumed = [
        row['images_per_second']
        for row in results.get('step', [])
        if 'error' not in row and _agree(row, config, 'image_size')
    ]
    yield identity(config) | {
        'dataset': config.dataset.name,
        **spread('images_per_second', images),
        'cores_busy': cores_busy,
        'images_per_second_per_core': np.median(images) / cores_busy,
        'ratio_to_step': np.median(images) / max(consumed) if consumed else None,
        'windows': options.windows,
    }


def attention(config: Config, options: Options, results: Results) -> Iterator[Row]:
    """The forward and backward pass of a single attention layer, at each resolution."""
    for resolution in config.model.generator_attention:
        run, program_bytes, channels = measure.attention(config, resolution)
        (seconds,) = measure.time_in_turns([run], options.windows, options.window_seconds)
        yield identity(config) | {
            'attention': [resolution],
            'channels': channels,
            **spread('milliseconds', seconds * 1e3),
            'program_bytes': program_bytes,
            'windows': options.windows,
        }


def communication(config: Config, options: Options, results: Results) -> Iterator[Row]:
    """The predicted efficiency of many devices; `batch_size` is that of each device."""
    measured = [
        row['share_of_peak']
        for row in results.get('step', [])
        if row.get('devices') == 1
        and 'data sheet' in row.get('peak_source', '')
        and _agree(row, config, 'batch_size', 'dtype', 'image_size', 'attention')
    ]
    share = measured[0] if measured else None
    for row in scaling.predictions(config, measure.gflop_per_image(config), share):
        yield identity(config) | row


def _agree(row: Row, config: Config, *keys: str) -> bool:
    """Whether a row was measured with the same values of these keys."""
    return all(row[key] == identity(config)[key] for key in keys)


def spread(name: str, values: np.ndarray) -> dict[str, float]:
    """Median, minimum and maximum of repeated measurements, by name."""
    return {
        name: float(np.median(values)),
        f'{name}_min': float(values.min()),
        f'{name}_max': float(values.max()),
    }


SECTIONS = {
    'cost': cost,
    'step': step,
    'sampling': sampling,
    'evaluation': evaluation,
    'input': reading,
    'attention': attention,
    'communication': communication,
}

"""From a compiled program to what a user asks: will it fit, how fast is it, and how long."""

import collections
import heapq
import math
import re
from typing import Any

import jax
import ml_collections

from launch.benchmark import measure, scaling
from launch.compile import hlo, kernels
from launch.compile.devices import Device, Target
from launch.compile.program import Program
from sagan_jax.state import state_shapes

Row = dict[str, Any]

MILLION_STEPS = 1_000_000


def predict(config: ml_collections.ConfigDict, target: Target, program: Program) -> Row:
    """Describes a program that was compiled for a target.

    Returns:
      The facts of the program (memory, donation, convolutions, collectives), and the prediction of
      its speed, see `seconds_of`.
    """
    row: Row = {
        'target': target.text,
        'image_size': config.dataset.image_size,
        'attention': tuple(config.model.generator_attention),
        'query_block': config.model.attention_query_block,
        'generator_width': config.model.generator_width,
        'discriminator_width': config.model.discriminator_width,
        'batch_size': config.batch_size,
        'dtype': config.dtype,
        'devices': target.count,
        'compile_seconds': program.seconds,
    }
    if program.refused:
        return row | {'refused': program.refused}
    module = hlo.parse(program.text)
    zeros = kernels.written_zeros(module)
    found, convolutions = kernels.find_kernels(module)
    return (
        row
        | _memory(config, target, program, module)
        | _work(config, target, found, convolutions)
        | _speed(config, target, found)
        | {
            'convolutions': [c._asdict() for c in convolutions],
            'written_zeros': zeros,
            'written_zeros_count': len(zeros),
            'host_calls': kernels.host_calls(module),
            'uses_float64': kernels.uses_float64(module),
        }
    )


def largest_batches(rows: list[Row]) -> None:
    """Adds `largest_batch` to the rows of one target, configuration and dtype, which fit.

    It is found on the straight line through the memory of the smallest and the largest batch. With
    a single batch, everything but the arguments is taken to grow with the batch.
    """
    sizes = sorted({row['batch_size']: row for row in rows}.items())
    if not sizes:
        return
    (small, first), (large, last) = sizes[0], sizes[-1]
    if small == large:
        fixed = first['argument_bytes']
        each = (first['program_bytes'] - fixed) / small
        found = 'one batch: all but the arguments grows with it'
    else:
        each = (last['program_bytes'] - first['program_bytes']) / (large - small)
        fixed = first['program_bytes'] - each * small
        found = f'a line through batches {small} and {large}'
    for row in rows:
        devices = row['devices']
        most = (row['usable_bytes'] - fixed) / each if each > 0 else math.inf
        row['largest_batch'] = max(0, int(most // devices * devices)) if most < math.inf else None
        row['largest_batch_from'] = found


# ---- What the program is. ----------------------------------------------------------------------


def _memory(
    config: ml_collections.ConfigDict, target: Target, program: Program, module: hlo.Module
) -> Row:
    state = jax.tree.leaves(state_shapes(config))
    missing = set(range(len(state))) - hlo.aliased_outputs(module)
    return {
        'argument_bytes': program.arguments,
        'temporary_bytes': program.temporaries,
        'program_bytes': program.bytes,
        'device_bytes': target.device.memory,
        'usable_bytes': int(target.device.memory * target.device.usable),
        'fits': program.bytes <= target.device.memory * target.device.usable,
        'state_arrays': len(state),
        'state_bytes': sum(math.prod(a.shape) * a.dtype.itemsize for a in state),
        'arrays_not_donated': len(missing),
    }


def _work(
    config: ml_collections.ConfigDict,
    target: Target,
    found: list[kernels.Kernel],
    convolutions: list[kernels.Convolution],
) -> Row:
    images = config.steps_per_call * measure.images_per_step(config) / target.count
    sent = [(k.opcode, k.collective) for k in found for _ in range(k.times) if k.collective]
    dilated = [c for c in convolutions if 'dilate' in c.window and 'conv_general' in c.source]
    return {
        'convolution_count': sum(c.times for c in convolutions),
        'dilated_convolution_count': sum(c.times for c in dilated),
        'gflop_per_image': sum(k.flop * k.times for k in found) / images / 1e9,
        'convolution_gflop_per_image': sum(c.flop * c.times for c in convolutions) / images / 1e9,
        'accessed_bytes': sum(k.bytes * k.times for k in found),
        'kernels': sum(k.times for k in found),
        'collectives': len(sent),
        'collective_bytes': sum(size for _, size in sent),
        'collective_sizes': sorted((size for _, size in sent), reverse=True),
    }


# ---- How fast it is. ---------------------------------------------------------------------------


def limits(kernel: kernels.Kernel, device: Device, dtype: str) -> dict[str, float]:
    """The shortest time of one execution of a kernel by what limits it, in seconds."""
    return {
        'products': kernel.flop / (device.peak(dtype) * device.product_share),
        'memory': kernel.bytes / (device.bandwidth * device.memory_share),
        'launches': device.launch_seconds,
    }


def seconds_of(kernel: kernels.Kernel, device: Device, dtype: str) -> float:
    """The predicted time of one execution of a kernel.

    On a TPU it is the estimate of libtpu's compiler; operations without one are scalar or overlap
    with others, and count as nothing. On a GPU it is the largest of the kernel's `limits`.
    """
    if device.hertz:
        return (kernel.cycles or 0) / device.hertz
    return max(limits(kernel, device, dtype).values())


def _speed(config: ml_collections.ConfigDict, target: Target, found: list[kernels.Kernel]) -> Row:
    device, dtype = target.device, config.dtype
    computing = [k for k in found if not k.collective]
    by_limit: dict[str, float] = collections.defaultdict(float)
    spent = []
    for kernel in computing:
        seconds = seconds_of(kernel, device, dtype) * kernel.times
        bounds = limits(kernel, device, dtype)
        by_limit[max(bounds, key=bounds.__getitem__)] += seconds
        spent.append((seconds, kernel))
    if target.count > 1:
        sent = [k.collective for k in found for _ in range(k.times) if k.collective]
        traffic = scaling.Traffic(sum(sent), 0, len(sent))
        by_limit['communication'] = scaling.all_reduce_seconds(traffic, device.ring, target.count)
    total = sum(by_limit.values())
    step = total / config.steps_per_call
    return {
        'seconds_per_step': step,
        'images_per_second': measure.images_per_step(config) / step,
        'days_per_million_steps': step * MILLION_STEPS / 86400,
        'limits': {name: seconds / total for name, seconds in by_limit.items()},
        'limit': max(by_limit, key=by_limit.__getitem__),
        'expensive_operations': [
            {
                'seconds': seconds,
                'share': seconds / total,
                'operation': kernel.name,
                'shape': kernel.shape,
                'source': _layer(kernel.source),
            }
            for seconds, kernel in heapq.nlargest(10, spent, key=lambda item: item[0])
        ],
    }


def _layer(source: str) -> str:
    """A path of JAX without the transformations of the whole step."""
    return re.sub(
        r'(jit\([\w_]*\)|while|body|closed_call|cond|branch_\d+_fun|checkpoint)/', '', source
    )

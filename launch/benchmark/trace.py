"""Finds the most expensive operations of a program with JAX's profiler."""

import collections
import heapq
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import jax

CALLS = 3  # traced


class Operation(TypedDict):
    """An operation of a program.

    Attributes:
      operation: its name.
      shape: of its result.
      source: the path of the layer that it comes from.
      seconds: per call.
      share: of the time of all operations.
    """

    operation: str
    shape: str
    source: str
    seconds: float
    share: float


def expensive_operations(
    run: Callable[[int], None], folder: str, executable: Any, count: int = 5
) -> list[Operation]:
    """Traces a few calls into `folder` and sums the time of each operation on one device.

    Args:
      run: `run(calls)` makes that many calls and waits for the last one.
      folder: where the trace is kept, for TensorBoard or Perfetto.
      executable: the program, whose text has the source of each operation.
      count: the number of operations to return.

    Returns:
      The most expensive operations, in order. On a CPU, operations overlap in several threads.
    """
    with jax.profiler.trace(folder):
        run(CALLS)
    newest = max(Path(folder).rglob('*.xplane.pb'), key=lambda path: path.stat().st_mtime)
    seconds: dict[str, float] = collections.defaultdict(float)
    for name, duration in _operations(jax.profiler.ProfileData.from_file(str(newest))):
        seconds[name] += duration / 1e9 / CALLS
    described = _described(executable)
    total = sum(seconds.values())
    return [
        {
            'operation': name,
            'shape': described.get(name, ('', ''))[0],
            'source': described.get(name, ('', ''))[1],
            'seconds': spent,
            'share': spent / total,
        }
        for name, spent in heapq.nlargest(count, seconds.items(), key=lambda item: item[1])
    ]


def _operations(profile: jax.profiler.ProfileData) -> list[tuple[str, float]]:
    """Operations and their nanoseconds on the first accelerator, or on the host without one."""
    planes = {plane.name: plane for plane in profile.planes}
    devices = sorted(
        name for name in planes if name.startswith('/device:') and 'CUSTOM' not in name
    )
    if not devices:
        events = [event for line in planes['/host:CPU'].lines for event in line.events]
        return [
            (stats['hlo_op'], event.duration_ns)
            for event in events
            if 'hlo_op' in (stats := dict(event.stats))
        ]
    lines = list(planes[devices[0]].lines)  # a TPU has a line of operations, a GPU has streams
    chosen = [line for line in lines if line.name == 'XLA Ops'] or [
        line for line in lines if line.name.startswith('Stream')
    ]
    return [
        (dict(event.stats).get('hlo_op', event.name), event.duration_ns)
        for line in chosen
        for event in line.events
    ]


def _described(executable: Any) -> dict[str, tuple[str, str]]:
    """Maps the name of an operation to the shape of its result and the path of its source.

    If XLA fused several operations, the source is that of a convolution or product among them.
    """
    text = '\n'.join(module.to_string() for module in executable.hlo_modules())
    inside: dict[str, list[str]] = collections.defaultdict(list)  # computation → paths
    # Operation → shape, its own path, the computation that it calls.
    operations: dict[str, tuple[str, str | None, str | None]] = {}
    for line in text.splitlines():
        if header := re.match(r'(?:ENTRY )?%?([\w.\-]+) \(.*\{$', line):
            computation = header[1]
        elif operation := re.match(r'\s+(?:ROOT )?%?([\w.\-]+) = ([\w\[\],]*)', line):
            path, called = (
                re.search(r'op_name="(.*?)"', line),
                re.search(r'calls=%?([^\s,]+)', line),
            )
            inside[computation] += [path[1]] if path else []
            operations[operation[1]] = operation[2], path and path[1], called and called[1]

    def source(path: str | None, called: str | None) -> str:
        paths = [path or '', *inside.get(called or '', [])]
        products = [path for path in paths if re.search('conv_general_dilated|dot_general', path)]
        return next(filter(None, products + paths), '')

    return {name: (shape, source(*rest)) for name, (shape, *rest) in operations.items()}

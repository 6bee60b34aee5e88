"""The most expensive operations of a program, from a trace by JAX's profiler."""

import collections
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

CALLS = 3  # that are traced


def expensive_operations(
    run: Callable[[int], None], folder: str, executable: Any, count: int = 5
) -> list[dict]:
    """Traces a few calls into `folder` and sums the time of each operation on one device.

    Args:
      run: `run(calls)` makes so many calls and waits for the last.
      folder: where the trace stays, for TensorBoard or Perfetto.
      executable: the program, whose text tells what an operation comes from.
      count: how many operations to return, the most expensive first.

    Returns:
      Rows with 'operation', 'shape', 'source' (the path of the layer), 'seconds' of one call and
      'share' of the time of all operations. On a CPU operations overlap, in several threads.
    """
    with jax.profiler.trace(folder):
        run(CALLS)
    newest = max(Path(folder).rglob('*.xplane.pb'), key=lambda path: path.stat().st_mtime)
    seconds = collections.Counter()
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
        for name, spent in seconds.most_common(count)
    ]


def _operations(profile: jax.profiler.ProfileData) -> list[tuple[str, float]]:
    """Operations and their nanoseconds, of the first accelerator or else of the host."""
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
    lines = list(planes[devices[0]].lines)  # a TPU has a line of operations, a GPU its streams
    chosen = [line for line in lines if line.name == 'XLA Ops'] or [
        line for line in lines if line.name.startswith('Stream')
    ]
    return [
        (dict(event.stats).get('hlo_op', event.name), event.duration_ns)
        for line in chosen
        for event in line.events
    ]


def _described(executable: Any) -> dict[str, tuple[str, str]]:
    """The operation's name → the shape of its result, and the path it was traced from if known.

    Of all that XLA fused into an operation, a convolution or product names it, if there is one.
    """
    text = '\n'.join(module.to_string() for module in executable.hlo_modules())
    inside = collections.defaultdict(list)  # computation → paths
    operations = {}  # operation → shape, its own path, the computation that it calls
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

    def source(path, called):
        paths = [path or '', *inside.get(called, [])]
        products = [path for path in paths if re.search('conv_general_dilated|dot_general', path)]
        return next(filter(None, products + paths), '')

    return {name: (shape, source(*rest)) for name, (shape, *rest) in operations.items()}

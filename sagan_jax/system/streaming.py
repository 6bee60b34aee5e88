"""One program over all devices, for any number of rows."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sagan_jax.system import distributed


def on_devices(
    apply: Callable[[Any, Any], Any],
    batch_size: int,
    devices: list[jax.Device] | None = None,
    total: int | None = None,
) -> Callable[[Any, Iterable[Any]], Iterator[Any]]:
    """Builds `stream(variables, batches)`, which iterates over results for batches of rows.

    Batches of any length are cut into parts of `batch_size` rows for each device. The last part of
    a batch is padded and its padding removed afterwards. So `apply` is compiled once, no row is
    dropped, and the results depend neither on `batch_size` nor on the number of devices by more
    than rounding.

    Args:
      apply: `apply(variables, rows) -> results`. Must process each row independently.
      batch_size: rows at a time on each device.
      devices: the local devices by default. If they belong to several processes, all of these must
        call `stream` with the same batches, and all receive all results.
      total: the rows of all batches together, if they are known to be few. No part is then longer
        than its devices need.

    Returns:
      `stream(variables, batches)`. Batches and results are arrays [n, …] or trees of arrays of the
      same length.
    """
    devices = devices or jax.local_devices()
    mesh = Mesh(np.array(devices), ('batch',))
    split, whole = NamedSharding(mesh, PartitionSpec('batch')), NamedSharding(mesh, PartitionSpec())
    part = rows_at_a_time(batch_size, devices, total)
    run = jax.jit(apply, in_shardings=(whole, split), out_shardings=whole)

    def fetch(results: Any, count: int) -> Any:
        return jax.tree.map(lambda value: np.asarray(value)[:count], results)

    def padded(array: np.ndarray) -> np.ndarray:
        return np.pad(array, [(0, part - len(array))] + [(0, 0)] * (array.ndim - 1))

    def stream(variables: Any, batches: Iterable[Any]) -> Iterator[Any]:
        variables = distributed.place(variables, whole)
        waiting = None  # one part is under way on the devices while the host handles the last
        for batch in batches:
            length = len(jax.tree.leaves(batch)[0])
            for start in range(0, length, part):
                end = min(start + part, length)
                rows = jax.tree.map(lambda array, at=slice(start, end): padded(array[at]), batch)
                results = run(variables, distributed.place(rows, split))
                if waiting:
                    yield fetch(*waiting)
                waiting = results, end - start
        if waiting:
            yield fetch(*waiting)

    return stream


def rows_at_a_time(
    batch_size: int, devices: list[jax.Device] | None = None, total: int | None = None
) -> int:
    """The rows in each part of `on_devices`, which has the same arguments."""
    devices = devices or jax.local_devices()
    share = batch_size if total is None else min(batch_size, -(-total // len(devices)))
    return max(share, 1) * len(devices)

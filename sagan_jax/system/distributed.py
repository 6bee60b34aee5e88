"""Several processes that are one run: joined at the start, kept alike, ended together.

Each does the same, on its own devices; the first alone reads and writes the run's folder. With one
process every function here is what its name says, at no cost.
"""

import collections
import functools
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sagan_jax.errors import UserError

LOST = 75  # status of a process that lost the others: EX_TEMPFAIL, to be tried again
TIMEOUT = 60  # seconds of silence after which a process counts as lost
_PATIENCE = 3  # seconds in which the others may tell the same error
# How errors of JAX's runtime begin, some of which come as ValueError.
_STATUS = re.compile('[A-Z_]{5,}: ')


@contextmanager
def joined(config: ml_collections.ConfigDict) -> Iterator[None]:
    """Makes this process one of those that `config.distributed` speaks of, until the block ends.

    To be entered before JAX's first computation. Output of all but the first process is dropped,
    errors are not. A process that fails ends without waiting for the others, and these end within
    `TIMEOUT` seconds, with status `LOST` or by JAX's own hand.

    Raises:
      UserError: if the others cannot be found.
    """
    settings = config.distributed
    if not settings.coordinator:
        yield
        return
    _initialise(settings)
    if not is_first():
        sys.stdout = open(os.devnull, 'w')  # noqa: SIM115
    try:
        yield
    except UserError as error:
        _leave(f'error: {error}', 2)
    except Exception as error:
        if not _STATUS.match(str(error)):
            _leave(traceback.format_exc(), 1)
        _leave(
            f'error: Process {jax.process_index()} cannot go on, as when another one has ended '
            f'({str(error).splitlines()[0]:.200}): start all of them again, and they go on from '
            'the last checkpoint.',
            LOST,
        )


def _initialise(settings: ml_collections.ConfigDict) -> None:
    explicit = {}
    if settings.coordinator != 'auto':
        explicit = {
            'coordinator_address': settings.coordinator,
            'num_processes': settings.num_processes,
            'process_id': settings.process_id,
        }
        if not 0 <= settings.process_id < settings.num_processes:
            raise UserError(
                f'distributed.process_id={settings.process_id} is none of the '
                f'{settings.num_processes} of distributed.num_processes: they count from 0.'
            )
    try:
        jax.distributed.initialize(**explicit, heartbeat_timeout_seconds=TIMEOUT)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f'The processes cannot find each other with distributed.coordinator='
            f'{settings.coordinator} ({str(error).splitlines()[0]:.200}): give the first '
            "process's host:port, or leave it out for one process."
        ) from error


def _leave(message: str, status: int) -> None:
    """Ends this process at once: it must not wait for others that wait for it."""
    print(message, file=sys.stderr, flush=True)
    if is_first():
        time.sleep(_PATIENCE)  # with the first process JAX ends the others, whatever they tell
    os._exit(status)


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def all_devices() -> list[jax.Device]:
    """The devices of all processes, those of the first one first."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def on_first(function: Callable[[], Any]) -> Any:
    """What `function` returns in the first process, where alone it runs; something for JSON.

    Raises:
      UserError: in all of them, if it does so in the first.
    """
    if jax.process_count() == 1:
        return function()
    answer = {}
    if is_first():
        try:
            answer = {'value': function()}
        except UserError as error:
            answer = {'error': str(error)}
    answer = _gather_json(answer)[0]
    if 'error' in answer:
        raise UserError(answer['error'])
    return answer['value']


def from_first(tree: Any) -> Any:
    """The first process's values of a tree of arrays on the host, bit for bit."""
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    found = multihost_utils.broadcast_one_to_all(
        [np.frombuffer(leaf.tobytes(), np.uint8) for leaf in leaves]
    )
    return structure.unflatten(
        [
            np.frombuffer(new.tobytes(), leaf.dtype).reshape(leaf.shape)
            for new, leaf in zip(found, leaves, strict=True)
        ]
    )


def gather(rows: np.ndarray) -> np.ndarray:
    """The rows [n, …] of all processes, one after the other: [processes · n, …]."""
    return multihost_utils.process_allgather(rows, tiled=True)


def check_agreement(record: Mapping[str, Any]) -> None:
    """Refuses processes that are not of one run; `record` holds what must be equal, by name.

    Raises:
      UserError: in all of them, naming what differs.
    """
    if jax.process_count() == 1:
        return
    first, *others = _gather_json(dict(record))
    for index, other in enumerate(others, start=1):
        different = [
            f'{key} ({first.get(key, "missing")} in the first, {other.get(key, "missing")} there)'
            for key in sorted(first.keys() | other.keys())
            if first.get(key) != other.get(key)
        ]
        if different:
            raise UserError(
                f'Process {index} is not like the first in {", ".join(different[:5])}: give all '
                'of them the same configuration, data and version of this program.'
            )


def vote(flag: bool) -> Callable[[], bool]:
    """Starts to ask all processes, which must all do so; the result tells whether one said yes.

    Between the two the devices can be given other work.
    """
    if jax.process_count() == 1:
        return lambda: flag
    rows, any_of = _any_of_all()
    shape = (jax.device_count(),)
    flags = jax.make_array_from_callback(shape, rows, lambda _: np.array([flag]))
    answer = any_of(flags)
    return lambda: bool(np.asarray(answer))


def create_poll() -> Callable[[bool], bool]:
    """Builds `poll(flag)`, for all processes to call at each step: whether one of them said yes.

    All hear it at the same step, which with several of them is two after it was said, so that no
    device waits for the answer.
    """
    answers = collections.deque()

    def poll(flag):
        answers.append(vote(flag))
        lag = 0 if jax.process_count() == 1 else 2
        return len(answers) > lag and answers.popleft()()

    return poll


@functools.cache
def _any_of_all() -> tuple[NamedSharding, Callable]:
    mesh = Mesh(np.array(all_devices()), ('all',))
    whole = NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec('all')), jax.jit(jax.numpy.any, out_shardings=whole)


def place(tree: Any, sharding: NamedSharding) -> Any:
    """`jax.device_put` of what every process has, onto devices of all of them."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(leaf):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(put, tree)


def _gather_json(value: Any) -> list[Any]:
    """What each process says, in their order."""
    text = json.dumps(value).encode()
    length = int(multihost_utils.process_allgather(np.array(len(text))).max())
    padded = np.frombuffer(text.ljust(length), np.uint8)
    return [json.loads(row.tobytes()) for row in multihost_utils.process_allgather(padded)]

"""Several processes that run one training together.

Each process does the same on its own devices. Only process 0 reads and writes the run's folder.
With a single process, the functions here do no communication.
"""

import collections
import functools
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NoReturn, TypeVar

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sagan_jax.errors import UserError
from sagan_jax.system import failures, signals
from sagan_jax.system.records import differences

LOST = failures.RETRY  # exit status of a process that lost the others
TIMEOUT = 60  # seconds without a heartbeat after which a process is considered lost
_PATIENCE = 3  # seconds in which the other processes may report the same error
# The start of error messages of JAX's runtime, some of which are raised as ValueError.
_STATUS = re.compile('[A-Z_]{5,}: ')

T = TypeVar('T')


@contextmanager
def joined(config: ml_collections.ConfigDict) -> Iterator[None]:
    """Joins this process with the others of `config.distributed` until the block ends.

    Enter it before JAX's first computation. Standard output of all processes except process 0 is
    dropped; errors are not. A process that fails exits without waiting for the others. These exit
    within `TIMEOUT` seconds, with status `LOST` or because JAX ends them.

    Raises:
      UserError: if the other processes cannot be found.
    """
    settings = config.distributed
    if not settings.coordinator:
        yield
        return
    _initialise(settings)
    if not is_first():
        sys.stdout = open(os.devnull, 'w', encoding='utf-8')  # noqa: SIM115
    try:
        yield
    except UserError as error:
        _leave(f'error: {error}', error.status)
    except Exception as error:
        found, is_of_runtime = failures.explain(error), _STATUS.match(str(error))
        if found and not (is_of_runtime and found[1] == LOST):
            _leave(f'error: {found[0]}', found[1])
        if not is_of_runtime:
            _leave(traceback.format_exc(), 1)
        _leave(
            f'error: Process {jax.process_index()} cannot continue, probably because another one '
            f'has ended ({str(error).splitlines()[0]:.200}): start all processes again to resume '
            'from the last checkpoint.',
            LOST,
        )


def _initialise(settings: ml_collections.ConfigDict) -> None:
    explicit: dict[str, Any] = {}
    if settings.coordinator != 'auto':
        explicit = {
            'coordinator_address': settings.coordinator,
            'num_processes': settings.num_processes,
            'process_id': settings.process_id,
        }
        if not 0 <= settings.process_id < settings.num_processes:
            raise UserError(
                f'distributed.process_id={settings.process_id} is out of range: use 0 … '
                f'{settings.num_processes - 1}, because distributed.num_processes is '
                f'{settings.num_processes}.'
            )
    handlers = {number: signal.getsignal(number) for number in signals.requests()}
    try:
        jax.distributed.initialize(**explicit, heartbeat_timeout_seconds=TIMEOUT)
        for number, handler in handlers.items():
            signal.signal(number, handler)  # JAX ignores SIGTERM from here on
    except (ValueError, RuntimeError) as error:
        raise UserError(
            'The processes cannot connect to distributed.coordinator='
            f'{settings.coordinator} ({str(error).splitlines()[0]:.200}): set it to the host:port '
            'of process 0, or leave it out for a single process.'
        ) from error


def _leave(message: str, status: int) -> NoReturn:
    """Exits immediately: this process must not wait for others that wait for it."""
    print(message, file=sys.stderr, flush=True)
    if is_first():
        time.sleep(_PATIENCE)  # JAX kills the others when process 0 exits, before they can report
    os._exit(status)


def is_first() -> bool:
    """Whether this is process 0, the one that writes."""
    return jax.process_index() == 0


def all_devices() -> list[jax.Device]:
    """The devices of all processes, in the order of the processes."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def on_first(function: Callable[[], T]) -> T:
    """Runs `function` in process 0 only and returns its result in all processes.

    Args:
      function: returns a value that can be written as JSON.

    Raises:
      UserError: in all processes, if `function` raises it.
    """
    if jax.process_count() == 1:
        return function()
    answer: dict[str, Any] = {}
    if is_first():
        try:
            answer = {'value': function()}
        except UserError as error:
            answer = {'error': str(error), 'status': error.status}
    answer = _gather_json(answer)[0]
    if 'error' in answer:
        raise UserError(answer['error'], answer['status'])
    return answer['value']


@contextmanager
def entered_by_first(make: Callable[[], AbstractContextManager[T]]) -> Iterator[T | None]:
    """Enters a context manager for the block in process 0 only.

    Yields its value there and None in the others.

    Raises:
      UserError: in all processes, if entering raises it.
    """
    with ExitStack() as stack:
        value: T | None = None

        def enter() -> None:
            nonlocal value
            value = stack.enter_context(make())

        on_first(enter)
        yield value


def from_first(tree: Any) -> Any:
    """Returns process 0's values of a tree of arrays, on the host, bit for bit."""
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    found = multihost_utils.broadcast_one_to_all(
        [np.frombuffer(leaf.tobytes(), np.uint8) for leaf in leaves]
    )
    return jax.tree.unflatten(
        structure,
        [
            np.frombuffer(new.tobytes(), leaf.dtype).reshape(leaf.shape)
            for new, leaf in zip(found, leaves, strict=True)
        ],
    )


def gather(rows: np.ndarray) -> np.ndarray:
    """Concatenates the rows [n, …] of all processes in order: [processes · n, …]."""
    return multihost_utils.process_allgather(rows, tiled=True)


def check_agreement(record: Mapping[str, Any]) -> None:
    """Checks that all processes agree about `record`, names and values.

    Raises:
      UserError: in all processes, naming what differs.
    """
    if jax.process_count() == 1:
        return
    first, *others = _gather_json(dict(record))
    for index, other in enumerate(others, start=1):
        different = [
            f'{key} ({there} instead of {here})' for key, here, there in differences(first, other)
        ]
        if different:
            raise UserError(
                f'Process {index} disagrees with process 0 about {", ".join(different[:5])}: start '
                'all processes with the same configuration, data and version of this program.'
            )


def vote(flag: bool) -> Callable[[], bool]:
    """Starts a vote of all processes and returns a function for its result: whether any voted yes.

    All processes must vote. The devices can be given other work before the result is read.
    """
    if jax.process_count() == 1:
        return lambda: flag
    rows, any_of = _any_of_all()
    shape = (jax.device_count(),)
    flags = jax.make_array_from_callback(shape, rows, lambda _: np.array([flag]))
    answer = any_of(flags)
    return lambda: bool(np.asarray(answer))


def create_poll() -> Callable[[bool], bool]:
    """Builds `poll(flag)`, which all processes call at each step: whether any flag was true.

    All processes learn of it at the same step. If there are several, this is two steps later, so
    that no device waits for the answer.
    """
    answers: collections.deque[Callable[[], bool]] = collections.deque()

    def poll(flag: bool) -> bool:
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
    """`jax.device_put` onto devices of all processes, of a tree that every process has."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(leaf):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(put, tree)


def _gather_json(value: Any) -> list[Any]:
    """The values of all processes, in order."""
    text = json.dumps(value).encode()
    length = int(multihost_utils.process_allgather(np.array(len(text))).max())
    padded = np.frombuffer(text.ljust(length), np.uint8)
    return [json.loads(row.tobytes()) for row in multihost_utils.process_allgather(padded)]

"""Compiles the training step for accelerators that are not there, and keeps what comes out."""

import contextlib
import gzip
import hashlib
import json
import os
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections

from launch.benchmark import measure
from launch.compile import devices
from sagan_jax.configuration import checks
from sagan_jax.system import paths, untrusted
from sagan_jax.system.files import atomic_path
from sagan_jax.train_step import lower_train_step

_VERSIONS = ('jax', 'jaxlib', 'libtpu', 'jax-cuda12-plugin')
_FLAGS = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')


class Program(NamedTuple):
    """A compiled training step.

    Attributes:
      text: the program after XLA's optimisations; empty if it needs more memory than there is.
      seconds: how long compiling took, when it was compiled.
      arguments, outputs, aliased, temporaries, code: bytes on each device. The outputs include
        those that are aliased, which take the place of arguments.
      refused: what the compiler said if the program needs too much memory; otherwise empty.
    """

    text: str
    seconds: float
    arguments: int = 0
    outputs: int = 0
    aliased: int = 0
    temporaries: int = 0
    code: int = 0
    refused: str = ''

    @property
    def bytes(self) -> int:
        """The memory that the program needs on each device."""
        own = self.outputs - self.aliased
        return self.arguments + own + self.temporaries + self.code


def compile_step(
    config: ml_collections.ConfigDict,
    target: devices.Target,
    report: Callable[[str], None] = lambda text: None,
) -> Program:
    """Compiles a configuration's training step for a target, or reads it from the cache.

    JAX's own cache does not serve compilers without a device. This one is the folder `compiled_for`
    in `sagan_jax` of XDG_CACHE_HOME or ~/.cache. Its key has the program before optimisation, the
    target, the versions of the compilers and their flags. A damaged file is written again.

    Args:
      report: is called with a line about what takes long.

    Raises:
      UserError: if the configuration is invalid, or the compiler is not installed.
    """
    checks.check(config)
    lowered = lower_train_step(
        config, devices.create_devices(target), *measure.batch_shapes(config)
    )
    path = _cached(lowered.as_text(), target)
    with contextlib.suppress(OSError, ValueError, EOFError, TypeError, zlib.error):
        with untrusted.open_file(path) as packed, gzip.open(packed, 'rt') as kept:
            program = Program(**json.load(kept))
        report(f'read from {path}')
        return program
    program = _compile(lowered)
    if not program.refused:
        try:
            with atomic_path(path) as temporary, gzip.open(temporary, 'wt') as file:
                json.dump(program._asdict(), file)
        except OSError as error:  # an answer of half an hour is not lost for it
            report(f'not kept in {path} ({untrusted.reason(error)})')
    return program


def _cached(text: str, target: devices.Target) -> Path:
    versions = {name: devices.version(name) for name in _VERSIONS}
    flags = {name: os.environ.get(name, '') for name in _FLAGS}
    key = json.dumps([target.text, versions, flags]) + text
    name = f'{hashlib.sha256(key.encode()).hexdigest()}.json.gz'
    return paths.cache_folder() / 'compiled_for' / name


def _compile(lowered: jax.stages.Lowered) -> Program:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, devices.quiet():
        # The text of a large program for CUDA is only in XLA's dump.
        options: dict[str, str | bool] = {'xla_dump_to': folder, 'xla_dump_hlo_as_text': True}
        try:
            compiled = lowered.compile(options)
        except jax.errors.JaxRuntimeError as error:
            if 'RESOURCE_EXHAUSTED' not in str(error):
                raise
            return Program('', time.perf_counter() - start, refused=str(error).splitlines()[0])
        seconds = time.perf_counter() - start
        text = compiled.as_text() or _dumped(Path(folder))
    memory = compiled.memory_analysis()
    assert memory is not None  # compilers for TPU and GPU tell
    return Program(
        text,
        seconds,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
    )


def _dumped(folder: Path) -> str:
    (path,) = folder.glob('*after_optimizations.txt')
    return path.read_text()

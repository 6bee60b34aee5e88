"""The accelerators that a program can be compiled for without one: facts and topologies."""

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import jax
from jax.experimental import topologies

from launch.benchmark import hardware, scaling
from sagan_jax.errors import UserError

REQUIREMENTS = 'launch/compile/requirements.txt'


@dataclass(frozen=True)
class Device:
    """One accelerator, from its vendor's data sheet unless said otherwise.

    Attributes:
      kind: a prefix of `device_kind` in `hardware.PEAKS`, which has its peaks.
      memory: bytes.
      usable: the share of the memory that a program may take. JAX takes three quarters of a GPU's
        unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
      bandwidth: of the memory, bytes/s.
      hertz: the clock in which libtpu counts its cycles: the peak divided by the operations of all
        matrix units per cycle. 0 on a GPU.
      product_share: the share of the peak that convolutions and products are assumed to reach.
      memory_share: the share of the bandwidth that kernels are assumed to reach.
      launch_seconds: the shortest kernel; on a TPU from libtpu's estimates, on a GPU assumed.
      interconnect: the name of a ring in `scaling.INTERCONNECTS`.
    """

    kind: str
    memory: int
    usable: float
    bandwidth: float
    hertz: float
    product_share: float
    memory_share: float
    launch_seconds: float
    interconnect: str

    def peak(self, dtype: str) -> float:
        """The peak in flop/s, for products of float32 as XLA computes them by default."""
        peak = hardware.listed_peak(self.kind, dtype)
        assert peak is not None, self.kind
        return peak * 1e12

    @property
    def ring(self) -> scaling.Interconnect:
        (found,) = (ring for ring in scaling.INTERCONNECTS if ring.name == self.interconnect)
        return found


def _tpu(kind: str, gibibytes: int, bandwidth: float, units: int, side: int) -> Device:
    """A TPU with `units` matrix units of side × side."""
    peak = hardware.listed_peak(kind, 'bfloat16')
    assert peak is not None, kind
    hertz = peak * 1e12 / (2 * units * side**2)
    return Device(kind, gibibytes * 2**30, 1.0, bandwidth, hertz, 1.0, 1.0, 1830 / hertz, 'TPU ICI')


def _gpu(kind: str, memory: int, bandwidth: float) -> Device:
    return Device(kind, memory, 0.75, bandwidth, 0.0, 0.35, 0.8, 3e-6, 'NVLink')


DEVICES = {
    'v4': _tpu('TPU v4', 32, 1.228e12, 8, 128),
    'v5e': _tpu('TPU v5e', 16, 0.819e12, 4, 128),
    'v5p': _tpu('TPU v5', 95, 2.765e12, 8, 128),
    'v6e': _tpu('TPU v6', 32, 1.640e12, 4, 256),
    'h100': _gpu('NVIDIA H100', 84_942_979_072, 3.352e12),
    'h200': _gpu('NVIDIA H200', 151_397_597_184, 4.8e12),
}

# What XLA asks a driver for, which is not there: a Hopper GPU as CUDA describes it.
_HOPPER = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132
  fpus_per_core: 128
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  memory_bandwidth: {bandwidth:.0f}
  device_memory_size: {memory}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{kind}"
"""


@dataclass(frozen=True)
class Target:
    """Accelerators of one kind in one machine.

    Attributes:
      text: as on the command line, v5e:2x4 or h100:8.
      device: their facts.
      shape: their number along each axis: v5e and v6e have two, v4 and v5p three, GPUs one.
    """

    text: str
    device: Device
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def is_tpu(self) -> bool:
        return self.device.kind.startswith('TPU')


def parse_target(text: str) -> Target:
    """Reads a target such as v5e:1x1, v5p:2x2x1 or h100:4.

    Raises:
      UserError: if there is no such device, or it has another number of axes.
    """
    name, _, shape = text.partition(':')
    if name not in DEVICES:
        raise UserError(
            f'--target {text!r} names no known device: choose {", ".join(DEVICES)}, and their '
            'number, as in v5e:1x1 or h100:4.'
        )
    axes = {'v4': 3, 'v5p': 3, 'v5e': 2, 'v6e': 2}.get(name, 1)
    if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', shape) or shape.count('x') != axes - 1:
        example = {3: '2x2x1', 2: '2x4', 1: '8'}[axes]
        raise UserError(f'--target {text!r} has no number of devices: try {name}:{example}.')
    return Target(text, DEVICES[name], tuple(map(int, shape.split('x'))))


def create_devices(target: Target) -> list[Any]:
    """The devices of a target, for which JAX can compile but not run.

    Raises:
      UserError: if the compiler of the target is not installed, or knows no such topology.
    """
    packages = ('libtpu',) if target.is_tpu else ('jax-cuda12-plugin', 'jax-cuda13-plugin')
    if not any(map(version, packages)):
        raise UserError(
            f'Compiling for {target.text} needs {packages[0]}, which is not installed: first '
            f'pip install -r {REQUIREMENTS}.'
        )
    options: dict[str, Any]
    if target.is_tpu:
        platform, name = 'tpu', target.text
        bounds = (*target.shape, 1)[:3]  # all chips in one host
        options = {'chips_per_host_bounds': bounds}
    else:
        platform, name = 'cuda', target.device.kind
        options = {
            'topology': f'1x1x{target.count}',  # machines × processes × devices
            'target_config': _HOPPER.format(**vars(target.device)),
        }
    try:
        with quiet():
            return list(topologies.get_topology_desc(name, platform, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f'The compiler knows no topology {target.text} ({error}): choose another --target.'
        ) from error


def version(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@contextmanager
def quiet() -> Iterator[None]:
    """Sends what compilers write to standard error to /dev/null, which is about no device."""
    kept = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)

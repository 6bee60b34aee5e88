"""The machine of a measurement and the peak performance of its devices."""

import os
import platform
import time
from pathlib import Path
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp

# Dense peaks of one device in TFLOP/s, from the vendors' data sheets: for bfloat16, and for float32
# as XLA multiplies it by default (TF32 on NVIDIA, bfloat16 on TPU). The first name is used that
# `device_kind` starts with.
PEAKS = {
    'NVIDIA B200': (2250.0, 1125.0),
    'NVIDIA H200': (989.4, 494.7),
    'NVIDIA H100 PCIe': (756.0, 378.0),
    'NVIDIA H100 NVL': (835.0, 417.5),
    'NVIDIA H100': (989.4, 494.7),
    'NVIDIA A100': (312.0, 156.0),
    'NVIDIA L40S': (362.0, 183.0),
    'NVIDIA L4': (121.0, 60.0),
    'TPU v6': (918.0, 918.0),
    'TPU v5 lite': (197.0, 197.0),
    'TPU v5e': (197.0, 197.0),
    'TPU v5': (459.0, 459.0),
    'TPU v4': (275.0, 275.0),
}


class Peak(NamedTuple):
    """The peak performance of one device; on a CPU, of all cores together.

    Attributes:
      tflop_per_second: the peak in TFLOP/s.
      source: where the value comes from.
    """

    tflop_per_second: float
    source: str


def peak(device: jax.Device, dtype: str) -> Peak:
    """The peak of a device for a dtype: from the table, or measured with a large product."""
    listed = listed_peak(device.device_kind, dtype)
    if listed is not None:
        kind = {'bfloat16': 'bfloat16', 'float32': 'TF32'}[dtype]
        kind = kind if device.platform == 'gpu' else 'bfloat16'
        return Peak(listed, f'{kind} peak of {device.device_kind} from its data sheet, dense')
    size = 2048 if device.platform == 'cpu' else 8192
    measured = _measured_product(device, dtype, size)
    return Peak(measured, f'measured with a {dtype} product of two {size}×{size} matrices')


def listed_peak(device_kind: str, dtype: str) -> float | None:
    """The peak in TFLOP/s from the table; None if the device is not in it."""
    for name, (bfloat16, float32) in PEAKS.items():
        if device_kind.startswith(name):
            return bfloat16 if dtype == 'bfloat16' else float32
    return None


def _measured_product(device: jax.Device, dtype: str, size: int) -> float:
    with jax.default_device(device):
        matrix = jnp.ones((size, size), dtype)
        multiply = jax.jit(jnp.matmul)
        seconds = []
        for _ in range(6):  # the first call compiles
            start = time.perf_counter()
            jax.block_until_ready(multiply(matrix, matrix))
            seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:]) / 1e12


class Machine(TypedDict):
    """The hardware and software that this process runs on."""

    platform: str
    device_kind: str
    device_count: int
    cpu: str
    cores: int
    jax: str
    python: str
    xla_flags: str


def describe() -> Machine:
    """Describes the hardware and software that this process runs on."""
    device = jax.local_devices()[0]
    return {
        'platform': device.platform,
        'device_kind': device.device_kind,
        'device_count': jax.local_device_count(),
        'cpu': _cpu_model(),
        'cores': cores(),
        'jax': jax.__version__,
        'python': platform.python_version(),
        'xla_flags': os.environ.get('XLA_FLAGS', ''),
    }


def cores() -> int:
    """The number of CPU cores that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def busy_cpu_seconds() -> float | None:
    """The busy seconds of all cores together since the system started; None if unknown."""
    stat = Path('/proc/stat')
    if not stat.exists():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf('SC_CLK_TCK')


def _cpu_model() -> str:
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


def reset_host_peak() -> None:
    """Resets `host_peak_bytes`, if the system can (Linux)."""
    try:
        Path('/proc/self/clear_refs').write_text('5')
    except OSError:
        return


def host_peak_bytes() -> int | None:
    """The peak memory of this process since the last reset; None if unknown."""
    status = Path('/proc/self/status')
    lines = status.read_text().splitlines() if status.exists() else []
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith('VmHWM')]
    return kilobytes[0] * 1024 if kilobytes else None

"""What a measurement ran on, and how fast that could be at best."""

import os
import platform
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Dense peaks by the vendors' data sheets, TFLOP/s of one device: bfloat16, and float32 as XLA
# multiplies it by default (TF32 on NVIDIA, bfloat16 passes on TPU). The first name that
# `device_kind` starts with counts.
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
    """The most that one device can do, for a CPU all its cores together.

    Attributes:
      tflop_per_second: float.
      source: how it is known, in words.
    """

    tflop_per_second: float
    source: str


def peak(device: jax.Device, dtype: str) -> Peak:
    """The peak of a device for a dtype: from the table, or measured by a large product."""
    listed = listed_peak(device.device_kind, dtype)
    if listed is not None:
        kind = {'bfloat16': 'bfloat16', 'float32': 'TF32'}[dtype]
        kind = kind if device.platform == 'gpu' else 'bfloat16'
        return Peak(listed, f'{kind} peak of {device.device_kind} by its data sheet, dense')
    size = 2048 if device.platform == 'cpu' else 8192
    measured = _measured_product(device, dtype, size)
    return Peak(measured, f'measured, a {dtype} product of two {size}×{size} matrices')


def listed_peak(device_kind: str, dtype: str) -> float | None:
    """TFLOP/s of a device of the table; None for others."""
    for name, (bfloat16, float32) in PEAKS.items():
        if device_kind.startswith(name):
            return bfloat16 if dtype == 'bfloat16' else float32
    return None


def _measured_product(device: jax.Device, dtype: str, size: int) -> float:
    with jax.default_device(device):
        matrix = jnp.ones((size, size), dtype)
        multiply = jax.jit(jnp.matmul)
        seconds = []
        for _ in range(6):  # the first compiles
            start = time.perf_counter()
            jax.block_until_ready(multiply(matrix, matrix))
            seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:]) / 1e12


def describe() -> dict:
    """What this process runs on, by name."""
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
    """How many CPU cores this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def busy_cpu_seconds() -> float | None:
    """The seconds that all cores together have worked since the system began; None if unknown."""
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
    """Lets `host_peak_bytes` start anew, where the system can (Linux)."""
    try:
        Path('/proc/self/clear_refs').write_text('5')
    except OSError:
        return


def host_peak_bytes() -> int | None:
    """The most memory that this process has held since the last reset; None where unknown."""
    status = Path('/proc/self/status')
    lines = status.read_text().splitlines() if status.exists() else []
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith('VmHWM')]
    return kilobytes[0] * 1024 if kilobytes else None

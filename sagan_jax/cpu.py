"""Settings of a whole process that make training on a CPU faster; nothing on accelerators.

The commands make them; a notebook on a CPU may do the same.
"""

import contextlib
import ctypes
import os

import jaxlib

_SLOW_CONVOLUTIONS = ((0, 10), (0, 11))  # versions of jaxlib
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt, from malloc.h


def prepare() -> None:
    """To be called before JAX's first computation; later it changes little.

    Some versions of XLA hand convolutions to YNNPACK, which at 32 and 64 channels is half as fast
    as XLA's own. And each step's temporary memory, hundreds of megabytes, is by default given
    back to the system and zeroed again, page by page; up to a gigabyte is kept instead.
    """
    if jaxlib.version.__version_info__[:2] in _SLOW_CONVOLUTIONS:
        flag = '--xla_cpu_experimental_ynn_fusion_type=-individual_convolution'
        os.environ['XLA_FLAGS'] = f'{flag} {os.environ.get("XLA_FLAGS", "")}'  # the user's wins
    with contextlib.suppress(AttributeError, TypeError):  # only glibc has it
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 2**25)
        libc.mallopt(_TRIM_THRESHOLD, 2**30)

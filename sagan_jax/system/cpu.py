"""Settings of a process that speed up training on a CPU; they do not affect accelerators.

The commands apply them; a notebook on a CPU may call `prepare`.
"""

import contextlib
import ctypes
import os
import sys
import traceback
from pathlib import Path

import jaxlib

_SLOW_CONVOLUTIONS = ((0, 10), (0, 11))  # versions of jaxlib
_DEBUGGERS = {'debugpy', 'pydevd'}  # modules that only debuggers import
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt, from malloc.h


def prepare() -> None:
    """Sets options of XLA and malloc; call it before JAX's first computation.

    Some versions of XLA hand convolutions to YNNPACK, which at 32 and 64 channels is half as fast
    as XLA's own; this turns it off. By default, malloc returns each step's temporary memory,
    hundreds of megabytes, to the system, which zeroes it again page by page. This makes malloc keep
    up to a gigabyte.
    """
    if jaxlib.version.__version_info__[:2] in _SLOW_CONVOLUTIONS:
        flag = '--xla_cpu_experimental_ynn_fusion_type=-individual_convolution'
        os.environ['XLA_FLAGS'] = f'{flag} {os.environ.get("XLA_FLAGS", "")}'  # the user's win
    with contextlib.suppress(AttributeError, TypeError):  # only glibc has it
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 2**25)
        libc.mallopt(_TRIM_THRESHOLD, 2**30)


def restart_with_large_pages() -> None:
    """Restarts this process with memory pages of 2 MB, if Linux leaves the choice to programs.

    A step's memory then takes hundreds of pages instead of a hundred thousand. The restart is
    needed because glibc reads the setting when a program starts. Does nothing if `GLIBC_TUNABLES`
    has the setting already, if `SAGAN_JAX_LARGE_PAGES=0` is in the environment, or under a debugger
    or a tracer, which would lose its breakpoints. Do not call it in a notebook: it ends the kernel.
    """
    if os.environ.get('SAGAN_JAX_LARGE_PAGES') == '0' or _is_observed():
        return
    offered, setting = Path('/sys/kernel/mm/transparent_hugepage/enabled'), 'glibc.malloc.hugetlb'
    tunables = os.environ.get('GLIBC_TUNABLES', '')
    if setting not in tunables and offered.exists() and '[madvise]' in offered.read_text():
        os.environ['GLIBC_TUNABLES'] = ':'.join(filter(None, (tunables, f'{setting}=1')))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_observed() -> bool:
    """Whether a debugger or a tracer is attached to this process."""
    if sys.gettrace() is not None or not _DEBUGGERS.isdisjoint(sys.modules):
        return True
    if monitoring := getattr(sys, 'monitoring', None):  # from Python 3.12 on
        tools = monitoring.DEBUGGER_ID, monitoring.COVERAGE_ID
        if any(map(monitoring.get_tool, tools)):
            return True
    # Without breakpoints pdb traces nothing, and absl always imports it: look for its frames.
    return any(frame.f_globals.get('__name__') == 'bdb' for frame, _ in traceback.walk_stack(None))

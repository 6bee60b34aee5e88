"""The settings of a process that trains on a CPU, each in its own process."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import jaxlib
import pytest

from sagan_jax.system import cpu

CONVOLUTION = """
from sagan_jax.system import cpu
cpu.prepare()
import jax, jax.numpy as jnp
from sagan_jax.models.convolution import convolve
x, kernel = jnp.ones((4, 32, 32, 64)), jnp.ones((3, 3, 64, 64))
print(jax.jit(convolve).lower(x, kernel).compile().as_text())
"""

# Page faults while 96 MB are allocated and freed repeatedly, before and after the setting.
MEMORY = """
import resource
import numpy as np
from sagan_jax.system import cpu

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        pieces = [np.ones(2**21) for _ in range(6)]
        del pieces
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
cpu.prepare()
faults()
print(faults())
"""

# Kilobytes in large pages after 64 MB are allocated.
LARGE_PAGES = """
import ctypes, re
from pathlib import Path
from sagan_jax.system import cpu
cpu.restart_with_large_pages()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
ctypes.memset(libc.malloc(ctypes.c_size_t(2**26)), 1, 2**26)
print(*re.findall(r'AnonHugePages: *([0-9]+)', Path('/proc/self/smaps_rollup').read_text()))
"""
# A debugger's session: it prints the tunables of the process that stopped at the breakpoint.
SESSION = """
break sagan_jax/system/cpu.py:{line}
continue
import os
print('stopped with', repr(os.environ.get('GLIBC_TUNABLES')))
quit
"""
REPLACED = """
import os
os.execv = lambda *_: print('replaced')
from sagan_jax.system import cpu
cpu.restart_with_large_pages()
"""
OBSERVERS = {
    'tracer': f'import sys; sys.settrace(lambda *_: None)\n{REPLACED}',
    'debugpy': f'import sys; sys.modules["debugpy"] = sys\n{REPLACED}',
    'pdb without breakpoints': f"""
import io, pdb
pdb.Pdb(stdin=io.StringIO('continue')).run({REPLACED!r})
""",
}
if sys.version_info >= (3, 12):
    OBSERVERS['monitoring'] = (
        f'import sys; sys.monitoring.use_tool_id(sys.monitoring.DEBUGGER_ID, "d")\n{REPLACED}'
    )
ROOT = Path(__file__).parents[2]
OFFERED = Path('/sys/kernel/mm/transparent_hugepage/enabled')


def run(code: str, **environment: str) -> str:
    environment = os.environ | {'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'} | environment
    command = [sys.executable, '-c', code]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return finished.stdout


@pytest.mark.skipif(
    jaxlib.version.__version_info__[:2] not in cpu._SLOW_CONVOLUTIONS,
    reason='other versions have no slower library',
)
def test_convolutions_are_not_handed_to_the_slower_library():
    program = run(CONVOLUTION)
    assert ' convolution(' in program
    assert 'ynn' not in program


def test_flags_of_the_user_come_last():
    code = (
        'import os; from sagan_jax.system import cpu; cpu.prepare(); print(os.environ["XLA_FLAGS"])'
    )
    assert run(code, XLA_FLAGS='--mine=1').split()[-1] == '--mine=1'


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='other allocators have no mallopt')
def test_memory_is_kept_between_steps():
    before, after = map(int, run(MEMORY).split())
    assert before > 5000
    assert after < 100


where_large_pages_are_offered = pytest.mark.skipif(
    platform.libc_ver()[0] != 'glibc'
    or not OFFERED.exists()
    or '[madvise]' not in OFFERED.read_text(),
    reason='the system does not offer large pages',
)


@where_large_pages_are_offered
def test_memory_is_in_large_pages_unless_the_user_declines():
    asked, *refused = (
        int(run(LARGE_PAGES, **{'GLIBC_TUNABLES': ''} | environment))
        for environment in (
            {},
            {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=0'},
            {'SAGAN_JAX_LARGE_PAGES': '0'},
        )
    )
    assert asked > 2**15
    assert max(refused) < 2**12


@where_large_pages_are_offered
def test_an_observed_process_is_not_replaced():
    assert 'replaced' in run(REPLACED, GLIBC_TUNABLES='')
    for observer, program in OBSERVERS.items():
        assert 'replaced' not in run(program, GLIBC_TUNABLES=''), observer


@where_large_pages_are_offered
def test_a_debugger_stops_at_a_breakpoint():
    _, line, *_ = sorted({line for *_, line in cpu.prepare.__code__.co_lines() if line})
    command = [sys.executable, '-m', 'pdb', '-m', 'sagan_jax.main']  # 3.13.0 takes no options here
    result = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {'GLIBC_TUNABLES': ''},
        input=SESSION.format(line=line),
        capture_output=True,
        text=True,
        check=False,
    )
    assert f'cpu.py({line})prepare()' in result.stdout, result.stdout + result.stderr
    assert "stopped with ''" in result.stdout

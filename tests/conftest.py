"""Eight virtual devices for every test, and one compilation cache for the tests' processes."""

import os
import signal
import tempfile

import jaxlib
import pytest

os.environ['JAX_NUM_CPU_DEVICES'] = '8'
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault(
    'JAX_COMPILATION_CACHE_DIR', os.path.join(tempfile.gettempdir(), 'sagan_jax_test_cache')
)
# Tiny programs, many of them: compiling well would cost more than running them badly, and so would
# compiling each one in parallel.
os.environ['XLA_FLAGS'] = (
    '--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1'
)
if jaxlib.version.__version_info__ < (0, 11):  # half the time; later ones may not know it
    os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '1'

# Programs leave signals ignored that were ignored when they started, as under nohup.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(scope='module', autouse=True)
def forget_programs():
    """What a module has compiled is not used by the next one."""
    yield
    _forget_programs()


@pytest.fixture(autouse=True)
def leave_memory_maps():
    """Compiled programs hold memory maps. Linux ends a process with more than 65,530."""
    yield
    if os.path.exists('/proc/self/maps'):
        with open('/proc/self/maps') as maps:
            if sum(1 for _ in maps) > 20_000:
                _forget_programs()


def _forget_programs():
    import jax  # not before the environment above is set

    jax.clear_caches()


@pytest.fixture(scope='session')
def trained_workdir(tmp_path_factory):
    """A run to sample from; nobody writes to it."""
    from tests import tiny  # imports jax

    workdir = tmp_path_factory.mktemp('trained')
    tiny.trained_run(workdir)
    return workdir


@pytest.fixture(scope='module')
def small_networks():
    """Adds those of `tiny.SMALL`, with two blocks or layers in a discriminator.

    They compile in half of the time of those at 32×32.
    """
    from sagan_jax.models.architectures import ARCHITECTURES, Architecture  # imports jax

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES['pyramid'], 8, Architecture((2, 1), (1, 2), downs=1))
        patch.setitem(ARCHITECTURES['dcgan'], 8, Architecture((2, 1), (1, 2), downs=2, start=2))
        yield

"""Settings of JAX and its compiler that change numbers: refused, or recorded with the run."""

import os
from typing import Any

from sagan_jax.errors import UserError

# With any other value the same seed gives another run, or an error.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    'jax_enable_x64': (False,),
    'jax_default_prng_impl': ('threefry2x32',),
    'jax_threefry_partitionable': (True,),
    'jax_random_seed_offset': (0,),
    'jax_numpy_dtype_promotion': ('standard',),
    'jax_numpy_rank_promotion': ('allow', 'warn'),
    'jax_disable_jit': (False,),
}
# These change rounding, or how precisely numbers are computed.
_SETTINGS = (
    'jax_default_matmul_precision',
    'jax_explicit_x64_dtypes',
    'jax_softmax_custom_jvp',
    'jax_use_direct_linearize',
    'jax_threefry_gpu_kernel_lowering',
    'jax_use_shardy_partitioner',
    'jax_cpu_collectives_implementation',
    'jax_compiler_enable_remat_pass',
    'jax_optimization_level',
    'jax_exec_time_optimization_effort',
)
_FLAGS = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')
_DETERMINISTIC = '--xla_gpu_deterministic_ops=true'  # every version accepts it on any machine
_VARIABLES = ('NVIDIA_TF32_OVERRIDE',)
# Flags of XLA that write files or make virtual devices.
_HARMLESS = ('--xla_dump', '--xla_force_host_platform_device_count')


def check() -> None:
    """Refuses settings with which the same seed gives another run.

    Raises:
      UserError: naming the setting.
    """
    try:
        import jax  # reads the environment
    except ValueError as error:
        raise UserError(
            f'JAX does not accept a setting in the environment ({error}): correct it, or unset it.'
        ) from error
    for name, accepted in _REQUIRED.items():
        value = jax.config.values.get(name, accepted[0])
        if value not in accepted:
            raise UserError(
                f'JAX is set to {name}={value}, with which the same seed gives another run: unset '
                f'{name.upper()} in the environment, or set it to {accepted[0]}.'
            )


def make_deterministic() -> None:
    """Has XLA choose only operations that an NVIDIA GPU always computes with the same result.

    Call it before JAX's first computation. XLA then compiles them without trying out which is
    fastest (https://openxla.org/xla/determinism).
    """
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_DETERMINISTIC}'.lstrip()


def check_deterministic() -> None:
    """Refuses a GPU without the flag that `make_deterministic` sets.

    Raises:
      UserError: saying how to set it.
    """
    import jax

    flags = _significant(os.environ.get('XLA_FLAGS', '')).split()
    if jax.default_backend() == 'gpu' and _DETERMINISTIC not in flags:
        raise UserError(
            f'deterministic=True needs {_DETERMINISTIC} in XLA_FLAGS before JAX computes anything: '
            'set it in the environment, or leave out deterministic.'
        )


def record() -> dict[str, str]:
    """What changes numbers beside configuration, code and versions: settings, flags, devices."""
    import jax

    devices = jax.devices()
    values = jax.config.values
    settings = {name: _text(values[name]) for name in _SETTINGS if name in values}
    flags = {name: _significant(os.environ.get(name, '')) for name in _FLAGS}
    variables = {name: os.environ.get(name, '') for name in _VARIABLES}
    return settings | flags | variables | {'devices': f'{len(devices)} × {devices[0].device_kind}'}


def _text(value: Any) -> str:
    return str(getattr(value, 'name', value))


def _significant(flags: str) -> str:
    """The flags that may change numbers, sorted; the last of each name counts."""
    chosen = {flag.partition('=')[0]: flag for flag in flags.split()}
    return ' '.join(flag for _, flag in sorted(chosen.items()) if not flag.startswith(_HARMLESS))

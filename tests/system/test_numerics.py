"""Settings that change numbers are refused or recorded."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagan_jax.errors import UserError
from sagan_jax.system import numerics

OTHER = {
    'jax_enable_x64': True,
    'jax_default_prng_impl': 'rbg',
    'jax_threefry_partitionable': False,
    'jax_random_seed_offset': 3,
    'jax_numpy_dtype_promotion': 'strict',
    'jax_numpy_rank_promotion': 'raise',
    'jax_disable_jit': True,
}


def draws():
    """What the seed of a run gives, at its shortest: numbers and their dtype."""
    drawn = jax.random.normal(jax.random.key(0), (3,))
    return str(drawn.dtype), drawn.tolist()


@pytest.mark.parametrize('name', OTHER)
def test_a_setting_that_changes_the_run_of_a_seed_is_refused(name):
    numerics.check()
    before, expected = jax.config.values[name], draws()
    jax.config.update(name, OTHER[name])
    try:
        with pytest.raises(UserError, match=f'{name}={OTHER[name]}, .* unset {name.upper()} in'):
            numerics.check()
        changes_draws = 'promotion' not in name and name != 'jax_disable_jit'
        assert (draws() != expected) == changes_draws
    finally:
        jax.config.update(name, before)
    numerics.check()


def test_settings_and_devices_are_recorded():
    before = numerics.record()
    assert before['devices'] == '8 × cpu'
    assert before['jax_default_matmul_precision'] == 'None'
    with jax.default_matmul_precision('bfloat16'):
        assert numerics.record() == before | {'jax_default_matmul_precision': 'bfloat16'}


flags = st.lists(st.sampled_from(['--xla_a=1', '--xla_a=2', '--xla_b', '--xla_c=x']), unique=True)
harmless = st.lists(
    st.sampled_from(['--xla_dump_to=/x', '--xla_force_host_platform_device_count=8'])
)


@given(flags, harmless, st.randoms(use_true_random=False))
def test_of_the_flags_those_that_change_numbers_are_recorded(chosen, others, random):
    last = {flag.split('=')[0]: flag for flag in chosen}
    mixed = [*last.values(), *others]
    random.shuffle(mixed)
    with pytest.MonkeyPatch.context() as patch:
        for separator in (' ', '  ', '\n'):
            patch.setenv('XLA_FLAGS', separator.join([*chosen, *mixed]))
            assert numerics.record()['XLA_FLAGS'] == ' '.join(sorted(last.values()))


@pytest.mark.parametrize('before', ['', '--xla_a=1', '--xla_gpu_deterministic_ops=false'])
def test_a_gpu_needs_the_flag_of_a_deterministic_run(before, monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', before)
    numerics.check_deterministic()  # on a CPU
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    message = 'deterministic=True needs --xla_gpu_deterministic_ops=true in XLA_FLAGS before'
    with pytest.raises(UserError, match=message):
        numerics.check_deterministic()
    numerics.make_deterministic()
    numerics.check_deterministic()
    assert '--xla_gpu_deterministic_ops=true' in numerics.record()['XLA_FLAGS'].split()
    assert ('--xla_a=1' in numerics.record()['XLA_FLAGS']) == (before == '--xla_a=1')


# The command line up to the point where JAX may start, with the flags of XLA there.
START = """
import os, runpy, sys
from sagan_jax.system import distributed
distributed.joined = lambda config: sys.exit(os.environ.get('XLA_FLAGS', ''))
sys.argv[0] = 'main'
runpy.run_module('sagan_jax.main', run_name='__main__')
"""


def test_a_command_sets_the_flag_before_jax_starts(tmp_path):
    root = Path(__file__).parents[2]
    arguments = ['--config', 'quickstart', '--config.deterministic=True']
    result = subprocess.run(
        [sys.executable, '-c', START, *arguments, '--workdir', str(tmp_path / 'run')],
        env=os.environ | {'PYTHONPATH': str(root), 'SAGAN_JAX_LARGE_PAGES': '0'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr.split()[-1] == '--xla_gpu_deterministic_ops=true'


@pytest.mark.parametrize(
    ('variable', 'value', 'message'),
    [
        ('JAX_ENABLE_X64', '1', 'jax_enable_x64=True, with which the same seed gives another run'),
        ('JAX_ENABLE_X64', 'maybe', 'JAX does not accept a setting in the environment'),
    ],
)
@pytest.mark.parametrize('has_run', [True, False])
def test_commands_refuse_it_in_one_sentence(
    variable, value, message, has_run, trained_workdir, tmp_path
):
    arguments = ['--config', 'quickstart', '--workdir', str(tmp_path / 'run')]
    if has_run:
        arguments = ['--mode', 'sample', '--workdir', str(trained_workdir)]
        arguments += ['--output', str(tmp_path / 'a.png')]
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, '-m', 'sagan_jax.main', *arguments],
        cwd=root,
        env=os.environ | {variable: value, 'PYTHONPATH': str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert 'Traceback' not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1
    assert message in lines[0]
    assert lines[0].endswith('.')
    assert not list(tmp_path.iterdir())
    if has_run:
        assert {path.name for path in (trained_workdir / 'checkpoints').iterdir()} == {'7'}

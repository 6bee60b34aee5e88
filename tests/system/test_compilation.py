"""Compiled programs are kept on disk, within a limit, and give the same bits when they are read."""

import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import jax
import jaxlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.compilation_cache import compilation_cache

from sagan_jax.system import compilation, distributed

ROOT = Path(__file__).parents[2]
SETTINGS = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A user who has chosen nothing, with a cache folder of their own."""
    before = {name: jax.config.values[name] for name in SETTINGS}
    monkeypatch.setattr(warnings, 'showwarning', warnings.showwarning)
    monkeypatch.setattr(jaxlib.version, '__version_info__', (0, 10, 2))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
    jax.config.update('jax_compilation_cache_dir', None)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    compilation_cache.reset_cache()
    yield tmp_path / 'sagan_jax' / 'compiled'
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def folder_in_use():
    return jax.config.values['jax_compilation_cache_dir']


# ---- What is read. -----------------------------------------------------------------------------


def test_half_a_file_is_named_removed_and_written_again(home, capsys):
    compilation.use_cache()

    def programs_read_for_triple():
        def triple(x):
            return 3 * x

        jax.clear_caches()
        before = compilation.programs_read()
        assert jax.jit(triple)(np.arange(3.0)).tolist() == [0, 3, 6]
        return compilation.programs_read() - before

    assert programs_read_for_triple() == 0
    (path,) = home.glob('jit_triple-*-cache')
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert programs_read_for_triple() == 0
    assert f'reading the compiled program jit_triple in {home} failed' in capsys.readouterr().out
    assert list(home.glob('jit_triple-*-cache')) == [path]
    assert programs_read_for_triple() == 1
    assert not capsys.readouterr().out


FINGERPRINT = """
import jax
from jax._src.lib import xla_client
print(xla_client.get_topology_for_devices(jax.devices()).fingerprint())
"""


def test_the_key_of_a_program_depends_on_the_instructions_of_the_cpu():
    """Hosts that share a home may differ; the key contains this fingerprint."""
    prints = {
        subprocess.run(
            [sys.executable, '-c', FINGERPRINT],
            env=os.environ | {'XLA_FLAGS': f'--xla_cpu_max_isa={instructions}'},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for instructions in ('SSE4_2', 'AVX')
    }
    assert len(prints) == 2


# ---- Which folder. -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('setting', 'value'),
    [
        ('jax_compilation_cache_dir', '/elsewhere'),
        ('jax_compilation_cache_dir', ''),
        ('jax_enable_compilation_cache', False),
    ],
)
def test_the_settings_of_jax_win(home, setting, value):
    before = jax.config.values[setting]
    jax.config.update(setting, value)
    compilation.use_cache()
    assert jax.config.values[setting] == value
    assert not folder_in_use() or folder_in_use() == value
    jax.config.update(setting, before)
    assert not home.exists()


def test_versions_that_print_false_errors_compile(home, monkeypatch):
    monkeypatch.setattr(jaxlib.version, '__version_info__', (0, 10, 1))
    compilation.use_cache()
    assert folder_in_use() is None


def test_only_the_user_can_write_there(home):
    compilation.use_cache()
    assert home.stat().st_mode & 0o777 == 0o700


def test_an_unwritable_folder_is_said_in_one_line(home, monkeypatch, capsys):
    home.parent.write_text('a file')
    compilation.use_cache()
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setattr(Path, 'home', no_home)
    compilation.use_cache()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith('warning        compiled programs cannot be kept (')
    assert 'Could not determine home directory.' in second
    assert folder_in_use() is None


def no_home():
    raise RuntimeError('Could not determine home directory.')


@pytest.mark.parametrize('is_shared', [True, False])
def test_processes_that_do_not_see_the_same_folder_compile(home, monkeypatch, is_shared):
    """The second process of two: the first one leaves a mark in its folder."""
    firsts = home if is_shared else home.parent / 'of_another_host'

    def on_first(mark):
        firsts.mkdir(parents=True, exist_ok=True)
        (firsts / 'mark').touch()
        return 'mark'

    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(distributed, 'is_first', lambda: False)
    monkeypatch.setattr(distributed, 'on_first', on_first)
    monkeypatch.setattr(distributed, 'vote', lambda flag: lambda: flag)
    compilation.use_cache()
    assert folder_in_use() == (str(home) if is_shared else None)


# ---- How much is kept. -------------------------------------------------------------------------

entries = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=8)


@settings(deadline=None, max_examples=50)
@given(entries, st.integers(0, 200))
def test_what_was_unused_for_longest_is_removed(entries, limit):
    with tempfile.TemporaryDirectory() as folder:
        used = {}
        for number, (size, time) in enumerate(entries):
            path = Path(folder, 'below' if number % 2 else '.', str(number))
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(bytes(size))
            os.utime(path, (time, 0) if number % 3 else (0, time))  # read, or only written
            used[path] = time, size
        compilation.trim(Path(folder), limit)
        kept = {path for path in used if path.exists()}
        removed = used.keys() - kept
        assert sum(used[path][1] for path in kept) <= limit
        for path in removed:
            assert all(used[path][0] <= used[other][0] for other in kept)
        if removed:  # the last one had to go
            last = max(removed, key=used.__getitem__)
            assert sum(used[path][1] for path in (*kept, last)) > limit

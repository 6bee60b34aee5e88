"""The command with a made-up compiler, and what is kept of a compiled program."""

import json

import jax
import jax.numpy as jnp
import pytest

from launch.compile import devices, hlo, program
from tests import tiny
from tests.launch.compile.test_prediction import TEXT
from tests.programs import run_python


def run(*arguments):
    """Runs the command with a compiler that finds memory proportional to the batch."""
    made = (
        'import runpy, sys; from launch.compile import devices, program; '
        'devices.create_devices = lambda target: []; '
        'program.compile_step = lambda config, target, report: program.Program('
        f'{TEXT!r}, 1.0, arguments=2**30, temporaries=config.batch_size * 2**24, '
        'refused="too large" if config.batch_size > 999 else ""); '
        f'sys.argv[1:] = {list(map(str, arguments))}; '
        'runpy.run_module("launch.compile", run_name="__main__", alter_sys=True)'
    )
    return run_python('-c', made)


def test_tables_and_json(tmp_path):
    file = tmp_path / 'facts.json'
    done = run(
        '--config', 'configs/shapes.py', '--target', 'v5e:1x1,h100:1', '--batch_size',
        '64,128,1000', '--dtype', 'bfloat16', '--json', file,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())['compiled']
    assert [(row['target'], row['batch_size']) for row in rows] == [
        (target, batch) for target in ('v5e:1x1', 'h100:1') for batch in (64, 128, 1000)
    ]
    for row in rows:
        assert row['dtype'] == 'bfloat16'
        assert row['generator_width'] <= 16
        assert row.get('refused') == ('too large' if row['batch_size'] == 1000 else None)
    # 15 of 16 GiB at 16 MiB an image.
    assert [row['largest_batch'] for row in rows[:2]] == [960, 960]
    for text in ('960', 'too large', 'jvp(Generator)/dense/dot_general', 'add --full'):
        assert text in done.stdout


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        ([], 'There is no configuration'),
        (['--config', 'quickstart', '--target', 'v9:1'], 'names no known device'),
        (['--config', 'quickstart', '--batch_size', '0'], 'not an integer of at least 1'),
    ],
)
def test_a_mistake_ends_with_one_sentence(arguments, sentence):
    done = run(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_program_is_compiled_once(tmp_path, monkeypatch):
    def step(state, x):
        return state + x @ x, x.sum()

    def lower(config, _, images, labels):
        shape = jax.ShapeDtypeStruct((config.batch_size, config.batch_size), jnp.float32)
        return jax.jit(step, donate_argnums=0).lower(shape, shape)

    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(devices, 'create_devices', lambda target: [])
    monkeypatch.setattr(program, 'lower_train_step', lower)
    config, target = tiny.config(batch_size=16), devices.parse_target('v5e:1x1')
    first = program.compile_step(config, target)
    assert hlo.aliased_outputs(hlo.parse(first.text)) == {0}
    assert first.arguments == 2 * 4 * 16 * 16
    assert first.aliased == 4 * 16 * 16
    assert first.bytes == first.arguments + first.temporaries + first.code + (
        first.outputs - first.aliased
    )

    def fail(lowered):
        raise AssertionError('compiled again')

    compile_again = program._compile
    monkeypatch.setattr(program, '_compile', fail)
    assert program.compile_step(config, target) == first
    for other in ((tiny.config(batch_size=24), target), (config, devices.parse_target('v4:1x1x1'))):
        with pytest.raises(AssertionError, match='compiled again'):
            program.compile_step(*other)

    (kept,) = (tmp_path / 'sagan_jax' / 'compiled_for').iterdir()
    for damaged in (b'', kept.read_bytes()[:100], b'text', b'\x1f\x8b' + bytes(50)):
        kept.write_bytes(damaged)
        with pytest.raises(AssertionError, match='compiled again'):
            program.compile_step(config, target)
    monkeypatch.setattr(program, '_compile', compile_again)
    assert program.compile_step(config, target).bytes == first.bytes
    monkeypatch.setattr(program, '_compile', fail)
    program.compile_step(config, target)  # it is whole again


def test_a_cache_that_cannot_be_written_costs_no_answer(tmp_path, monkeypatch):
    shape = jax.ShapeDtypeStruct((2, 2), jnp.float32)
    (tmp_path / 'sagan_jax').write_text('a file')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(devices, 'create_devices', lambda target: [])
    monkeypatch.setattr(program, 'lower_train_step', lambda *_: jax.jit(jnp.sin).lower(shape))
    said = []
    target = devices.parse_target('v5e:1x1')
    assert program.compile_step(tiny.config(), target, said.append).arguments == 16
    assert len(said) == 1
    assert said[0].startswith('not kept in ')

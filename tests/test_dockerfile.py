"""The Dockerfile, carried out without a container."""

import json
import os
import shlex
import subprocess
import venv
from pathlib import Path

import pytest

from tests.test_printed_commands import check_pip

ROOT = Path(__file__).parents[1]
DEVICES = ('cpu', 'cuda12', 'cuda13', 'tpu')


def instructions() -> list[tuple[str, str]]:
    text = (ROOT / 'Dockerfile').read_text().replace('\\\n', ' ')
    lines = [line for line in text.splitlines() if line and not line.startswith('#')]
    return [tuple(line.split(' ', 1)) for line in lines]


def test_the_image_starts_the_command_line():
    given = instructions()
    assert json.loads(dict(given)['ENTRYPOINT']) == ['python', '-m', 'sagan_jax.main']
    for instruction, value in given:
        if instruction == 'COPY':
            for source in value.split()[:-1]:
                assert (ROOT / source).exists()


@pytest.mark.parametrize('jax', DEVICES)
def test_the_image_installs_what_exists(jax):
    (line,) = [value for instruction, value in instructions() if instruction == 'RUN']
    pip, *words = shlex.split(line.replace('$JAX', jax))
    assert pip == 'pip'
    check_pip([word for word in words if word != '--no-cache-dir'])


@pytest.mark.thorough
@pytest.mark.parametrize('jax', DEVICES)
def test_the_image_is_built_and_trains_a_step(jax, tmp_path):
    """The instructions, carried out in a fresh environment and folder in place of a container."""
    venv.create(tmp_path / 'venv', with_pip=True)
    image = tmp_path / 'image'
    image.mkdir()
    environment = os.environ | {
        'PATH': f'{tmp_path}/venv/bin:{os.environ["PATH"]}',
        'JAX_PLATFORMS': 'cpu',
    }
    for instruction, value in instructions():
        if instruction == 'ARG':
            name, _, _ = value.partition('=')
            environment[name] = jax
        elif instruction == 'COPY':
            *sources, _ = value.split()
            if sources == ['.']:
                tracked = subprocess.check_output(['git', 'ls-files', '-z'], cwd=ROOT, text=True)
                sources = tracked.rstrip('\0').split('\0')
            for source in sources:
                (image / source).parent.mkdir(parents=True, exist_ok=True)
                (image / source).write_bytes((ROOT / source).read_bytes())
        elif instruction == 'RUN':
            subprocess.run(value, shell=True, cwd=image, env=environment, check=True)
        elif instruction == 'ENTRYPOINT':
            words = ['--config', 'configs/quickstart.py', '--config.num_train_steps=1']
            words += ['--config.evaluate_every=0', '--workdir', str(tmp_path / 'run')]
            subprocess.run([*json.loads(value), *words], cwd=image, env=environment, check=True)
    assert (tmp_path / 'run' / 'report.html').exists()

"""Configurations by path and by name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sagan_jax.configuration import files
from sagan_jax.errors import UserError

ROOT = Path(__file__).parents[2]
MINE = """
from sagan_jax.configuration import defaults

def get_config():
    config = defaults.get_config()
    config.seed = 7
    return config
"""


@pytest.mark.parametrize('text', ['quickstart', 'imagenet128:feat32', 'configs/cifar10.py:feat8'])
def test_names_of_the_packages_files(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, _, variant = text.partition(':')
    path, _, found = files.locate(text).partition(':')
    assert Path(path) == ROOT / 'configs' / f'{Path(name).stem}.py'
    assert found == variant


def test_an_existing_path_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('quickstart', 'my_config.py'):
        Path(name).write_text(MINE)
        assert files.locate(name) == name
        assert files.locate(f'{name}:feat8') == f'{name}:feat8'


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match=r'no configuration nowhere.py: .* celeba, .* quickstart'):
        files.locate('nowhere.py')


def started(arguments, folder):
    """Runs the command line in `folder`, where only PYTHONPATH leads to the checkout."""
    command = [sys.executable, '-m', 'sagan_jax.main', *arguments]
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ('config', 'sentence'),
    [
        # The configuration is found, and then its batch size is refused.
        ('quickstart', 'batch_size=-1 should be from 1 to 1000000'),
        ('configs/quickstart.py', 'batch_size=-1 should be from 1 to 1000000'),
        ('mine/my_config.py', 'batch_size=-1 should be from 1 to 1000000'),
        ('mine/missing.py', "mine/missing.py fails (No module named 'absent')"),
        ('mine/old.py', "mine/old.py fails (cannot import name 'systems'"),
        ('mine/broken.py', 'mine/broken.py is not valid Python'),
        ('mine/none.py', 'no configuration mine/none.py'),
    ],
)
def test_with_a_configs_package_of_the_user(config, sentence, tmp_path):
    for path, text in {
        'configs/__init__.py': '',
        'mine/my_config.py': MINE,
        'mine/missing.py': 'import absent',
        'mine/old.py': 'from configs import systems',  # as files of version 0.1 did
        'mine/broken.py': 'def get_config(:',
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    result = started(['--config', config, '--config.batch_size=-1'], tmp_path)
    assert result.returncode == 2, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
    assert sentence in line
    assert 'Traceback' not in result.stderr

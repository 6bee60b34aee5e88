"""The README and the documentation: links, configurations and keys exist, programs run.

test_printed_commands.py has their commands.
"""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

from sagan_jax.configuration import defaults
from tests import printed

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
NAMES = [path.name for path in PAGES]
ALL = [
    (command.file, command.words[2:])
    for command in printed.commands()
    if command.file.endswith('.md') and command.words[:2] == ('python', '-m')
]
MODULES = sorted({words[0] for _, words in ALL} - {'pytest'})


@pytest.mark.parametrize('page', PAGES, ids=NAMES)
def test_links_exist(page):
    links = re.findall(r'\]\(([^)]+)\)', page.read_text())
    for link in links:
        path, _, _ = link.partition('#')
        assert link.startswith('https://') or (page.parent / path).exists(), link


@pytest.mark.parametrize('module', MODULES)
def test_flags_of_commands_exist(module):
    command = [sys.executable, '-m', module, '--help']
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert module in text or 'usage' in text
    for page, words in ALL:
        if words[0] == module:
            own = words[: words.index('--')] if '--' in words else words
            for flag in {word.partition('=')[0] for word in own if word.startswith('--')}:
                # In a line of its own, not in an example alone.
                known = re.search(rf'^  --(\[no\])?{flag[2:]}(?!\w)', text, re.MULTILINE)
                assert known or flag.startswith('--config.'), f'{flag} in {page}'


@pytest.mark.parametrize('page', PAGES, ids=NAMES)
def test_configurations_and_keys_exist(page):
    text = page.read_text()
    keys = flatten_dict(defaults.get_config().to_dict(), sep='.')
    for key in re.findall(r'--config\.([a-z_0-9.]*[a-z_0-9])', text):
        assert key in keys, key
    for name, variant in re.findall(r'configs/(\w+)\.py(?::(\w+))?', text):
        module = importlib.import_module(f'configs.{name}')
        if variant:
            assert module.get_config(variant)


# ---- The README's commands with a trained run. -------------------------------------------------


def of_the_tests(text, workdir):
    """A command or program of the README, changed to use the run in `workdir` and its classes."""
    for there, here in (
        ('runs/quickstart', str(workdir)),
        ('FOLDER', str(workdir / 'folder')),
        ('50000', '30'),
        ('star,cross', 'class2,0'),
        ("['star']", "['class2']"),
    ):
        text = text.replace(there, here)
    return text


@pytest.fixture
def workdir(trained_workdir, tmp_path):
    """The tests' run, with only its configuration and its checkpoints."""
    for name in ('config.json', 'checkpoints'):
        (tmp_path / name).symlink_to(trained_workdir / name)
    return tmp_path


def test_sampling_and_exporting(workdir):
    """Every command of the README that draws or exports."""
    readme = [command.words for command in printed.commands() if command.file == 'README.md']
    given = [words for words in readme if {'sample', 'export'} & {*words}]
    assert len(given) == 3
    for words in given:
        subprocess.run(
            [sys.executable, *(of_the_tests(word, workdir) for word in words[1:])],
            cwd=ROOT,
            env=os.environ | {'JAX_NUM_CPU_DEVICES': '1'},
            check=True,
        )
    with Image.open(workdir / 'generated' / 'samples.png') as image:
        assert np.asarray(image).std() > 10
    assert len(list((workdir / 'folder').glob('class*/*.png'))) == 30
    assert (workdir / 'export' / 'generator.stablehlo').exists()


def test_three_lines_of_python(workdir):
    (program,) = re.findall(
        r'```python\n(import sagan_jax\n.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL
    )
    names = {}
    exec(of_the_tests(program, workdir), names)
    assert (names['images'].dtype, names['images'].shape) == (np.uint8, (8, 32, 32, 3))

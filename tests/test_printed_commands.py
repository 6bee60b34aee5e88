"""Every command that the project prints: parsed by its own program, or run with stand-ins."""

import argparse
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

from tests import printed
from tests.printed import ROOT, Command

ALL = printed.commands()
OURS = ('sagan_jax', 'launch')
# Programs that are not here. Only the files that they are given are checked.
ABSENT = {
    'pre-commit': 'installs hooks for git',
    'curl': 'downloads the installer of uv',
    'gcsfuse': 'mounts a bucket',
    'hf': 'uploads to the Hugging Face hub',
    'kubectl': 'talks to a cluster',
    'sky': 'rents machines',
    'wsl': 'installs Linux on Windows',
    'tensorboard': 'is not among the requirements',
}
SHELL = ('cd', '.', 'source')


def of(*programs: str) -> list[Command]:
    return [command for command in ALL if command.words[0] in programs]


def own(words: tuple[str, ...]) -> list[str]:
    """What a command gives to `python -m`, if it is a module of this project."""
    if words[:2] in (('python', '-m'), ('python3', '-m')) and words[2].split('.')[0] in OURS:
        return list(words[2:])
    return []


def inner(words: list[str]) -> list[str]:
    """The command line inside another one: behind two dashes, or in SLURM's --wrap."""
    if words[0] == 'launch.local_cluster':
        return ['sagan_jax.main', *words[words.index('--') + 1 :]]
    rest = words[words.index('--') + 1 :] if '--' in words else []
    return own(tuple(rest))


def test_each_command_has_a_check():
    assert len(ALL) > 100
    programs = {command.words[0] for command in ALL}
    assert programs <= {*printed.PROGRAMS}
    assert programs <= {*CHECKED, *ABSENT, *SHELL}, 'write a check, or say why there is none'


@pytest.fixture(scope='module')
def parse():
    """Returns what the programs found wrong in command lines; see tests/parsing.py."""

    def parse(lines: list[list[str]]) -> list[str | None]:
        ended = subprocess.run(
            [sys.executable, '-m', 'tests.parsing'],
            cwd=ROOT,
            env=os.environ | {'SAGAN_JAX_LARGE_PAGES': '0'},
            input=json.dumps(lines),
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(ended.stdout)

    return parse


def test_own_programs_accept_their_commands(parse, recorded):
    """All of them at once: those printed, those that the launch scripts start, and two mistakes."""
    lines = {}
    for command in ALL:
        words = own(command.words)
        while words:
            lines[tuple(words)] = str(command)
            words = inner(words)
    for file, words in recorded.items():
        lines[tuple(words)] = file
    mistakes = [
        ['sagan_jax.main', '--config', 'configs/imagenet128.py:feat32'],
        ['launch.report', 'runs', '--absent'],
    ]
    assert len(lines) > 40
    *found, no_folder, no_flag = parse([*map(list, lines), *mistakes])
    wrong = {file: text for file, text in zip(lines.values(), found, strict=True) if text}
    assert not wrong
    assert 'source_dir' in no_folder
    assert '--absent' in no_flag


# ---- The launch scripts, with stand-ins for what the machines have. ----------------------------

# Records the words of a training command, and runs what only starts it.
RECORDS = f"""
case "$*" in
    -c*) exit ;;
    -) cat >/dev/null; exit ;;
    "-m launch.until_done"*) exec {shlex.quote(sys.executable)} "$@" ;;
esac
printf '%s\\n' "$@" >"$HERE/recorded"
"""
# The last argument of gcloud is for a shell of the host, which has a home of its own.
GCLOUD = 'env -i HERE="$HERE" HOME="$HOME" PATH="$HERE/bin:/usr/bin:/bin" bash -c "cd; ${@: -1}"'
STAND_INS = {
    'python': RECORDS,
    'python3': RECORDS,
    'gcloud': GCLOUD,
    'sbatch': 'while [ "${1#--}" != "$1" ]; do shift 2; done; SLURM_SUBMIT_DIR=$PWD "$@"',
    'srun': 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    'curl': r"printf 'mkdir -p ~/.local/bin\nln -sf $HERE/bin/uv ~/.local/bin/uv\n'",
    'git': f'mkdir -p "${{@: -1}}" && cp -r {ROOT}/launch {ROOT}/requirements*.txt "${{@: -1}}"',
    'uv': 'echo "$@" >>"$HERE/uv"',
}


@pytest.fixture(scope='module')
def machine(tmp_path_factory):
    """Runs lines of shell with `STAND_INS`, in this checkout; returns the folder they write to."""
    here = tmp_path_factory.mktemp('machine')
    (here / 'bin').mkdir()
    for host in ('host', 'new'):
        (here / host).mkdir()
    (here / 'host' / 'sagan_jax').mkdir()
    (here / 'host' / 'sagan_jax' / 'launch').symlink_to(ROOT / 'launch')
    for name, lines in STAND_INS.items():
        program = here / 'bin' / name
        program.write_text(f'#!/usr/bin/env bash\n{lines}\n')
        program.chmod(0o755)

    def run(lines: str, **environment: str) -> Path:
        (here / 'recorded').unlink(missing_ok=True)
        subprocess.run(
            ['bash', '-e', '-c', lines],
            cwd=ROOT,
            env={
                'HERE': str(here),
                'HOME': str(here / 'host'),
                'PATH': f'{here}/bin:/usr/bin:/bin',
                'PYTHON': str(here / 'bin' / 'python'),
                **environment,
            },
            check=True,
        )
        return here

    return run


def training(here: Path) -> list[str]:
    """The command line of sagan_jax.main that was recorded."""
    words = (here / 'recorded').read_text().splitlines()
    return words[words.index('sagan_jax.main') :]


@pytest.fixture(scope='module')
def recorded(machine):
    """What each printed command of a script starts, and what the files of GKE and SkyPilot do."""
    found = {}
    for command in of('launch/multi_gpu.sh', 'launch/slurm.sh', 'launch/tpu_pod.sh', 'sbatch'):
        if '--wrap' in command.words:
            continue
        found[str(command)] = words = training(machine(shlex.join(command.words)))
        given = command.words[command.words.index('--config') :]
        assert tuple(words[1 : 1 + len(given)]) == given
    (container,) = gke()['containers']
    found['launch/gke.yaml'] = ['sagan_jax.main', *container['args']]
    for command in of('docker'):
        if command.words[1] == 'run':
            image = command.words.index('sagan_jax')
            found[str(command)] = ['sagan_jax.main', *command.words[image + 1 :]]
    nodes = {'SKYPILOT_NODE_IPS': '10.0.0.1\n10.0.0.2', 'SKYPILOT_NODE_RANK': '1'}
    found['launch/sky.yaml'] = words = training(machine(sky()['run'], **nodes))
    assert words[-3:] == [
        f'--config.distributed.{setting}'
        for setting in ('coordinator=10.0.0.1:1234', 'num_processes=2', 'process_id=1')
    ]
    for command in of('sbatch'):
        if '--wrap' in command.words:
            wrapped = command.words[command.words.index('--wrap') + 1]
            found[str(command)] = shlex.split(wrapped.replace('…', '--config configs/shapes.py'))[
                2:
            ]
    return found


def gke():
    (job,) = yaml.safe_load((ROOT / 'launch/gke.yaml').read_text())['spec']['replicatedJobs']
    return job['template']['spec']['template']['spec']


def sky():
    return yaml.safe_load((ROOT / 'launch/sky.yaml').read_text())


def test_the_cluster_starts_again_what_the_scripts_would():
    jobset = yaml.safe_load((ROOT / 'launch/gke.yaml').read_text())['spec']
    (job,) = jobset['replicatedJobs']
    spec, pod = job['template']['spec'], gke()
    (container,) = pod['containers']
    (rule,) = spec['podFailurePolicy']['rules']
    assert rule['action'] == 'FailJob'
    assert rule['onExitCodes'] == {
        'containerName': container['name'],
        'operator': 'In',
        'values': [2],
    }
    assert spec['parallelism'] == spec['completions']
    assert spec['backoffLimit'] == 0, 'the whole set starts again, not one of its processes'
    mounts = {mount['name'] for mount in container['volumeMounts']}
    assert mounts == {volume['name'] for volume in pod['volumes']}


def test_a_new_machine_is_set_up(machine):
    """The lines for TPU machines and SkyPilot, with a stand-in for uv that writes its arguments."""
    (tpus,) = [command for command in of('gcloud') if 'ssh' in command.words]
    for lines in (sky()['setup'], shlex.join(tpus.words)):
        here = machine(f'export HOME="$HERE/new"\n{lines}', JAX='tpu')
        creates, installs = (here / 'uv').read_text().splitlines()
        (here / 'uv').unlink()
        assert creates.startswith('venv ')
        assert creates.endswith(' --python 3.13')
        assert installs == 'pip install jax[tpu] -r requirements.txt'
    assert (here / 'new' / 'sagan_jax' / 'launch' / 'python.sh').exists()


# ---- Other programs. ---------------------------------------------------------------------------


def check_pip(words: list[str]) -> None:
    """The requirements of `pip install`: their files, and extras that exist."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument('-r', '--requirement', action='append', default=[])
    parser.add_argument('-e', '--editable')
    parser.add_argument('packages', nargs='*')
    given = parser.parse_args(words)
    for file in given.requirement:
        assert (ROOT / file).exists(), file
    for package in [*given.packages, *filter(None, [given.editable])]:
        if package.startswith('.'):
            project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
            extras, known = re.findall(r'\w+', package), project['optional-dependencies']
        else:
            requirement = Requirement(package)
            if requirement.name != 'jax':
                continue
            extras, known = requirement.extras, metadata.metadata('jax').get_all('Provides-Extra')
        assert {*extras} <= {*known}, package


def check_python(words: list[str]) -> None:
    if words[0] == '-c':
        code = compile(words[1], 'printed', 'exec')
        exec(code, {})
    elif words[:2] == ['-m', 'pytest']:
        markers = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['pytest']
        for word in words[2:]:
            assert not word.startswith('tests') or (ROOT / word).exists(), word
            if word == 'thorough':
                assert any(word in marker for marker in markers['ini_options']['markers'])
    elif words[0] == '-m' and words[1] not in ('venv',):
        assert words[1].split('.')[0] in OURS


def check_git(words: list[str]) -> None:
    assert words[0] == 'grep' or words == ['clone', address(), 'sagan_jax']


def check_docker(words: list[str]) -> None:
    dockerfile = (ROOT / 'Dockerfile').read_text()
    if words[0] == 'build':
        name, _, _ = words[words.index('--build-arg') + 1].partition('=')
        assert f'ARG {name}=' in dockerfile


def check_files(words: list[str]) -> None:
    """Words that name files of this checkout."""
    for word in words:
        if word.startswith(('launch/', 'configs/', 'sagan_jax/')):
            assert (ROOT / word.partition(':')[0]).exists(), word


def check_uv(words: list[str]) -> None:
    if words[:2] == ['pip', 'install']:
        check_pip(words[2:])
    elif words[:2] == ['pip', 'compile']:
        assert (ROOT / words[2]).exists()


CHECKED = {
    'pip': lambda words: check_pip(words[1:]),
    'python': check_python,
    'python3': check_python,
    'git': check_git,
    'docker': check_docker,
    'uv': check_uv,
    '~/.local/bin/uv': check_uv,
    **dict.fromkeys(('ruff', 'mypy'), lambda words: None),  # .ci/run runs them
    **dict.fromkeys(  # run with stand-ins above
        ('launch/multi_gpu.sh', 'launch/slurm.sh', 'launch/tpu_pod.sh', 'sbatch', 'gcloud'),
        check_files,
    ),
    **dict.fromkeys(ABSENT, check_files),
}


@pytest.mark.parametrize('program', sorted({command.words[0] for command in ALL} - {*SHELL}))
def test_other_programs(program):
    for command in of(program):
        CHECKED[program](list(command.words[1:]))


# ---- The address of the project. ---------------------------------------------------------------


def address() -> str:
    """The one address of the project, which the notebook gives."""
    notebook = (ROOT / 'launch' / 'colab_tpu.ipynb').read_text()
    (found,) = re.findall(r"REPOSITORY = '([^']+)'", notebook)
    return found


def test_one_address():
    """Badges, clone commands and the notebook name one repository: see CONTRIBUTING.md."""
    owner = re.fullmatch(r'https://github\.com/(.+)', address())[1]
    named = set()
    for path in [*printed.files(), ROOT / 'pyproject.toml', ROOT / 'CITATION.cff']:
        named |= set(re.findall(r'github(?:\.com)?/([\w.-]+/sagan_jax)\b', path.read_text()))
    assert named == {owner}


def test_every_choice_in_the_notebook_is_a_configuration():
    cells = nbformat.read(ROOT / 'launch' / 'colab_tpu.ipynb', 4).cells
    (choices,) = re.findall(r"^CONFIG = '.*'  # @param (\[.*\])$", cells[1].source, re.MULTILINE)
    for choice in json.loads(choices):
        file, _, variant = choice.partition(':')
        module = importlib.import_module(file.removesuffix('.py').replace('/', '.'))
        model = module.get_config(*filter(None, [variant])).model
        assert model.attention_block == 'self_attention', 'the notebook draws its maps'

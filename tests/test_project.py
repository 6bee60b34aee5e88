"""What describes the project agrees with itself: versions, requirements, workflows, documents."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import sagan_jax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']


def requirements():
    """Every requirement of the package and of its extras."""
    lines = (ROOT / 'requirements.txt').read_text().splitlines()
    found = {line.partition('#')[0].strip() for line in lines} - {''}
    return sorted(found.union(*PROJECT['optional-dependencies'].values()))


def jobs(workflow):
    return yaml.safe_load((ROOT / '.github' / 'workflows' / workflow).read_text())['jobs']


def python_of(job):
    (step,) = [step for step in job['steps'] if 'setup-python' in step.get('uses', '')]
    return step['with']['python-version']


def test_one_version():
    version = sagan_jax.__version__
    assert metadata.version('sagan_jax') == version, 'install again: pip install -e .'
    assert yaml.safe_load((ROOT / 'CITATION.cff').read_text())['version'] == version
    changes = (ROOT / 'CHANGELOG.md').read_text()
    assert re.search(rf'^## {re.escape(version)} - \d{{4}}-\d\d-\d\d$', changes, re.MULTILINE)


def test_every_folder_of_the_package_is_in_the_wheel():
    tool = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['setuptools']
    folders = {path.parent for path in (ROOT / 'sagan_jax').rglob('*.*')}
    names = {'.'.join(folder.relative_to(ROOT).parts) for folder in folders}
    names = {name for name in names if '__pycache__' not in name}
    assert set(tool['packages']) == names | set(tool['package-dir'])


@pytest.mark.parametrize('line', requirements())
def test_every_requirement_has_a_lower_bound(line):
    """Without one, `--resolution lowest-direct` takes the first version ever published."""
    assert '>=' in [specifier.operator for specifier in Requirement(line).specifier]


def locked():
    """The version of each package in requirements-lock.txt."""
    lines = (ROOT / 'requirements-lock.txt').read_text().splitlines()
    found = [Requirement(line) for line in lines if not line.lstrip().startswith('#')]
    return {canonicalize_name(each.name): str(each.specifier).removeprefix('==') for each in found}


def test_the_lock_has_every_requirement():
    """The set with which the documents' numbers were measured; CONTRIBUTING.md says how to lock."""
    versions = locked()
    lines = (ROOT / 'requirements.txt').read_text().splitlines()
    for line in filter(None, (line.partition('#')[0].strip() for line in lines)):
        requirement = Requirement(line)
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)])
    first = (ROOT / 'requirements-lock.txt').read_text().splitlines()[1]
    assert f'`{first.removeprefix("#").strip()}`' in (ROOT / 'CONTRIBUTING.md').read_text()


def test_the_documents_name_the_locked_jax():
    version = locked()['jax']
    for page in ('README.md', 'docs/scores.md'):
        assert f'JAX {version}' in (ROOT / page).read_text()


def test_every_python_version_is_tested():
    named = [re.fullmatch(r'.* :: Python :: (3\.\d+)', line) for line in PROJECT['classifiers']]
    versions = [match[1] for match in named if match]
    assert len(versions) > 1
    tests = jobs('tests.yml')
    assert tests['newest']['strategy']['matrix']['python-version'] == versions
    assert python_of(tests['lowest']) == python_of(tests['locked']) == versions[0]
    assert {python_of(job) for job in jobs('lint.yml').values()} == {versions[-1]}
    assert SpecifierSet(PROJECT['requires-python']) == SpecifierSet(f'>={versions[0]}')


@pytest.mark.parametrize('page', ['CONTRIBUTING.md', 'CHANGELOG.md'])
def test_links_exist(page):
    links = re.findall(r'\]\(([^)]+)\)', (ROOT / page).read_text())
    assert links
    for link in links:
        assert link.startswith('https://') or (ROOT / link).exists(), link


def test_paths_and_names_in_contributing_exist():
    """The paths and rooms of CONTRIBUTING.md, and the tables and tests to be extended."""
    text = (ROOT / 'CONTRIBUTING.md').read_text()
    paths = re.findall(r'`((?:sagan_jax|tests|launch|configs)/[\w/.]*)', text)
    rooms = re.findall(r'^\| `(\w+/)` \|', text, re.MULTILINE)
    assert {'sagan_jax/losses.py', 'configs/imagenet128.py'} <= set(paths)
    assert {'configuration/', 'run/'} <= set(rooms)
    for path in [*paths, *(f'sagan_jax/{room}' for room in rooms)]:
        assert (ROOT / path).exists(), path

    names = re.findall(r'`(test_\w+|[A-Z]+(?:_[A-Z]+)*)`', text)
    assert {'LOSSES', 'test_parameter_counts'} <= set(names)
    files = [*(ROOT / 'sagan_jax').rglob('*.py'), *(ROOT / 'tests').rglob('test_*.py')]
    sources = '\n'.join(path.read_text() for path in files)
    for name in names:
        assert re.search(rf'^ *(def )?{name}\b', sources, re.MULTILINE), name

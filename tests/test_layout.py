"""Nothing imports upward: which room may import which, and no cycles between rooms.

A room is a module in the root of sagan_jax or of launch, or a package there. Imports inside
functions count like all others.
"""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up: what each room may import beside `errors`.
SAGAN_JAX = {
    'errors': '',
    'streams': '',
    'spectral_norm': '',
    'losses': '',
    'augmentation': '',
    'optimizers': '',
    'configuration': 'losses augmentation models',
    'system': 'configuration',
    'images': 'system',
    'image_scan': 'system images',
    'figures': 'system',
    'models': 'spectral_norm',
    'data': 'streams system images image_scan',
    'metrics': 'system images image_scan',
    'run': 'configuration system images',
    'sampling': 'streams spectral_norm system models',
    'state': 'streams models optimizers',
    'published': 'configuration system models run state',
    'transfer': 'spectral_norm models run state',
    'game': 'losses augmentation optimizers configuration system models',
    'gradients': 'system models game',
    'step_inputs': 'streams augmentation system game',
    'train_step': 'streams spectral_norm losses optimizers system models state game gradients '
    'step_inputs',
    'evaluation': 'streams configuration system models data metrics run sampling state',
    'trained': 'configuration streams system images figures models metrics run sampling state '
    'evaluation',
    'viewing': 'configuration system images figures data run sampling evaluation trained',
    'opening': 'configuration system models data run sampling state transfer train_step evaluation',
    'train': 'configuration system images run sampling state evaluation viewing opening',
    'main': 'configuration system run evaluation trained viewing train',
    '__init__': 'trained',  # sagan_jax.load
}
LAUNCH = {
    'benchmark': '',
    'compile': 'benchmark',
    'sweep': '',
    'convert': '',
    'memorisation': '',
    'local_cluster': 'until_done',
    'until_done': '',
    'report': 'sweep',
    '__init__': '',
}
TABLES = {'sagan_jax': SAGAN_JAX, 'launch': LAUNCH}


def files(package):
    return sorted((ROOT / package).rglob('*.py'))


def room(path, package):
    return path.relative_to(ROOT / package).parts[0].removesuffix('.py')


def imported(path, package):
    """The rooms of `package` that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(), path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{path}: relative imports hide the room'
            names = [f'{node.module}.{alias.name}' for alias in node.names]
        else:
            continue
        parts = [name.split('.') for name in names]
        found |= {(*rest, '__init__')[0] for first, *rest in parts if first == package}
    return found - {'__version__'}  # a string, which no room owns


@pytest.mark.parametrize('package', TABLES)
def test_no_room_imports_upward(package):
    rooms = {name: set(allowed.split()) for name, allowed in TABLES[package].items()}
    list(TopologicalSorter(rooms).static_order())  # raises CycleError
    assert {room(path, package) for path in files(package)} == rooms.keys()
    for path in files(package):
        here = room(path, package)
        assert imported(path, package) <= rooms[here] | {here, 'errors'}, path


def test_the_package_imports_none_of_its_users():
    """launch and configs import sagan_jax, and not the other way round."""
    for path in files('sagan_jax'):
        assert not imported(path, 'launch') | imported(path, 'configs'), path
    for path in files('launch'):
        assert not imported(path, 'configs'), path


def test_configurations_import_the_room_configuration_alone():
    for path in files('configs'):
        assert imported(path, 'sagan_jax') <= {'configuration'}, path
        assert not imported(path, 'configs') | imported(path, 'launch'), path

"""Projects that train SAGANs in PyTorch: their keys, and how their networks differ from ours."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from sagan_jax.errors import UserError
from sagan_jax.published.pth import Tensor

Tensors = dict[str, Tensor]  # of one network by key


class Project(NamedTuple):
    """What the files of a project have in common.

    Attributes:
      name: of the project.
      generator, discriminator: the modules by which its networks are recognised.
      linear_tables: whether the tables of conditional batch norm are linear layers, [C, classes],
        where the modules are called gain and bias.
      bgr: whether images are BGR.
      skip: what the skips of the discriminator's blocks see, see `model.discriminator_skip`.
      licence: of the weights.
    """

    name: str
    generator: str
    discriminator: str
    linear_tables: bool
    bgr: bool
    skip: str
    licence: str


PROJECTS = (
    Project('PyTorch-StudioGAN', 'linear0', 'linear1', True, False, 'relu', 'MIT'),
    Project('mmgeneration', 'noise2feat', 'decision', False, True, 'input', 'Apache-2.0'),
    Project(
        'BigGAN-PyTorch',
        'output_layer.2',
        'embed',
        False,
        False,
        'input',
        'that of whoever trained them; the code of BigGAN-PyTorch is under the MIT licence',
    ),
)
_PREFIXES = ('generator', 'generator_ema', 'discriminator')

_BLOCK = r'(from_rgb|(?:conv_)?blocks\.\d+(?:\.\d+)?)'
_NORM = rf'{_BLOCK}\.(?:bn|norm_)([12])'
_ATTENTION = rf'{_BLOCK}\.(?:conv1x1_)?'

# Module in PyTorch → path here; {0} is the block.
_MODULES = {
    r'linear[01]?|noise2feat|decision': 'dense',
    r'embed|embedding|proj_y': 'embed',
    r'bn4|to_rgb\.bn|output_layer\.0': 'norm',
    r'conv2d5|to_rgb\.conv|output_layer\.2': 'conv',
    rf'{_BLOCK}\.conv(?:2d|_)?([12])(?:\.conv)?': '{0}/conv{1}',
    rf'{_BLOCK}\.(?:conv2d0|conv_sc|shortcut\.conv)': '{0}/skip',
    rf'{_NORM}(?:\.bn|\.norm)?': '{0}/norm{1}',
    rf'{_NORM}\.(?:gain|embed0|weight_embedding)': '{0}/norm{1}/scale',
    rf'{_NORM}\.(?:bias|embed1|bias_embedding)': '{0}/norm{1}/bias',
    rf'{_ATTENTION}theta(?:\.conv)?': '{0}/query',
    rf'{_ATTENTION}phi(?:\.conv)?': '{0}/key',
    rf'{_ATTENTION}g(?:\.conv)?': '{0}/value',
    rf'{_ATTENTION}(?:attn|o)(?:\.conv)?': '{0}/output',
    _BLOCK: '{0}',
}


def find_networks(content: Any) -> tuple[Project, dict[str, Tensors], list[str]]:
    """Finds the networks in what a file holds.

    Returns:
      The project; the tensors of each network, which is called 'generator', 'generator_ema' or
      'discriminator'; and names of what else there is.

    Raises:
      UserError: if there are no networks of a known project.
    """
    holder = content if isinstance(content, dict) else {}
    nested = isinstance(holder.get('state_dict'), dict)
    state = holder['state_dict'] if nested else holder
    others = [key for key in holder if key != 'state_dict'] if nested else []
    others += [key for key, value in state.items() if not isinstance(value, Tensor)]
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    networks: dict[str, Tensors] = {}
    for key, tensor in tensors.items():
        prefix, _, name = key.partition('.')
        known = prefix in _PREFIXES
        networks.setdefault(prefix if known else '', {})[name if known else key] = tensor
    for project in PROJECTS:
        found = {name: _kind(project, keys) for name, keys in networks.items()}
        if any(found.values()):
            if missing := [name for name in networks if not found[name]]:
                key = next(iter(networks[missing[0]]))
                raise UserError(
                    f'{key:.100} is of no network of {project.name} that is known here: this file '
                    'cannot be converted.'
                )
            named = {name or found[name]: keys for name, keys in networks.items()}
            return project, named, [str(key) for key in others]
    shown = ', '.join(f'{key:.60}' for key in list(tensors)[:3]) or 'no tensors'
    raise UserError(
        f'These are not the weights of a SAGAN of {", ".join(p.name for p in PROJECTS)} ({shown}): '
        'give a file of one of these projects.'
    )


def _kind(project: Project, keys: Mapping[str, Any]) -> str:
    """'generator', 'discriminator', or '' for neither."""
    modules = {key.rpartition('.')[0] for key in keys}
    if project.generator in modules:
        return 'generator'
    return 'discriminator' if project.discriminator in modules else ''


def modules_of(tensors: Tensors) -> dict[str, tuple[str, Tensors]]:
    """Groups the tensors of a network: path here → (module in PyTorch, tensors by name in it).

    Blocks are called 'block1', 'block2', … and the attention behind block n 'attention<n>'.

    Raises:
      UserError: naming a key that is not one of a SAGAN.
    """
    grouped: dict[str, Tensors] = {}
    for key, tensor in tensors.items():
        module, _, name = key.rpartition('.')
        grouped.setdefault(module, {})[name] = tensor
    matches = {module: _match(module) for module in grouped}
    if unknown := [module for module, found in matches.items() if not found]:
        raise UserError(
            f'{unknown[0]:.100} is not a layer of a SAGAN as these projects publish it: this is '
            'another architecture, which cannot be converted.'
        )
    addresses = [match.groups()[0] for match, _ in filter(None, matches.values()) if match.groups()]
    names = _block_names(addresses, grouped)
    paths: dict[str, tuple[str, Tensors]] = {}
    for module, found in matches.items():
        assert found
        match, path = found
        if match.groups():
            path = path.format(names[match[1]], *match.groups()[1:])
        if path in paths:
            raise UserError(
                f'{module} and {paths[path][0]} are the same layer: this file is mixed.'
            )
        paths[path] = module, grouped[module]
    return paths


def _match(module: str) -> tuple[re.Match, str] | None:
    for pattern, path in _MODULES.items():
        if match := re.fullmatch(pattern, module):
            return match, path
    return None


def _block_names(addresses: list[str], modules: Mapping[str, Any]) -> dict[str, str]:
    """Numbers the blocks; lists of blocks count the attention too, in all projects but one."""
    names, number = {}, 0
    for address in sorted(set(addresses), key=lambda text: [*map(int, re.findall(r'\d+', text))]):
        is_attention = any(
            re.fullmatch(rf'{re.escape(address)}\.(conv1x1_)?theta(\.conv)?', m) for m in modules
        )
        number += not is_attention
        names[address] = f'attention{number}' if is_attention else f'block{number}'
    return names

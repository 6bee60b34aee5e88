"""From published files to the configuration and the variables of a run."""

import contextlib
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from flax import traverse_util

from sagan_jax import models
from sagan_jax.configuration import checks
from sagan_jax.errors import UserError
from sagan_jax.models import Variables
from sagan_jax.published import official_files, projects, pth, settings, weights
from sagan_jax.published.projects import Project, Tensors
from sagan_jax.published.weights import Found
from sagan_jax.system.untrusted import open_file


class Options(NamedTuple):
    """What no file says; None for what the project and the name of the file suggest.

    Attributes:
      bgr: whether the images of the networks are BGR.
      skip: see `model.discriminator_skip`.
    """

    bgr: bool | None = None
    skip: str | None = None


UNSAID = Options()


class Converted(NamedTuple):
    """A converted model.

    Attributes:
      config: that of the run, unlocked.
      generator: variables, see `models.Network`.
      discriminator: variables; None if the files have none.
      step: of the training, 0 if the files do not say.
      origin: a record of where all this comes from, JSON values.
    """

    config: ml_collections.ConfigDict
    generator: Variables
    discriminator: Variables | None
    step: int
    origin: dict[str, Any]


class _Read(NamedTuple):
    """What the files hold: the networks as arrays, and what goes with them."""

    project: Project
    generator: Found
    discriminator: Found | None
    step: int
    epsilon: float
    left_out: list[str]
    taken: list[str]


def convert(
    paths: Sequence[Path], config: ml_collections.ConfigDict, options: Options = UNSAID
) -> Converted:
    """Converts published files.

    Args:
      paths: one file, or that of the generator and that of the discriminator, in any order.
      config: settings of data and evaluation. Those of the networks are changed to what the files
        hold.
      options: see `Options`.

    Raises:
      UserError: if a file cannot be read, is not that of a SAGAN, or lacks something.
    """
    files = {'files': [_describe(path) for path in paths]}
    if official_files.is_official(paths[0]):
        if len(paths) > 1:
            raise UserError('The official variables are one file: leave out the others.')
        converted = _convert_official(paths[0], config)
    else:
        converted = _convert_pytorch(paths, config, options)
    return converted._replace(origin=files | converted.origin)


def _convert_official(path: Path, config: ml_collections.ConfigDict) -> Converted:
    generator, discriminator, keys = official_files.read(path, config)
    config.update_from_flattened_dict(keys)
    checks.check(config)
    return Converted(config, generator, discriminator, 0, official_files.ORIGIN)


def _convert_pytorch(
    paths: Sequence[Path], config: ml_collections.ConfigDict, options: Options
) -> Converted:
    name = ' '.join(path.name for path in paths)
    read = _read(paths, options)
    skip = options.skip or _skip(read, name)
    arrays = read.discriminator.arrays if read.discriminator else None
    keys = settings.describe(read.generator.arrays, arrays, read.epsilon)
    config.update_from_flattened_dict(keys | {'model.discriminator_skip': skip})
    checks.check(config)
    generator, discriminator = models.create(config)
    bgr = _is_bgr(read.project, name, options)
    origin = {
        'project': read.project.name,
        'networks': read.taken,
        'left_out': read.left_out,
        'colours': 'BGR, turned to RGB' if bgr else 'RGB',
        'licence': read.project.licence,
    }
    return Converted(
        config,
        _variables('generator', generator, read.generator),
        _variables('discriminator', discriminator, read.discriminator)
        if read.discriminator
        else None,
        read.step,
        origin,
    )


def _describe(path: Path) -> dict[str, Any]:
    """A file's name, size and SHA-256; warns if the name carries another checksum."""
    try:
        with open_file(path) as file:
            sha256 = hashlib.file_digest(file, 'sha256').hexdigest()  # type: ignore[arg-type]
            size = file.tell()
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}): check it.') from error
    named = name_checksum(path.name)
    if named and not sha256.startswith(named):
        print(f'warning        {path.name} has the SHA-256 {sha256[:8]}…, and not that of its name')
    return {'name': path.name, 'bytes': size, 'sha256': sha256}


def name_checksum(name: str) -> str | None:
    """The beginning of the SHA-256 that a name carries, as mmgeneration's do."""
    match = re.search(r'-([0-9a-f]{8})\.pth$', name)
    return match[1] if match else None


# ---- Reading. ----------------------------------------------------------------------------------


def _read(paths: Sequence[Path], options: Options) -> _Read:
    """Reads the networks of all files; the averaged generator takes precedence."""
    name = ' '.join(path.name for path in paths)
    left_out: list[str] = []
    steps: list[int] = []
    epsilons: list[float] = []
    with contextlib.ExitStack() as stack:
        tensors: dict[str, Tensors] = {}
        found: list[Project] = []
        for path in paths:
            content = stack.enter_context(pth.opened(path))
            project, networks, others = projects.find_networks(content)
            found.append(project)
            left_out += others
            steps += _steps(content)
            epsilons += _epsilons(content)
            if twice := networks.keys() & tensors.keys():
                raise UserError(f'Two files hold a {min(twice)}: give one file of each network.')
            tensors |= networks
        if len(set(found)) > 1:
            raise UserError('The files are of different projects: give those of one model.')
        project = found[0]
        chosen = 'generator_ema' if 'generator_ema' in tensors else 'generator'
        if chosen not in tensors:
            raise UserError('There is no generator in these files: give its file too.')
        bgr = _is_bgr(project, name, options)
        generator = weights.read(project, tensors[chosen], bgr)
        discriminator = None
        if 'discriminator' in tensors:
            discriminator = weights.read(project, tensors['discriminator'], bgr)
    taken = [chosen, *(['discriminator'] if discriminator else [])]
    left_out += [network for network in tensors if network not in taken]
    left_out = list(dict.fromkeys(left_out))  # both files may hold an optimizer
    steps += [int(digits) for digits in re.findall(r'step=(\d{1,12})', name)]
    epsilon = epsilons[0] if epsilons else _usual_epsilon(project, generator)
    return _Read(project, generator, discriminator, max(steps, default=0), epsilon, left_out, taken)


def _steps(content: Any) -> list[int]:
    """The number of steps that a file says it has been trained for, if it does."""
    meta = content.get('meta', {})
    values = [content.get('step'), meta.get('iter') if isinstance(meta, dict) else None]
    return [value for value in values if type(value) is int and 0 < value < 10**12]


def _epsilons(content: Any) -> list[float]:
    """The ε of batch norm in the configuration that mmgeneration saves with its weights."""
    meta = content.get('meta')
    text = meta.get('config') if isinstance(meta, dict) else None
    found = re.search(r'norm_eps=([0-9.]+(?:e-?[0-9]+)?)', text) if isinstance(text, str) else None
    return [float(found[1])] if found else []


def _usual_epsilon(project: Project, generator: Found) -> float:
    if project.name == 'BigGAN-PyTorch':
        return 1e-5
    # mmgeneration's runs on BigGAN's schedule differ in both.
    return 1e-4 if generator.has_normalised_tables else 1e-5


def _is_bgr(project: Project, name: str, options: Options) -> bool:
    if options.bgr is not None:
        return options.bgr
    return project.bgr and '-rgb' not in name  # those that mmgeneration converted are RGB


def _skip(read: _Read, name: str) -> str:
    """mmgeneration names its files after this; those that it converted are StudioGAN's."""
    in_place = 'wReLUinplace' in name or 'convert-studio' in name
    return 'relu' if in_place else read.project.skip


# ---- The variables. ----------------------------------------------------------------------------


def _variables(name: str, network: models.Network, found: Found) -> Variables:
    """The arrays of a network as its variables: all of them, each of the right shape."""
    tree = jax.eval_shape(network.init, jax.random.key(0))
    shapes = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree, sep='/').items()}
    arrays = _with_resolutions(found.arrays, shapes)
    for what, paths in (
        ('lacks', shapes.keys() - arrays.keys()),
        ('has more than a SAGAN,', arrays.keys() - shapes.keys()),
    ):
        if paths:
            raise UserError(f'The {name} {what} {min(paths)}: it cannot be converted.')
    for path, shape in shapes.items():
        if arrays[path].shape != shape:
            raise UserError(
                f'The {name} has {path} of shape {arrays[path].shape}, which should be {shape}: it '
                'cannot be converted.'
            )
    collections: Variables = {'params': {}, 'batch_stats': {}, 'spectral_stats': {}}
    return collections | traverse_util.unflatten_dict(arrays, sep='/')


def _with_resolutions(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Renames attention after the resolution, which is how our layers are called, in order."""
    pattern = re.compile(r'(?<=/attention)(\d+)(?=/)')
    ours = list(dict.fromkeys(m[1] for path in shapes if (m := pattern.search(path))))
    # In the generator resolutions rise from block to block, in the discriminator they fall.
    theirs = settings.blocks_before_attention(arrays)
    renamed = dict(zip(theirs, _in_order(ours, 'params/norm/scale' in shapes), strict=True))
    return {
        pattern.sub(lambda match: renamed[int(match[1])], path): array
        for path, array in arrays.items()
    }


def _in_order(resolutions: Sequence[str], rising: bool) -> list[str]:
    return sorted(resolutions, key=int, reverse=not rising)

"""Exports a frozen generator for other programs: `--mode export`."""

import contextlib
import datetime
import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save

from sagan_jax import sampling
from sagan_jax.errors import UserError
from sagan_jax.images import image_grid, save_png
from sagan_jax.run.entries import Row
from sagan_jax.run.folder import RunFolder
from sagan_jax.system.failures import writing
from sagan_jax.system.files import partial_path
from sagan_jax.system.paths import refuse_file
from sagan_jax.system.records import versions
from sagan_jax.system.untrusted import read_json
from sagan_jax.trained import standalone
from sagan_jax.trained.card import card
from sagan_jax.trained.loading import DESCRIPTION, WEIGHTS
from sagan_jax.trained.model import Model

PLATFORMS = ('cpu', 'cuda', 'tpu')
FILES = (
    'generator.stablehlo',
    WEIGHTS,
    'generator.py',
    'samples.png',
    'README.md',
    DESCRIPTION,
)

_ROWS, _COLUMNS = 10, 8  # of samples.png, one class per row
_LICENSE = re.compile('[a-z0-9][a-z0-9.+-]*')
_PATHS = (
    ('dataset', 'data_dir'),
    ('dataset', 'source_dir'),
    ('evaluation', 'inception_weights'),
    ('init', 'run'),
)


def export(model: Model, workdir: Path, folder: Path, license: str | None = None) -> None:
    """Writes a generator into a folder, for programs that do not use this package.

    `generator.stablehlo` is `program(model)`, including the weights. `generator.safetensors` holds
    the weights and batch statistics of `model.generator` by path, such as 'params/conv/kernel'.
    `generator.json` describes both. `generator.py` computes the same images with NumPy alone.
    `README.md` is a model card and shows `samples.png`.

    The files appear together: the folder is renamed into place when all are written.

    Args:
      model: see `sagan_jax.load`.
      workdir: the run's folder. The card lists its scores of this checkpoint.
      folder: created if it does not exist. An earlier export in it is replaced.
      license: see `describe`.

    Raises:
      UserError: if the folder holds other files or changed ones, or cannot be written; or if the
        licence is not an identifier.
    """
    if license and not _LICENSE.fullmatch(license):
        raise UserError(
            f'--license={license} is not the identifier of a licence: give one of those that '
            'https://huggingface.co/docs/hub/repositories-licenses lists, such as apache-2.0.'
        )
    refuse_file(folder)
    _check_folder(folder)
    labels = sampling.grid_classes(model.config.dataset.num_classes, _ROWS)
    images = model.sample_rows(labels, _COLUMNS)
    weights = flatten_dict(jax.tree.map(np.asarray, model.generator), sep='/')
    description = describe(model, RunFolder(workdir).scores(model.step), license)
    text = card(model, description).encode(errors='replace')
    functions = Path(standalone.__file__).read_bytes()
    writers = {
        'generator.stablehlo': lambda path: path.write_bytes(program(model).serialize()),
        WEIGHTS: lambda path: path.write_bytes(save(weights)),
        'generator.py': lambda path: path.write_bytes(functions),
        'samples.png': lambda path: save_png(path, image_grid(images, _COLUMNS)),
        'README.md': lambda path: path.write_bytes(text),
    }
    with writing(folder, 'another --output'), _renamed_into_place(folder) as temporary:
        for name, write in writers.items():
            write(temporary / name)
        record = description | {'files': _hashes(temporary, writers, description)}
        (temporary / DESCRIPTION).write_text(_as_json(record))
    for name in (*writers, DESCRIPTION):
        print(f'written        {folder / name}')


@contextlib.contextmanager
def _renamed_into_place(folder: Path) -> Iterator[Path]:
    """Yields a new folder beside `folder`, which replaces `folder` when the block succeeds.

    If the block raises, the new folder is removed and `folder` is unchanged.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = partial_path(folder)
    old = folder.with_name(f'{folder.name}.old-{uuid.uuid4().hex}')  # stays if this is killed
    try:
        new.mkdir()
        yield new
        _check_folder(folder)  # it may have changed in the meantime
        if folder.exists():
            folder.rename(old)
            try:
                new.rename(folder)
            except BaseException:
                old.rename(folder)
                raise
            shutil.rmtree(old)
        else:
            new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _check_folder(folder: Path) -> None:
    """Refuses a folder that holds anything but an export as this program wrote it."""
    try:
        found = list(folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(
            f'{folder} cannot be read as a folder ({error.strerror}): choose another --output.'
        ) from error
    found = [path for path in found if not _is_bytecode(path)]
    others = [path.name for path in found if path.name not in FILES or not path.is_file()]
    others = others or _changed(folder, [path.name for path in found])
    if others:
        raise UserError(
            f'The folder {folder} holds files that this program did not write, or that have '
            f'changed since ({", ".join(sorted(others)[:5])}): choose another --output, or remove '
            'them.'
        )


def _is_bytecode(path: Path) -> bool:
    """Whether this is the folder that Python writes when a program imports `generator.py`."""
    is_cache = path.name == '__pycache__' and path.is_dir()
    return is_cache and all(each.match('generator.*.pyc') for each in path.iterdir())


def _changed(folder: Path, names: list[str]) -> list[str]:
    """Those of `FILES` in a folder that differ from what `generator.json` records of them."""
    try:
        description = read_json(folder / DESCRIPTION)
        written = description.pop('files')
        found = _hashes(folder, names, description)
        return [name for name in names if found[name] != written[name]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return names


def _hashes(folder: Path, names: Iterable[str], description: dict[str, Any]) -> dict[str, str]:
    """The SHA-256 of each file; that of `generator.json` is of the description alone."""
    contents = {name: (folder / name).read_bytes() for name in names if name != DESCRIPTION}
    contents[DESCRIPTION] = _as_json(description).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def _as_json(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2) + '\n'


def program(model: Model) -> jax.export.Exported:
    """Exports the generator as a program for `PLATFORMS` and any batch size, which needs only JAX.

    The program maps z float32 [n, z_dim] and labels int32 [n] to images float32 [n, S, S, 3] in
    [-1, 1].
    """
    generator, _ = model.networks
    frozen = jax.tree.map(jnp.asarray, model.generator)
    (n,) = jax.export.symbolic_shape('n')
    z = jax.ShapeDtypeStruct((n, model.config.model.z_dim), np.float32)
    labels = jax.ShapeDtypeStruct((n,), np.int32)

    @jax.jit
    def generate(z, labels):
        return generator.apply(frozen, z, labels, train=False)[0]

    return jax.export.export(generate, platforms=PLATFORMS)(z, labels)


def describe(model: Model, scores: list[Row], license: str | None = None) -> dict[str, Any]:
    """The content of `generator.json`.

    Args:
      model: see `sagan_jax.load`.
      scores: of its checkpoint.
      license: of the weights, as the Hugging Face hub names it. By default that of the files from
        which they were converted, or 'unknown'.
    """
    config = model.config
    if model.origin and not license:
        license = model.origin['licence'].lower()
        license = license if _LICENSE.fullmatch(license) else 'other'
    size, classes = config.dataset.image_size, len(model.class_names)
    return {
        'inputs': {
            'z': f'float32 [n, {config.model.z_dim}], standard normal',
            'labels': f'int32 [n], from 0 to {classes - 1}',
        },
        'outputs': {'images': f'float32 [n, {size}, {size}, 3], from -1 to 1'},
        'platforms': PLATFORMS,
        'class_names': model.class_names,
        'step': model.step,
        'checkpoint_sha256': model.sha256,
        'config': _configuration(config),
        'scores': scores,
        'license': license or 'unknown',
        'date': datetime.datetime.now(datetime.UTC).date().isoformat(),
        'versions': versions(),
    } | ({'origin': model.origin} if model.origin else {})


def _configuration(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The configuration without the paths of this machine."""
    values = json.loads(config.to_json())
    for section, key in _PATHS:
        del values[section][key]
    return values

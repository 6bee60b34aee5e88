"""Loads a model from a run, from an export, or from an export on the Hugging Face hub."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from sagan_jax import models
from sagan_jax.errors import UserError
from sagan_jax.models import Network, Variables
from sagan_jax.run.entries import wrong_facts
from sagan_jax.run.folder import DamagedRecordError, RunFolder, complete
from sagan_jax.system import hub
from sagan_jax.system.untrusted import open_file, read_json, reason
from sagan_jax.trained import model
from sagan_jax.trained.model import Model
from sagan_jax.trained.programs import create_programs

DESCRIPTION, WEIGHTS = 'generator.json', 'generator.safetensors'  # what is read of an export
_KINDS = {'class_names': list, 'step': int, 'checkpoint_sha256': str, 'files': dict}


def load(source: str | os.PathLike, checkpoint: str | int = 'newest') -> Model:
    """Loads a model.

    Args:
      source: the folder of a run, see `model.load`; the folder of an export, or a copy of it; or
        hf://OWNER/NAME, an export on the Hugging Face hub. @REVISION may follow. The export is
        downloaded once for each commit, and the commit is printed.
      checkpoint: of a run: 'newest', 'best' or a step.

    Returns:
      The model. That of an export has no discriminator.

    Raises:
      UserError: if there is no such run, checkpoint or export, or it cannot be used.
    """
    text = os.fspath(source)
    if text.startswith('hf:'):
        return _load_export(hub.snapshot(text, (DESCRIPTION, WEIGHTS)), checkpoint)
    folder = Path(source)
    if (folder / DESCRIPTION).exists() and not RunFolder(folder).config_json.exists():
        return _load_export(folder, checkpoint)
    return model.load(folder, checkpoint)


def _load_export(folder: Path, checkpoint: str | int) -> Model:
    """Loads `generator.json` and `generator.safetensors`. Runs nothing that is in the folder."""
    config, found = _read_description(folder)
    if str(checkpoint) not in ('newest', str(found['step'])):
        raise UserError(
            f'The export in {folder} has step {found["step"]} alone, and not the checkpoint '
            f'{checkpoint}: leave out the checkpoint, or load the run.'
        )
    networks = models.create(config)
    return Model(
        run=RunFolder(folder),
        config=config,
        class_names=tuple(found['class_names']),
        step=found['step'],
        sha256=found['checkpoint_sha256'],
        generator=_read_weights(folder, found['files'].get(WEIGHTS), networks[0]),
        discriminator=None,
        origin=found.get('origin'),
        networks=networks,
        programs=create_programs(config, *networks),
    )


def _read_description(folder: Path) -> tuple[ml_collections.ConfigDict, dict[str, Any]]:
    """The configuration in `generator.json`, locked, and the rest of it."""
    path = folder / DESCRIPTION
    with _explained(f'{path} does not describe an export'):
        found = read_json(path)
        config = complete(found, folder)
        wrong = [key for key, kind in _KINDS.items() if not isinstance(found.get(key), kind)]
        if not wrong:
            facts = {'data': {'class_names': found['class_names']}}
            facts |= {'origin': found['origin']} if 'origin' in found else {}
            wrong = wrong_facts(facts, max(config.dataset.num_classes, 1))
        if wrong:
            raise ValueError(f'{", ".join(wrong)} should be as the export wrote it')
    config.distributed.coordinator = ''
    return config.lock(), found


def _read_weights(folder: Path, sha256: Any, generator: Network) -> Variables:
    """The frozen weights in `generator.safetensors`, of this SHA-256, for a generator."""
    path = folder / WEIGHTS
    with _explained(f'The weights in {path} cannot be used'):
        with open_file(path) as file:
            content = file.read()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError(f'its SHA-256 is not the one in {DESCRIPTION}')
        found = load_tensors(content)
        expected = jax.eval_shape(generator.init, jax.random.key(0))
        del expected['spectral_stats']
        if _forms(found) != _forms(flatten_dict(expected, sep='/')):
            raise ValueError(f'it has other arrays than the generator in {DESCRIPTION}')
    return unflatten_dict(found, sep='/')


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Ends a sentence that begins with `what` if a file of an export cannot be read."""
    try:
        yield
    except (OSError, ValueError, DamagedRecordError, SafetensorError) as error:
        raise UserError(
            f'{what} ({reason(error).removesuffix(".")}): export the run again, or download the '
            'export again.'
        ) from error


def _forms(arrays: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {path: (array.shape, array.dtype) for path, array in arrays.items()}

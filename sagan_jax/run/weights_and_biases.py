"""Curves and images of a run at Weights & Biases, if `logging.wandb_project` names a project."""

import contextlib
import importlib
import importlib.util
import json
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from sagan_jax.errors import UserError
from sagan_jax.run.folder import RunFolder
from sagan_jax.system.files import atomic_path
from sagan_jax.system.untrusted import open_file, reason, warn_once

_SECONDS = 30  # to wait at the end for an upload; `wandb sync` makes up for what was not uploaded
_ID = re.compile('[0-9a-f]{8}')


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses a configuration that names a project, if the package is not installed.

    Raises:
      UserError: saying how to install it.
    """
    project = config.logging.wandb_project
    if not project:
        return
    found = importlib.util.find_spec('wandb')
    if found is None or found.origin is None:  # a folder `wandb` here has a spec, but no origin
        raise UserError(
            f'logging.wandb_project={project} needs the package wandb: install it with '
            '`pip install wandb`, or leave out logging.wandb_project.'
        )


class WeightsAndBiases:
    """A `Logger` of a run at Weights & Biases; `wandb/` in the run's folder holds its files.

    The id is kept in `wandb/run_id`, so that a run that resumes continues the same curves. Whatever
    fails is reported once, and nothing more is sent until the run is started again.

    Args:
      folder: the folder of the run.
      config: of the run; `logging.wandb_project` is the project.
    """

    def __init__(self, folder: RunFolder, config: ml_collections.ConfigDict):
        self._run: Any = None
        with self._ending_at_an_error():
            wandb = importlib.import_module('wandb')  # which takes seconds, and few have
            self._image = wandb.Image
            self._run = wandb.init(
                project=config.logging.wandb_project,
                dir=folder.path,
                id=_run_id(folder.wandb / 'run_id'),
                resume='allow',
                reinit='create_new',  # beside a run that the calling program may have begun
                name='/'.join(folder.path.resolve().parts[-2:]),  # of a sweep: VARIANT/seedSEED
                config=json.loads(config.to_json()),
                allow_val_change=True,  # the keys that may change when a run resumes
                settings=wandb.Settings(console='off', finish_timeout=_SECONDS),
            )
            # W&B's own step may only grow, but a run that resumes goes back.
            self._run.define_metric('*', step_metric='step')

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        with self._ending_at_an_error():
            if self._run:
                self._run.log({'step': step, **values})

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        with self._ending_at_an_error():
            if self._run:
                self._run.log({'step': step, name: self._image(image)})

    def close(self) -> None:
        with self._ending_at_an_error():
            if self._run:
                self._run.finish(exit_code=int(sys.exception() is not None))

    @contextlib.contextmanager
    def _ending_at_an_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._run = None
            print(
                f'warning        Weights & Biases has failed ({reason(error)}), training continues '
                'without it'
            )


def _run_id(path: Path) -> str:
    """The id in a file, or a new one, which is written there."""
    try:
        with open_file(path) as file:
            found = file.read(100).decode(errors='replace').strip()
        if _ID.fullmatch(found):
            return found
        warn_once(f'{path} holds no id of a run: another run begins at Weights & Biases')
    except FileNotFoundError:
        pass
    new = secrets.token_hex(4)
    with atomic_path(path) as temporary:
        temporary.write_text(f'{new}\n')
    return new

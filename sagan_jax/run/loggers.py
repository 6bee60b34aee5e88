"""Places for the curves and images of a run: metrics.jsonl and TensorBoard."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from sagan_jax.errors import UserError
from sagan_jax.run import event_file
from sagan_jax.run.event_file import EventFile
from sagan_jax.run.folder import RunFolder
from sagan_jax.system import failures


class Logger(Protocol):
    """A place for the curves and the images of a run."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point at `step` to the curve of each name."""

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds an image, uint8 [H, W, 3]."""

    def close(self) -> None:
        """Waits until everything is written."""


class MetricsFile:
    """`metrics.jsonl`: a line of JSON for each call of `scalars`, and no images.

    Lines that cannot be written are kept, and written before the next one.

    Raises:
      OSError: if it cannot be opened.
    """

    def __init__(self, folder: RunFolder, step: int):
        folder.metrics()  # names lines that cannot be read
        folder.drop_metrics_after(step)
        self._file = folder.metrics_jsonl.open('ab', buffering=0)
        self._unwritten = b''

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._unwritten += (json.dumps({'step': step, **values}) + '\n').encode()
        with tolerating_errors('metrics.jsonl'):
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def image(self, step: int, name: str, image: np.ndarray) -> None: ...

    def close(self) -> None:
        with tolerating_errors('metrics.jsonl'):
            self._file.close()


class TensorBoard:
    """Event files in `tensorboard/`. Events that cannot be written are lost."""

    def __init__(self, folder: RunFolder, step: int):
        self._folder = folder.tensorboard
        self._file: EventFile | None = None
        self._add(step + 1, event_file.restart())

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._add(step, event_file.scalars(values))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self._add(step, event_file.image(name, image))

    def close(self) -> None:
        with tolerating_errors('tensorboard/'):
            if self._file:
                self._file.close()

    def _add(self, step: int, content: Mapping[str, Any]) -> None:
        # After an error the next event begins a new file, since the last one may be cut short.
        file, self._file = self._file, None
        with tolerating_errors('tensorboard/'):
            file = file or EventFile(self._folder)
            file.add(step, content)
            self._file = file


@contextlib.contextmanager
def tolerating_errors(what: str) -> Iterator[None]:
    """Turns an error of the disk into a warning: it costs images and curves, but not the run."""
    try:
        yield
    except UserError as error:
        print(f'warning        {error} Training continues.')
    except Exception as error:
        found = failures.unwritable(error)
        if found is None:
            raise
        print(f'warning        {what} cannot be written ({found}), training continues')

"""What a run writes down: metrics as JSON lines, and TensorBoard's scalars and pictures."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from tensorboardX import SummaryWriter

from sagan_jax.files import atomic_path


class RunLog:
    """Writes `metrics.jsonl` and `tensorboard/` in a workdir.

    A run that resumes at `step` takes back what a killed one had written about later steps, so
    that each step stands there once.
    """

    def __init__(self, workdir: Path, step: int):
        path = workdir / 'metrics.jsonl'
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step(line) <= step]
            with atomic_path(path) as temporary:
                temporary.write_text(''.join(line + '\n' for line in kept))
        self._file = path.open('a')
        self._board = SummaryWriter(str(workdir / 'tensorboard'), purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line of JSON, `{"step": …, name: value, …}`, and a TensorBoard scalar each."""
        self._file.write(json.dumps({'step': step, **values}) + '\n')
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """A picture for TensorBoard, uint8 [H, W, 3]."""
        self._board.add_image(name, image, step, dataformats='HWC')

    def __enter__(self) -> 'RunLog':
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        self._board.close()


def _step(line: str) -> float:
    """The step of a line; a line that a killed run left half-written belongs to no kept step."""
    try:
        return json.loads(line)['step']
    except (json.JSONDecodeError, KeyError, TypeError):
        return float('inf')

"""What a run writes while it trains: metrics, samples, progress lines."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections
import numpy as np

from sagan_jax.errors import UserError
from sagan_jax.images import image_grid, save_png
from sagan_jax.run.folder import RunFolder
from sagan_jax.run.loggers import Logger, MetricsFile, TensorBoard, tolerating_errors
from sagan_jax.run.weights_and_biases import WeightsAndBiases
from sagan_jax.system.untrusted import reason


class RunLog:
    """Writes `metrics.jsonl`, `samples/` and what other loggers write of a run.

    A run that resumes at `step` removes what a killed run had written about later steps, so that
    each step is there once. If the disk is full, a warning is printed and training continues.

    Args:
      folder: the folder of the run.
      step: the step at which the run begins or resumes.
      config: says whether the run is logged outside its folder, too; None for the folder alone.

    Raises:
      UserError: if `metrics.jsonl` cannot be opened.
    """

    def __init__(
        self, folder: RunFolder, step: int, config: ml_collections.ConfigDict | None = None
    ):
        self._folder = folder
        try:
            self._loggers: list[Logger] = [MetricsFile(folder, step), TensorBoard(folder, step)]
        except OSError as error:
            raise UserError(
                f'{folder.metrics_jsonl} cannot be written ({reason(error)}): remove what is in '
                'its place, free disk space, or choose another --workdir.'
            ) from error
        if config and config.logging.wandb_project:
            self._loggers.append(WeightsAndBiases(folder, config))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point at `step` to the curve of each name."""
        for logger in self._loggers:
            logger.scalars(step, values)

    def samples(self, step: int, images: np.ndarray, columns: int) -> None:
        """A grid of images, uint8 [n, S, S, 3], in `samples/<step>.png` and beside the curves."""
        grid = image_grid(images, columns)
        self.call('the samples', save_png, self._folder.grid(step), grid)
        for logger in self._loggers:
            logger.image(step, 'samples', grid)

    def call(self, what: str, write: Callable, *arguments: Any) -> None:
        """Calls `write(*arguments)`; an error of the disk ends in a warning that names `what`."""
        with tolerating_errors(what):
            write(*arguments)

    def __enter__(self) -> 'RunLog':
        return self

    def __exit__(self, *error: object) -> None:
        for logger in self._loggers:
            logger.close()


class SilentLog:
    """The log of a process other than the first; its methods do nothing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def samples(self, step: int, images: np.ndarray, columns: int) -> None: ...

    def call(self, what: str, write: Callable, *arguments: Any) -> None: ...

    def __enter__(self) -> 'SilentLog':
        return self

    def __exit__(self, *error: object) -> None: ...


class Stopwatch:
    """Measures steps per second, without the time in which no step runs."""

    def __init__(self, step: int):
        self.restart(step)

    def restart(self, step: int) -> None:
        """Begins again at `step`."""
        self._step, self._since, self._calling = step, time.monotonic(), 0.0

    def lap(self, step: int) -> float | None:
        """Steps per second since the last lap or restart; None for no step. Begins again."""
        steps, seconds = step - self._step, self.seconds()
        self.restart(step)
        return steps / max(seconds, 1e-9) if steps else None

    def seconds(self) -> float:
        """Seconds since the last lap or restart."""
        return time.monotonic() - self._since

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """Measures the block, in which steps are handed to the devices, by itself too."""
        since = time.monotonic()
        try:
            yield
        finally:
            self._calling += time.monotonic() - since

    def share_of_calls(self) -> float:
        """The share of `calling` in the time since the last lap or restart."""
        return self._calling / max(self.seconds(), 1e-9)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count the time of the block."""
        since = time.monotonic()
        try:
            yield
        finally:
            self._since += time.monotonic() - since


def progress(step: int, num_steps: int, values: Mapping[str, float], images_per_step: int) -> str:
    """A line with the losses, logits and gammas of a step.

    With 'images_per_second' among the values it ends with the speed and the time left.
    """
    gammas = ' '.join(
        f'{name[0].upper()}{name.partition("gamma")[2]} {value:+.3f}'
        for name, value in values.items()
        if 'gamma' in name
    )
    line = (
        f'step {step:>{len(str(num_steps))}}/{num_steps}'
        f'  loss D {values["discriminator_loss"]:.3f} G {values["generator_loss"]:+.3f}'
        f'  logit real {values["real_logit"]:+.2f} fake {values["fake_logit"]:+.2f}'
    )
    if gammas:
        line += f'  gamma {gammas}'
    if 'images_per_second' in values:
        rate = values['images_per_second']
        left = (num_steps - step) * images_per_step / rate
        line += f'  {rate:,.0f} images/s  {duration(left)} left'
    return line


def duration(seconds: float) -> str:
    """Seconds for people: '6 min 26 s', '3 h 05 min', '2 d 4 h'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f'{days} d {hours} h'
    return f'{hours} h {minutes:02d} min' if hours else f'{minutes} min {seconds:02d} s'

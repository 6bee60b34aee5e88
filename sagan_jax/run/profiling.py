"""A profile of some training steps, for TensorBoard's and XProf's trace viewers."""

from pathlib import Path

import jax

from sagan_jax.run.loggers import tolerating_errors


class Profile:
    """Traces the steps from `first` to `last` with `jax.profiler`, on the first process.

    Args:
      folder: where the trace is written.
      first, last: numbers of steps, which count from 1.
    """

    def __init__(self, folder: Path, first: int, last: int):
        self._folder, self._first, self._last = folder, first, last
        self._tracing = False

    def update(self, step: int, outputs: object) -> None:
        """Starts the trace when the next step is in the window, ends it when none is left.

        Args:
          step: the number of steps done.
          outputs: of the last step; the trace waits for them.
        """
        inside = self._first - 1 <= step < self._last
        if inside and not self._tracing and jax.process_index() == 0:
            jax.block_until_ready(outputs)
            jax.profiler.start_trace(self._folder)
            self._tracing = True
        elif self._tracing and not inside:
            jax.block_until_ready(outputs)
            self.stop()

    def stop(self) -> None:
        """Ends the trace if there is one."""
        if self._tracing:
            self._tracing = False
            with tolerating_errors('the profile'):
                jax.profiler.stop_trace()
                print(f'profile        {self._folder}: tensorboard --logdir {self._folder}')

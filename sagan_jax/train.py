"""The training loop: from a configuration and a folder to a trained SAGAN."""

import collections
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
import numpy as np

from sagan_jax import sampling
from sagan_jax.configuration import checks
from sagan_jax.errors import UserError
from sagan_jax.evaluation import evaluate
from sagan_jax.images import image_grid, save_png
from sagan_jax.opening import Run, images_per_step, open_run
from sagan_jax.run import checkpoints, collapse, lock
from sagan_jax.run.folder import RunFolder
from sagan_jax.run.health import DivergedError, check_finite, checked_copy
from sagan_jax.run.logs import progress
from sagan_jax.state import TrainState
from sagan_jax.system import compilation, distributed
from sagan_jax.system.signals import Interrupted, collected
from sagan_jax.system.untrusted import reason
from sagan_jax.viewing import report

_IN_FLIGHT = 2  # calls of a step that the devices have ahead; more would only fill their memory

Values = dict[str, float]  # the metrics of a step by name, on the host
Action = Callable[[Run, int, TrainState, Values], None]


def train(
    config: ml_collections.ConfigDict,
    workdir: str | os.PathLike,
    profile: tuple[int, int] | None = None,
) -> None:
    """Trains until `config.num_train_steps`, from the newest checkpoint in `workdir` if any.

    Leaves in `workdir`: config.json, metrics.jsonl, tensorboard/, samples/, checkpoints/ and
    report.html.

    A signal that asks the process to end lets it finish its step, save it and end with SystemExit.
    The status is 128 plus the signal's number: 143 for SIGTERM, 130 for Ctrl-C. A second signal
    ends the process at once.

    Args:
      config: see configuration/defaults.py.
      workdir: the run's folder, created if it does not exist.
      profile: the first and the last step to trace into `profile/`, counted from 1.

    Raises:
      UserError: for a mistake in the configuration, the data or the workdir, or if another process
        uses the workdir, before anything is written; when training diverges more often than
        `config.divergence_restarts`, before a bad checkpoint is kept; and when the last checkpoint
        cannot be written.
    """
    checks.check(config)
    folder = RunFolder(Path(workdir))
    with distributed.entered_by_first(lambda: lock.owned(folder)) as confirm:
        for restarts in range(config.divergence_restarts + 1):
            try:
                with open_run(config, folder, confirm, restarts, profile) as (run, state):
                    return _train(run, state)
            except DivergedError as error:
                if restarts == config.divergence_restarts:
                    raise
                print(f'warning        {error}')
                print('               Training resumes from that checkpoint with different noise')


def _train(run: Run, state: TrainState) -> None:
    """The loop, which all processes run alike."""
    config, actions = run.config, periodic_actions(run.config)
    in_flight: collections.deque = collections.deque()
    step = int(state.step)
    with collected(run.signals):
        begin(run, step, state)
        programs = compilation.programs_read()
        for call, batch in enumerate(run.batches):
            if run.ending:
                break
            annotation = jax.profiler.StepTraceAnnotation('train', step_num=step)
            with annotation, run.stopwatch.calling():
                state, metrics = run.train_step(state, *batch)
            step += config.steps_per_call
            run.ending = run.poll(bool(run.signals))
            in_flight.append(metrics)
            if len(in_flight) > _IN_FLIGHT:
                jax.block_until_ready(in_flight.popleft())
            if call == 0:
                report_compilation(run, step, metrics, compilation.programs_read() > programs)
            if run.profile:
                run.profile.update(step, metrics)
            due = [act for every, act in actions if is_due(config, step, *every)]
            if due:
                values = {name: float(np.asarray(value)[-1]) for name, value in metrics.items()}
            for act in due:
                act(run, step, state, values)
        finish(run, step, state)


# ---- Periodic actions. -------------------------------------------------------------------------


def periodic_actions(config: ml_collections.ConfigDict) -> list[tuple[tuple[int, ...], Action]]:
    """Actions and the intervals in steps at which each is due, in the order in which they run.

    Draw, log, score, save, report: what a resumed run does not repeat comes before the checkpoint
    from which it resumes.
    """
    log, draw = config.log_every, config.sample_every
    save, score = config.checkpoint_every, config.evaluate_every
    return [
        ((log, draw, save, score), confirm_owner),
        ((log, draw, save, score), check_values),
        ((draw,), draw_samples),
        ((log, draw), warn_of_collapse),
        ((log,), hint_at_steps_per_call),
        ((log,), log_metrics),
        ((score,), score_samples),
        ((log, save), save_checkpoint),
        ((draw,), write_report),
    ]


def is_due(config: ml_collections.ConfigDict, step: int, *intervals: int) -> bool:
    """Whether one of the intervals divides `step`, or `step` is the last; 0 stands for never."""
    last = step == config.num_train_steps
    return any(every and (last or step % every == 0) for every in intervals)


def confirm_owner(run: Run, step: int, state: TrainState, values: Values) -> None:
    """Raises UserError if another process has taken the run's folder over."""
    if run.confirm:
        run.confirm()


def check_values(run: Run, step: int, state: TrainState, values: Values) -> None:
    """Raises DivergedError if a metric is not finite."""
    check_finite(step, values, run.recent)


def draw_samples(run: Run, step: int, state: TrainState, values: Values) -> None:
    """Writes the sample grid; adds its diversity to `values`."""
    images = run.sample(state)
    values['sample_diversity'] = collapse.diversity(images, sampling.GRID_COLUMNS)
    run.log.samples(step, images, sampling.GRID_COLUMNS)


def warn_of_collapse(run: Run, step: int, state: TrainState, values: Values) -> None:
    """Reports each sign of collapse when it appears.

    Raises:
      UserError: for any sign, with `watch.stop`.
    """
    found = collapse.warnings(run.config, values)
    for name, sentence in found.items():
        if run.config.watch.stop:
            raise UserError(
                f'Training seems to collapse at step {step}: {sentence}. '
                'Continue with --config.watch.stop=False, or with another threshold.'
            )
        if name not in run.warned:
            print(f'warning        at step {step}, {sentence}')
    run.warned = frozenset(found)


def hint_at_steps_per_call(run: Run, step: int, state: TrainState, values: Values) -> None:
    """Recommends `steps_per_call` once, if calling the step takes over a tenth of the time.

    Not on a CPU, whose devices may compute during the call, and where several steps in one call are
    compiled one after the other.
    """
    share = run.stopwatch.share_of_calls()
    if run.hinted or share <= 0.1 or jax.default_backend() == 'cpu':
        return
    run.hinted = True
    print(
        f'hint           {share:.0%} of the time the host hands steps to the devices: a larger '
        f'steps_per_call hands over several at once, as --config.steps_per_call='
        f'{10 * run.config.steps_per_call}'
    )


def log_metrics(run: Run, step: int, state: TrainState, values: Values) -> None:
    """Prints and writes the metrics, with the speed since the last time."""
    images = images_per_step(run.config)
    steps_per_second = run.stopwatch.lap(step)
    if steps_per_second:
        values['images_per_second'] = steps_per_second * images
    print(progress(step, run.config.num_train_steps, values, images))
    run.log.scalars(step, values)


def score_samples(run: Run, step: int, state: TrainState, values: Values) -> None:
    """Scores the averaged generator; keeps the checkpoint if it is the best so far.

    A signal interrupts it. The resumed run scores this step first.
    """
    assert run.score
    with run.stopwatch.paused():
        try:
            rows = run.score(step, state)
        except Interrupted:
            run.ending = True
            return
        before = run.best.latest_step() if run.best else None
        before = run.unsaved_best[0] if run.unsaved_best else before
        is_best = distributed.on_first(
            lambda: evaluate.is_best(run.config, run.folder, rows, before)
        )
        run.log.call('the scores', evaluate.write, run.folder, step, rows)
        scores = {row['name']: row['value'] for row in rows}
        run.log.scalars(step, scores)
        line = '  '.join(f'{name} {value:.4g}' for name, value in scores.items())
        print(f'scores         {line}{"  (best)" if is_best else ""}')
        if is_best:
            run.unsaved_best = step, checked_copy(step, state, run.recent)
            save_best(run)


def save_checkpoint(run: Run, step: int, state: TrainState, values: Values) -> None:
    """Starts to save the state; saves that failed are tried again at the next log line."""
    run.save_failed = run.save_failed or checkpoints.has_failed(run.recent)
    due = is_due(run.config, step, run.config.checkpoint_every)
    if due or distributed.vote(run.save_failed)():
        copy = checked_copy(step, state, run.recent)
        run.save_failed = not checkpoints.save(run.recent, step, copy, run.config)
    save_best(run)


def save_best(run: Run) -> None:
    """Saves the best state, if that was not done yet, and waits for it."""
    if run.unsaved_best and checkpoints.save_at_once(run.best, *run.unsaved_best, run.config):
        run.unsaved_best = None


def write_report(run: Run, step: int, state: TrainState, values: Values) -> None:
    """Writes report.html. Training continues, whatever a report does."""
    try:
        run.log.call('report.html', report.write, run.folder.path)
    except Exception as error:
        print(
            f'warning        report.html cannot be written ({type(error).__name__}: '
            f'{reason(error)}), training continues'
        )


# ---- Before and after the loop. ----------------------------------------------------------------


def begin(run: Run, step: int, state: TrainState) -> None:
    """Draws what precedes the first step; scores a step whose scoring was interrupted."""
    config = run.config
    if step == 0:
        reals = image_grid(run.reals, sampling.GRID_COLUMNS)
        run.log.call('the real images', save_png, run.folder.reals, reals)
        draw_samples(run, step, state, {})
        write_report(run, step, state, {})
    elif is_due(config, step, config.evaluate_every) and distributed.on_first(
        lambda: not run.folder.scores(step)
    ):
        score_samples(run, step, state, {})
    if run.profile:
        run.profile.update(step, state)
    run.stopwatch.restart(step)


def report_compilation(run: Run, step: int, metrics: object, was_read: bool) -> None:
    """Waits for the first call of the step; says how long it took and if its program was read."""
    jax.block_until_ready(metrics)
    how = f'from {jax.config.values["jax_compilation_cache_dir"]}' if was_read else 'of compilation'
    print(f'first step     after {run.stopwatch.seconds():.1f} s {how}')
    run.stopwatch.restart(step)


def finish(run: Run, step: int, state: TrainState) -> None:
    """Waits until the last checkpoint is on disk.

    Raises:
      UserError: if it cannot be written, or another process has taken the folder over.
      SystemExit: if a signal ended the loop.
    """
    confirm_owner(run, step, state, {})
    copy = checked_copy(step, state, run.recent)
    checkpoints.finish(run.recent, step, copy, run.config)
    if run.unsaved_best:
        checkpoints.finish(run.best, *run.unsaved_best, run.config)
    write_report(run, step, state, {})
    if run.ending:
        print(f'interrupted    at step {step:,}, which is saved: give the same command to resume')
        sys.exit(128 + (run.signals[0] if run.signals else signal.SIGTERM))
    print(f'done           {run.folder.path}: report.html, samples/, checkpoints/, metrics.jsonl')

"""The training loop: from a configuration and a folder to a trained SAGAN."""

import collections
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from sagan_jax import checkpoints, data, evaluate, figures, models, sampling
from sagan_jax.command_line import duration
from sagan_jax.errors import UserError
from sagan_jax.interruption import Interrupted, collected
from sagan_jax.logs import RunLog, tolerating_errors
from sagan_jax.train_step import create_state, create_train_step, replicate, single_copy

GRID_ROWS, GRID_COLUMNS = 10, 10  # of the sample grids: a row a class


class DivergedError(UserError):
    """Something is no longer finite."""


def train(config: ml_collections.ConfigDict, workdir: str | os.PathLike) -> None:
    """Trains until `config.num_train_steps`, from the newest checkpoint in `workdir` if any.

    Leaves in `workdir`: config.json, metrics.jsonl, tensorboard/, samples/ and checkpoints/.

    Asked to end by a signal, it finishes its step, saves it and ends with SystemExit, whose status
    is 128 and the signal's number: 143 for SIGTERM, 130 for Ctrl-C. A second one ends it at once.

    Args:
      config: see configs/common.py.
      workdir: the run's folder, made if it is not there.

    Raises:
      UserError: for a mistake in the configuration, the data or the workdir, before anything is
        written; when training diverges more often than `config.divergence_restarts`, before a bad
        checkpoint is kept; and when the last checkpoint cannot be written.
    """
    for restarts in range(config.divergence_restarts + 1):
        try:
            return _train(config, Path(workdir), restarts)
        except DivergedError as error:
            if restarts == config.divergence_restarts:
                raise
            print(f'warning        {error}')
            print('               It goes back to that checkpoint, with other noise')


def _train(config: ml_collections.ConfigDict, workdir: Path, restarts: int) -> None:
    """`train`, after so many restarts in this process."""
    # ---- Refuse early what cannot work. --------------------------------------------------------
    _check_schedule(config)
    train_step = create_train_step(config)  # compiled on its first call
    _check_writable(workdir)
    checkpoints.check_configuration(workdir, config)

    # ---- Data. ---------------------------------------------------------------------------------
    source = data.load(config.dataset, 'train')
    summary = data.summary(source, config.seed, per_class=GRID_COLUMNS)
    stream = data.batches
    if config.dataset.on_device:
        train_step = create_train_step(config, pictures=data.everything(source))
        stream = data.row_batches

    # ---- State: the newest checkpoint, or a new beginning. -------------------------------------
    workdir.mkdir(parents=True, exist_ok=True)
    state = create_state(config)
    _describe(config, source, summary, state)
    manager = checkpoints.open_manager(workdir / 'checkpoints', config.keep_checkpoints)
    managers = [manager]
    restored = checkpoints.restore_newest(manager, state)
    state = state if restored is None else restored
    state = replicate(state._replace(restarts=np.int32(state.restarts + restarts)))
    step = int(state.step)
    if step % config.steps_per_call:
        raise UserError(
            f'The newest checkpoint is of step {step}, which is not a multiple of '
            f'steps_per_call={config.steps_per_call}: choose one that divides it.'
        )
    try:
        checkpoints.write_configuration(workdir, config)
    except OSError as error:
        raise UserError(
            f'The workdir {workdir} cannot be written ({error.strerror}): make room, or choose '
            'another --workdir.'
        ) from error
    if restored is None:
        print(f'run            starts afresh in {workdir}, {config.num_train_steps:,} steps')
    else:
        print(f'run            resumes in {workdir} from step {step:,}')
    if step >= config.num_train_steps:
        print(f'               {step:,} of {config.num_train_steps:,} steps are done already')

    def state_on_host():
        """A copy to be kept; raises DivergedError if it holds anything that is not finite."""
        copy = jax.tree.map(np.array, single_copy(state))
        _check_finite(step, checkpoints.named_leaves(copy), manager.latest_step())
        return copy

    # ---- Pictures. -----------------------------------------------------------------------------
    freeze, sample = sampling.create_freeze(config), sampling.create_sampler(config)
    labels = sampling.grid_labels(config, GRID_ROWS, GRID_COLUMNS)
    noise = sampling.fixed_noise(config, labels)

    @tolerating_errors('the samples')
    def save_samples(log):
        generator, ema_params = single_copy((state.generator, state.ema_params))
        images = sample(freeze(generator | {'params': ema_params}), noise, labels)
        grid = figures.image_grid(images, GRID_COLUMNS)
        figures.save_png(workdir / 'samples' / f'{step:06d}.png', grid)
        log.image(step, 'samples', grid)

    # ---- Scores. -------------------------------------------------------------------------------
    if config.evaluate_every:
        score = evaluate.create_evaluator(
            config, config.evaluation.training_samples, progress=False, stop=lambda: signals
        )
        best = checkpoints.open_manager(workdir / 'best', keep=1)
        managers.append(best)

    def save_scores(log):
        generator, ema_params = single_copy((state.generator, state.ema_params))
        try:
            rows = score(step, generator | {'params': ema_params})
        except Interrupted:
            return  # on resuming it is made up for
        is_best = evaluate.is_best(config, workdir, rows, best.latest_step())
        with tolerating_errors('the scores'):
            evaluate.write(workdir, step, rows)
        values = {row['name']: row['value'] for row in rows}
        log.scalars(step, values)
        line = '  '.join(f'{name} {value:.4g}' for name, value in values.items())
        print(f'scores         {line}{"  (best)" if is_best else ""}')
        if is_best:
            checkpoints.save(best, step, state_on_host())

    # ---- The loop. -----------------------------------------------------------------------------
    images_per_step = config.batch_size * config.discriminator_steps
    batches = stream(
        source,
        config.seed,
        images_per_step * config.steps_per_call,
        start=step // config.steps_per_call,
        stop=config.num_train_steps // config.steps_per_call,
    )

    def due(every):
        return step % every == 0 or step == config.num_train_steps

    def scores_due():
        return config.evaluate_every and due(config.evaluate_every)

    unsaved = False
    with checkpoints.closing(managers), RunLog(workdir, step) as log, collected() as signals:
        if step == 0:
            with tolerating_errors('the real pictures'):
                _save_reals(workdir, summary, labels)
            save_samples(log)
        elif scores_due() and not evaluate.read(workdir, step):  # a signal came first
            save_scores(log)
        in_flight = collections.deque()
        last_log, compiling_since = (step, time.monotonic()), time.monotonic()
        for batch in batches:
            state, metrics = train_step(state, *batch)
            step += config.steps_per_call
            # Two calls in flight keep the devices busy; more would only fill their memory.
            in_flight.append(metrics)
            if len(in_flight) > 2:
                jax.block_until_ready(in_flight.popleft())

            if compiling_since:
                jax.block_until_ready(metrics)
                seconds = time.monotonic() - compiling_since
                print(f'first step     after {seconds:.0f} s of compilation')
                last_log, compiling_since = (step, time.monotonic()), None

            if due(config.log_every) or due(config.checkpoint_every) or scores_due():
                values = {name: float(value[-1]) for name, value in metrics.items()}
                _check_finite(step, values, manager.latest_step())
            if due(config.log_every):
                last_log = _log_line(config, log, step, values, last_log, images_per_step)
            if due(config.sample_every):
                save_samples(log)
            if scores_due():
                since = time.monotonic()
                save_scores(log)  # before the checkpoint, from which a killed run goes on
                # Minutes, perhaps, that are not the step's.
                last_log = last_log[0], last_log[1] + time.monotonic() - since
            unsaved = unsaved or checkpoints.has_failed(manager)
            if due(config.checkpoint_every) or signals or (unsaved and due(config.log_every)):
                unsaved = not checkpoints.save(manager, step, state_on_host())
            if signals:
                break
        checkpoints.finish(manager, step, state_on_host())
    if signals:
        print(f'interrupted    at step {step:,}, which is saved: give the same command to go on')
        sys.exit(128 + signals[0])
    print(f'done           {workdir}: samples/, checkpoints/, metrics.jsonl, tensorboard/')


def _save_reals(workdir: Path, summary: data.Summary, labels: np.ndarray) -> None:
    """Real pictures in the places of the sample grid's classes; white where there are too few."""
    size = summary.images[0].shape[1]
    cells = np.full((len(labels), size, size, 3), 255, np.uint8)
    for row in range(0, len(labels), GRID_COLUMNS):
        found = summary.images[labels[row]]
        cells[row : row + len(found)] = found
    grid = figures.image_grid(cells, GRID_COLUMNS)
    figures.save_png(workdir / 'samples' / 'reals.png', grid)


def _check_schedule(config) -> None:
    in_steps = ('num_train_steps', 'log_every', 'sample_every', 'checkpoint_every')
    if config.evaluate_every:
        in_steps += ('evaluate_every',)
    for key in (
        'batch_size',
        'steps_per_call',
        'discriminator_steps',
        'gradient_accumulation',
        'keep_checkpoints',
        *in_steps,
    ):
        if config[key] < 1:
            raise UserError(f'{key}={config[key]} should be 1 or more.')
    for key in in_steps:
        if config[key] % config.steps_per_call:
            raise UserError(
                f'{key}={config[key]} is not a multiple of '
                f'steps_per_call={config.steps_per_call}: change one of the two.'
            )


def _check_writable(workdir: Path) -> None:
    """Without leaving anything behind, should something else be wrong."""
    existing = workdir.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f'The workdir {workdir} cannot be written, because of {existing}: '
            'choose another --workdir.'
        )


def _check_finite(step: int, values: Mapping[str, Any], saved: int | None) -> None:
    bad = [name for name, value in values.items() if not np.isfinite(value).all()]
    if bad:
        raise DivergedError(
            f'Training diverged, with {", ".join(bad[:3])} not finite at step {step}; the last '
            f'good checkpoint is {"none" if saved is None else f"of step {saved}"}: '
            'try smaller learning rates or another seed.'
        )


def _describe(config, source, summary, state) -> None:
    """Prints what the run understood."""
    devices = jax.local_devices()
    size = config.dataset.image_size
    print(f'devices        {len(devices)} × {devices[0].device_kind}')
    print(
        f'data           {config.dataset.name}: {len(source):,} pictures of {size}×{size} '
        f'in {len(source.class_names)} classes'
    )
    counts = summary.label_counts
    if len(counts) <= 20:
        histogram = ', '.join(
            f'{name} {count}' for name, count in zip(source.class_names, counts, strict=True)
        )
    else:
        histogram = f'{np.count_nonzero(counts)} classes, at most {counts.max()} of one'
    print(f'               among {counts.sum():,} of them: {histogram}')
    print(f'               values from {summary.minimum} to {summary.maximum}')
    for name, variables, attention in (
        ('generator', state.generator, config.model.generator_attention),
        ('discriminator', state.discriminator, config.model.discriminator_attention),
    ):
        where = f'attention at {", ".join(map(str, attention))}' if attention else 'no attention'
        print(f'{name:<14} {models.count_parameters(variables):,} parameters, {where}')


def _log_line(config, log, step, values, last_log, images_per_step) -> tuple[int, float]:
    """Prints and writes the metrics of a step; returns where the next rate is measured from."""
    now = time.monotonic()
    steps_per_second = (step - last_log[0]) / max(now - last_log[1], 1e-9)
    rate = {}
    if step > last_log[0]:
        rate = {'images_per_second': steps_per_second * images_per_step}
    log.scalars(step, values | rate)

    gammas = ' '.join(
        f'{name[0].upper()}{name.partition("gamma")[2]} {value:+.3f}'
        for name, value in values.items()
        if 'gamma' in name
    )
    line = (
        f'step {step:>{len(str(config.num_train_steps))}}/{config.num_train_steps}'
        f'  loss D {values["discriminator_loss"]:.3f} G {values["generator_loss"]:+.3f}'
        f'  logit real {values["real_logit"]:+.2f} fake {values["fake_logit"]:+.2f}'
    )
    if gammas:
        line += f'  gamma {gammas}'
    if rate:
        left = (config.num_train_steps - step) / steps_per_second
        line += f'  {rate["images_per_second"]:,.0f} images/s  {duration(left)} left'
    print(line)
    return step, now

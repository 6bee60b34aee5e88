"""The training loop: from a configuration and a folder to a trained SAGAN."""

import collections
import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from flax.traverse_util import flatten_dict

from sagan_jax import data, models, sampling
from sagan_jax.configuration import checks
from sagan_jax.errors import UserError
from sagan_jax.evaluation import evaluate
from sagan_jax.images import image_grid, save_png
from sagan_jax.run import checkpoints, collapse, provenance
from sagan_jax.run.logs import RunLog, progress, tolerating_errors
from sagan_jax.state import create_state
from sagan_jax.system import distributed
from sagan_jax.system.files import remove_partial
from sagan_jax.system.replicas import create_checksums, replicate, single_copy
from sagan_jax.system.signals import Interrupted, collected
from sagan_jax.train_step import create_gathering_train_step, create_train_step, local_rows
from sagan_jax.viewing import report


class DivergedError(UserError):
    """Something is no longer finite."""


def train(config: ml_collections.ConfigDict, workdir: str | os.PathLike) -> None:
    """Trains until `config.num_train_steps`, from the newest checkpoint in `workdir` if any.

    Leaves in `workdir`: config.json, metrics.jsonl, tensorboard/, samples/, checkpoints/ and
    report.html.

    Asked to end by a signal, it finishes its step, saves it and ends with SystemExit, whose status
    is 128 and the signal's number: 143 for SIGTERM, 130 for Ctrl-C. A second one ends it at once.

    Args:
      config: see configuration/defaults.py.
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
    first = distributed.is_first()  # which alone touches the workdir

    # ---- Refuse early what cannot work. --------------------------------------------------------
    checks.check(config)
    _check_schedule(config)
    _check_alike(config)
    train_step = create_train_step(config)  # compiled on its first call
    distributed.on_first(lambda: _check_workdir(workdir, config))

    # ---- Data. ---------------------------------------------------------------------------------
    source = data.load(config.dataset, 'train')
    pictures = {
        'name': source.name,
        'count': len(source),
        'class_names': list(source.class_names),
        'sha256_of_some': data.fingerprint(source),
    }
    distributed.check_agreement(pictures)
    distributed.on_first(lambda: provenance.check_data(workdir, pictures))
    summary = data.summary(source, config.seed, per_class=sampling.GRID_COLUMNS)
    stream = data.batches
    if config.dataset.on_device:
        train_step = create_gathering_train_step(config, data.all_examples(source))
        stream = data.index_batches

    # ---- State: the newest checkpoint, or a new beginning. -------------------------------------
    state = create_state(config)
    _describe(config, source, summary, state)
    manager = best = None
    if first:
        workdir.mkdir(parents=True, exist_ok=True)
        remove_partial(workdir, workdir / 'samples', workdir / 'evaluation')
        manager = checkpoints.open_manager(workdir / 'checkpoints', config.keep_checkpoints)
        best = checkpoints.open_manager(workdir / 'best', keep=1) if config.evaluate_every else None
    managers = [each for each in (manager, best) if each]
    restored = checkpoints.restore_newest(manager, state)
    state = state if restored is None else restored
    state = replicate(state._replace(restarts=np.int32(state.restarts + restarts)))
    step = int(state.step)
    if step % config.steps_per_call:
        raise UserError(
            f'The newest checkpoint is of step {step}, which is not a multiple of '
            f'steps_per_call={config.steps_per_call}: choose one that divides it.'
        )
    distributed.on_first(lambda: _write_configuration(workdir, config, pictures))
    if restored is None:
        print(f'run            starts afresh in {workdir}, {config.num_train_steps:,} steps')
    else:
        print(f'run            resumes in {workdir} from step {step:,}')
    if step >= config.num_train_steps:
        print(f'               {step:,} of {config.num_train_steps:,} steps are done already')

    checksums = create_checksums()

    def state_on_host():
        """A copy to be kept; raises what is wrong with it. For all processes to call together."""
        copy = jax.tree.map(np.array, single_copy(state))
        leaves = checkpoints.named_leaves(copy)
        _check_replicas(step, list(leaves), checksums(state), manager)
        _check_finite(step, leaves, manager)
        return copy

    # ---- Pictures. -----------------------------------------------------------------------------
    freeze, sample = sampling.create_freeze(config), sampling.create_sampler(config)
    labels = sampling.grid_labels(config, sampling.GRID_ROWS, sampling.GRID_COLUMNS)
    noise = sampling.fixed_noise(config, labels)

    def save_samples(log) -> float:
        """Draws the sample grid, of which it returns the diversity."""
        generator, ema_params = single_copy((state.generator, state.ema_params))
        images = sample(freeze(generator | {'params': ema_params}), noise, labels)
        if first:
            grid = image_grid(images, sampling.GRID_COLUMNS)
            with tolerating_errors('the samples'):
                save_png(workdir / 'samples' / f'{step:06d}.png', grid)
            log.image(step, 'samples', grid)
        return collapse.diversity(images, sampling.GRID_COLUMNS)

    def save_report() -> None:
        if first:
            with tolerating_errors('report.html'):
                report.write(workdir)

    # ---- Scores. -------------------------------------------------------------------------------
    if config.evaluate_every:
        score = evaluate.create_evaluator(
            config,
            config.evaluation.training_samples,
            progress=False,
            stop=lambda: distributed.vote(bool(signals))(),
        )

    def save_scores(log) -> bool:
        """False if a signal came first; on resuming it is made up for."""
        generator, ema_params = single_copy((state.generator, state.ema_params))
        try:
            rows = score(step, generator | {'params': ema_params})
        except Interrupted:
            return False
        is_best = distributed.on_first(
            lambda: evaluate.is_best(config, workdir, rows, best.latest_step())
        )
        if first:
            with tolerating_errors('the scores'):
                evaluate.write(workdir, step, rows)
            values = {row['name']: row['value'] for row in rows}
            log.scalars(step, values)
            line = '  '.join(f'{name} {value:.4g}' for name, value in values.items())
            print(f'scores         {line}{"  (best)" if is_best else ""}')
        if is_best:
            copy = state_on_host()
            if first:
                checkpoints.save(best, step, copy)
        return True

    # ---- The loop. -----------------------------------------------------------------------------
    images_per_step = config.batch_size * config.discriminator_steps
    batches = stream(
        source,
        config.seed,
        images_per_step * config.steps_per_call,
        start=step // config.steps_per_call,
        stop=config.num_train_steps // config.steps_per_call,
        rows=local_rows(config),
    )

    def due(every):
        return step % every == 0 or step == config.num_train_steps

    def scores_due():
        return config.evaluate_every and due(config.evaluate_every)

    poll, asked_to_end = distributed.create_poll(), False
    unsaved, warned = False, {}
    log_of_first = RunLog(workdir, step) if first else contextlib.nullcontext()
    with checkpoints.closing(managers), log_of_first as log, collected() as signals:
        if step == 0:
            if first:
                with tolerating_errors('the real pictures'):
                    _save_reals(workdir, summary, labels)
            save_samples(log)
            save_report()
        elif scores_due() and distributed.on_first(lambda: not evaluate.read(workdir, step)):
            asked_to_end = not save_scores(log)
        in_flight = collections.deque()
        last_log, compiling_since = (step, time.monotonic()), time.monotonic()
        for batch in batches:
            if asked_to_end:
                break
            state, metrics = train_step(state, *batch)
            step += config.steps_per_call
            asked_to_end = poll(bool(signals))
            # Two calls in flight keep the devices busy; more would only fill their memory.
            in_flight.append(metrics)
            if len(in_flight) > 2:
                jax.block_until_ready(in_flight.popleft())

            if compiling_since:
                jax.block_until_ready(metrics)
                seconds = time.monotonic() - compiling_since
                print(f'first step     after {seconds:.0f} s of compilation')
                last_log, compiling_since = (step, time.monotonic()), None

            told = due(config.log_every) or due(config.sample_every)
            if told or due(config.checkpoint_every) or scores_due():
                values = {name: float(np.asarray(value)[-1]) for name, value in metrics.items()}
                _check_finite(step, values, manager)
            if due(config.sample_every):
                values['sample_diversity'] = save_samples(log)
            if told:
                warned = _warn(config, step, values, warned)
            if due(config.log_every):
                now = time.monotonic()
                if step > last_log[0]:
                    images = (step - last_log[0]) * images_per_step
                    values['images_per_second'] = images / max(now - last_log[1], 1e-9)
                print(progress(step, config.num_train_steps, values, images_per_step))
                if first:
                    log.scalars(step, values)
                last_log = step, now
            if scores_due():  # before the checkpoint, from which a killed run goes on
                since = time.monotonic()
                asked_to_end = not save_scores(log) or asked_to_end
                # Minutes, perhaps, that are not the step's.
                last_log = last_log[0], last_log[1] + time.monotonic() - since
            if due(config.sample_every):
                save_report()
            if first:
                unsaved = unsaved or checkpoints.has_failed(manager)
            again = due(config.log_every) and distributed.vote(unsaved)()
            if due(config.checkpoint_every) or asked_to_end or again:
                copy = state_on_host()
                unsaved = first and not checkpoints.save(manager, step, copy)
        copy = state_on_host()
        if first:
            checkpoints.finish(manager, step, copy)
        save_report()
    if asked_to_end:
        print(f'interrupted    at step {step:,}, which is saved: give the same command to go on')
        sys.exit(128 + (signals[0] if signals else signal.SIGTERM))
    print(f'done           {workdir}: report.html, samples/, checkpoints/, metrics.jsonl')


def _save_reals(workdir: Path, summary: data.Summary, labels: np.ndarray) -> None:
    """Real pictures in the places of the sample grid's classes; white where there are too few."""
    size = summary.images[0].shape[1]
    cells = np.full((len(labels), size, size, 3), 255, np.uint8)
    for row in range(0, len(labels), sampling.GRID_COLUMNS):
        found = summary.images[labels[row]]
        cells[row : row + len(found)] = found
    grid = image_grid(cells, sampling.GRID_COLUMNS)
    save_png(workdir / 'samples' / 'reals.png', grid)


def _check_schedule(config) -> None:
    in_steps = ('num_train_steps', 'log_every', 'sample_every', 'checkpoint_every')
    if config.evaluate_every:
        in_steps += ('evaluate_every',)
    for key in in_steps:
        if config[key] % config.steps_per_call:
            raise UserError(
                f'{key}={config[key]} is not a multiple of '
                f'steps_per_call={config.steps_per_call}: change one of the two.'
            )


def _check_alike(config) -> None:
    """Of several processes all must be given the same."""
    record = flatten_dict(provenance.record(config), sep='.')
    del record['config.distributed.process_id']
    distributed.check_agreement(record)


def _check_workdir(workdir: Path, config) -> None:
    """Without leaving anything behind, should something else be wrong."""
    existing = workdir.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f'The workdir {workdir} cannot be written, because of {existing}: '
            'choose another --workdir.'
        )
    provenance.check_configuration(workdir, config)


def _write_configuration(workdir: Path, config, pictures: dict[str, Any]) -> None:
    try:
        provenance.write(workdir, config, pictures)
    except OSError as error:
        raise UserError(
            f'The workdir {workdir} cannot be written ({error.strerror}): make room, or choose '
            'another --workdir.'
        ) from error


def _check_finite(step: int, values: Mapping[str, Any], manager) -> None:
    bad = [name for name, value in values.items() if not np.isfinite(value).all()]
    if bad:
        raise DivergedError(
            f'Training diverged, with {", ".join(bad[:3])} not finite at step {step}'
            f'{_last_saved(manager)}: try smaller learning rates or another seed.'
        )


def _check_replicas(step: int, names: list[str], sums: np.ndarray, manager) -> None:
    """`sums` [devices, leaves] are the replicas' checksums, all rows of which should be equal."""
    for name, column in zip(names, sums.T, strict=True):
        different = np.flatnonzero(column != column[0])
        if len(different):
            raise UserError(
                f'The replicas of the state have drifted apart: at step {step} {name} differs '
                f'between device 0 and {", ".join(map(str, different[:5]))} of {len(sums)}'
                f'{_last_saved(manager)}: look for a faulty device, and go on from there.'
            )


def _last_saved(manager) -> str:
    if manager is None:  # only the first process knows
        return ''
    saved = manager.latest_step()
    return f'; the last good checkpoint is {"none" if saved is None else f"of step {saved}"}'


def _warn(config, step: int, values: Mapping[str, float], before: dict) -> dict[str, str]:
    """Tells of thresholds that are passed now and were not before; returns all that are."""
    found = collapse.warnings(config, values)
    for name, sentence in found.items():
        if config.watch.stop:
            raise UserError(
                f'Training seems to collapse at step {step}: {sentence}. '
                'Go on with --config.watch.stop=False, or with another threshold.'
            )
        if name not in before:
            print(f'warning        at step {step}, {sentence}')
    return found


def _describe(config, source, summary, state) -> None:
    """Prints what the run understood."""
    devices, count = jax.devices(), jax.process_count()
    size = config.dataset.image_size
    together = f' in {count} processes' if count > 1 else ''
    print(f'devices        {len(devices)} × {devices[0].device_kind}{together}')
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

"""Opens a run: refuses early what cannot work, and collects what the training loop uses."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict

from sagan_jax import data, models, sampling, transfer
from sagan_jax.configuration import checks
from sagan_jax.configuration.resolving import FEW_IMAGES, FEW_IMAGES_AUGMENTATION
from sagan_jax.errors import UserError, printable
from sagan_jax.evaluation import training_data
from sagan_jax.evaluation.evaluator import create_evaluator
from sagan_jax.run import checkpoints, provenance, weights_and_biases
from sagan_jax.run.entries import Row
from sagan_jax.run.folder import RunFolder
from sagan_jax.run.logs import RunLog, SilentLog, Stopwatch
from sagan_jax.run.profiling import Profile
from sagan_jax.state import TrainState, create_state, state_shapes
from sagan_jax.system import distributed, numerics
from sagan_jax.system.files import remove_partial
from sagan_jax.system.replicas import replicate, single_copy
from sagan_jax.system.untrusted import read_json
from sagan_jax.train_step import create_gathering_train_step, create_train_step, local_rows


@dataclasses.dataclass
class Run:
    """What the training loop and its periodic actions use.

    Only the first process writes. On the others `log` does nothing, and `recent` and `best` are
    None, which the functions of `checkpoints` accept.

    Attributes:
      config: see configuration/defaults.py.
      folder: the folder of the run.
      train_step: see `train_step.create_train_step`.
      batches: what `train_step` takes beside the state, one for each call, from the first step on.
      reals: real images, uint8 [rows · columns, S, S, 3], for the cells of the sample grid.
      sample: draws the sample grid's images from a state, uint8 [rows · columns, S, S, 3].
      score: scores a state at a step; None without `evaluate_every`.
      log: metrics, samples and curves.
      recent: the newest checkpoints.
      best: the checkpoint with the best score.
      profile: traces some steps; None for no trace.
      poll: see `distributed.create_poll`.
      signals: those received, by which the process is asked to end.
      confirm: raises UserError if another process has taken the folder over; None on processes
        other than the first.
      stopwatch: measures the speed between two log lines.
      warned: signs of collapse that were reported and still hold.
      hinted: whether `steps_per_call` was recommended.
      unsaved_best: the step and the state of the best checkpoint, if it could not be written.
      save_failed: whether the last checkpoint could not be written.
      ending: whether the loop ends before the last step.
    """

    config: ml_collections.ConfigDict
    folder: RunFolder
    train_step: Callable
    batches: Iterator[tuple[np.ndarray, ...]]
    reals: np.ndarray
    sample: Callable[[TrainState], np.ndarray]
    score: Callable[[int, TrainState], list[Row]] | None
    log: RunLog | SilentLog
    recent: ocp.CheckpointManager | None
    best: ocp.CheckpointManager | None
    profile: Profile | None
    poll: Callable[[bool], bool]
    signals: list[int]
    confirm: Callable[[], None] | None
    stopwatch: Stopwatch
    warned: frozenset[str] = frozenset()
    hinted: bool = False
    unsaved_best: tuple[int, TrainState] | None = None
    save_failed: bool = False
    ending: bool = False


@contextlib.contextmanager
def open_run(
    config: ml_collections.ConfigDict,
    folder: RunFolder,
    confirm: Callable[[], None] | None,
    restarts: int,
    profile: tuple[int, int] | None = None,
) -> Iterator[tuple[Run, TrainState]]:
    """Opens a run for the block, with its newest state on all devices.

    Args:
      config: one that `checks.check` accepts.
      folder: the folder of the run.
      confirm: see `Run`.
      restarts: how often this process went back to a checkpoint because training had diverged.
      profile: the first and the last step to trace with `jax.profiler`.

    Raises:
      UserError: for a mistake in the configuration, the data or the workdir.
    """
    # Refuse early what cannot work, before anything is written.
    numerics.check()
    if config.deterministic:
        numerics.check_deterministic()
    _check_processes(config)
    checks.check_batch(config, jax.device_count())
    asked, config = config, training_data.resolve(config)
    state_shapes(config)
    distributed.on_first(lambda: weights_and_biases.check(config))
    distributed.on_first(lambda: _check_folder(folder))
    distributed.on_first(lambda: provenance.check_trained_here(folder))
    given_again = distributed.on_first(
        lambda: provenance.check_configuration(folder, config, may_give_again=True)
    )
    source = training_data.load(config, folder)
    summary = data.summary(source, config.seed, per_class=sampling.GRID_COLUMNS)
    fresh = create_state(config)
    _describe(config, source, summary, fresh)
    if asked.diff_augment == 'auto':
        _describe_augmentation(config)
    init = None
    if config.init.run and not distributed.on_first(lambda: bool(folder.checkpoint_steps())):
        fresh, init = _begin_with_another(config, fresh, source)
    signals: list[int] = []
    score = _create_scorer(config, source, signals) if config.evaluate_every else None

    if confirm:
        confirm()  # nothing was written so far
    recent, best = _open_checkpoints(config, folder)
    state = _restore_or_begin(config, folder, recent, fresh, given_again)
    step = int(state.step)
    distributed.on_first(lambda: _write_record(folder, config, source, init))
    log = RunLog(folder, step, config) if distributed.is_first() else SilentLog()
    classes = sampling.grid_classes(config.dataset.num_classes)
    train_step, batches = _create_step(config, source, step)
    run = Run(
        config=config,
        folder=folder,
        train_step=train_step,
        batches=batches,
        reals=_cells_of_reals(summary, classes),
        sample=_create_sampler(config, classes),
        score=score,
        log=log,
        recent=recent,
        best=best,
        profile=Profile(folder.profile, *profile) if profile else None,
        poll=distributed.create_poll(),
        signals=signals,
        confirm=confirm,
        stopwatch=Stopwatch(step),
    )
    state = replicate(state._replace(restarts=state.restarts + restarts))
    with checkpoints.closing([recent, best]), log:
        try:
            yield run, state
        finally:
            if run.profile:
                run.profile.stop()


def images_per_step(config: ml_collections.ConfigDict) -> int:
    """Real images that one step takes, on all devices together."""
    return config.batch_size * config.discriminator_steps


# ---- Data and state. ---------------------------------------------------------------------------


def _begin_with_another(
    config: ml_collections.ConfigDict, fresh: TrainState, source: data.Source
) -> tuple[TrainState, dict[str, Any]]:
    """The state that begins with the networks of the run `init.run`, and a record of these."""
    begun = transfer.begin(config, fresh, source.class_names)
    for title, line in zip(('begins with', ''), begun.lines, strict=False):
        print(f'{title:<14} {line}')
    return begun.state, begun.record


def _open_checkpoints(
    config: ml_collections.ConfigDict, folder: RunFolder
) -> tuple[ocp.CheckpointManager | None, ocp.CheckpointManager | None]:
    """Managers of the newest and of the best checkpoints; None where nothing is written."""
    if not distributed.is_first():
        return None, None
    remove_partial(folder.path, folder.samples, folder.evaluation, folder.wandb)
    recent = checkpoints.open_manager(folder.checkpoints, config.keep_checkpoints)
    best = checkpoints.open_manager(folder.best, keep=1) if config.evaluate_every else None
    return recent, best


def _restore_or_begin(
    config: ml_collections.ConfigDict,
    folder: RunFolder,
    recent: ocp.CheckpointManager | None,
    fresh: TrainState,
    given_again: bool,
) -> TrainState:
    """The newest checkpoint; `fresh` if there is none.

    `given_again`: whether `config` takes the place of a `config.json` that cannot be read.
    """
    restored = checkpoints.restore_newest(recent, fresh, config, needs_origin=given_again)
    step, steps = 0 if restored is None else int(restored.step), config.num_train_steps
    if step % config.steps_per_call:
        raise UserError(
            f'The newest checkpoint is of step {step}, which is not a multiple of '
            f'steps_per_call={config.steps_per_call}: choose one that divides it.'
        )
    if restored is None:
        print(f'run            starts afresh in {folder.path}, {steps:,} steps')
        return fresh
    print(f'run            resumes in {folder.path} from step {step:,}')
    if given_again:
        print(
            '               config.json could not be read and is written again: the checkpoint has '
            'the configuration given here, and it is not known whether the images are the same'
        )
    different = distributed.on_first(lambda: provenance.environment_differences(folder))
    if different:
        print(f'               numbers may differ in rounding, because of {", ".join(different)}')
    if step >= steps:
        print(f'               {step:,} of {steps:,} steps are done already')
    return restored


# ---- What is trained, drawn and scored. -------------------------------------------------------


def _create_sampler(
    config: ml_collections.ConfigDict, classes: np.ndarray
) -> Callable[[TrainState], np.ndarray]:
    columns, (generator, _) = sampling.GRID_COLUMNS, models.create(config)
    freeze = sampling.create_freeze(config)
    sample = sampling.create_sample(generator, config.model.z_dim, config.evaluation.batch_size)

    def draw(state: TrainState) -> np.ndarray:
        frozen = freeze(single_copy(state).averaged)
        return sampling.sample_rows(sample, frozen, classes, columns, config.seed)

    return draw


def _create_scorer(
    config: ml_collections.ConfigDict, source: data.Source, signals: list[int]
) -> Callable[[int, TrainState], list[Row]]:
    score = create_evaluator(
        config,
        source,
        config.evaluation.training_samples,
        progress=False,
        stop=lambda: distributed.vote(bool(signals))(),
    )
    return lambda step, state: score(step, single_copy(state).averaged)


def _create_step(
    config: ml_collections.ConfigDict, source: data.Source, step: int
) -> tuple[Callable, Iterator[tuple[np.ndarray, ...]]]:
    """The training step, compiled on its first call, and its batches from `step` on."""
    train_step: Callable
    batches: Callable
    if config.dataset.on_device:
        train_step = create_gathering_train_step(config, data.all_examples(source))
        batches = data.index_batches
    else:
        train_step, batches = create_train_step(config), data.batches
    return train_step, batches(
        source,
        config.seed,
        images_per_step(config) * config.steps_per_call,
        start=step // config.steps_per_call,
        stop=config.num_train_steps // config.steps_per_call,
        rows=local_rows(config),
    )


def _cells_of_reals(summary: data.Summary, classes: np.ndarray) -> np.ndarray:
    """Real images in the classes of the sample grid's rows; white where there are too few."""
    size, columns = summary.images[0].shape[1], sampling.GRID_COLUMNS
    cells = np.full((len(classes) * columns, size, size, 3), 255, np.uint8)
    for row, label in enumerate(classes):
        found = summary.images[label]
        cells[row * columns : row * columns + len(found)] = found
    return cells


# ---- What is refused. --------------------------------------------------------------------------


def _check_processes(config: ml_collections.ConfigDict) -> None:
    """All processes of a run need the same configuration, code and versions."""
    record = flatten_dict(provenance.record(config), sep='.')
    for key in ('distributed.process_id', 'dataset.data_dir', 'dataset.source_dir'):
        del record[f'config.{key}']  # data may lie elsewhere on each host
    distributed.check_agreement(record)


def _check_folder(folder: RunFolder) -> None:
    """Refuses a folder without a run that holds files which a run would replace."""
    if folder.checkpoint_steps():
        return
    others = [folder.metrics_jsonl, folder.samples, folder.tensorboard, folder.wandb, folder.report]
    try:
        record = read_json(folder.config_json)
        others = [] if isinstance(record, dict) and 'config' in record else [folder.config_json]
    except FileNotFoundError:
        others = [path for path in others if path.exists()]
    except (OSError, ValueError):
        return  # damaged, see `provenance.check_configuration`
    if others:
        names = ', '.join(path.name for path in others)
        raise UserError(
            f'The workdir {folder.path} holds files that no run of this program wrote ({names}): '
            'choose another --workdir, or remove them.'
        )


def _write_record(
    folder: RunFolder,
    config: ml_collections.ConfigDict,
    source: data.Source,
    init: dict[str, Any] | None,
) -> None:
    record = provenance.record(config) | {'data': data.identity(source)}
    if config.init.run and init is None:  # resumed: the networks were taken over at the start
        with contextlib.suppress(UserError):
            init = folder.record().get('init')
    try:
        folder.write_record(record | ({'init': init} if init else {}))
    except OSError as error:
        raise folder.unwritable(error) from error


# ---- What is printed at the start. -------------------------------------------------------------


def _describe(
    config: ml_collections.ConfigDict,
    source: data.Source,
    summary: data.Summary,
    state: TrainState,
) -> None:
    """Prints the devices, the data and the networks."""
    devices, processes = jax.devices(), jax.process_count()
    size, counts = config.dataset.image_size, summary.label_counts
    together = f' in {processes} processes' if processes > 1 else ''
    print(f'devices        {len(devices)} × {devices[0].device_kind}{together}')
    conditional = config.model.conditioning != 'none'
    classes = f'in {len(source.class_names)} classes' if conditional else 'without classes'
    print(
        f'data           {config.dataset.name}: {len(source):,} images of {size}×{size} {classes}'
    )
    for line in source.passed_over:
        print(f'               {line}')
    if len(counts) <= 20:
        histogram = ', '.join(
            f'{printable(name)} {count}'
            for name, count in zip(source.class_names, counts, strict=True)
        )
    else:
        histogram = f'{np.count_nonzero(counts)} classes, at most {counts.max()} of one'
    print(f'               among the first {counts.sum():,}: {histogram}')
    print(f'               values from {summary.minimum} to {summary.maximum}')
    for line in data.warnings(source, summary, conditional):
        print(f'warning        {line}')
    for name, variables, attention in (
        ('generator', state.generator, config.model.generator_attention),
        ('discriminator', state.discriminator, config.model.discriminator_attention),
    ):
        where = f'attention at {", ".join(map(str, attention))}' if attention else 'no attention'
        print(f'{name:<14} {models.count_parameters(variables):,} parameters, {where}')


def _describe_augmentation(config: ml_collections.ConfigDict) -> None:
    """Prints what `diff_augment` has become, and why."""
    if config.diff_augment:
        why, instead = f'fewer than {FEW_IMAGES:,} images', "''"
    else:
        why, instead = f'{FEW_IMAGES:,} images or more', FEW_IMAGES_AUGMENTATION
    print(
        f'diff_augment   {config.diff_augment or "none"}, because there are {why}; otherwise with '
        f'--config.diff_augment={instead}'
    )

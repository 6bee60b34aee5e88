"""Scores checkpoints of a run and records the protocol of every score."""

from pathlib import Path

import ml_collections

from sagan_jax.configuration import resolving
from sagan_jax.evaluation import protocol, training_data
from sagan_jax.evaluation.evaluator import create_evaluator
from sagan_jax.run import checkpoints, lock
from sagan_jax.run.entries import Row
from sagan_jax.run.folder import RunFolder
from sagan_jax.state import state_shapes
from sagan_jax.system import distributed


def evaluate(
    config: ml_collections.ConfigDict, workdir: Path, which: str | int = 'newest'
) -> dict[int, list[Row]]:
    """Scores checkpoints of a run, prints the scores and writes `evaluation/<step>.json`.

    Args:
      config: the run's configuration. `config.evaluation` may differ from the run's.
      workdir: the run's folder.
      which: 'newest', 'best', 'all' or a step.

    Returns:
      The rows of each step.

    Raises:
      UserError: if another process uses the folder; if there is no such checkpoint, or it has
        another configuration; if real images or the weights of the feature network are unavailable;
        if there are too few images for a score.
    """
    run, results = RunFolder(Path(workdir)), {}
    config = resolving.resolve(
        config,
        lambda: distributed.on_first(run.num_classes),
        lambda: distributed.on_first(run.num_images),
    )
    settings = config.evaluation
    with (
        distributed.entered_by_first(lambda: lock.owned(run)) as confirm,
        checkpoints.chosen(config, run, which, state_shapes(config)) as states,
    ):
        score = create_evaluator(
            config,
            training_data.load(config, run),
            settings.num_samples,
            settings.pair_samples,
            settings.intra_fid_samples,
        )
        for step, state in states:
            print(f'checkpoint     step {step:,}')
            rows = score(step, state.averaged)
            print('\n'.join(f'  {protocol.describe(row)}' for row in rows))
            if confirm:
                confirm()
                print(f'written        {write(run, step, rows)}')
            results[step] = rows
    return results


def write(run: RunFolder, step: int, rows: list[Row]) -> Path:
    """Writes the scores of a step into the run's folder.

    Replaces existing scores of the same protocol and keeps those of other protocols.
    """
    fresh = [protocol.identity(row) for row in rows]
    kept = [row for row in run.scores(step) if protocol.identity(row) not in fresh]
    return run.write_scores(step, [*kept, *rows])


def is_best(
    config: ml_collections.ConfigDict, run: RunFolder, rows: list[Row], before: int | None
) -> bool:
    """Whether these scores are better than those of the step `before`, the best step so far.

    Compares the score that `config.evaluation.best` names. True if that step has no such score.
    """
    settings = config.evaluation
    name = protocol.row_name(
        settings.best, settings.training_samples, settings.split, settings.features == 'in_domain'
    )

    def value(rows):
        return next((row['value'] for row in rows if row['name'] == name), None)

    best = None if before is None else value(run.scores(before))
    if best is None:
        return True
    low_is_good = settings.best in protocol.LOW_IS_GOOD
    return value(rows) < best if low_is_good else value(rows) > best

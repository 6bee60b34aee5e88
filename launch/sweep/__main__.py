"""Runs variants of a configuration with several seeds: python -m launch.sweep --config FILE …

  python -m launch.sweep --config configs/shapes.py --variants table1 --seeds 0,1,2 \\
      --workdir runs/table1 --config.num_train_steps=2000

Each variant is trained with each seed and then scored with --mode evaluate. Every run has its own
process of python -m sagan_jax.main and its own folder WORKDIR/VARIANT/seedSEED, with the output in
log.txt. --variants takes variants of the configuration and groups of them: table1, table2, figure3.

Give the same command again after an interruption: finished runs are skipped, killed runs resume
from their newest checkpoint, failed runs are tried again. Seeds and variants may be added. Two
sweeps over one folder, on one machine or on several, share the work. --list prints the runs and
their states; python -m launch.report WORKDIR summarizes the scores.

As a SLURM array with one task for each line of --list:

  sbatch --array=0-26 --wrap 'python -m launch.sweep … --sweep_index slurm'
"""

from sagan_jax.system import ending

if __name__ == '__main__':
    ending.prepare()  # before the imports that take seconds

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from launch.sweep import execution, runs
from launch.sweep.runs import Run
from sagan_jax.configuration import defaults, variants
from sagan_jax.errors import UserError
from sagan_jax.system import command_line, paths
from sagan_jax.system.failures import writing
from sagan_jax.system.files import atomic_path, locked
from sagan_jax.system.records import differences
from sagan_jax.system.signals import collected

CONFIG = command_line.define_config()
VARIANTS = flags.DEFINE_list('variants', None, 'Names of variants, or of groups of variants.')
SEEDS = flags.DEFINE_list('seeds', '0', 'Seeds of the runs of each variant.')
WORKDIR = command_line.checked_path(
    flags.DEFINE_string('workdir', None, 'Folder of the sweep.'), paths.check_data_path
)
JOBS = flags.DEFINE_integer('jobs', 1, 'Runs at a time on this machine.', lower_bound=1)
SWEEP_INDEX = flags.DEFINE_string(
    'sweep_index',
    None,
    'Start only the run with this index in --list; slurm takes the index from SLURM_ARRAY_TASK_ID.',
)
EVALUATE = flags.DEFINE_bool('evaluate', True, 'Score every run after training.')
LIST = flags.DEFINE_bool('list', False, 'Print the runs and their states, and start nothing.')

# Keys that do not change the results of a run.
FREE_KEYS = (
    'steps_per_call',
    'log_every',
    'sample_every',
    'checkpoint_every',
    'keep_checkpoints',
    'dataset.data_dir',
    'dataset.source_dir',  # each run compares the images themselves
    'dataset.on_device',
    'evaluation.inception_weights',
    'evaluation.batch_size',
    'logging.wandb_project',
)


def main(argv: list[str]) -> None:
    file, requested, workdir, overrides = _parse_flags()
    names = variants.expand(requested, CONFIG.value.dataset.image_size)
    configs = {name: resolve(file, name, overrides) for name in names}
    # Seed by seed: every variant has a score early, and new seeds leave the indices as they are.
    asked = [Run(name, seed, workdir) for seed in _seeds() for name in names]
    if LIST.value:
        width = max(len(run.name) for run in asked)
        for index, run in enumerate(asked):
            print(f'{index:>3}  {runs.line(run, runs.state(run), width)}')
        return

    chosen = _chosen(asked)
    # Imported late, so that --help, --list and errors in flags are fast.
    from sagan_jax.configuration import checks

    for run in chosen:
        config = configs[run.variant].copy_and_resolve_references()
        config.seed = run.seed
        checks.check(config)
    register(workdir, file, overrides, configs, asked)
    if JOBS.value > 1:
        # Runs that share an accelerator must not each reserve most of its memory.
        os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')

    command = create_command(file, overrides)
    report = execution.create_progress(chosen)
    with collected() as signals:
        failed = execution.execute(
            chosen, command, JOBS.value, EVALUATE.value, report, lambda: signals
        )
    if signals:
        print('The sweep and its runs were interrupted: give the same command to resume.')
        sys.exit(128 + signals[0])
    if failed:
        print(f'{len(failed)} of {len(chosen)} runs failed: see {runs.LOG} in their folders.')
        sys.exit(1)


# ---- The command line. -------------------------------------------------------------------------


def resolve(file: str, variant: str, overrides: Sequence[str]) -> ml_collections.ConfigDict:
    """The configuration of a variant, with overrides as on the command line."""
    argv = ['sweep', f'--config={file}:{variant}', *overrides]
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file(
        'config', None, flag_values=values, sys_argv=argv, help_string=''
    )
    try:
        values(argv)
    except flags.Error as error:
        if 'get_config() takes' in str(error):
            raise UserError(f'{file} has no variants: choose another --config.') from error
        raise UserError(f'{str(error).splitlines()[-1]}: see --help.') from error
    return config.value


def create_command(file: str, overrides: Sequence[str]) -> execution.Command:
    """Builds `command(run, mode)`, which trains ('train') or scores ('evaluate') a run."""

    def command(run, mode):
        return [
            *(sys.executable, '-m', 'sagan_jax.main', '--mode', mode),
            *('--config', f'{file}:{run.variant}', f'--config.seed={run.seed}', *overrides),
            *('--workdir', str(run.folder)),
        ]

    return command


def _parse_flags() -> tuple[str, list[str], Path, list[str]]:
    """The configuration file, the names of variants, the workdir, and the overrides."""
    _required(CONFIG, 'configs/shapes.py')
    names, workdir = _required(VARIANTS, 'table1'), Path(_required(WORKDIR, 'runs/table1'))
    file, _, variant = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
    if variant:
        raise UserError(f'--variants chooses the variants: give --config {file} without a colon.')
    changed = config_flags.get_override_values(flags.FLAGS['config'])
    if 'seed' in changed:
        raise UserError('--seeds chooses the seeds: leave out --config.seed.')
    return file, names, workdir, [f'--config.{key}={value}' for key, value in changed.items()]


def _required(flag: flags.FlagHolder, example: str) -> Any:
    if not flag.value:
        raise UserError(f'No --{flag.name} was given: try --{flag.name} {example}.')
    return flag.value


def _seeds() -> list[int]:
    if not SEEDS.value or not all(seed.isdecimal() for seed in SEEDS.value):
        raise UserError(f'--seeds={",".join(SEEDS.value)} should be a list like 0,1,2.')
    return list(dict.fromkeys(map(int, SEEDS.value)))


def _chosen(asked: list[Run]) -> list[Run]:
    index = SWEEP_INDEX.value
    if index is None:
        return asked
    if index == 'slurm':
        index = os.environ.get('SLURM_ARRAY_TASK_ID', '')
    if not index.isdecimal() or int(index) >= len(asked):
        raise UserError(
            f'--sweep_index={index!r} should be an integer from 0 to {len(asked) - 1}; slurm takes '
            'it from SLURM_ARRAY_TASK_ID.'
        )
    return [asked[int(index)]]


# ---- The record of a sweep. --------------------------------------------------------------------


def register(
    workdir: Path,
    file: str,
    overrides: list[str],
    configs: dict[str, ml_collections.ConfigDict],
    asked: list[Run],
) -> None:
    """Writes `sweep.json`: the command, the configuration of every variant, the runs.

    Raises:
      UserError: when the sweep has a variant of this name with another configuration.
    """
    with writing(workdir, 'another --workdir'), locked(workdir / runs.LOCK):
        record = runs.read_record(workdir) or runs.EMPTY
        for variant, before in record['variants'].items():
            now = configs.get(variant)
            now = resolve(file, variant, overrides) if now is None else now
            _check_variant(workdir, variant, before, _plain(now))
        resolved = {name: _plain(config) for name, config in configs.items()}
        names = [[run.variant, run.seed] for run in asked]
        record = {
            'config': file,
            'overrides': overrides,
            'variants': resolved | record['variants'],
            'runs': record['runs'] + [name for name in names if name not in record['runs']],
        }
        with atomic_path(workdir / runs.RECORD) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + '\n')


def _check_variant(
    workdir: Path, variant: str, before: dict[str, Any], now: dict[str, Any]
) -> None:
    later = _decisive(_plain(defaults.get_config()))  # for keys added since
    different = [
        f'{key} was {there} and is now {here}'
        for key, there, here in differences(later | _decisive(before), _decisive(now))
    ]
    if different:
        raise UserError(
            f'The sweep in {workdir} began with another configuration '
            f'({variant}: {", ".join(different)}): choose another --workdir or the same '
            'configuration.'
        )


def _plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    return {key: value for key, value in json.loads(config.to_json()).items() if key != 'seed'}


def _decisive(config: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """The keys that change results, by dotted name."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = prefix + key
        if isinstance(value, dict):
            found |= _decisive(value, name + '.')
        elif name not in FREE_KEYS:
            found[name] = value
    return found


if __name__ == '__main__':
    command_line.run(main, CONFIG)

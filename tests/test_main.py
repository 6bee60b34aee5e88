"""The command line: every error of the user's ends in one sentence and exit status 2."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.programs import ROOT, run_python

SMALL = [
    '--config', 'configs/image_folder.py',
    '--config.batch_size=8',
    '--config.model.architecture=pyramid',
    '--config.model.generator_width=4',
    '--config.model.discriminator_width=4',
    '--config.dataset.image_size=32',
    '--config.dataset.num_classes=3',
]  # fmt: skip


def run(*arguments, cwd=ROOT, program='sagan_jax.main'):
    return run_python('-m', program, *arguments, cwd=cwd)


# Packages that take seconds to import, and those that others import because they are installed.
SLOW = {'matplotlib', 'tensorflow_datasets', 'grain', 'scipy', 'jinja2'}
FOREIGN = {'torch', 'tensorflow', 'tensorboard', 'tensorboardX', 'wandb'}

USES = """
import json, sys

def imported():
    return [name for name in json.loads(sys.argv[2]) if name in sys.modules]

from sagan_jax import load, main
from sagan_jax.trained import sample_files
load(sys.argv[1]).sample(n=1)
found = {'sample': imported()}
from sagan_jax.train import train
from tests import tiny
train(tiny.folder_config(tiny.Path(sys.argv[3]), num_train_steps=1), sys.argv[4])
found['train'] = imported()
from sagan_jax.evaluation import evaluate
from sagan_jax.metrics import __main__, inception_weights
from sagan_jax.trained import export
from sagan_jax.viewing import paper_figures, serve
found['all'] = imported()
print(json.dumps(found))
"""


def test_no_use_imports_what_it_does_not_need(trained_workdir, images, tmp_path):
    for name in FOREIGN:  # installed, so that who looks for them finds them
        (tmp_path / 'installed' / name).mkdir(parents=True)
        (tmp_path / 'installed' / name / '__init__.py').write_text(f'__version__ = {"9.9"!r}')
    watched = json.dumps(sorted(SLOW | FOREIGN))
    result = subprocess.run(
        [sys.executable, '-c', USES, trained_workdir, watched, images, tmp_path / 'run'],
        env=os.environ | {'PYTHONPATH': f'{tmp_path}/installed{os.pathsep}{ROOT}'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found['sample'] == []
    assert set(found['train']) == SLOW - {'matplotlib'}
    assert set(found['all']) == SLOW


def assert_refused(result, *parts):
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1
    assert result.stderr.splitlines()[-1] == lines[0]
    assert lines[0].endswith('.')
    assert 'Traceback' not in result.stderr
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize(
    ('arguments', 'parts'),
    [
        ([], ['configs/quickstart.py']),
        (['--config', 'configs/nowhere.py'], ['configs/nowhere.py']),
        (['--config', 'configs/quickstart.py', '--config.model.depth=3'], ["no key 'depth'"]),
        (['--config', 'configs/quickstart.py', '--config.seed=one'], ['seed', 'one']),
        (['--config', 'configs/quickstart.py:feat8'], ['no variants']),
        (['--config', 'configs/imagenet128.py:feat9'], ["'feat9'", 'feat16', 'no_attention']),
        (['--config', 'configs/quickstart.py', 'more'], ["'more'"]),
        (['--config', 'configs/quickstart.py', '--profile=9:3'], ['--profile=9:3', '100:110']),
        (['--verbos'], ['verbos', '--help']),
        (['--mode', 'sample'], ['--workdir']),
        (['--mode', 'export', '--draw', 'nearest'], ['--draw', 'mode sample', 'mode is export']),
        (['--config', 'quickstart', '--classes', ''], ['--classes', 'mode is train']),
        (['--mode', 'evaluate'], ['--workdir']),
        (['--mode', 'figures', '--workdir', 'runs/nowhere'], ['runs/nowhere', '--workdir']),
        (['--mode', 'export', '--workdir', 'runs/nowhere'], ['runs/nowhere', '--workdir']),
        (['--config', 'quickstart', '--workdir', 'az://b/run'], ['--workdir=az://b/run', 'local']),
        (['--mode', 'serve', '--workdir', 'runs/a[1]'], ['--workdir=runs/a[1]', "'a[1]'"]),
        (['--mode', 'sample', '--output', 's3://b'], ['--output=s3://b', 's3://BUCKET/PATH']),
        (
            ['--config', 'image_folder', '--config.dataset.source_dir=hf://a/b'],
            ['--config.dataset.source_dir=hf://a/b', 'local'],
        ),
    ],
)
def test_invalid_command_lines_are_refused(arguments, parts):
    assert_refused(run(*arguments), *parts)


@pytest.mark.parametrize(
    ('program', 'arguments', 'flag'),
    [
        ('launch.sweep', ['--config', 'shapes', '--workdir'], '--workdir'),
        ('launch.benchmark', ['--config', 'shapes', '--json'], '--json'),
        ('launch.report', [], 'WORKDIR'),
        ('sagan_jax.metrics', ['real'], 'FAKE'),
        ('sagan_jax.metrics', ['real', 'fake', '--json'], '--json'),
    ],
)
def test_other_programs_refuse_addresses_too(program, arguments, flag, tmp_path):
    result = run(*arguments, 'gs://bucket/a', cwd=tmp_path, program=program)
    assert_refused(result, f'{flag}=gs://bucket/a is not a path on this machine')
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_a_version_with_other_keys_is_refused(trained_workdir, tmp_path):
    record = json.loads((trained_workdir / 'config.json').read_text())
    record['config']['model']['depth'] = 3
    (tmp_path / 'config.json').write_text(json.dumps(record | {'version': '9.9', 'commit': 'abc'}))
    refused = run('--mode', 'figures', '--workdir', tmp_path)
    assert_refused(refused, str(tmp_path), '9.9', 'commit abc', 'model.depth')


def test_a_full_disk_is_reported_in_one_sentence():
    code = """
import errno
from sagan_jax.system import command_line, ending

def main(argv):
    raise OSError(errno.ENOSPC, 'No space left on device', 'figures/a.png')

ending.prepare()
command_line.run(main, command_line.define_config())
"""
    root = str(Path(__file__).parents[1])
    command = [sys.executable, '-c', code]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert_refused(result, 'figures/a.png cannot be written (No space left on device)')


# Facts about the flags, collected in another process because flags are defined once per process.
FLAGS = """
import json, shlex
from absl import flags
from sagan_jax import main
from sagan_jax.errors import UserError
from sagan_jax.system import command_line

def refusal(*arguments):
    flags.FLAGS.unparse_flags()
    flags.FLAGS(['main', *arguments])
    try:
        command_line.check_mode(main.MODES)
    except UserError as error:
        return str(error)

flags.FLAGS.mark_as_parsed()
own = [flag.name for flag in flags.FLAGS.get_flags_for_module(main.__name__)]
print(json.dumps({
    'modes': {name: mode.flags for name, mode in main.MODES.items()},
    'flags': own,
    'pairs': [
        (flag, mode, refusal(f'--mode={mode}', f'--{flag}={flags.FLAGS[flag].default or 1}'))
        for flag in own if flag not in ('mode', 'workdir')
        for mode in main.MODES
    ],
    'examples': [refusal(*shlex.split(mode.example)[3:]) for mode in main.MODES.values()],
}))
"""


@pytest.fixture(scope='module')
def facts():
    root = str(Path(__file__).parents[1])
    command = [sys.executable, '-c', FLAGS]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def test_a_flag_of_another_mode_is_refused(facts):
    assert len(facts['pairs']) == len(facts['modes']) * (len(facts['flags']) - 2)
    for flag, mode, refusal in facts['pairs']:
        owners = [name for name, names in facts['modes'].items() if flag in names]
        assert owners, flag
        if mode in owners:
            assert refusal is None
        else:
            assert refusal == (
                f'--{flag} belongs to --mode {" and ".join(owners)}, but the mode is {mode}: '
                f'leave out --{flag}, or choose another mode.'
            )
    accepted = {(flag, mode) for flag, mode, refusal in facts['pairs'] if refusal is None}
    assert {('port', 'serve'), ('classes', 'figures'), ('classes', 'sample')} <= accepted
    assert not accepted & {('points', 'sample'), ('checkpoint', 'train'), ('output', 'figures')}


def test_help_groups_the_flags_by_mode(facts):
    result = run('--help')
    assert result.returncode == 0
    common = result.stdout.partition('--mode train:')[0]
    assert re.findall(r'^  --(\w+)', common, re.MULTILINE) == ['config', 'workdir', 'mode']
    groups = dict(re.findall(r'^--mode (\w+): (.*?)(?=^--mode |\Z)', result.stdout, re.M | re.S))
    assert groups.keys() == facts['modes'].keys()
    for mode, text in groups.items():
        described = re.findall(r'^  --(\w+)', text, re.MULTILINE)
        assert described == facts['modes'][mode]
        example = next(line for line in text.splitlines() if line.startswith('    python'))
        assert f'--mode {mode}' in example or mode == 'train'
    assert facts['examples'] == [None] * len(groups)
    configurations = result.stdout.partition('\nConfigurations:\n')[2]
    listed = re.findall(r'^  (\w+) +\w', configurations, re.MULTILINE)
    assert listed == sorted(path.stem for path in (ROOT / 'configs').glob('[!_]*.py'))


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return tiny.picture_folder(tmp_path_factory.mktemp('images') / 'source')


def missing_folder(images, tmp_path):
    return [f'--config.dataset.source_dir={tmp_path}/nowhere'], ['nowhere']


def empty_folder(images, tmp_path):
    (tmp_path / 'empty').mkdir()
    return [f'--config.dataset.source_dir={tmp_path}/empty'], ['empty']


def one_class_fewer(images, tmp_path):
    flags = [f'--config.dataset.source_dir={images}', '--config.dataset.num_classes=4']
    return flags, ['3', '4', '--config.dataset.num_classes=3']


def truncated_image(images, tmp_path):
    folder = tiny.picture_folder(tmp_path / 'bad')
    victim = folder / 'class1' / '3.png'
    victim.write_bytes(victim.read_bytes()[:-500])
    return [f'--config.dataset.source_dir={folder}'], [str(victim)]


def indivisible_batch(images, tmp_path):
    return ['--config.batch_size=12'], ['batch_size=12', '8 devices']


def impossible_attention(images, tmp_path):
    return ['--config.model.discriminator_attention=(64,)'], ['64', '4, 8, 16']


def unwritable_workdir(images, tmp_path):
    (tmp_path / 'file').write_text('')
    return ['--workdir', tmp_path / 'file' / 'run'], [f'{tmp_path}/file/run']


@pytest.mark.parametrize(
    'mistake',
    [
        missing_folder,
        empty_folder,
        one_class_fewer,
        truncated_image,
        indivisible_batch,
        impossible_attention,
        unwritable_workdir,
    ],
)
def test_errors_leave_no_files(mistake, images, tmp_path):
    flags, parts = mistake(images, tmp_path)
    before = set(tmp_path.rglob('*'))
    prepared = tmp_path / 'prepared'
    defaults = ['--workdir', tmp_path / 'run', f'--config.dataset.data_dir={prepared}']
    assert_refused(run(*SMALL, *defaults, *flags), *parts)
    # At most empty folders, and the lock that keeps two processes from preparing at once.
    left = {path for path in set(tmp_path.rglob('*')) - before if path.is_file()}
    left = {path for path in left if path.name != '.lock'}
    assert left == set()
    assert not (tmp_path / 'run').exists()


@pytest.mark.thorough
def test_the_default_workdir_is_enough_to_draw_figures(tmp_path, images):
    root = Path(__file__).parents[1]
    flags = [*SMALL, '--config.num_train_steps=1', f'--config.dataset.source_dir={images}']
    flags[1] = str(root / 'configs' / 'image_folder.py')
    result = run(*flags, f'--config.dataset.data_dir={tmp_path}/prepared', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'runs' / 'image_folder' / 'samples' / '000001.png').exists()
    for part in ('3 classes', 'class0 12, class1 12, class2 12', 'starts afresh', 'step 1/1'):
        assert part in result.stdout

    workdir = tmp_path / 'runs' / 'image_folder'
    assert '--mode figures' in (workdir / 'report.html').read_text()
    result = run('--mode', 'figures', '--figures', 'all', '--workdir', workdir, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    drawn = {path.name for path in (workdir / 'figures').glob('*.png')}
    assert {'attention_generator.png', 'evolution.png'} <= drawn
    assert '--mode figures' not in (workdir / 'report.html').read_text()

"""Each phase of a run is killed, hung up, interrupted and run out of disk; then it starts again.

It ends with its status and one sentence, without a traceback and with nothing half-written, and the
same command then succeeds.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import tiny

ROOT = Path(__file__).parents[1]
FULL = 'full disk'
SIGNALS = ('SIGKILL', 'SIGHUP', 'SIGINT', 'SIGTERM')
STEPS, SCORED_AT = 12, 4

# Forks the program for each line of its input, so that only one process imports what it needs. The
# classifier takes few steps, and a save that failed is tried again at once.
SERVER = """
import json, os, runpy, sys
import sagan_jax.train, sagan_jax.trained.export, sagan_jax.trained.sample_files
from sagan_jax.metrics import in_domain
from sagan_jax.run import checkpoints
in_domain.STEPS = 40
checkpoints._PAUSES = (0, 0, 0)
for line in iter(sys.stdin.readline, ''):
    said, arguments = json.loads(line)
    process = os.fork()
    if not process:
        os.setsid()
        for number, path in enumerate((os.devnull, said, said)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
        sys.argv = ['sagan_jax.main', *arguments]
        runpy.run_module('sagan_jax.main', run_name='__main__', alter_sys=True)
        sys.exit()
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


class Place(NamedTuple):
    """The folders of one case: what it writes is below `root`, its images are in `data/source`."""

    root: Path
    data: Path

    @property
    def workdir(self) -> Path:
        return self.root / 'run'

    @property
    def output(self) -> Path:
        return self.root / 'output'

    def has(self, pattern: str) -> bool:
        return any(self.root.glob(pattern))

    @property
    def said(self) -> str:
        """What the program has printed."""
        path = self.root.parent / 'said'
        return path.read_text() if path.exists() else ''

    def train(self, **changes) -> list[str]:
        config = tiny.folder_config(
            self.data / 'source',
            num_train_steps=STEPS,
            sample_every=STEPS,
            checkpoint_every=SCORED_AT,
            **changes,
        )
        return tiny.arguments(config, self.workdir)

    def use(self, mode: str, *arguments: str) -> list[str]:
        return ['--mode', mode, '--workdir', str(self.workdir), *arguments]


class Phase(NamedTuple):
    """Attributes:
    needs: what it begins with: 'images', that are not prepared; 'prepared', which has a classifier
      too; or 'trained', a run.
    command: its arguments.
    is_under_way: whether the phase has begun.
    """

    needs: str
    command: Callable[[Place], list[str]]
    is_under_way: Callable[[Place], bool]


def train(place):
    return place.train()


def train_and_score(place):
    return place.train(evaluate_every=SCORED_AT)


def sample_arrays(place):
    return place.use('sample', '--num_images', '4000', '--output', str(place.output / 'a.npz'))


PHASES = {
    'start': Phase('prepared', train, lambda place: place.has('run/run.lock')),
    'preparation': Phase(
        'images', train, lambda place: place.has('prepared/image_folder/.sagan_jax-*/**/*record*')
    ),
    'classifier': Phase(
        'images', train_and_score, lambda place: 'in-domain classifier: ' in place.said
    ),
    'compilation': Phase('prepared', train, lambda place: place.has('run/samples/000000.png')),
    'step': Phase('prepared', train, lambda place: '\nstep ' in place.said),
    'save': Phase('prepared', train, lambda place: place.has('run/checkpoints/*tmp')),
    'scoring': Phase(
        'prepared', train_and_score, lambda place: f'step  {SCORED_AT}/{STEPS}' in place.said
    ),
    'evaluate': Phase(
        'trained', lambda place: place.use('evaluate'), lambda place: 'checkpoint  ' in place.said
    ),
    'figures': Phase(
        'trained', lambda place: place.use('figures'), lambda place: place.has('run/figures/*.png')
    ),
    'export': Phase(
        'trained', lambda place: place.use('export'), lambda place: place.has('run/.sagan_jax-*')
    ),
    'sampling': Phase('trained', sample_arrays, lambda place: place.has('output/.sagan_jax-*.npz')),
}
ORDINARY = [('preparation', 'SIGINT'), ('step', 'SIGHUP'), ('sampling', 'SIGTERM')]
THOROUGH = [(phase, how) for phase in PHASES for how in (*SIGNALS, FULL)]
CASES = [
    pytest.param(*case, marks=() if case in ORDINARY else pytest.mark.thorough) for case in THOROUGH
]


@pytest.fixture(scope='module')
def begun(tmp_path_factory):
    """Folders to begin with, by what a phase needs."""
    found = {name: tmp_path_factory.mktemp(name) for name in ('images', 'prepared', 'trained')}
    tiny.picture_folder(found['images'] / 'source', count=200)
    tiny.scored_folder(found['prepared'])
    return found


@pytest.fixture(scope='module')
def server():
    environment = {
        'JAX_NUM_CPU_DEVICES': '1',
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'SAGAN_JAX_LARGE_PAGES': '0',
    }
    with subprocess.Popen(
        [sys.executable, '-c', SERVER],
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture(scope='module')
def trained(begun, server):
    """A folder with a run that is done."""
    place = Place(begun['trained'] / 'disk', begun['prepared'])
    place.root.mkdir()
    start(server, place, place.train())
    assert status(server) == 0, place.said
    return place.root


@pytest.fixture
def disk(tmp_path):
    """An empty folder; on a disk of its own if that is possible."""
    root = tmp_path / 'disk'
    root.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=48m', 'tmpfs', str(root)]
    mounted = os.geteuid() == 0 and not subprocess.run(mount, capture_output=True).returncode
    yield root
    if mounted:
        subprocess.run(['umount', str(root)], check=True)


def start(server, place, arguments):
    """Starts the program; returns its process id."""
    (place.root.parent / 'said').unlink(missing_ok=True)
    print(json.dumps([str(place.root.parent / 'said'), arguments]), file=server.stdin, flush=True)
    return int(server.stdout.readline())


def status(server):
    """Waits for the end of the program that was started last."""
    return int(server.stdout.readline())


def fill(place):
    """Fills the disk to the last byte."""
    size = 1 << 20
    with (place.root / 'filler').open('wb', buffering=0) as file:
        while size:
            try:
                file.write(b'0' * size)
            except OSError:
                size //= 2


@pytest.mark.parametrize(('phase', 'how'), CASES)
def test_a_phase_that_is_cut_short(phase, how, disk, begun, server, request):
    needs, command, is_under_way = PHASES[phase]
    if how == FULL and not os.path.ismount(disk):
        pytest.skip('needs the right to mount a disk')
    place = Place(disk, disk if needs == 'images' else begun['prepared'])
    if needs == 'images':
        shutil.copytree(begun['images'] / 'source', disk / 'source')
    elif needs == 'trained':
        shutil.copytree(request.getfixturevalue('trained'), disk, dirs_exist_ok=True)

    process = start(server, place, command(place))
    wait_for(is_under_way, place, process)
    if how == FULL:
        os.kill(process, signal.SIGSTOP)
        fill(place)
        os.kill(process, signal.SIGCONT)
    else:
        os.kill(process, signal.Signals[how])
    ended = status(server)
    said, left = place.said, describe(place)
    with open(os.environ.get('PHASES_TABLE', os.devnull), 'a') as table:
        table.write(f'| {phase} | {how} | {ended} | {last_line(place)} | {left} |\n')

    assert 'Traceback' not in said, said
    if how == FULL:
        assert ended == 2, said
        assert re.search('error: .*(No space left|The last checkpoint cannot be)', said), said
        (place.root / 'filler').unlink()
    elif how == 'SIGKILL':
        assert ended == -signal.SIGKILL, said
    else:
        assert ended == 128 + signal.Signals[how], said
        assert last_line(place).startswith('interrupted    ')
    if how != 'SIGKILL':
        assert 'half-written' not in left

    start(server, place, command(place))
    assert status(server) == 0, place.said
    # Nobody may remove another process's files beside those of a user.
    assert 'half-written' not in describe(place) or (phase, how) == ('sampling', 'SIGKILL')


def wait_for(is_under_way, place, process):
    deadline = time.monotonic() + 300
    while not is_under_way(place):
        assert Path(f'/proc/{process}').exists(), place.said
        assert time.monotonic() < deadline, place.said
        time.sleep(0.001)


def last_line(place):
    lines = place.said.replace('\r', '\n').strip().splitlines()
    line = (lines or [''])[-1].replace(str(place.root), '…')
    return re.sub(r'\.sagan_jax-\w+', '.sagan_jax-*', line)


def describe(place):
    """What a phase left."""
    steps = sorted(int(p.name) for p in place.workdir.glob('checkpoints/*') if p.name.isdecimal())
    found = [f'checkpoints {", ".join(map(str, steps))}' if steps else 'no checkpoint']
    for name in ('run/figures', 'run/export', 'output'):
        files = [path for path in place.root.glob(f'{name}/*') if path.name[0] != '.']
        found += [f'{len(files)} files in {name}'] if files else []
    half = [p for p in place.root.rglob('*') if p.name.startswith('.sagan_jax-') or 'tmp' in p.name]
    names = ', '.join(sorted(str(path.relative_to(place.root)) for path in half))
    return '; '.join([*found, *([f'half-written: {names}'] if half else [])])

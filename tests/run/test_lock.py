"""A run's folder has one owner, alive: on this machine, on others, and without `flock`."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launch.sweep import runs
from sagan_jax.errors import UserError
from sagan_jax.evaluation.evaluate import evaluate
from sagan_jax.run import lock, owners
from sagan_jax.run.folder import RunFolder
from sagan_jax.train import train
from sagan_jax.viewing.paper_figures import illustrate
from tests import tiny

ROOT = Path(__file__).parents[2]
# Owns a folder until its input ends; confirms a second after it began to.
HOLDER = """
import fcntl, sys, time
from pathlib import Path
from sagan_jax.errors import UserError
from sagan_jax.run import lock, owners
from sagan_jax.run.folder import RunFolder

def without_locks(*arguments):
    raise OSError(37, 'No locks available')

if sys.argv[2] == 'no flock':
    fcntl.flock = without_locks
print('ready', flush=True)
sys.stdin.readline()
try:
    with lock.owned(RunFolder(Path(sys.argv[1]))) as confirm:
        time.sleep(1)
        confirm()
        print('owned', flush=True)
        sys.stdin.read()
except UserError as error:
    print(error, flush=True)
"""
LOCKS = pytest.mark.parametrize('locks', ['flock', 'no flock'])


@pytest.fixture
def run(tmp_path):
    """A folder in which a run has begun."""
    folder = RunFolder(tmp_path / 'run')
    folder.path.mkdir()
    folder.config_json.write_text('{}')
    folder.metrics_jsonl.write_text('{"step": 1}\n')
    return folder


@pytest.fixture
def patience(monkeypatch):
    """A tenth of a second for a sign of life from another machine."""
    monkeypatch.setattr(lock, 'PATIENCE', 0.1)
    monkeypatch.setattr(lock, '_POLL', 0.01)


@contextlib.contextmanager
def holders(path, locks, count=1):
    """Processes that try to own a folder at once."""
    started = [
        subprocess.Popen(
            [sys.executable, '-c', HOLDER, str(path), locks],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    try:
        assert [process.stdout.readline() for process in started] == ['ready\n'] * count
        for process in started:
            process.stdin.write('\n')
            process.stdin.flush()
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def said(process):
    """The next line that is no message about a takeover."""
    return next(line for line in process.stdout if not line.startswith('workdir '))


def content(run):
    return {
        path: (path.read_bytes(), path != run.lock and path.stat().st_mtime_ns)
        for path in run.path.iterdir()
    }


def foreign(run, **changes):
    """Writes the record of a process on another machine."""
    record = {
        'process': 4321,
        'host': 'node7',
        'machine': 'node7 boot pid:[1]',
        'started': '5',
        'since': '2026-01-02 03:04:05+00:00',
        'token': 'theirs',
    }
    run.lock.write_text(json.dumps(record | changes))


# ---- On this machine. --------------------------------------------------------------------------


@LOCKS
def test_a_second_process_is_refused_in_one_sentence_and_touches_nothing(run, locks):
    with holders(run.path, locks) as (first,):
        assert said(first) == 'owned\n'
        before = content(run)
        with holders(run.path, locks) as (second,):
            sentence = said(second)
        since = json.loads(run.lock.read_text())['since']
        assert sentence == (
            f'The workdir {run.path} is in use by process {first.pid} on {platform.node()} since '
            f'{since}: wait, end it, or choose another --workdir.\n'
        )
        assert content(run) == before
        first.communicate()  # ends its input
        with lock.owned(run):
            assert lock.owner(run).process == os.getpid()
    assert lock.owner(run) is None


@LOCKS
def test_of_many_that_start_together_one_goes_on(tmp_path, locks):
    with holders(tmp_path / 'new' / 'run', locks, count=6) as started:
        lines = [said(process) for process in started]
    assert lines.count('owned\n') == 1
    assert sum(' in use by ' in line or ' was taken over by ' in line for line in lines) == 5


@LOCKS
def test_a_killed_process_does_not_keep_the_folder(run, locks, capsys):
    with holders(run.path, locks) as (first,):
        assert said(first) == 'owned\n'
        first.send_signal(signal.SIGKILL)  # and nobody waits for it yet
        while Path(f'/proc/{first.pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z':
            time.sleep(0.01)
        with lock.owned(run) as confirm:
            confirm()
            assert lock.owner(run).process == os.getpid()
    out = capsys.readouterr().out
    assert f'taken over from process {first.pid} on {platform.node()} since' in out
    assert out.count('\n') == 1


def test_a_process_id_that_is_used_again_is_noticed(run):
    with lock.owned(run):
        record = json.loads(run.lock.read_text())
    run.lock.write_text(json.dumps(record | {'started': '1'}))
    assert lock.owner(run) is None
    with lock.owned(run):
        pass


def test_a_living_process_of_the_record_counts_without_flock(run):
    """As on a filesystem whose locks do nothing."""
    with holders(run.path, 'no flock') as (first,):
        assert said(first) == 'owned\n'
        with pytest.raises(UserError, match=f'in use by process {first.pid} on'), lock.owned(run):
            pass


@pytest.mark.parametrize('text', [b'', b'{"process": 1', b'\0' * 2048])
def test_flock_counts_without_a_record(run, patience, text):
    """As while the first of two that start together has not written its record."""
    run.lock.write_bytes(text)
    with run.lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r'is in use by .*: wait, end it, or'), lock.owned(run):
            pass
        assert run.lock.read_bytes() == text
    with lock.owned(run):
        pass


def test_one_process_owns_a_folder_once(run):
    with (
        lock.owned(run),
        pytest.raises(UserError, match=f'in use by process {os.getpid()}'),
        lock.owned(run),
    ):
        pass
    with pytest.raises(ZeroDivisionError), lock.owned(run):
        raise ZeroDivisionError
    with lock.owned(run):
        pass


# ---- On other machines. ------------------------------------------------------------------------


@LOCKS
def test_a_record_of_another_machine_that_is_touched_is_refused(run, locks, patience, monkeypatch):
    if locks == 'no flock':
        monkeypatch.setattr(fcntl, 'flock', raise_no_locks)
    foreign(run)
    before = run.lock.read_bytes(), run.metrics_jsonl.read_bytes()
    ended = threading.Event()
    monkeypatch.setattr(lock, 'BEAT', 0.02)
    record = lock.owner(run)
    beating = threading.Thread(target=lock._beat, args=(run, record, ended))
    beating.start()
    with pytest.raises(UserError, match='in use by process 4321 on node7 since 2026-01-02 03'):
        lock.owned(run).__enter__()
    ended.set()
    beating.join()
    assert (run.lock.read_bytes(), run.metrics_jsonl.read_bytes()) == before


@pytest.mark.parametrize(
    ('job', 'restarts', 'status'), [('17', '1', 75), ('17', '0', 2), ('18', '1', 2), ('', '', 2)]
)
def test_a_requeued_job_may_try_again_while_it_still_drains(
    run, patience, monkeypatch, job, restarts, status
):
    for name, value in (('SLURM_JOB_ID', job), ('SLURM_RESTART_COUNT', restarts)):
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)
    foreign(run, job='17')
    monkeypatch.setattr(lock, '_is_touched', lambda run: True)
    with (
        pytest.raises(UserError, match='in use by process 4321 on node7') as refused,
        lock.owned(run),
    ):
        pass
    assert refused.value.status == status
    assert ('before it was requeued' in str(refused.value)) == (status == 75)


def raise_no_locks(*_):
    raise OSError(errno.ENOLCK, 'No locks available')


@pytest.mark.parametrize('age', [-3600, 0, 3600])
def test_a_record_that_nobody_touches_is_taken_over_whatever_the_clocks(run, patience, capsys, age):
    foreign(run)
    os.utime(run.lock, (time.time() - age,) * 2)
    with lock.owned(run) as confirm:
        confirm()
    out = capsys.readouterr().out.splitlines()
    assert [line.split('process')[0].split() for line in out] == [
        ['workdir', 'in', 'use', 'by'],
        ['workdir', 'taken', 'over', 'from'],
    ]


def test_a_folder_that_is_released_while_we_wait_is_ours(run, monkeypatch):
    monkeypatch.setattr(lock, '_POLL', 0.01)
    foreign(run)
    threading.Timer(0.1, lambda: foreign(run, released=True)).start()
    with lock.owned(run):
        assert lock.owner(run).process == os.getpid()


def test_a_process_that_was_suspended_finds_out_and_leaves_the_new_owner_alone(run):
    with lock.owned(run) as confirm:
        confirm()
        foreign(run)
        before = run.lock.read_bytes()
        with pytest.raises(UserError, match='was taken over by process 4321 on node7') as caught:
            confirm()
    assert str(caught.value).endswith(': look there for the run.')
    assert run.lock.read_bytes() == before


def test_an_owner_touches_its_record(run, monkeypatch):
    monkeypatch.setattr(lock, 'BEAT', 0.01)
    with lock.owned(run):
        os.utime(run.lock, (0, 0))
        deadline = time.monotonic() + 30
        while run.lock.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        foreign(run)
        time.sleep(0.05)  # a touch that was on its way
        os.utime(run.lock, (0, 0))
        time.sleep(0.1)
        assert run.lock.stat().st_mtime == 0  # no longer its own


# ---- Damaged records, and folders without a run. -----------------------------------------------


OPTIONAL = tuple(lock.Record._field_defaults)
REQUIRED = [name for name in lock.Record._fields if name not in OPTIONAL]
VALUE = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(owners.machine())


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.binary(max_size=60)
    | VALUE.map(lambda value: json.dumps([value]).encode())
    | st.fixed_dictionaries(
        dict.fromkeys(REQUIRED, VALUE), optional=dict.fromkeys((*OPTIONAL, 'extra'), VALUE)
    ).map(lambda record: json.dumps(record).encode())
)
def test_a_damaged_record_keeps_nobody_out(run, monkeypatch, written):
    monkeypatch.setattr(lock, 'PATIENCE', 0.002)
    monkeypatch.setattr(lock, '_POLL', 0.001)
    run.lock.write_bytes(written)  # none is of a process that lives
    lock.owner(run)
    with lock.owned(run) as confirm:
        confirm()
        assert lock.owner(run).process == os.getpid()


def test_a_removed_record_is_written_again(run):
    with lock.owned(run) as confirm:
        run.lock.unlink()
        confirm()
        assert lock.owner(run).process == os.getpid()


def test_nothing_is_left_where_no_run_began(tmp_path):
    (tmp_path / 'old').mkdir()
    for path in (tmp_path / 'old', tmp_path / 'new' / 'deep'):
        with lock.owned(RunFolder(path)):
            assert (path / 'run.lock').exists()
    assert [path.name for path in tmp_path.rglob('*')] == ['old']


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / 'file').touch()
    for path in (tmp_path / 'file', tmp_path / 'file' / 'run'):
        with pytest.raises(UserError, match=r'cannot be written.* choose another --workdir'):
            lock.owned(RunFolder(path)).__enter__()


# ---- Who honours it. ---------------------------------------------------------------------------


def train_in(run):
    train(tiny.config(), run.path)


def evaluate_in(run):
    evaluate(tiny.config(), run.path)


def draw_figures_in(run):
    illustrate(tiny.config(), run.path)


@pytest.mark.parametrize('use', [train_in, evaluate_in, draw_figures_in])
def test_what_writes_is_refused_before_it_reads(run, use):
    with lock.owned(run):
        before = content(run)
        with pytest.raises(UserError, match=f'in use by process {os.getpid()} on .*: wait, end it'):
            use(run)
        assert content(run) == before


@pytest.mark.parametrize('mode', ['sample', 'export'])
def test_sampling_is_refused_in_the_folder_but_not_elsewhere(run, mode, tmp_path):
    arguments = [sys.executable, '-m', 'sagan_jax.main', '--mode', mode, '--workdir', run.path]
    with lock.owned(run):
        before = run.lock.read_bytes(), sorted(run.path.iterdir())
        inside, outside = (
            subprocess.run(
                [*arguments, *output], cwd=ROOT, capture_output=True, text=True, check=False
            )
            for output in ([], ['--output', tmp_path / 'images'])
        )
        assert (run.lock.read_bytes(), sorted(run.path.iterdir())) == before
    assert inside.returncode == 2
    assert f'in use by process {os.getpid()} on' in inside.stderr
    assert inside.stderr.endswith('wait, end it, or choose an --output elsewhere.\n')
    assert 'config.json, cannot be used' in outside.stderr  # it came to reading the run


def test_a_sweep_waits_for_a_run_that_others_started(tmp_path):
    sweeps = runs.Run('feat16', 0, tmp_path)
    with lock.owned(sweeps.files):
        assert runs.holder(sweeps) == platform.node()
        assert runs.state(sweeps).what == 'training'
        assert runs.take_lock(sweeps) is None
    assert runs.holder(sweeps) is None
    os.close(runs.take_lock(sweeps))

"""Every program ends in one line and with its status, from its imports on."""

import ast
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = {
    signal.SIGINT: 'interrupted    by Ctrl-C',
    signal.SIGTERM: 'interrupted    by SIGTERM',
    signal.SIGHUP: 'interrupted    by a hang-up',
}


def start(*arguments, **options):
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'SAGAN_JAX_LARGE_PAGES': '0'}
    environment |= options.pop('env', {})
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=environment,
        text=True,
        **{'cwd': ROOT, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE} | options,
    )


@pytest.mark.parametrize(
    ('number', 'program', 'arguments'),
    [
        (signal.SIGINT, 'sagan_jax.main', ['--config', 'quickstart']),
        (signal.SIGHUP, 'sagan_jax.metrics', ['real', 'fake']),
        (signal.SIGTERM, 'launch.report', ['runs']),
        (signal.SIGINT, 'launch.sweep', ['--config', 'shapes']),
        (signal.SIGTERM, 'launch.benchmark', ['--config', 'quickstart']),
        (signal.SIGHUP, 'launch.local_cluster', ['--', '--config', 'quickstart']),
    ],
)
def test_a_signal_during_imports_ends_in_one_line(number, program, arguments, tmp_path):
    options = {'cwd': tmp_path, 'env': {'JAX_PLATFORMS': 'cpu'}}
    process = start('-X', 'importtime', '-m', program, *arguments, **options)
    for line in process.stderr:  # one line for each module, when it has been imported
        if line.split()[-1] in ('argparse', 'absl.flags', 'numpy.linalg'):
            break
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    said = [line for line in errors.splitlines() if line and not line.startswith('import time:')]
    assert (process.returncode, output, said) == (128 + number, '', [LINES[number]])
    assert list(tmp_path.iterdir()) == []


def test_every_program_prepares_for_its_end_before_other_imports():
    programs = []
    for path in [*ROOT.glob('sagan_jax/**/*.py'), *ROOT.glob('launch/**/*.py')]:
        body = [node for node in ast.parse(path.read_text()).body if not isinstance(node, ast.Expr)]
        tests = [i for i, node in enumerate(body) if isinstance(node, ast.If)]
        starts = [i for i in tests if ast.unparse(body[i].test) == "__name__ == '__main__'"]
        if starts:
            programs.append(path.relative_to(ROOT))
            assert ast.unparse(body[0]) == 'from sagan_jax.system import ending', path
            assert (starts[0], ast.unparse(body[1].body)) == (1, 'ending.prepare()'), path
    assert len(programs) >= 8


PROGRAM = """
import os, signal, sys
from sagan_jax.system import ending, output
ending.prepare()
"""


def ended(body, **options):
    process = start('-c', PROGRAM + body, **options)
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def test_an_error_does_not_wait_for_threads():
    """Those of a failed save wait for ten minutes."""
    body = """
import threading, time
from sagan_jax.errors import UserError
threading.Thread(target=time.sleep, args=(600,)).start()
raise UserError('Nothing works.')
"""
    assert ended(body) == (2, '', 'error: Nothing works.\n')


@pytest.mark.parametrize('number', LINES)
def test_a_signal_cleans_up_and_ends_in_one_line(number, tmp_path):
    body = f"""
from pathlib import Path
from sagan_jax.system.files import atomic_path
with atomic_path(Path({str(tmp_path)!r}) / 'a.npz') as temporary:
    temporary.write_text('half')
    os.kill(os.getpid(), {int(number)})
    signal.pause()
"""
    assert ended(body) == (128 + number, '', f'\n{LINES[number]}\n')
    assert list(tmp_path.iterdir()) == []


def test_a_signal_is_not_lost_in_a_library():
    # A finaliser, where Python ignores exceptions; and an import that makes another one of it.
    inside = """
import time
class Finalised:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
Finalised()
time.sleep(60)
"""
    assert ended(inside) == (143, '', f'\n{LINES[signal.SIGTERM]}\n')
    translated = """
try:
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()
except KeyboardInterrupt as error:
    raise ImportError('initialization failed') from error
"""
    assert ended(translated) == (130, '', f'\n{LINES[signal.SIGINT]}\n')


def test_a_second_signal_ends_at_once_but_a_second_hang_up_does_not():
    body = """
import time
try:
    os.kill(os.getpid(), signal.SIGHUP)
    signal.pause()
finally:
    os.kill(os.getpid(), signal.{second})
    time.sleep(0.1)
    print('cleaned up')
"""
    assert ended(body.format(second='SIGHUP'))[:2] == (129, 'cleaned up\n')
    assert ended(body.format(second='SIGTERM'))[:2] == (-signal.SIGTERM, '')


@pytest.mark.parametrize('environment', [{'PYTHONIOENCODING': 'ascii'}, {'LC_ALL': 'C'}])
def test_any_text_can_be_printed_to_any_terminal(environment):
    environment |= {'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}
    body = "output.drop_what_cannot_be_written()\nprint('8 \\xd7 caf\\xe9 \\udcff')"
    assert ended(body, env=environment) == (0, '8 \\xd7 caf\\xe9 \\udcff\n', '')


def test_a_run_outlives_its_output():
    body = """
output.drop_what_cannot_be_written()
for _ in range(3):
    print('text', flush=True)
os._exit(7)
"""
    with open('/dev/full', 'w') as full:
        status, _, errors = ended(body, stdout=full)
    said = 'warning        standard output is lost (No space left on device)\n'
    assert (status, errors) == (7, said)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, 'w') as pipe:
        assert ended(body, stdout=pipe)[::2] == (7, '')
    # Where the output is the result, its loss is an error.
    with open('/dev/full', 'w') as full:
        status, _, errors = ended("print('result')", stdout=full)
    assert status == 2
    assert errors.startswith('error: The output cannot be written (')
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, 'w') as pipe:  # as `| head` does
        assert ended("print('result')", stdout=pipe)[::2] == (128 + signal.SIGPIPE, '')


def hang_up(command, is_ready):
    """Runs a command on a terminal of its own, which is closed when `is_ready()`."""
    process_id, terminal = os.forkpty()
    if not process_id:
        os.chdir(ROOT)
        os.execve(command[0], command, os.environ | {'PYTHONPATH': str(ROOT)})
    deadline = time.monotonic() + 60
    while not is_ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.close(terminal)
    _, status = os.waitpid(process_id, 0)
    return os.waitstatus_to_exitcode(status)


def test_a_terminal_that_hangs_up_ends_a_run_after_its_step_and_is_not_restarted(tmp_path):
    """The run prints after the hang-up, and gets it once more from `until_done`."""
    body = f"""
{PROGRAM}
import time
from pathlib import Path
from sagan_jax.system.signals import collected
output.drop_what_cannot_be_written()
here = Path({str(tmp_path)!r})
with collected() as signals:
    (here / f'started{{os.getpid()}}').touch()
    while not signals:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGHUP)  # as some shells do
    print('interrupted at step 9', flush=True)
    (here / 'saved').touch()
sys.exit(128 + signals[0])
"""

    def started():
        return list(tmp_path.glob('started*'))

    until_done = [sys.executable, '-m', 'launch.until_done', '--']
    assert hang_up([*until_done, sys.executable, '-c', body], started) == 129
    assert (tmp_path / 'saved').exists()
    (only,) = started()
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(only.name.removeprefix('started')), 0)
        pytest.fail('the run was left behind')

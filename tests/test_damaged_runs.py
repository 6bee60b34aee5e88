"""Damaged files of runs: each reader goes on, or ends with one sentence. None has a traceback."""

import contextlib
import json
import shutil
import signal

import numpy as np
import pytest

from launch import report as sweep_report
from launch.sweep import runs
from sagan_jax.errors import UserError
from sagan_jax.evaluation import evaluate
from sagan_jax.images import image_grid, save_png
from sagan_jax.run import checkpoints, lock, provenance
from sagan_jax.run.folder import RunFolder
from sagan_jax.run.logs import RunLog
from sagan_jax.system import untrusted
from sagan_jax.trained import export, sample_files
from sagan_jax.trained.model import create_loader
from sagan_jax.viewing import answers, paper_figures, report
from sagan_jax.viewing.answers import Request
from tests import damage, tiny

CONFIG = tiny.config(ema__decay=0.5)
ROW = {
    'name': 'in_domain_fid50_train', 'value': 1.5, 'real_value': 0.5, 'std': 0.1, 'splits': 2,
    'step': 7, 'num_fake': 50, 'num_real': 36, 'data': 'x', 'split': 'train', 'image_size': 32,
    'features': 'in-domain-1', 'rounding': 'uint8', 'labels': 'uniform over 3', 'ema': 0.5,
    'batch_statistics': 'running averages', 'seed': 0, 'versions': {'jax': '0.10.2'},
    'per_class': {'a': 1.0},
}  # fmt: skip
STATE = {'kernel': np.arange(60, dtype=np.float32), 'step': np.int32(7)}
EXIT = {'mode': 'evaluate', 'status': 0, 'error': ''}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """A damaged lock may name another machine, for whose sign a process waits."""
    monkeypatch.setattr(lock, 'PATIENCE', 0.02)
    monkeypatch.setattr(lock, '_POLL', 0.01)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The workdir of a sweep with one run that has every file a run can have."""
    sweep = tmp_path_factory.mktemp('whole')
    folder = sweep / 'feat16' / 'seed0'
    run = RunFolder(folder)
    data = {'name': 'x', 'count': 36, 'class_names': ['class0', 'class1', 'class2']}
    run.write_record(provenance.record(CONFIG) | {'data': data})
    with contextlib.closing(checkpoints.open_manager(run.checkpoints, keep=1)) as manager:
        checkpoints.save_at_once(manager, 7, STATE, CONFIG)
    shutil.copytree(run.checkpoints, run.best)
    with RunLog(run, 0) as log, contextlib.redirect_stdout(None):
        for step in range(8):
            log.scalars(step, {'discriminator_loss': 1 / (step + 1), 'generator_gamma16': 0.1})
    for path in (run.grid(0), run.grid(7), run.reals, run.figures / 'attention_generator.png'):
        save_png(path, image_grid(np.full((30, 32, 32, 3), 100, np.uint8), 10))
    for step in (4, 7):
        run.write_scores(step, [ROW | {'step': step}, ROW | {'step': step, 'name': 'is50'}])
    with lock.owned(run):
        pass
    report.write(folder)
    for name, record in (
        (runs.EXIT, EXIT),
        ('generated/x/samples.json', {'step': 7, 'num_images': 9}),
        ('export/generator.json', {'step': 7, 'files': {}}),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(record))
    (folder / runs.LOG).write_text('devices        2 × cpu\n')
    (folder / runs.LOCK).write_text('host')
    record = {'config': 'configs/shapes.py', 'overrides': [], 'variants': {'feat16': {}}}
    (sweep / runs.RECORD).write_text(json.dumps(record | {'runs': [['feat16', 0]]}))
    return sweep


# ---- The readers: each takes the folder of a sweep with one run. -------------------------------


def resume(folder):
    """What training reads, as in `opening.open_run`."""
    run = RunFolder(folder / 'feat16' / 'seed0')
    with lock.owned(run):
        provenance.check_configuration(run, CONFIG)
        manager = checkpoints.open_manager(run.checkpoints, keep=3)
        with contextlib.closing(manager):
            restored = checkpoints.restore_newest(manager, STATE, CONFIG)
        with RunLog(run, 7 if restored else 0) as log:
            log.scalars(8, {'discriminator_loss': 0.1})
            assert run.metrics()[-1] == {'step': 8, 'discriminator_loss': 0.1}
        rows = [ROW | {'step': 8}]
        evaluate.is_best(CONFIG, run, rows, 7)
        evaluate.write(run, 7, rows)
        assert ROW | {'step': 8} in run.scores(7)


def reports(folder):
    report.write(folder / 'feat16' / 'seed0')


def sweep(folder):
    sweep_report.write(folder)


def sweep_progress(folder):
    run = runs.Run('feat16', 0, folder)
    runs.line(run, runs.state(run))
    runs.is_trained(run)


def serve(folder):
    answer = answers.create_answers(folder / 'feat16' / 'seed0')
    for path in ('/', '/draw', '/samples?n=99'):
        found = answer(Request(path))
        assert found.status in (200, 400, 503), found
        if found.status != 200:
            sentence(found.body.decode())


def load(folder):
    create_loader(folder / 'feat16' / 'seed0')
    run = RunFolder(folder / 'feat16' / 'seed0')
    for which in ('newest', 'best'):
        with checkpoints.chosen(CONFIG, run, which, STATE) as states:
            assert [step for step, _ in states] == [7]


def figures(folder):
    paper_figures._history(RunFolder(folder / 'feat16' / 'seed0'))


def outputs(folder):
    folder /= 'feat16/seed0'
    for check in (
        lambda: sample_files._check_record(folder / 'generated/x', {'step': 7, 'num_images': 9}),
        lambda: export._check_folder(folder / 'export'),
    ):
        with contextlib.suppress(UserError):
            check()


READERS = {  # with the parts of a run that each reads, beside config.json
    resume: ('run.lock', 'checkpoints', 'metrics.jsonl', 'evaluation', 'tensorboard'),
    reports: ('metrics.jsonl', 'evaluation', 'samples', 'figures', 'report.html'),
    sweep: ('sweep.json', 'metrics.jsonl', 'evaluation', 'samples', 'exit.json', 'log.txt'),
    sweep_progress: ('metrics.jsonl', 'exit.json', '.lock', 'run.lock', 'checkpoints'),
    serve: ('metrics.jsonl', 'samples'),
    load: ('checkpoints', 'best'),
    figures: ('metrics.jsonl',),
    outputs: ('generated', 'export'),
}


def readers_of(path):
    part = str(path).removeprefix('feat16/seed0/').partition('/')[0]
    return [reader for reader, parts in READERS.items() if part in ('config.json', *parts)]


def sentence(text):
    assert text.endswith('.'), text
    assert '\n' not in text, text
    assert len(text) < 1000, text


@contextlib.contextmanager
def within(seconds):
    """Raises TimeoutError if the block takes longer, as one that waits for a pipe's writer."""

    def ring(*_):
        raise TimeoutError(f'{seconds} seconds')

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check(whole, copy, damages, capsys):
    problems = []
    for each in damages:
        for reader in readers_of(each[1]):
            damage.damaged_copy(whole, copy, each)
            untrusted.warn_once.cache_clear()
            capsys.readouterr()
            try:
                with within(seconds=120):
                    reader(copy)
            except UserError as error:
                sentence(str(error))
            except Exception as error:
                problems.append((*each[:2], reader.__name__, repr(error)[:300]))
            printed = capsys.readouterr().out.splitlines()
            warned = [line for line in printed if line.startswith('warning')]
            if len(warned) != len(set(warned)):
                problems.append((*each[:2], reader.__name__, warned))
    assert not problems, '\n'.join(map(str, problems))


def test_the_whole_run_is_read(whole, tmp_path, capsys):
    for reader in READERS:
        shutil.copytree(whole, tmp_path / reader.__name__)
        capsys.readouterr()
        reader(tmp_path / reader.__name__)
        assert 'warning' not in capsys.readouterr().out


def test_some_damages(whole, tmp_path, capsys):
    check(whole, tmp_path / 'copy', damage.some(whole, every=40), capsys)


@pytest.mark.thorough
def test_all_damages(whole, tmp_path, capsys):
    found = list(damage.damages(whole))
    assert len(found) > 500
    check(whole, tmp_path / 'copy', found, capsys)

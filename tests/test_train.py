"""Whole runs: what they leave behind, how they resume, what they read of a configuration."""

import json
import os
import shutil
import signal
import sys
import types

import jax
import ml_collections
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

import sagan_jax
from sagan_jax import data, opening
from sagan_jax import train as training
from sagan_jax.errors import UserError
from sagan_jax.evaluation.evaluate import evaluate
from sagan_jax.metrics import in_domain
from sagan_jax.run import checkpoints, provenance
from sagan_jax.run.folder import RunFolder
from sagan_jax.run.logs import RunLog, Stopwatch
from sagan_jax.state import create_state
from sagan_jax.system import distributed
from sagan_jax.train import is_due, periodic_actions, save_best, train
from sagan_jax.train_step import create_train_step
from tests import tiny


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return tiny.picture_folder(tmp_path_factory.mktemp('pictures') / 'source')


def read_metrics(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def read_state(workdir, config):
    manager = checkpoints.open_manager(workdir / 'checkpoints')
    state = checkpoints.restore_newest(manager, create_state(config), config)
    manager.close()
    return state


# ---- What a run leaves, and which keys it reads. -----------------------------------------------


@pytest.fixture(scope='module')
def finished(pictures, tmp_path_factory):
    """A finished run of four steps, its output, and the keys of its configuration it read."""
    workdir = tmp_path_factory.mktemp('finished')
    config = tiny.folder_config(
        pictures,
        seed=3,
        batch_norm__standing_batches=2,
        num_train_steps=5,
        evaluate_every=5,
        watch__min_diversity=1e9,
        diff_augment='color,translation,cutout',
        lecam_weight=0.3,
        r1_weight=1.0,
        r1_every=2,
    )
    prefixes = {id(config): ''} | {
        id(value): f'{key}.'
        for key, value in config.items()
        if isinstance(value, ml_collections.ConfigDict)
    }
    read = set()
    readers = {name for name in sys.modules if name.startswith('sagan_jax.')} - {
        'sagan_jax.configuration.checks'
    }

    def recording(original):
        def get(self, key):
            # Copies and JSON read every key there is, and so do the checks of ranges.
            caller = sys._getframe(1).f_globals['__name__']
            if id(self) in prefixes and caller in readers:
                read.add(prefixes[id(self)] + key)
            return original(self, key)

        return get

    with pytest.MonkeyPatch.context() as patch:
        for method in ('__getattr__', '__getitem__'):
            original = getattr(ml_collections.ConfigDict, method)
            patch.setattr(ml_collections.ConfigDict, method, recording(original))
        patch.setattr(in_domain, 'STEPS', 10)
        train(config, workdir)
        evaluate(config, workdir)
        config.evaluation.update({'features': 'inception', 'inception_weights': '/nowhere.pb'})
        with pytest.raises(UserError, match='nowhere'):
            evaluate(config, workdir)
        config.evaluation.update({'features': 'in_domain', 'inception_weights': None})
        config.distributed.update({'coordinator': 'localhost:1', 'process_id': 1})
        with pytest.raises(UserError, match='process_id=1 is out of range: use 0'):
            distributed.joined(config).__enter__()
        config.distributed.update({'coordinator': '', 'process_id': 0})
        config.dataset.name = 'hf:nowhere'
        with pytest.raises(UserError, match='hf:nowhere names no data set'):
            data.load(config.dataset)
        config.dataset.name = 'image_folder'
        config.model.conditioning = 'acgan'  # whose step reads the weight of the classifier
        config.r1_weight = 0.0  # with which a step is not traced as a whole
        train_step, batch = create_train_step(config), tiny.batch(config)
        jax.eval_shape(lambda state: train_step(state, *batch), create_state(config))
        config.model.conditioning, config.r1_weight = 'projection', 1.0
    return config, workdir, read


def test_every_key_is_read(finished):
    config, _, read = finished
    keys = set(flatten_dict(json.loads(config.to_json()), sep='.'))
    assert len(keys) > 30
    assert keys - read == set()


def test_files_of_a_finished_run(finished):
    config, workdir, _ = finished
    assert {path.name for path in workdir.iterdir()} == {
        'config.json', 'metrics.jsonl', 'tensorboard', 'samples', 'checkpoints',
        'evaluation', 'best', 'report.html', 'run.lock',
    }  # fmt: skip
    record = json.loads((workdir / 'config.json').read_text())
    assert record['config'] == json.loads(config.to_json())
    assert record['data']['class_names'] == ['class0', 'class1', 'class2']
    assert record['versions']['jax'] == jax.__version__

    names = {path.name for path in (workdir / 'samples').iterdir()}
    assert names == {'reals.png', '000000.png', '000004.png', '000005.png'}
    for name in names:
        with Image.open(workdir / 'samples' / name) as image:
            assert image.size == (10 * 66 + 2, 3 * 66 + 2)  # ten columns, a row a class
    assert list((workdir / 'tensorboard').glob('events*'))

    metrics = read_metrics(workdir)
    assert [line['step'] for line in metrics] == [1, 2, 3, 4, 5, 5]  # the last holds scores
    assert all(np.isfinite(list(line.values())).all() for line in metrics)
    # The newest are kept, and the last step is among them although 2 does not divide it.
    steps = {int(path.name) for path in (workdir / 'checkpoints').iterdir()}
    assert steps == {2, 4, 5}


@pytest.mark.parametrize('steps', [1, 12, 13])
def test_actions_are_due_at_their_intervals_and_at_the_last_step(steps):
    config = ml_collections.ConfigDict({'num_train_steps': steps})
    due = [step for step in range(1, steps + 1) if is_due(config, step, 4, 0, 6)]
    assert due == sorted({n for n in (4, 6, 8, 12) if n <= steps} | {steps})
    assert not any(is_due(config, step, 0) for step in range(1, steps + 1))


def test_the_owner_is_confirmed_first_and_scores_come_before_the_checkpoint():
    config = ml_collections.ConfigDict(
        {'log_every': 1, 'sample_every': 1, 'checkpoint_every': 1, 'evaluate_every': 1}
    )
    names = [action.__name__ for _, action in periodic_actions(config)]
    order = [
        *('confirm_owner', 'draw_samples', 'log_metrics'),
        *('score_samples', 'save_checkpoint', 'write_report'),
    ]
    assert [name for name in names if name in order] == order


def test_a_sample_grid_shows_what_the_model_of_its_checkpoint_samples(finished):
    config, workdir, _ = finished
    with Image.open(workdir / 'samples' / '000004.png') as image:
        grid = np.asarray(image)
    cells = [
        grid[66 * row + 2 : 66 * (row + 1) : 2, 66 * column + 2 : 66 * (column + 1) : 2]
        for column in range(10)
        for row in range(3)
    ]
    images = sagan_jax.load(workdir, checkpoint=4).sample(n=30, seed=config.seed)
    np.testing.assert_array_equal(np.stack(cells), images)
    assert len(np.unique(images.reshape(30, -1), axis=0)) == 30


def test_rows_of_the_real_images_follow_the_classes(finished):
    with Image.open(finished[1] / 'samples' / 'reals.png') as image:
        grid = np.asarray(image)
    for row in range(3):  # class k was drawn with values from 80k to 80k + 59
        cell = grid[2 + 66 * row : 66 * (row + 1), 2:66]
        assert cell.min() >= 80 * row
        assert cell.max() < 80 * row + 60


def test_a_finished_run_stays_unchanged(finished, pictures, capsys):
    config, workdir, _ = finished
    (pictures / 'notes.txt').touch()  # named in the report on the data, and no other data set
    before = {p: p.read_bytes() for p in workdir.rglob('*') if p.suffix in ('.png', '.jsonl')}
    train(config, workdir)
    printed = capsys.readouterr().out
    assert '5 of 5 steps are done already' in printed
    assert ' 1 not used, files that are not images: notes.txt\n' in printed
    assert before == {p: p.read_bytes() for p in workdir.rglob('*') if p in before}


def test_another_configuration_is_refused_but_more_steps_are_accepted(finished):
    config, workdir, _ = finished
    other = config.copy_and_resolve_references()
    other.optimizer.generator_lr = 3e-4
    other.seed = 7
    other.log_every = 2
    with pytest.raises(UserError, match=r'optimizer.generator_lr \(0.0001 there, 0.0003 here\), '):
        train(other, workdir)
    with pytest.raises(UserError, match=r'seed \(3 there, 7 here\)') as caught:
        train(other, workdir)
    assert 'log_every' not in str(caught.value)
    assert json.loads((workdir / 'config.json').read_text())['config']['seed'] == 3

    longer = config.copy_and_resolve_references()
    longer.num_train_steps = 10
    provenance.check_configuration(RunFolder(workdir), longer)
    longer.optimizer.decay_from = 0.5  # then the rates depend on the number of steps
    with pytest.raises(UserError, match=r'num_train_steps \(5 there, 10 here\), optimizer.decay'):
        provenance.check_configuration(RunFolder(workdir), longer)
    longer.optimizer.decay_from = 1.0
    longer.steps_per_call = longer.log_every = 2
    longer.evaluate_every = 0
    with pytest.raises(UserError, match='checkpoint is of step 5, which is not a multiple'):
        train(longer, workdir)


def test_a_run_is_given_its_configuration_again(finished, tmp_path, capsys):
    config, whole, _ = finished
    workdir = tmp_path / 'run'
    shutil.copytree(whole, workdir)
    record = json.loads((workdir / 'config.json').read_text())
    (workdir / 'config.json').write_text('{')
    other = config.copy_and_resolve_references()
    other.seed = 7
    with pytest.raises(UserError, match=r'/5 belongs to another configuration, seed \(3 there, 7'):
        train(other, workdir)
    capsys.readouterr()
    train(config, workdir)
    assert capsys.readouterr().out.count('config.json could not be read and is written again') == 1
    written = json.loads((workdir / 'config.json').read_text())
    assert [written[key] for key in ('config', 'data')] == [record['config'], record['data']]


def test_other_images_are_refused(finished, pictures, tmp_path):
    config, workdir, _ = finished
    shutil.copytree(pictures, tmp_path / 'other')
    shutil.copyfile(pictures / 'class1' / '0.png', tmp_path / 'other' / 'class0' / '0.png')
    other = config.copy_and_resolve_references()
    other.dataset.source_dir = str(tmp_path / 'other')
    before = (workdir / 'config.json').read_bytes()
    for act in (train, evaluate):
        with pytest.raises(UserError, match=r'images of image_folder/.* with other contents\): re'):
            act(other, workdir)
    assert (workdir / 'config.json').read_bytes() == before


def test_a_run_goes_on_with_a_copy_of_its_images_bit_for_bit(finished, pictures, tmp_path):
    workdir, moved = finished[1], tmp_path / 'run'
    shutil.copytree(workdir, moved)
    for step in (4, 5):
        shutil.rmtree(moved / 'checkpoints' / str(step))
    shutil.copytree(pictures, tmp_path / 'copy', copy_function=shutil.copyfile)
    config = finished[0].copy_and_resolve_references()
    config.dataset.source_dir = str(tmp_path / 'copy')
    config.evaluate_every = 0
    train(config, moved)

    states = [read_state(path, config) for path in (workdir, moved)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    lines = [read_metrics(path)[:5] for path in (workdir, moved)]
    for line in [*lines[0], *lines[1]]:
        line.pop('images_per_second', None)
    assert lines[0] == lines[1]


def test_steps_that_do_not_divide_are_refused(pictures, tmp_path):
    config = tiny.folder_config(pictures, steps_per_call=2, num_train_steps=6, sample_every=3)
    with pytest.raises(UserError, match='log_every=1 is not a multiple of steps_per_call=2'):
        train(config, tmp_path / 'run')
    with pytest.raises(UserError, match='keep_checkpoints=0 should be from 1 to'):
        train(tiny.folder_config(pictures, keep_checkpoints=0), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('config.json', '{"model_type": "bert"}'),
        ('config.json', '[]'),
        ('metrics.jsonl', '{"step": 1, "accuracy": 0.5}\n'),
        ('report.html', 'mine'),
        ('samples/000000.png', 'mine'),
        ('tensorboard/events.out.tfevents.1', 'mine'),
        ('wandb/run-0123abcd.wandb', 'mine'),
    ],
)
def test_files_of_other_programs_are_not_replaced(tmp_path, name, text):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    with pytest.raises(UserError, match=rf'no run .* wrote \({name.split("/")[0]}\): choose'):
        train(tiny.config(), tmp_path)
    assert path.read_text() == text
    assert [p for p in tmp_path.rglob('*') if p.is_file() and p.name != 'run.lock'] == [path]


def test_divergence_stops_the_run_and_keeps_no_bad_checkpoint(pictures, tmp_path):
    config = tiny.folder_config(pictures, optimizer__discriminator_lr=1e30, num_train_steps=8)
    with pytest.raises(UserError, match=r'Training diverged.*not finite at step'):
        train(config, tmp_path)
    for leaf in jax.tree.leaves(read_state(tmp_path, config) or ()):
        assert np.isfinite(leaf).all()


def poisoned(create_train_step, at):
    """Parameters that are not finite after the step `at`, unless the run went back before."""

    def create(*args, **kwargs):
        train_step = create_train_step(*args, **kwargs)

        def run(state, *batch):
            state, metrics = train_step(state, *batch)
            if int(state.step) == at and not int(state.restarts):
                params = jax.tree.map(lambda leaf: leaf * np.nan, state.ema_params)
                state = state._replace(ema_params=params)
            return state, metrics

        return run

    return create


def test_a_diverged_run_resumes_with_different_noise(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(opening, 'create_train_step', poisoned(opening.create_train_step, at=6))
    config = tiny.folder_config(pictures, num_train_steps=8)
    with pytest.raises(UserError, match=r'diverged, with ema_params/.* at step 6; .* of step 4'):
        train(config, tmp_path)
    ended = read_metrics(tmp_path)
    config.divergence_restarts = 1
    capsys.readouterr()
    train(config, tmp_path)
    assert 'resumes from that checkpoint with different noise' in capsys.readouterr().out
    metrics = read_metrics(tmp_path)
    assert [line['step'] for line in metrics] == list(range(1, 9))
    assert metrics[:4] == ended[:4]
    assert metrics[4]['generator_loss'] != ended[4]['generator_loss']
    state = read_state(tmp_path, config)
    assert (int(state.step), int(state.restarts)) == (8, 1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_an_interrupted_scoring_is_repeated_on_resuming(finished, tmp_path, monkeypatch, capsys):
    config, workdir = finished[0], tmp_path
    shutil.copytree(finished[1], workdir, dirs_exist_ok=True)
    (path,) = (workdir / 'evaluation').iterdir()
    scores, lines = path.read_bytes(), read_metrics(workdir)
    # As it is when a signal comes while the last step is scored.
    path.unlink()
    (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines[:-1]))
    create_evaluator = opening.create_evaluator

    def signalled(*args, **kwargs):
        score = create_evaluator(*args, **kwargs)

        def run(step, variables):
            os.kill(os.getpid(), signal.SIGTERM)
            return score(step, variables)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(opening, 'create_evaluator', signalled)
        with pytest.raises(SystemExit) as ended:
            train(config, workdir)
    assert ended.value.code == 143
    assert 'interrupted    at step 5, which is saved' in capsys.readouterr().out
    assert not path.exists()
    train(config, workdir)
    assert len(read_metrics(workdir)) == len(lines)
    values = [json.loads(text) for text in (scores, path.read_text())]
    names = {row['name'] for row in values[1]}
    assert names <= {row['name'] for row in values[0]}
    assert 'in_domain_fid40_train' in names


def test_a_best_state_is_kept_until_it_is_saved(monkeypatch):
    saved = iter([False, False, True])
    asked = []

    def save_at_once(manager, *arguments):
        asked.append(arguments)
        return next(saved)

    monkeypatch.setattr(checkpoints, 'save_at_once', save_at_once)
    run = types.SimpleNamespace(best=None, config='config', unsaved_best=(4, 'state'))
    for _ in range(5):
        save_best(run)
    assert asked == [(4, 'state', 'config')] * 3
    assert run.unsaved_best is None


@pytest.mark.parametrize(
    ('backend', 'share', 'is_hinted'),
    [('gpu', 0.11, True), ('tpu', 0.9, True), ('gpu', 0.1, False), ('cpu', 0.9, False)],
)
def test_steps_per_call_is_recommended_once(monkeypatch, capsys, backend, share, is_hinted):
    stopwatch = Stopwatch(step=0)
    monkeypatch.setattr(stopwatch, 'share_of_calls', lambda: share)
    monkeypatch.setattr(jax, 'default_backend', lambda: backend)
    run = types.SimpleNamespace(stopwatch=stopwatch, config=tiny.config(), hinted=False)
    for step in (100, 200):
        training.hint_at_steps_per_call(run, step, None, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == is_hinted
    assert all(f'{share:.0%} of the time' in line for line in lines)
    assert all('--config.steps_per_call=10' in line for line in lines)


@pytest.mark.parametrize('error', [KeyError('x'), MemoryError(), UserError('It is damaged.')])
def test_a_report_never_ends_training(monkeypatch, tmp_path, capsys, error):
    def write(workdir):
        raise error

    monkeypatch.setattr(training.report, 'write', write)
    with RunLog(RunFolder(tmp_path), 0) as log:
        training.write_report(
            types.SimpleNamespace(log=log, folder=RunFolder(tmp_path)), 4, None, {}
        )
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith('warning ')
    assert 'raining continues' in line

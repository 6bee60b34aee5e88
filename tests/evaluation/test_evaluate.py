"""Scores of a run: their values and protocol, and that scoring does not change training."""

import json
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
import scipy.linalg

from sagan_jax import data, metrics, models, sampling
from sagan_jax.errors import UserError
from sagan_jax.evaluation import evaluate, evaluator, protocol
from sagan_jax.metrics import in_domain
from sagan_jax.run import checkpoints
from sagan_jax.run.entries import score_of
from sagan_jax.run.folder import RunFolder
from sagan_jax.sampling import create_freeze
from sagan_jax.state import create_state
from sagan_jax.streams import Stream, stream_key
from sagan_jax.train import train
from tests import tiny


@pytest.fixture(scope='module', autouse=True)
def short_recipe():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_domain, 'STEPS', 30)
        yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tiny.picture_folder(tmp_path_factory.mktemp('pictures') / 'source')


def configuration(folder, **overrides):
    return tiny.folder_config(folder, ema__decay=0.5, **overrides)


@pytest.fixture(scope='module')
def run(folder, tmp_path_factory):
    """A finished run with scores at steps 2 and 4."""
    config = configuration(folder, evaluate_every=2, keep_checkpoints=2)
    workdir = tmp_path_factory.mktemp('run')
    train(config, workdir)
    return config, workdir


def final_state(config, workdir, step=None):
    manager = checkpoints.open_manager(workdir / 'checkpoints')
    step = step or manager.latest_step()
    state = checkpoints.restore(manager, jax.eval_shape(lambda: create_state(config)), step, config)
    manager.close()
    return state


def by_name(rows):
    return {row['name']: row for row in rows}


# ---- Values. -----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def scored(run):
    """All scores, on eight devices and with a batch size that does not divide the samples."""
    config, workdir = run
    config = config.copy_and_resolve_references()
    config.evaluation.update({'intra_fid_samples': 7, 'batch_size': 16})
    (rows,) = evaluate.evaluate(config, workdir).values()
    return config, workdir, rows


def test_scores_equal_those_of_images_drawn_one_by_one(scored):
    config, workdir, rows = scored
    rows = by_name(rows)
    state = final_state(config, workdir)
    frozen = create_freeze(config)(state.averaged)
    generator, _ = models.create(config)
    apply = jax.jit(generator.apply, static_argnames='train')
    source = data.load(config.dataset)
    real = np.stack([example['image'] for example in source.examples])
    real_labels = np.array([example['label'] for example in source.examples])

    def draw(numbers, labels):
        z = [
            jax.random.normal(
                stream_key(config.seed, Stream.EVALUATION_NOISE, i), (config.model.z_dim,)
            )
            for i in numbers
        ]
        images, _ = apply(frozen, np.stack(z), labels, train=False)
        return np.asarray(sampling.to_uint8(images))

    labels = np.asarray(
        jax.random.randint(stream_key(config.seed, Stream.EVALUATION_LABELS), (50,), 0, 3)
    )
    with np.load(next((source.folder / 'sagan_jax').glob('classifier_*.npz'))) as archive:
        params = {'Conv_0': {}, 'Conv_1': {}, 'Conv_2': {}, 'Conv_3': {}, 'dense': {}}
        for layer, values in params.items():
            values.update({k: archive[f'params/{layer}/{k}'] for k in ('kernel', 'bias')})

    def features(images):
        return in_domain.apply({'params': params}, images)

    fakes = features(draw(range(50), labels))
    x, y = (np.asarray(f['features'], np.float64) for f in (features(real), fakes))

    def frechet(x, y):
        a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
        root = scipy.linalg.sqrtm(a @ b + 1e-12 * np.eye(len(a))).real
        return np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b - 2 * root)

    assert rows['in_domain_fid50_train']['value'] == pytest.approx(frechet(x, y), rel=2e-3)
    assert rows['in_domain_is50']['value'] == pytest.approx(
        metrics.inception_score(fakes['logits'], 2)[0], rel=1e-4
    )
    precision, recall = metrics.precision_recall(x[:30], y[:30], 3)
    assert rows['in_domain_precision30_train']['value'] == pytest.approx(precision)
    assert rows['in_domain_recall30_train']['value'] == pytest.approx(recall)
    share = np.mean(fakes['logits'].argmax(-1) == labels)
    assert rows['in_domain_class_share50']['value'] == pytest.approx(share)
    assert rows['in_domain_class_share50']['real_value'] == 1

    per_class = rows['in_domain_intra_fid21_train']['per_class']
    assert list(per_class) == ['class0', 'class1', 'class2']
    for label, value in enumerate(per_class.values()):
        numbers = np.arange(50 + 7 * label, 57 + 7 * label)
        fake = features(draw(numbers, np.full(7, label)))['features']
        with pytest.warns(UserWarning, match='12 real and 7 fake'):
            expected = metrics.fid(x[real_labels == label], fake)
        assert value == pytest.approx(expected, rel=1e-3)
    mean = rows['in_domain_intra_fid21_train']['value']
    assert mean == pytest.approx(np.mean(list(per_class.values())))


@pytest.mark.parametrize(('devices', 'batch_size'), [(1, 25), (1, 64), (8, 8)])
def test_scores_do_not_depend_on_devices_or_batch_size(scored, monkeypatch, devices, batch_size):
    config, workdir, rows = scored
    other = config.copy_and_resolve_references()
    other.evaluation.batch_size = batch_size
    monkeypatch.setattr(jax, 'local_devices', lambda: jax.devices()[:devices])
    (again,) = evaluate.evaluate(other, workdir, 4).values()
    assert [row['name'] for row in again] == [row['name'] for row in rows]
    for row, expected in zip(again, rows, strict=True):
        assert row['value'] == pytest.approx(expected['value'], rel=1e-4, abs=1e-6)


# ---- The protocol. -----------------------------------------------------------------------------


def test_every_score_carries_its_protocol(scored):
    _, workdir, rows = scored
    assert [row['name'] for row in rows] == [
        'in_domain_fid50_train',
        'in_domain_is50',
        'in_domain_kid30_train',
        'in_domain_precision30_train',
        'in_domain_recall30_train',
        'in_domain_density30_train',
        'in_domain_coverage30_train',
        'in_domain_fid_infinity30_train',
        'in_domain_intra_fid21_train',
        'in_domain_class_share50',
    ]
    text = (workdir / 'evaluation' / '000004.json').read_text()
    written = json.loads(text)
    assert len(text.splitlines()) == len(written) + 2  # one score per line
    # The scores of 40 samples that training wrote are kept, and no score is repeated.
    names = [row['name'] for row in written]
    assert names == [
        'in_domain_fid40_train', 'in_domain_is40', 'in_domain_class_share40',
        *(row['name'] for row in rows),
    ]  # fmt: skip
    for row in rows:
        assert row['step'] == 4
        assert row['features'] == 'in-domain-1'
        assert len(row['features_sha256']) == 64
        assert row['data'].startswith('image_folder/32px_')
        assert row['image_size'] == 32
        assert (row['split'], row['rounding'], row['resize']) == ('train', 'uint8', 'none')
        assert row['labels'] == 'uniform over 3'
        assert row['ema'] == 0.5
        assert row['batch_statistics'] == 'running averages'
        assert row['seed'] == 0
        assert row['versions']['jax'] == jax.__version__
    rows = by_name(rows)
    assert (rows['in_domain_fid50_train']['num_real'], rows['in_domain_is50']['splits']) == (36, 2)
    assert rows['in_domain_kid30_train']['num_real'] == 30


def test_scores_without_rounding_say_so(scored):
    config, workdir, rows = scored
    other = config.copy_and_resolve_references()
    other.evaluation.round_to_uint8 = False
    other.evaluation.update({'pair_samples': 0, 'intra_fid_samples': 0, 'splits': 1})
    (floats,) = evaluate.evaluate(other, workdir).values()
    assert {row['rounding'] for row in floats} == {'none'}
    assert floats[0]['value'] == pytest.approx(rows[0]['value'], rel=0.1)
    assert floats[0]['value'] != rows[0]['value']


def test_names_of_rows():
    for score, num_samples, from_classifier, name in (
        ('fid', 50_000, False, 'fid50k_test'),
        ('fid', 10_000, True, 'in_domain_fid10k_test'),
        ('is', 50_000, False, 'is50k'),
        ('class_share', 1000, True, 'in_domain_class_share1k'),
        ('colour_agreement', 1000, True, 'colour_agreement1k'),
    ):
        assert protocol.row_name(score, num_samples, 'test', from_classifier) == name
        assert score_of(name) == score


def test_scores_are_comparable_under_the_same_conditions(scored):
    row = by_name(scored[2])['in_domain_fid50_train']
    others = {'value': 1.0, 'real_value': 2.0, 'std': 0.1, 'per_class': {}, 'versions': {}}
    systems = {'seed': 5, 'step': 2, 'ema': 0.0, 'batch_statistics': '8 standing batches of 64'}
    assert protocol.identity(row | others) == protocol.identity(row)
    assert protocol.conditions(row | others | systems) == protocol.conditions(row)
    for key in row.keys() - others.keys():
        changed = row | {key: 'other'}
        assert protocol.identity(changed) != protocol.identity(row)
        assert (protocol.conditions(changed) == protocol.conditions(row)) == (key in systems)


# ---- The run. ----------------------------------------------------------------------------------


def test_training_is_the_same_with_and_without_evaluation(run, folder, tmp_path):
    config, workdir = run
    train(configuration(folder, keep_checkpoints=2), tmp_path)
    chex.assert_trees_all_equal(final_state(config, workdir), final_state(config, tmp_path))
    assert not (tmp_path / 'evaluation').exists()


def test_training_writes_scores(run):
    _, workdir = run
    scored = {path.name for path in (workdir / 'evaluation').iterdir()}
    assert scored == {'000002.json', '000004.json'}
    values = {
        step: by_name(RunFolder(workdir).scores(step))['in_domain_fid40_train']['value']
        for step in (2, 4)
    }
    best = min(values, key=values.get)
    assert [path.name for path in (workdir / 'best').iterdir()] == [str(best)]
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    logged = {x['step']: x['in_domain_fid40_train'] for x in lines if 'in_domain_fid40_train' in x}
    assert logged == values


def test_a_better_score_is_the_best(tmp_path):
    config = tiny.config()
    for best, worse, better in (('fid', 3, 1), ('is', 1, 3)):
        config.evaluation.best = best
        name = protocol.row_name(best, 40, 'train', in_domain=True)
        counts = {'step': 2, 'num_fake': 40, 'num_real': 40}
        row = {'name': name, 'value': 2, 'data': 'shapes', 'split': 'train'} | counts
        evaluate.write(RunFolder(tmp_path), 2, [row])
        assert evaluate.is_best(config, RunFolder(tmp_path), [row | {'value': better}], 2)
        assert not evaluate.is_best(config, RunFolder(tmp_path), [row | {'value': worse}], 2)
        assert evaluate.is_best(config, RunFolder(tmp_path), [row | {'value': worse}], None)


def test_checkpoints_are_chosen_by_name_or_step(run, capsys):
    config, workdir = run
    quick = config.copy_and_resolve_references()
    quick.evaluation.pair_samples = 0
    assert list(evaluate.evaluate(quick, workdir, 'all')) == [2, 4]
    assert 'fid50_train' in capsys.readouterr().out
    assert list(evaluate.evaluate(quick, workdir, '2')) == [2]
    assert len(evaluate.evaluate(quick, workdir, 'best')) == 1
    with pytest.raises(UserError, match=r'no checkpoint 3 in .* one of 2, 4'):
        evaluate.evaluate(quick, workdir, '3')


# ---- Errors. -----------------------------------------------------------------------------------


def test_a_run_without_checkpoints_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r'There is no checkpoint in .*: train first'):
        evaluate.evaluate(configuration(folder), tmp_path)


def test_a_checkpoint_without_a_generator_is_refused(run, tmp_path):
    config, workdir = run
    manager = checkpoints.open_manager(tmp_path / 'checkpoints', keep=1)
    checkpoints.save(manager, 7, {'weights': np.zeros(3)}, config)
    manager.close()
    (tmp_path / 'config.json').write_bytes((workdir / 'config.json').read_bytes())
    with pytest.raises(UserError, match='/7 does not match the generator'):
        evaluate.evaluate(config, tmp_path)


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'features': 'inception', 'inception_weights': '/nowhere.pb'}, 'no file of Inception'),
        ({'splits': 40}, 'has 36 train images, but the scores need at least 40'),
        ({'split': 'test'}, 'has no split test'),
    ],
)
def test_settings_without_enough_data_are_refused(folder, overrides, message):
    config = configuration(folder)
    config.evaluation.update(overrides)
    settings = config.evaluation
    with pytest.raises(UserError, match=message):
        evaluator.create_evaluator(
            config, data.load(config.dataset), settings.num_samples, settings.pair_samples
        )


@pytest.mark.parametrize('classes', [3, 14])
def test_intra_fid_of_a_class_with_one_image_is_refused_before_drawing(classes):
    names = tuple(f'class{index}' for index in range(classes))
    source = data.Source([], names, 32, name='made/1', split='test', folder=Path(), content=None)
    evaluator._check_classes(source, np.arange(2 * classes) % classes)
    message = f'{classes - 1} classes have fewer .class1, class2.*: add images, .*_samples=0'
    with pytest.raises(UserError, match=message) as error:
        evaluator._check_classes(source, np.array([0, 0, 1]))
    assert ('and others' in str(error.value)) == (classes > 10)


def test_a_failed_evaluation_changes_no_scores(run, monkeypatch):
    config, workdir = run
    before = {path: path.read_bytes() for path in (workdir / 'evaluation').iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(evaluator, 'compare', lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate.evaluate(config, workdir)
    assert before == {path: path.read_bytes() for path in (workdir / 'evaluation').iterdir()}

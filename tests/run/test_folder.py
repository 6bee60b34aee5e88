"""One reader for each file of a run, whatever a killed or running job has left in it."""

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagan_jax.configuration import defaults
from sagan_jax.errors import UserError
from sagan_jax.run import provenance
from sagan_jax.run.folder import RunFolder
from tests import tiny

LATER_KEYS = (  # not in 0.1.0
    'mismatch_weight',
    'mode_seeking_weight',
    'matmul_precision',
    'deterministic',
    'diff_augment',
    'lecam_weight',
    'r1_weight',
    'r1_every',
    'optimizer.decay_from',
)


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path)


@pytest.fixture
def old(run):
    """A run of a version without `LATER_KEYS`; its configuration, as a ConfigDict."""
    config = tiny.config(optimizer__b2=0.75)
    record = json.loads(json.dumps(provenance.record(config)))
    for key in LATER_KEYS:
        *section, name = key.split('.')
        del (record['config'][section[0]] if section else record['config'])[name]
    run.write_record(record)
    return config


# ---- Metrics. ----------------------------------------------------------------------------------


def lines_of(rows):
    return [json.dumps(row).encode() for row in rows]


def test_a_file_cut_anywhere_gives_all_its_whole_lines(run):
    rows = [{'step': 5 * i, 'loss': -0.1 / (i + 1), 'rate': 12.0} for i in range(6)]
    whole = b''.join(line + b'\n' for line in lines_of(rows))
    for end in range(len(whole) + 1):
        run.metrics_jsonl.write_bytes(whole[:end])
        assert run.metrics() == rows[: whole[:end].count(b'}')]


def test_a_file_read_from_anywhere_gives_all_its_later_lines(run):
    rows = [{'step': step, 'loss': 1 / (step + 1)} for step in range(9)]
    whole = b''.join(line + b'\n' for line in lines_of(rows))
    run.metrics_jsonl.write_bytes(whole)
    for tail in range(1, len(whole) + 9):
        begun = whole[-tail:] if tail < len(whole) else b'\n' + whole
        assert run.metrics(tail) == (rows[-found:] if (found := begun.count(b'\n') - 1) else [])


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=20),
            st.sampled_from(
                [b'', b' ', b'null', b'7', b'[]', b'{}', b'{"loss": 1}', b'{"step": "2"}',
                 b'{"step": 2, "loss": "low"}', b'{"step": 2, "loss": nul', b'[' * 100_000,
                 b'{"step": true}', b'\xff\xfe{\x00', b'\xef\xbb\xbf{"step": 3}']
            ),
        ),
        max_size=5,
    )
)  # fmt: skip
def test_lines_of_anything_else_are_skipped(tmp_path_factory, rubbish):
    run = RunFolder(tmp_path_factory.mktemp('run'))
    rows = [{'step': step, 'loss': 0.5} for step in range(1, 7)]
    lines = lines_of(rows)
    for index, line in enumerate(rubbish):
        lines.insert(2 * index, line.replace(b'\n', b''))
    run.metrics_jsonl.write_bytes(b'\n'.join(lines))
    assert run.metrics() == rows


def test_the_later_value_of_a_step_counts(run):
    rows = [
        {'step': 1, 'loss': 1.0},
        {'step': 2, 'loss': 2.0},
        {'step': 2, 'fid': 20.0},
        {'step': 3, 'loss': 3.0},
        {'step': 2, 'loss': 2.5},  # resumed
    ]
    run.metrics_jsonl.write_bytes(b'\n'.join(lines_of(rows)))
    assert run.metrics() == [
        {'step': 1, 'loss': 1.0},
        {'step': 2, 'loss': 2.5, 'fid': 20.0},
        {'step': 3, 'loss': 3.0},
    ]


def test_values_that_are_not_finite_are_read(run):
    run.metrics_jsonl.write_text('{"step": 1, "a": NaN, "b": Infinity}\n{"step": 2, "a": 1')
    (row,) = run.metrics()
    assert math.isnan(row['a'])
    assert row['b'] == math.inf


def test_a_run_without_a_log_has_no_metrics(run):
    assert run.metrics() == []
    assert RunFolder(run.path / 'nowhere').metrics() == []


# ---- Scores and grids. -------------------------------------------------------------------------


ROW = {
    'name': 'fid50',
    'value': 1.5,
    'step': 7,
    'num_fake': 50,
    'num_real': 36,
    'data': 'Übung',
    'split': 'train',
}


def test_scores_are_read_as_they_were_written(run):
    rows = [ROW, ROW | {'name': 'is50', 'value': 2}]
    assert run.scores(7) == []
    path = run.write_scores(7, rows)
    assert path.read_text().count('\n') == 4  # one score per line, between two brackets
    run.write_scores(1_000_000, rows[:1])
    (run.evaluation / 'notes.json').write_text('{}')
    assert run.all_scores() == {7: rows, 1_000_000: rows[:1]}


@pytest.mark.parametrize(
    'text',
    ['', '[', '[{"name": "fid"', '{}x', '7', 'null', '{"name": "fid"}', '[7]', '["fid"]', '[[]]',
     '[{"name": "fid"}]', '[{"value": 1}]', '[' * 10**5, '\x00\x00\x00',
     *(json.dumps([{k: v for k, v in ROW.items() if k != key}]) for key in ROW),
     *(json.dumps([ROW | {key: None}]) for key in ROW),
     *(json.dumps([ROW | {'value': value}]) for value in (10**400, 1e60, True, '1')),
     *(json.dumps([ROW | {'step': value}]) for value in (-1, 10**12, 1.0)),
     *(json.dumps([ROW | {'name': name}]) for name in ('', 'fid', 'my score', 'fid50k/x'))],
)  # fmt: skip
def test_damaged_or_foreign_scores_are_named_once_and_kept(run, text, capsys):
    run.write_scores(7, []).write_text(text)
    run.write_scores(8, [ROW])
    for _ in range(2):
        assert run.all_scores() == {7: [], 8: [ROW]}
    (warning,) = capsys.readouterr().out.splitlines()
    assert str(run.scores_json(7)) in warning
    run.write_scores(7, [ROW])
    assert run.all_scores() == {7: [ROW], 8: [ROW]}
    (aside,) = run.evaluation.glob('000007.damaged-*')
    assert aside.read_text() == text


def test_sound_scores_beside_damaged_ones_are_read(run, capsys):
    run.write_scores(7, [ROW, ROW | {'value': 'low'}])
    assert run.scores(7) == [ROW]
    assert '000007.json has 1 scores that cannot be read' in capsys.readouterr().out


def test_grids_and_checkpoints_come_by_step(run):
    odd = '2.png', '٠٠٠٠٠٤.png', '0000005.png', f'{10**12}.png', '-00001.png', '000006.png.png'
    for name in ('000010.png', '1000000.png', 'reals.png', '000002.png', '000003.jpg', *odd):
        (run.samples / name).parent.mkdir(exist_ok=True)
        (run.samples / name).touch()
    assert list(run.grids()) == [2, 10, 1_000_000]
    assert run.grids()[2] == run.grid(2)
    for name in ('10', '9', '8.orbax-checkpoint-tmp-3', 'checkpoint', '007', '٧'):
        (run.checkpoints / name).mkdir(parents=True)
    (run.checkpoints / '6').touch()
    assert run.checkpoint_steps() == [9, 10]
    assert RunFolder(run.path / 'nowhere').checkpoint_steps() == []


# ---- Configurations. ---------------------------------------------------------------------------


def test_a_configuration_is_read_as_it_was_written(run):
    config = tiny.config(distributed__coordinator='auto', model__generator_attention=(8, 16))
    run.write_record(provenance.record(config))
    config.distributed.coordinator = ''
    assert run.config().to_dict() == config.to_dict()
    assert run.config().is_locked


def test_later_keys_have_their_defaults_in_an_old_run(run, old):
    found = run.config()
    assert found.to_dict() == old.to_dict()
    assert found.optimizer.b2 == 0.75
    assert found.optimizer.decay_from == defaults.get_config().optimizer.decay_from
    assert run.record()['config'] == json.loads(old.to_json())


@pytest.mark.parametrize(
    ('key', 'value', 'difference'),
    [
        ('mismatch_weight', 1.0, r'mismatch_weight \(0.0 there, 1.0'),
        ('matmul_precision', 'highest', r'matmul_precision \(default there, highest'),
    ],
)
def test_an_old_run_is_resumed_unless_a_later_key_is_set(run, old, key, value, difference):
    (run.checkpoints / '2').mkdir(parents=True)
    provenance.check_configuration(run, old)
    old[key] = value
    with pytest.raises(UserError, match=f'another configuration, {difference}'):
        provenance.check_configuration(run, old)


@pytest.mark.parametrize('key', ['model.depth', 'depth'])
def test_a_run_with_keys_of_another_version_is_refused(run, key):
    config = tiny.config()
    (config.model if '.' in key else config).depth = 3
    run.write_record(provenance.record(config) | {'version': '9.9', 'commit': 'f' * 40})
    with pytest.raises(UserError, match=rf'another version .*9\.9, commit f+\), .* {key}: use'):
        run.config()


DECIDED = json.dumps(
    {
        'dataset': {'num_classes': 3},
        'model': {'generator_attention': [], 'discriminator_attention': []},
    }
)


@pytest.mark.parametrize(
    ('text', 'why'),
    [
        ('', 'Expecting value'),
        ('{', 'Expecting property name'),
        ('null', 'it holds no configuration'),
        ('7', 'it holds no configuration'),
        ('[]', 'it holds no configuration'),
        ('{}', 'it holds no configuration'),
        ('{"config": 7}', 'it holds no configuration'),
        ('{"config": {"model": 7}}', 'model=7 should be a section with keys'),
        ('{"config": {"seed": "one"}}', "seed='one' should be an integer"),
        ('\x00', 'Expecting value'),
        ('[' * 10**5, 'nested too deeply'),
        ('"\\ud800"', 'not UTF-8'),
        ('{"config": {"dataset": {"num_classes": 1000000000000000000}}}',
         'dataset.num_classes=1000000000000000000 should be from 0 to 1000000'),
        ('{"config": {"model": {"generator_attention": [[16]]}}}',
         'model.generator_attention=a list should be a tuple of integers'),
        ('{"config": {"dataset": {"image_size": 1048576}}}',
         'There are no networks for dataset.image_size=1048576: set'),
        ('{"config": {}}', 'the number of classes, the attention or diff_augment is missing'),
        (f'{{"config": {DECIDED}, "data": {{"class_names": ["a"]}}}}',
         'data.class_names should be as'),
        (f'{{"config": {DECIDED}, "versions": 7, "data": {{"count": "x"}}}}',
         'data.count, versions should'),
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_config_is_no_run(run, text, why):
    with pytest.raises(UserError, match=r'There is no run in .*config\.json cannot be read \(No'):
        run.config()
    run.config_json.write_text(text)
    with pytest.raises(
        UserError, match=rf'config\.json, cannot be used \({re.escape(why)}.*\): corr'
    ):
        run.config()

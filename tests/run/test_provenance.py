"""A run keeps the configuration with which it began, from its first moment on."""

import pytest
from flax.traverse_util import flatten_dict

from sagan_jax.errors import UserError
from sagan_jax.run import provenance
from sagan_jax.run.folder import RunFolder
from tests import tiny

# Lengths, intervals, places, speeds and rounding.
FREE = {
    *('num_train_steps', 'steps_per_call', 'log_every', 'sample_every', 'checkpoint_every'),
    *('keep_checkpoints', 'evaluate_every', 'divergence_restarts', 'dataset.data_dir'),
    *('dataset.source_dir', 'dataset.revision', 'dataset.on_device', 'deterministic'),
}
KEYS = [
    key
    for key in flatten_dict(tiny.config().to_dict(), sep='.')
    if key.partition('.')[0] not in ('evaluation', 'watch', 'logging', 'distributed')
]


def changed(key):
    config = tiny.config().unlock()
    before = flatten_dict(config.to_dict(), sep='.')[key]
    if isinstance(before, tuple):
        other = (*before, 4)
    elif isinstance(before, str) or before is None:
        other = f'{before}x'
    else:
        other = not before if isinstance(before, bool) else before + 1
    with config.ignore_type():
        config.update_from_flattened_dict({key: other})
    return config


@pytest.fixture(params=['without checkpoints', 'with checkpoints'])
def run(request, tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_record(provenance.record(tiny.config()))
    if request.param == 'with checkpoints':
        (folder.checkpoints / '2').mkdir(parents=True)
    return folder


@pytest.mark.parametrize('key', KEYS)
def test_a_key_that_decides_results_cannot_change(run, key):
    provenance.check_configuration(run, tiny.config())
    if key in FREE:
        provenance.check_configuration(run, changed(key))
        return
    before = run.config_json.read_bytes()
    with pytest.raises(UserError, match=rf'The run in .* another configuration, {key} \(') as found:
        provenance.check_configuration(run, changed(key))
    assert str(found.value).endswith('no checkpoints.') != run.checkpoints.exists()
    assert run.config_json.read_bytes() == before


def test_the_number_of_steps_cannot_change_if_the_rates_depend_on_it(run):
    config = tiny.config(optimizer__decay_from=0.5)
    run.write_record(provenance.record(config))
    config.num_train_steps += 1
    with pytest.raises(UserError, match=r'num_train_steps \(4 there, 5 here\)'):
        provenance.check_configuration(run, config)


def test_a_configuration_that_cannot_be_read_counts_only_with_checkpoints(run):
    for spoil in (lambda: run.config_json.write_text('{'), run.config_json.unlink):
        spoil()
        if run.checkpoints.exists():
            with pytest.raises(UserError, match=r'config\.json, cannot be used \('):
                provenance.check_configuration(run, tiny.config())
        else:
            assert not provenance.check_configuration(run, tiny.config())
        has_checkpoints = run.checkpoints.exists()
        again = provenance.check_configuration(run, tiny.config(), may_give_again=True)
        assert again == has_checkpoints


def test_a_configuration_that_can_be_read_is_not_given_again(run):
    assert not provenance.check_configuration(run, tiny.config(), may_give_again=True)
    with pytest.raises(UserError, match='belongs to another configuration'):
        provenance.check_configuration(run, tiny.config(seed=1), may_give_again=True)

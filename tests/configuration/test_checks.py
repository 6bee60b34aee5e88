"""One function refuses invalid configurations, each in one sentence."""

import contextlib

import jax
import ml_collections
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagan_jax.configuration import checks, defaults
from sagan_jax.errors import UserError
from sagan_jax.state import create_state, state_shapes
from tests import tiny

# Free text: names, lists of names, paths and addresses.
FREE_TEXT = {
    'dataset.name',
    'dataset.data_dir',
    'dataset.source_dir',
    'dataset.revision',
    'dataset.image_key',
    'dataset.label_key',
    'diff_augment',
    'distributed.coordinator',
    'evaluation.inception_weights',
    'init.run',
    'logging.wandb_project',
}


def keys_of(kinds):
    """The dotted names of all keys whose default is one of these types."""
    config = defaults.get_config()
    sections = {'': config} | {
        f'{name}.': section for name, section in config.items() if hasattr(section, 'items')
    }
    return {
        prefix + name
        for prefix, section in sections.items()
        for name in section
        if section.get_type(name) in kinds
    }


def test_every_number_and_every_text_has_a_range_or_choices():
    """Fails for a new key without."""
    checked = keys_of({int, float, str}) - FREE_TEXT - {'dataset.image_size'}
    assert checked == checks.RANGES.keys() | checks.CHOICES.keys()


def test_the_defaults_and_tiny_networks_are_accepted():
    checks.check(defaults.get_config())
    checks.check(tiny.config())
    checks.check(tiny.config(ema__decay=1.0))
    checks.check(tiny.config(diff_augment='cutout,color'))
    checks.check(tiny.config(steps_per_call=2, log_every=2, r1_every=3))  # without its weight


@pytest.mark.parametrize('key', [key for key in checks.CHOICES if key.startswith('model.')])
def test_every_choice_of_networks_exists(key):
    """Networks accept every choice; they do not check names themselves."""
    for choice in checks.CHOICES[key]:
        config = tiny.config(**{key: choice})
        if choice == 'dcgan':
            config.model.update(
                {'conditioning': 'none', 'generator_attention': (), 'discriminator_attention': ()}
            )
        checks.check(config)
        jax.eval_shape(lambda config=config: create_state(config))


@pytest.mark.parametrize(
    ('overrides', 'sentence'),
    [
        ({'optimizer__b1': 1.0}, 'optimizer.b1=1.0 should be at least 0 and below 1'),
        ({'optimizer__b1': float('nan')}, 'optimizer.b1=nan should be'),
        ({'evaluation__batch_size': 0}, 'batch_size=0 should be from 1 to 65536'),
        ({'model__attention_query_block': -1}, 'query_block=-1 should be from 0 to'),
        ({'loss': 'wgan'}, "^loss='wgan' should be hinge or non_saturating.$"),
        ({'dtype': 'float16'}, "dtype='float16' should be float32 or bfloat16"),
        ({'model__architecture': 'vgg'}, "='vgg' should be sagan, pyramid or dcgan"),
        ({'model__attention_block': 'mlp'}, "model.attention_block='mlp' should be"),
        ({'model__conditioning': 'concat'}, "='concat' should be projection, acgan or none"),
        ({'model__initializer': 'zeros'}, "model.initializer='zeros' should be"),
        ({'evaluation__features': 'vgg'}, "features='vgg' should be inception or in_domain"),
        ({'evaluation__split': 'both'}, "split='both' should be train or test"),
        ({'evaluation__best': 'kid'}, "best='kid' should be fid or is"),
        (
            {'steps_per_call': 2, 'sample_every': 3, 'log_every': 2},
            'sample_every=3 is not a multiple of steps_per_call=2',
        ),
        ({'steps_per_call': 2, 'log_every': 2, 'evaluate_every': 5}, 'evaluate_every=5 is not'),
        ({'dataset__image_size': 50}, '=50: set --config.dataset.image_size=48 or 64, the near'),
        ({'dataset__image_size': 4}, '=4: set .*=24 or 32, the nearest of 24, 32, 48, .*, 1024.$'),
        ({'dataset__image_size': 2**40}, '=1099511627776: set .*=768 or 1024, the nearest'),
        (
            {'dataset__image_size': 48},
            'generator_attention asks for 16, but the generator has feature maps of 6, 12, 24, 48',
        ),
        (  # 3 is odd, and keys are pooled 2×2
            {
                'dataset__image_size': 24,
                'model__generator_attention': (),
                'model__discriminator_attention': (3,),
            },
            'discriminator_attention asks for 3, .* feature maps of 6, 12: choose',
        ),
        (
            {'steps_per_call': 2, 'log_every': 2, 'r1_weight': 1.0, 'r1_every': 3},
            'r1_every=3 is not a multiple of steps_per_call=2',
        ),
        ({'diff_augment': 'colour'}, "='colour' should be names from color, translation, cutout, "),
        ({'diff_augment': 'color, cutout'}, 'with commas and no spaces between'),
        ({'diff_augment': 'cutout,cutout'}, 'each at most once'),
        ({'diff_augment': 'cutout,'}, "='cutout,' should be names from"),
        ({'model__generator_attention': (12,)}, 'generator_attention asks for 12.*8, 16, 32'),
        ({'model__discriminator_attention': (32,)}, 'discriminator_attention asks for 32.*4, 8'),
        (
            {'model__attention_query_block': 48},
            '=48 does not divide the 256 queries .* such as 16, or 0',
        ),
        ({'model__architecture': 'dcgan'}, "dcgan has no conditioning 'projection'"),
        (
            {'model__architecture': 'dcgan', 'model__conditioning': 'none'},
            'takes no attention: set --config.model.generator_attention',
        ),
        ({'dataset__num_classes': 0}, 'model.conditioning=projection needs classes'),
        ({'optimizer__frozen_discriminator_blocks': 5}, '=5 exceeds the 4 residual blocks'),
        (
            {'batch_norm__class_tables': 'drawn', 'model__conditioning': 'none'},
            'without classes has no class tables',
        ),
        ({'spectral_norm__class_tables': True}, 'class_tables needs .*class_tables=drawn'),
        (
            {
                'batch_norm__class_tables': 'drawn',
                'spectral_norm__class_tables': True,
                'spectral_norm__generator': False,
            },
            'needs --config.spectral_norm.generator=True',
        ),
        (
            {'mismatch_weight': 0.5, 'model__conditioning': 'none'},
            'mismatch_weight=0.5 needs --config.model.conditioning',
        ),
        (
            {'mismatch_weight': 0.5, 'model__conditioning': 'acgan'},
            'mismatch_weight=0.5 needs --config.model.conditioning',
        ),
        ({'mismatch_weight': 0.5, 'dataset__num_classes': 1}, 'mismatch_weight=0.5 needs'),
        (
            {'evaluation__num_samples': 5, 'evaluation__splits': 10},
            'num_samples=5 is too few for 10 splits',
        ),
        (
            {'evaluation__training_samples': 1, 'evaluate_every': 4},
            'training_samples=1 is too few for 2 splits',
        ),
        ({'evaluation__pair_samples': 20}, 'pair_samples=20 is too few'),
        (
            {'evaluation__intra_fid_samples': 5, 'model__conditioning': 'none'},
            'without classes has no intra FID',
        ),
    ],
)
def test_invalid_configurations_are_refused(overrides, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        checks.check(tiny.config(**overrides))
    assert str(caught.value).endswith('.')
    assert '\n' not in str(caught.value)


def test_a_missing_key_is_named():
    config = tiny.config()
    del config.evaluation.best
    with pytest.raises(UserError, match=r'has no evaluation.best, perhaps because'):
        checks.check(config)


@pytest.mark.parametrize(
    ('key', 'value', 'sentence'),
    [
        (
            'dataset.num_classes',
            10**18,
            'num_classes=1000000000000000000 should be from 0 to 1000000',
        ),
        (
            'model.z_dim',
            10**4000,
            'z_dim=an integer of more than 128 bits should be from 1 to 65536',
        ),
        ('seed', True, 'seed=True should be an integer'),
        ('seed', 1.0, 'seed=1.0 should be an integer'),
        ('ema.decay', 'high', "ema.decay='high' should be a number"),
        ('ema.decay', (1,), 'ema.decay=.1,. should be a number'),
        ('dataset.flip', 1, 'dataset.flip=1 should be True or False'),
        ('loss', 'x' * 100, "loss='xxx.*… should be hinge or non_saturating"),
        ('loss', None, 'loss=None should be text'),
        ('dataset.data_dir', 7, 'dataset.data_dir=7 should be text or None'),
        ('dataset.num_classes', 'many', "num_classes='many' should be an integer or None"),
        ('dataset.num_classes', -1, 'num_classes=-1 should be from 0 to 1000000'),
        ('model.generator_attention', 16, '=16 should be a tuple of integers or None'),
        ('model.generator_attention', (16.0,), 'generator_attention=a list should be a tuple of'),
        ('model', 7, 'model=7 should be a section with keys'),
        ('seed', {'a': 1}, 'seed=a section with keys should be an integer'),
        ('depth', 3, 'The configuration has depth, which nothing reads: leave out'),
        ('model.depth', 3, 'The configuration has model.depth, which nothing reads: leave out'),
    ],
)
def test_any_value_of_another_type_or_size_is_refused(key, value, sentence):
    config = tiny.config().unlock()
    *section, name = key.split('.')
    with config.ignore_type():
        (config[section[0]] if section else config)[name] = value
    with pytest.raises(UserError, match=sentence) as caught:
        checks.check(config)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize('key', ['mismatch_weight', 'optimizer.epsilon', 'watch.max_sigma'])
def test_an_integer_that_no_float_can_represent_is_refused(key):
    """JSON has such integers; ml_collections would convert them."""
    section, _, name = key.rpartition('.')

    def values(number):
        return {section: {name: number}} if section else {name: number}

    for number in (2**1022, -(2**1022)):
        checks.check_types(values(number))
        float(number)
    for number in (2**1024, -(10**400)):
        with pytest.raises(UserError, match=f'{key}=an integer .* should be a number below 1e308'):
            checks.check_types(values(number))


def test_networks_that_do_not_fit_into_memory_are_refused_before_it_is_taken():
    huge = tiny.config(model__generator_width=2**16, model__discriminator_width=2**16)
    checks.check(huge)
    with pytest.raises(
        UserError, match=r'take [0-9,.]+ GiB, but this machine has .*: reduce model'
    ):
        state_shapes(huge)
    shapes = state_shapes(tiny.config())
    assert shapes.step.shape == ()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(max_size=5), inner)
        ),
        max_leaves=4,
    ),
    st.sampled_from(sorted(keys_of({int, float, str, bool, tuple}))),
)
@settings(deadline=None, max_examples=60)
def test_any_json_value_of_any_key_is_accepted_or_refused_in_one_line(value, key):
    config = tiny.config().to_dict()
    *section, name = key.split('.')
    (config[section[0]] if section else config)[name] = value
    with contextlib.suppress(UserError):
        assert not checks.unknown_keys(config)
        checks.check_types(config)
        checks.check(ml_collections.ConfigDict(config))

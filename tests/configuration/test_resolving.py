"""What a configuration leaves open is decided once, and numbers that it gives stay."""

import pytest

from sagan_jax.configuration import checks, defaults, resolving
from sagan_jax.errors import UserError
from tests import tiny


def never():
    raise AssertionError('the data were asked')


def test_nothing_open_changes_nothing():
    config = tiny.config().lock()
    assert not resolving.is_open(config)
    assert resolving.resolve(config, never, never) is config


@pytest.mark.parametrize(
    ('classes', 'conditioning', 'expected'),
    [
        (0, 'projection', 'none'),
        (1, 'projection', 'none'),
        (1, 'acgan', 'none'),
        (2, 'projection', 'projection'),
        (12, 'acgan', 'acgan'),
        (12, 'none', 'none'),
    ],
)
def test_classes_of_the_data(classes, conditioning, expected):
    config = tiny.config(dataset__num_classes=None, model__conditioning=conditioning).lock()
    checks.check(config)
    found = resolving.resolve(config, lambda: classes, never)
    assert (found.dataset.num_classes, found.model.conditioning) == (classes, expected)
    assert not resolving.is_open(found)
    checks.check(found)
    assert config.dataset.num_classes is None  # not changed
    assert config.model.conditioning == conditioning
    others = {'dataset.num_classes', 'model.conditioning'}
    flat, before = (
        {f'{name}.{key}': value for name in c for key, value in dict(c[name]).items()}
        for c in (
            {k: v for k, v in each.items() if hasattr(v, 'items')} for each in (found, config)
        )
    )
    assert {key for key in flat if flat[key] != before[key]} <= others


def test_one_class_that_was_asked_for_keeps_its_conditioning():
    config = tiny.config(dataset__num_classes=1, model__generator_attention=None)
    assert resolving.resolve(config, never, never).model.conditioning == 'projection'


def test_what_the_classes_make_impossible_is_refused():
    config = tiny.config(dataset__num_classes=None, mismatch_weight=1.0)
    checks.check(config)
    assert resolving.resolve(config, lambda: 2, never).model.conditioning == 'projection'
    with pytest.raises(UserError, match=r'^mismatch_weight=1.0 needs '):
        resolving.resolve(config, lambda: 1, never)


@pytest.mark.parametrize(('size', 'expected'), [(32, (16,)), (64, (16,)), (48, (12,)), (96, (12,))])
def test_usual_attention(size, expected):
    config = defaults.get_config()
    config.dataset.image_size = size
    found = resolving.resolve(config, lambda: 10, never)
    assert found.model.generator_attention == found.model.discriminator_attention == expected
    config.model.generator_attention = ()
    found = resolving.resolve(config, lambda: 10, never)
    assert (found.model.generator_attention, found.model.discriminator_attention) == ((), expected)
    config.model.update(architecture='dcgan', conditioning='none')
    assert resolving.resolve(config, lambda: 10, never).model.discriminator_attention == ()


@pytest.mark.parametrize(
    ('images', 'expected'),
    [
        (0, 'color,translation,cutout'),
        (9_999, 'color,translation,cutout'),
        (10_000, ''),
        (10**6, ''),
    ],
)
def test_few_images_are_augmented(images, expected):
    config = tiny.config(diff_augment='auto').lock()
    checks.check(config)
    assert resolving.is_open(config)
    found = resolving.resolve(config, never, lambda: images)
    assert found.diff_augment == expected
    assert not resolving.is_open(found)


@pytest.mark.parametrize('chosen', ['', 'color'])
def test_an_augmentation_that_was_chosen_stays(chosen):
    config = tiny.config(diff_augment=chosen, dataset__num_classes=None)
    assert resolving.resolve(config, lambda: 2, never).diff_augment == chosen

"""DiffAugment against its authors' definitions, written out in numpy."""

from functools import partial

import jax
import numpy as np
import pytest

from sagan_jax.augmentation import AUGMENTATIONS, NUMBERS, augment

ALL = 'color,translation,cutout'
LARGEST = np.nextafter(np.float32(1), np.float32(0))


def color(image, brightness, saturation, contrast):
    image = image + (brightness - 0.5)
    grey = image.mean(2, keepdims=True)
    image = (image - grey) * (saturation * 2) + grey
    return (image - image.mean()) * (contrast + 0.5) + image.mean()


def translation(image, row, column):
    """Row i becomes what was in row i + t, where t is one of -H/8, …, H/8."""
    height, width, _ = image.shape
    reach = int(height * 0.125 + 0.5), int(width * 0.125 + 0.5)
    t = [int(u * (2 * r + 1)) - r for u, r in zip((row, column), reach, strict=True)]
    moved = np.zeros_like(image)
    for i in range(height):
        for j in range(width):
            if 0 <= i + t[0] < height and 0 <= j + t[1] < width:
                moved[i, j] = image[i + t[0], j + t[1]]
    return moved


def cutout(image, row, column):
    """Zeros around a centre, one of 0, …, H for an even side; clipped indices, as the authors'."""
    size = np.array(image.shape[:2])
    side = (size * 0.5 + 0.5).astype(int)
    centre = [int(u * (n + 1 - s % 2)) for u, n, s in zip((row, column), size, side, strict=True)]
    image = image.copy()
    for i in range(side[0]):
        for j in range(side[1]):
            at = np.array([i, j]) + centre - side // 2
            image[tuple(np.clip(at, 0, size - 1))] = 0
    return image


REFERENCES = {'color': color, 'translation': translation, 'cutout': cutout}


def reference(images, numbers, policy):
    images = np.float64(images)
    for name in policy.split(','):
        columns = AUGMENTATIONS[name].columns
        apply = REFERENCES[name]
        images = np.stack(
            [apply(image, *u[columns]) for image, u in zip(images, numbers, strict=True)]
        )
    return images


def inputs(shape=(6, 16, 24, 3), seed=0):
    rng = np.random.default_rng(seed)
    images = rng.uniform(-1, 1, shape).astype(np.float32)
    numbers = rng.uniform(size=(shape[0], NUMBERS)).astype(np.float32)
    numbers[0], numbers[1] = 0, LARGEST
    return images, numbers


@pytest.mark.parametrize('policy', [*AUGMENTATIONS, ALL, 'cutout,translation'])
@pytest.mark.parametrize('shape', [(6, 16, 24, 3), (5, 12, 20, 3)])
def test_values_are_those_of_the_definitions(policy, shape):
    images, numbers = inputs(shape)
    found = jax.jit(partial(augment, policy=policy))(images, numbers)
    np.testing.assert_allclose(found, reference(images, numbers, policy), atol=1e-5)
    assert np.abs(found - images).max() > 0.1


@pytest.mark.parametrize('policy', [*AUGMENTATIONS, ALL])
def test_gradients_are_finite_differences(policy):
    """Exactly, because an augmented image is an affine function of the image."""
    images, numbers = inputs()
    rng = np.random.default_rng(1)
    change, weights = rng.normal(size=(2, *images.shape)).astype(np.float32)
    _, pull_back = jax.vjp(lambda x: augment(x, numbers, policy), images)
    (gradient,) = pull_back(weights)
    difference = reference(images + change, numbers, policy) - reference(images, numbers, policy)
    per_image = (1, 2, 3)
    expected = (weights * difference).sum(per_image)
    np.testing.assert_allclose((gradient * change).sum(per_image), expected, rtol=1e-4, atol=1e-2)
    assert np.abs(expected).max() > 1


def test_all_shifts_and_centres_occur_and_the_middle_changes_nothing():
    images, _ = inputs((17, 16, 16, 3))
    numbers = np.full((17, NUMBERS), 0.5, np.float32)
    np.testing.assert_allclose(augment(images, numbers, 'color,translation'), images, atol=1e-6)

    ones = np.ones_like(images)
    numbers[:5, 3] = (np.arange(5) + 0.5) / 5
    moved = augment(ones, numbers, 'translation')[:5, :, 8, 0]
    shown = [(np.flatnonzero(column).min(), np.flatnonzero(column).max()) for column in moved]
    assert shown == [(2, 15), (1, 15), (0, 15), (0, 14), (0, 13)]

    numbers[:, 5] = (np.arange(17) + 0.5) / 17
    cut = np.asarray(augment(ones, numbers, 'cutout'))[:, :, 8, 0] == 0
    assert [np.flatnonzero(column).min() for column in cut] == [0] * 5 + [*range(1, 13)]
    assert [np.flatnonzero(column).max() for column in cut] == [*range(3, 16), 15, 15, 15, 15]


def test_each_image_has_its_own_numbers():
    images, numbers = inputs()
    together = augment(images, numbers, ALL)
    for i in range(len(images)):
        alone = augment(images[i : i + 1], numbers[i : i + 1], ALL)
        np.testing.assert_allclose(alone[0], together[i], atol=1e-6)

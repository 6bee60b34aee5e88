import colorsys
import hashlib

import numpy as np
import pytest
import scipy.stats

from sagan_jax import data
from sagan_jax.data import shapes
from sagan_jax.errors import UserError

SHA256 = {
    'train': '40c937f7e59457c1db5e905d28c95dec3eb069a8ced65bcfa257206a552ba177',
    'test': 'b1f823df58f7d465aa35c8e3473a01a3d425348932496f6ac8b87eb373fd7c84',
}


@pytest.fixture(scope='module')
def rendered():
    return {split: shapes.render(split) for split in shapes.COUNTS}


@pytest.mark.parametrize('split', ['train', 'test'])
def test_same_bytes_everywhere(rendered, split):
    images, labels = rendered[split]
    assert images.dtype == np.uint8
    assert images.shape == (shapes.COUNTS[split], 32, 32, 3)
    digest = hashlib.sha256(images.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest()
    assert digest == SHA256[split]


@pytest.mark.parametrize('split', ['train', 'test'])
def test_balanced_and_mixed(rendered, split):
    labels = rendered[split][1]
    assert (np.bincount(labels) == len(labels) // 10).all()
    # Any thousand in a row have about a hundred of each class.
    counts = np.stack([np.bincount(part, minlength=10) for part in labels.reshape(-1, 1000)])
    assert counts.min() > 60
    assert counts.max() < 140


def test_no_two_images_are_equal(rendered):
    images = np.concatenate([images for images, _ in rendered.values()])
    assert len({image.tobytes() for image in images}) == len(images) == 22_000


def masks(radius, heights=(0.0, 0.0)):
    """Each class's shape, white on grey, as coverage in [0, 1] [10, 32, 32]."""
    images = shapes.draw(
        shapes.Parameters(
            labels=np.arange(10),
            radii=np.full(10, radius),
            heights=np.tile(heights, (10, 1)),
            colours=np.full((10, 3), 255, np.uint8),
        )
    )
    return (images[..., 0] - 128.0) / 127


@pytest.mark.parametrize('radius', [0.34, 0.38, 0.42])
def test_shapes_of_classes_differ(radius):
    mask = masks(radius)
    for a in range(10):
        for b in range(a):
            overlap = np.minimum(mask[a], mask[b]).sum() / np.maximum(mask[a], mask[b]).sum()
            assert overlap < 0.8, (shapes.CLASS_NAMES[a], shapes.CLASS_NAMES[b])


@pytest.mark.parametrize(
    ('name', 'area'),
    [
        ('disc', np.pi),
        ('ring', 0.7 * np.pi),
        ('square', 1.6**2),
        ('diamond', 2 * 1.1**2),
        ('triangle', 1.85),
        # Ten triangles from the centre to a tip and an inner corner.
        (
            'star',
            5 * (0.36 / np.cos(0.4 * np.pi)) * (0.36 / np.cos(0.2 * np.pi)) * np.sin(0.2 * np.pi),
        ),
        ('cross', 2 * 2 * 0.6 - 0.6**2),
        ('bar', 2.1 * 0.72),
    ],
)
def test_areas(name, area):
    coverage = masks(0.42)[shapes.CLASS_NAMES.index(name)].sum() / 2
    assert coverage == pytest.approx(area * (16 * 0.42) ** 2, rel=0.06)


def test_copies_match_and_stay_in_their_halves():
    # At equal heights, the halves are equal to the pixel.
    mask = masks(0.38, (0.2, 0.2))
    np.testing.assert_array_equal(mask[:, :, :16], mask[:, :, 16:])
    # Heights are independent, and down is positive.
    rows = np.arange(32)[:, None]
    mask = masks(0.38, (-0.4, 0.4))
    centre_left = (mask[:, :, :16] * rows).sum((1, 2)) / mask[:, :, :16].sum((1, 2))
    centre_right = (mask[:, :, 16:] * rows).sum((1, 2)) / mask[:, :, 16:].sum((1, 2))
    np.testing.assert_allclose(centre_right - centre_left, 0.8 * 16, atol=0.1)
    # Nothing is cut off at the largest radius and height.
    mask = masks(0.42, (0.45, -0.45))
    assert not mask[:, [0, -1]].any()
    np.testing.assert_allclose(mask.sum((1, 2)), masks(0.42).sum((1, 2)), rtol=0.06)


def test_halves_have_one_colour_and_size(rendered):
    images = rendered['test'][0].astype(int)
    contrast = np.abs(images - shapes.BACKGROUND).sum(-1)  # [N, 32, 32]
    left, right = contrast[:, :, :16].reshape(-1, 512), contrast[:, :, 16:].reshape(-1, 512)
    each = np.arange(len(images))
    colour_left = images[:, :, :16].reshape(-1, 512, 3)[each, left.argmax(1)]
    colour_right = images[:, :, 16:].reshape(-1, 512, 3)[each, right.argmax(1)]
    np.testing.assert_array_equal(colour_left, colour_right)
    np.testing.assert_allclose(left.sum(1), right.sum(1), rtol=0.12)
    assert len(np.unique(colour_left, axis=0)) > 1900
    # Saturated: far from the background and from any other grey.
    assert (colour_left.max(1) >= 204).all()
    assert (colour_left.min(1) <= 51).all()


def test_prepared_equals_rendered(dataset, rendered):
    for split, (images, labels) in rendered.items():
        source = data.load(dataset, split)
        assert source.class_names == shapes.CLASS_NAMES
        assert source.image_size == 32
        assert len(source) == len(images)
        for index in range(0, len(images), 97):
            np.testing.assert_array_equal(source.examples[index]['image'], images[index])
            assert source.examples[index]['label'] == labels[index]


def test_other_number_of_classes(dataset):
    dataset.num_classes = 12
    with pytest.raises(
        UserError, match=r'shapes has 10 classes .* --config.dataset.num_classes=10'
    ):
        data.load(dataset)


def test_hues():
    drawn = shapes.parameters('test')
    images = shapes.draw(shapes.Parameters(*(field[:300] for field in drawn)))
    # Angles on a circle and the hues of HSV, on a hexagon, differ by at most 1.1 degrees.
    expected = np.array([colorsys.rgb_to_hsv(*c)[0] * 6 for c in drawn.colours[:300] / 255])
    apart = np.abs(np.asarray(shapes.hues(images)) - expected)
    assert np.minimum(apart, 6 - apart).max() < 0.1
    assert np.isnan(shapes.hues(np.full((2, 32, 32, 3), shapes.BACKGROUND, np.uint8))).all()


def test_hue_variety():
    rng = np.random.default_rng(0)
    hues = np.concatenate([
        (np.arange(240) + 0.5) / 40,  # every hue equally often
        np.full(50, 5.99),  # one colour
        np.repeat([0.1, 3.1], 30),  # two opposite colours
        np.full(20, np.nan),  # no objects
    ])  # fmt: skip
    labels = np.repeat([0, 1, 2, 5], [240, 50, 60, 20])
    order = rng.permutation(len(hues))
    np.testing.assert_allclose(shapes.hue_variety(hues[order], labels[order]), [12, 1, 2, 0])

    counts = rng.integers(1, 50, 12)
    uneven = np.repeat(np.arange(12) / 2 + 0.25, counts)
    expected = np.exp(scipy.stats.entropy(counts))
    np.testing.assert_allclose(shapes.hue_variety(uneven, np.zeros(len(uneven), int)), [expected])


def test_colours_agree():
    images, _ = shapes.render('test')
    images = images[:500]
    assert np.asarray(shapes.colours_agree(images)).all()
    # Halves of different images agree as rarely as two random hues.
    strangers = images.copy()
    strangers[:, :, 16:] = np.roll(images, 1, axis=0)[:, :, 16:]
    assert 0.01 < np.asarray(shapes.colours_agree(strangers)).mean() < 0.06
    alone = images.copy()
    alone[:, :, :16] = shapes.BACKGROUND
    assert not np.asarray(shapes.colours_agree(alone)).any()

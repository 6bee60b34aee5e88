import jax
import numpy as np
import pytest
from scipy import ndimage

from sagan_jax import metrics
from sagan_jax.data import shapes
from sagan_jax.metrics import in_domain
from tests.traced import operations, precisions


@pytest.fixture(scope='module')
def drawn_images():
    drawn = shapes.parameters('test')
    some = drawn._replace(**{name: value[:640] for name, value in drawn._asdict().items()})
    return shapes.draw(some), some.labels


def test_all_products_are_float32_on_every_platform(drawn_images):
    """Those of the features and of the gradients that train them."""
    images = drawn_images[0][:2]
    variables = jax.eval_shape(in_domain.Classifier(10).init, jax.random.key(0), images)

    def gradients(variables):
        return jax.grad(lambda variables: in_domain.apply(variables, images)['logits'].sum())(
            variables
        )

    assert precisions(operations(gradients, variables)) == {'HIGHEST'}


def batches(drawn_images, steps, size=64):
    images, labels = drawn_images
    for step in range(steps):
        rows = np.arange(step * size, (step + 1) * size) % len(images)
        yield images[rows], labels[rows]


@pytest.fixture(scope='module')
def classifier(drawn_images):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_domain, 'STEPS', 100)
        return in_domain.fit(batches(drawn_images, 100), 10)


def test_fit_learns_the_classes(classifier, drawn_images):
    assert in_domain.accuracy(classifier, batches(drawn_images, 10), 10) > 0.9
    found = in_domain.apply(classifier, drawn_images[0][:32])
    assert found['features'].shape == (32, 128)
    assert found['logits'].shape == (32, 10)
    lengths = np.square(found['features']).mean(-1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-3)
    # uint8 and float images of the same values give the same features.
    floats = in_domain.apply(classifier, drawn_images[0][:32].astype(np.float32))
    np.testing.assert_allclose(found['features'], floats['features'], rtol=1e-6, atol=1e-6)


def test_the_recipe_is_fixed(drawn_images):
    first, second = (in_domain.fit(batches(drawn_images, 3), 10) for _ in range(2))
    assert in_domain.network(first).sha256 == in_domain.network(second).sha256
    first['params']['dense']['bias'] = first['params']['dense']['bias'] + 1e-3
    assert in_domain.network(first).sha256 != in_domain.network(second).sha256


def test_without_classes_it_predicts_rotations(drawn_images):
    images, labels = drawn_images
    turned, turns = in_domain.rotate(images[:50], jax.random.key(1))
    assert set(np.unique(turns)) == {0, 1, 2, 3}
    for image, result, k in zip(images, turned, turns, strict=False):
        np.testing.assert_array_equal(np.rot90(image, k), result)
    variables = in_domain.fit(batches((images, labels * 0), 2), 1)
    assert in_domain.apply(variables, images[:8])['logits'].shape == (8, 4)
    assert 0 <= in_domain.accuracy(variables, batches(drawn_images, 2), 1) <= 1


def test_fid_rises_with_noise_and_blur(classifier, drawn_images):
    images = drawn_images[0]

    def fid(changed):
        real, fake = (
            np.asarray(in_domain.apply(classifier, x)['features']) for x in (images, changed)
        )
        return metrics.fid(real, fake)

    noise = np.random.default_rng(0).normal(size=images.shape)
    noisy = [fid(np.clip(images + s * noise, 0, 255).round()) for s in (0, 5, 10, 20, 40)]
    blurred = [
        fid(ndimage.gaussian_filter(images.astype(float), (0, s, s, 0)).round())
        for s in (0, 0.5, 1, 1.5, 2)
    ]
    for values in (noisy, blurred):
        assert values[0] == pytest.approx(0, abs=1e-6)
        assert (np.diff(values) > 0.01).all(), values

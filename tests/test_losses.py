"""Losses against closed forms in numpy, and their gradients."""

import jax
import numpy as np

from sagan_jax import losses

REAL = np.array([-2.0, 0.3, 0.9, 1.5, 60.0], np.float32)
FAKE = np.array([-3.0, -0.9, 0.1, 2.0, 90.0], np.float32)


def log_sigmoid(x):
    return -np.logaddexp(0, -x.astype(np.float64))


def test_hinge():
    d, g, rejection = losses.LOSSES['hinge']
    expected = np.mean([max(0, 1 - x) for x in REAL]) + np.mean([max(0, 1 + x) for x in FAKE])
    np.testing.assert_allclose(d(REAL, FAKE), expected, rtol=1e-6)
    np.testing.assert_allclose(g(FAKE), -np.mean(FAKE), rtol=1e-6)

    real_grad, fake_grad = jax.grad(d, argnums=(0, 1))(REAL, FAKE)
    np.testing.assert_allclose(real_grad, np.where(REAL < 1, -1 / 5, 0))
    np.testing.assert_allclose(fake_grad, np.where(FAKE > -1, 1 / 5, 0))
    np.testing.assert_allclose(jax.grad(g)(FAKE), np.full(5, -1 / 5), rtol=1e-6)
    np.testing.assert_allclose(rejection(FAKE), np.mean([max(0, 1 + x) for x in FAKE]), rtol=1e-6)


def test_non_saturating():
    d, g, rejection = losses.LOSSES['non_saturating']
    expected = -log_sigmoid(REAL).mean() - log_sigmoid(-FAKE).mean()
    np.testing.assert_allclose(d(REAL, FAKE), expected, rtol=1e-6)
    np.testing.assert_allclose(g(FAKE), -log_sigmoid(FAKE).mean(), rtol=1e-6)
    np.testing.assert_allclose(rejection(FAKE), -log_sigmoid(-FAKE).mean(), rtol=1e-6)

    real_grad, fake_grad = jax.grad(d, argnums=(0, 1))(REAL, FAKE)
    np.testing.assert_allclose(real_grad, -1 / (1 + np.exp(REAL.astype(float))) / 5, rtol=1e-5)
    np.testing.assert_allclose(fake_grad, 1 / (1 + np.exp(-FAKE.astype(float))) / 5, rtol=1e-5)
    expected = -1 / (1 + np.exp(FAKE.astype(float))) / 5
    np.testing.assert_allclose(jax.grad(g)(FAKE), expected, rtol=1e-5, atol=1e-30)


def test_mode_seeking():
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (6, 4, 4, 3)).astype(np.float32)
    images[3] = images[2]  # a pair of equal images
    z = rng.normal(size=(6, 5)).astype(np.float32)
    ratios = []
    for i in (0, 2, 4):
        difference = images[i].astype(float) - images[i + 1]
        far = np.abs(difference).mean() + np.abs(difference.mean((0, 1))).mean()
        ratios.append(np.abs(z[i] - z[i + 1]).mean() / (far + 0.01))
    np.testing.assert_allclose(losses.mode_seeking(images, z), np.mean(ratios), rtol=1e-5)
    gradient = jax.grad(losses.mode_seeking)(images, z)
    assert np.isfinite(gradient).all()
    # A step against the gradient moves the images of a pair apart.
    apart = images - 0.01 * np.sign(gradient)
    for i in (0, 4):
        before, after = (np.abs(x[i] - x[i + 1]).mean() for x in (images, apart))
        assert after > before


def test_mode_seeking_sees_the_colour_of_small_objects():
    """The pixels of two objects that do not overlap differ as much if their colours are equal."""
    z = np.array([[-1.0], [1.0]], np.float32)
    one, other = np.zeros((2, 8, 8, 3), np.float32)
    one[1, :] = 1, -1, -1
    other[6, :] = 1, -1, -1
    same = losses.mode_seeking(np.stack([one, other]), z)
    other[6, :] = -1, 1, 1
    assert losses.mode_seeking(np.stack([one, other]), z) < 0.6 * same


def test_lecam():
    averages = {'real': np.float32(0.7), 'fake': np.float32(-0.4)}
    loss = losses.lecam(REAL, FAKE, averages)
    above, below = np.maximum(0, REAL + 0.4), np.maximum(0, 0.7 - FAKE)
    np.testing.assert_allclose(loss, np.mean(above**2) + np.mean(below**2), rtol=1e-6)
    real_grad, fake_grad = jax.grad(losses.lecam, argnums=(0, 1))(REAL, FAKE, averages)
    np.testing.assert_allclose(real_grad, 2 * above / 5, rtol=1e-6)
    np.testing.assert_allclose(fake_grad, -2 * below / 5, rtol=1e-6)
    right, wrong = np.float32([1.5, 0.1]), np.float32([-2.0, -0.1])  # all on the right sides
    expected = np.mean((right + 0.4) ** 2) + np.mean((wrong - 0.7) ** 2)  # as in the paper
    np.testing.assert_allclose(losses.lecam(right, wrong, averages), expected, rtol=1e-6)


def test_averages_of_logits_have_no_bias_towards_their_beginning():
    logits = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    averages = {'real': 0.0, 'fake': 0.0}
    for update, (real, fake) in enumerate(logits):
        averages = losses.next_logit_averages(averages, real, fake, update)
        weights = losses.LECAM_DECAY ** np.arange(update, -1.0, -1.0)
        expected = weights @ np.float64(logits[: update + 1]) / weights.sum()
        np.testing.assert_allclose([averages['real'], averages['fake']], expected, atol=1e-5)


def test_classification():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 4)).astype(np.float32) * 3
    labels = np.array([0, 3, 2, 2, 1, 0])
    exponentials = np.exp(logits.astype(np.float64))
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    expected = -np.log(probabilities[np.arange(6), labels]).mean()
    np.testing.assert_allclose(losses.classification(logits, labels), expected, rtol=1e-6)
    one_hot = np.eye(4)[labels]
    gradient = jax.grad(losses.classification)(logits, labels)
    np.testing.assert_allclose(gradient, (probabilities - one_hot) / 6, rtol=1e-5, atol=1e-7)

import numpy as np
import pytest

from sagan_jax.errors import UserError
from sagan_jax.metrics import manifold
from tests.metrics.test_scores import golden_inputs


def distances(x, y):
    return np.sqrt(np.square(x[:, None].astype(np.float64) - y[None]).sum(-1))


def radii(x, k):
    return np.sort(distances(x, x), axis=1)[:, k]


def precision_by_hand(real, fake, k):
    inside = [any(row <= radii(real, k)) for row in distances(fake, real)]
    return sum(inside) / len(fake)


def features(n, m, d=5):
    r = np.random.default_rng(n)
    return r.normal(size=(n, d)).astype(np.float32) + 100, r.normal(size=(m, d)) * 0.7 + 100.5


@pytest.mark.parametrize('case', [0, 1])
def test_golden_values(golden_scores, case):
    golden = golden_scores[case]
    real, fake, _ = golden_inputs(golden['recipe'])
    precision, recall = manifold.precision_recall(real, fake, k=3)
    golden_precision = golden['precision_k3_fraction_of_fakes_in_real_manifold']
    golden_recall = golden['recall_k3_fraction_of_reals_in_fake_manifold']
    assert precision * len(fake) == round(golden_precision * len(fake))  # the counts, exactly
    assert recall * len(real) == round(golden_recall * len(real))


@pytest.mark.parametrize('block', [1, 100, 2**23])
@pytest.mark.parametrize(('n', 'm', 'k'), [(40, 30, 3), (30, 47, 1), (4, 5, 3)])
def test_precision_and_recall_by_hand(monkeypatch, block, n, m, k):
    monkeypatch.setattr(manifold, 'BLOCK', block)
    real, fake = features(n, m)
    precision, recall = manifold.precision_recall(real, fake, k)
    assert precision == precision_by_hand(real, fake, k)
    assert recall == precision_by_hand(fake, real, k)


@pytest.mark.parametrize('block', [1, 100, 2**23])
@pytest.mark.parametrize(('n', 'm', 'k'), [(40, 30, 5), (30, 47, 1), (6, 7, 5)])
def test_density_and_coverage_by_hand(monkeypatch, block, n, m, k):
    monkeypatch.setattr(manifold, 'BLOCK', block)
    real, fake = features(n, m)
    inside = distances(real, fake) < radii(real, k)[:, None]
    density, coverage = manifold.density_coverage(real, fake, k)
    assert density == inside.sum() / (k * m)
    assert coverage == inside.any(1).mean()


@pytest.mark.parametrize('block', [1, 999, 2**23])
def test_ties_do_not_depend_on_rounding(monkeypatch, block):
    monkeypatch.setattr(manifold, 'BLOCK', block)
    real, _ = features(300, 1, d=64)
    order = np.random.default_rng(0).permutation(300)
    # An open ball contains exactly k of the same samples, without the one on its boundary.
    assert manifold.density_coverage(real, real[order], k=5) == (1, 1)

    # Pairs of real samples, far from other pairs. Each generated sample is as far from the first of
    # a pair as the second is, on the opposite side.
    first = real.astype(np.float64) * 10
    step = np.random.default_rng(1).normal(size=first.shape)
    real, fake = np.concatenate([first, first + step]), first - step
    precision, _ = manifold.precision_recall(real, fake, k=1)
    assert precision == 1
    assert manifold.density_coverage(real, fake, k=1) == (0, 0)


def test_distant_sets_score_zero():
    real, fake = features(20, 20)
    assert manifold.precision_recall(real, fake + 1000) == (0, 0)
    assert manifold.density_coverage(real, fake + 1000) == (0, 0)


@pytest.mark.parametrize(
    ('score', 'k'), [(manifold.precision_recall, 3), (manifold.density_coverage, 5)]
)
def test_too_few_samples_for_k_neighbours_are_refused(score, k):
    real, fake = features(20, 20)
    with pytest.raises(UserError, match=f'needs at least {k + 1} .* got {k} real and 20 fake'):
        score(real[:k], fake)
    with pytest.raises(UserError, match=f'needs at least {k + 1} .* got 20 real and {k} fake'):
        score(real, fake[:k])
    score(real[: k + 1], fake[: k + 1])

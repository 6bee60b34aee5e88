import functools
import warnings

import numpy as np
import pytest
import scipy.linalg
import scipy.special

from sagan_jax.errors import UserError
from sagan_jax.metrics import manifold, scores


def golden_inputs(recipe):
    """The real features, fake features and logits behind tests/golden/metric_values.json."""

    def features(n):
        r, d = np.random.default_rng(recipe['seed']), recipe['dim']
        mu = r.normal(size=(5, d))
        mix = r.normal(size=(d, d)) / np.sqrt(d)
        return (mu[r.integers(0, 5, n)] + r.normal(size=(n, d)) @ mix).astype(np.float32)

    real, fake = features(recipe['n_real']), features(recipe['n_fake'])
    r = np.random.default_rng(recipe['noise_seed'])
    fake = (fake * 1.1 + 0.3 * r.normal(size=fake.shape) + 0.2).astype(np.float32)
    r = np.random.default_rng(recipe['noise_seed'] + 1)
    logits = (r.normal(size=(recipe['n_real'], recipe['classes'])) * 2).astype(np.float32)
    return real, fake, logits


def fid_by_square_root(real, fake):
    """The formula with numpy's covariances and scipy's matrix square root."""
    difference = real.mean(0) - fake.mean(0)
    a, b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (real, fake))
    root = scipy.linalg.sqrtm(a @ b)
    return difference @ difference + np.trace(a + b - 2 * root.real)


def gaussian(mean, values, basis, count=10_000):
    """Moments with exactly this mean and these eigenvalues of the covariance."""
    return scores.Moments(count, mean, (basis * values) @ basis.T * (count - 1))


def random_basis(d, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


# ---- reference implementation ----


@pytest.mark.parametrize('case', [0, 1])
def test_golden_values(golden_scores, case):
    golden = golden_scores[case]
    real, fake, logits = golden_inputs(golden['recipe'])
    size = min(len(real), len(fake))
    relative = functools.partial(pytest.approx, rel=1e-5)
    assert scores.fid(real, fake) == relative(golden['fid'])
    assert scores.inception_score(logits, 10) == relative(golden['inception_score_10_splits'])
    assert scores.inception_score(logits, 1)[0] == relative(golden['inception_score_1_split'])
    kid, _ = scores.kid(real[:size], fake[:size], subsets=1, subset_size=size, seed=0)
    assert kid == relative(golden['kid_one_subset_of_all'])


# ---- moments ----


@pytest.mark.parametrize('cuts', [[], [1], [1, 2, 90], [64, 128, 192]])
def test_merged_moments_equal_those_of_all_samples(cuts):
    r = np.random.default_rng(0)
    features = 1e6 + r.normal(size=(200, 5)) * [1, 1e-2, 10, 1, 1]  # E[x²] − E[x]² would fail here
    merged = functools.reduce(scores.merge, map(scores.moments, np.split(features, cuts)))
    assert merged.count == 200
    np.testing.assert_allclose(merged.mean, features.mean(0), rtol=1e-14)
    expected = np.cov(features - 1e6, rowvar=False)
    np.testing.assert_allclose(merged.covariance, expected, rtol=1e-6, atol=1e-9)


# ---- FID ----


@pytest.mark.parametrize(
    ('n', 'm', 'd'), [(50, 40, 6), (300, 500, 32), (40, 300, 32), (300, 20, 32), (10, 12, 32)]
)
def test_fid_equals_the_matrix_square_root_formula(n, m, d):
    r = np.random.default_rng(n)
    real, fake = r.normal(size=(n, d)), 0.5 + r.normal(size=(m, d)) @ r.normal(size=(d, d)) / 4
    expected = fid_by_square_root(real, fake)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert scores.fid(real, fake) == pytest.approx(expected, rel=1e-6)
        by_moments = scores.frechet_distance(scores.moments(real), scores.moments(fake))
    assert by_moments == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('rank', [1, 7, 31])
def test_fid_of_low_rank_covariances(rank):
    r = np.random.default_rng(rank)
    mix = r.normal(size=(rank, 32))
    real, fake = r.normal(size=(200, rank)) @ mix, (1.2 * r.normal(size=(150, rank)) + 0.1) @ mix
    basis, _ = np.linalg.qr(mix.T)  # in the space that they span, the covariances are regular
    expected = fid_by_square_root(real @ basis, fake @ basis)
    assert scores.fid(real, fake) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize('smallest', [1e-6, 1e-12, 1e-18, 0])
def test_fid_of_nearly_singular_covariances_in_closed_form(smallest):
    # Covariances with the same eigenvectors: tr (Σ₁Σ₂)^½ = Σ √(a b).
    d = 40
    a = np.geomspace(1e-3, 5, d)
    b = np.where(np.arange(d) % 2, a[::-1], smallest)
    basis = random_basis(d)
    real, fake = gaussian(np.zeros(d), a, basis), gaussian(np.full(d, 0.1), b, basis)
    expected = d * 0.01 + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert scores.frechet_distance(real, fake) == pytest.approx(expected, rel=1e-6)
    assert scores.frechet_distance(fake, real) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('n', [20, 31, 33, 200])
def test_fid_of_a_set_with_itself_is_zero(n):
    features = np.random.default_rng(0).normal(size=(n, 32)) * np.geomspace(1e-9, 1e3, 32)
    spread = features.var(0).sum()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for other in (features, features[::-1], features + 1e-12):
            assert 0 <= scores.fid(features, other) < 1e-9 * spread


def test_fid_of_constant_features_is_their_distance():
    ones, twos = np.ones((9, 3)), np.full((9, 3), 2.0)
    assert scores.fid(ones, ones) == 0
    assert scores.fid(ones, twos) == pytest.approx(3)


def test_fid_rises_with_noise():
    r = np.random.default_rng(0)
    real, noise = (r.normal(size=(500, 16)) for _ in range(2))
    values = [scores.fid(real, real + scale * noise) for scale in (0, 0.1, 0.2, 0.5, 1, 2)]
    assert np.all(np.diff(values) > 0)
    # Standard normal against N(0, 1 + 4): 16 (√5 − 1)².
    assert values[-1] == pytest.approx(16 * (np.sqrt(5) - 1) ** 2, rel=0.1)


def test_fid_warns_if_there_are_no_more_samples_than_features():
    features = np.random.default_rng(0).normal(size=(40, 8))
    with pytest.warns(UserWarning, match='8 real and 40 fake samples of 8 features'):
        scores.fid(features[:8], features)
    with pytest.warns(UserWarning, match='40 real and 8 fake'):
        scores.frechet_distance(scores.moments(features), scores.moments(features[:8]))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        scores.fid(features[:9], features)


# ---- FID per class, FID∞ ----


def test_intra_fid_is_fid_within_each_class():
    r = np.random.default_rng(0)
    real, fake = r.normal(size=(90, 4)), r.normal(size=(60, 4)) + 0.3
    real_labels, fake_labels = r.permutation(90) % 3 * 2, r.permutation(60) % 3 * 2
    mean, per_class = scores.intra_fid(real, real_labels, fake, fake_labels)
    assert list(per_class) == [0, 2, 4]
    for c, value in per_class.items():
        expected = fid_by_square_root(real[real_labels == c], fake[fake_labels == c])
        assert value == pytest.approx(expected, rel=1e-6)
    assert mean == pytest.approx(np.mean(list(per_class.values())))


def test_intra_fid_of_few_samples_warns_once_and_is_stable():
    r = np.random.default_rng(0)
    real, fake = r.normal(size=(60, 64)), r.normal(size=(40, 64))
    labels = np.arange(60) % 4, np.arange(40) % 4
    with pytest.warns(UserWarning, match='15 real and 10 fake samples of 64') as caught:
        _, per_class = scores.intra_fid(real, labels[0], fake, labels[1])
    assert len(caught) == 1
    for c, value in per_class.items():
        expected = fid_by_square_root(real[labels[0] == c], fake[labels[1] == c])
        assert value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(('real_labels', 'counts'), [([0, 0, 0, 0], '0 real'), ([0, 0, 0, 1], '1')])
def test_intra_fid_names_a_class_with_too_few_samples(real_labels, counts):
    features = np.random.default_rng(0).normal(size=(4, 2))
    with pytest.raises(UserError, match=f'Class 1: intra FID needs at least 2 .* got {counts}'):
        scores.intra_fid(features, np.array(real_labels), features, np.array([0, 0, 1, 1]))


def test_fid_infinity_removes_the_bias():
    real = gaussian(np.zeros(16), np.ones(16), np.eye(16), count=10**9)
    fake = np.random.default_rng(0).normal(size=(3000, 16))  # of the same distribution
    unbiased = scores.fid_infinity(real, fake, seed=1)
    assert abs(unbiased) < 0.5 * scores.frechet_distance(real, scores.moments(fake))
    assert scores.fid_infinity(real, fake, seed=1) == unbiased
    assert scores.fid_infinity(real, fake, seed=2) != unbiased


def test_fid_infinity_is_the_intercept_of_a_line():
    r = np.random.default_rng(0)
    real, fake = r.normal(size=(100, 3)), r.normal(size=(200, 3))
    counts = np.linspace(20, 200, 15).astype(int)
    drawn = np.random.default_rng(5)
    values = [fid_by_square_root(real, fake[drawn.choice(200, n, replace=False)]) for n in counts]
    design = np.stack([np.ones(15), 1 / counts], axis=1)
    (intercept, _), *_ = np.linalg.lstsq(design, np.array(values), rcond=None)
    assert scores.fid_infinity(real, fake, seed=5) == pytest.approx(intercept, rel=1e-6)


# ---- Inception Score ----


def inception_score_by_hand(logits, splits):
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    values = []
    for i in range(splits):
        part = p[i * len(p) // splits : (i + 1) * len(p) // splits]
        marginal = part.mean(0)
        values.append(np.exp(np.mean([(row * np.log(row / marginal)).sum() for row in part])))
    return np.mean(values), np.std(values)


@pytest.mark.parametrize(('n', 'splits'), [(20, 4), (23, 4), (5, 5), (9, 1)])
def test_inception_score_by_hand(n, splits):
    logits = np.random.default_rng(n).normal(size=(n, 7)) * 3
    expected = inception_score_by_hand(logits, splits)
    assert scores.inception_score(logits, splits) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize('batch', [1, 4, 23, 50])
def test_inception_score_streams(batch):
    logits = np.random.default_rng(0).normal(size=(23, 7)) * 3
    sums = scores.split_sums(23, 4)
    for start in range(0, 23, batch):
        sums = scores.add_logits(sums, logits[start : start + batch])
    expected = inception_score_by_hand(logits, 4)
    assert scores.score_of_splits(sums) == pytest.approx(expected, rel=1e-12)


def test_inception_score_of_certain_and_of_uniform_predictions():
    certain = np.eye(10)[np.arange(50) % 10] * 1e4  # softmax gives exact zeros
    assert scores.inception_score(certain, 5) == pytest.approx((10, 0))
    assert scores.inception_score(np.ones((50, 10)), 5) == pytest.approx((1, 0))


def test_incomplete_sums_are_refused():
    sums = scores.add_logits(scores.split_sums(5, 2), np.zeros((4, 3)))
    with pytest.raises(ValueError, match='4 samples, expected 5'):
        scores.score_of_splits(sums)


@pytest.mark.parametrize('splits', [0, 6])
def test_inception_score_needs_a_sample_per_split(splits):
    with pytest.raises(UserError, match=f'{splits} splits .* got 5: use more samples, or'):
        scores.inception_score(np.zeros((5, 3)), splits)


# ---- KID ----


def kid_by_hand(x, y):
    def k(a, b):
        return (a @ b / len(a) + 1) ** 3

    n = len(x)
    pairs = [(i, j) for i in range(n) for j in range(n)]
    within = sum(k(z[i], z[j]) for z in (x, y) for i, j in pairs if i != j)
    return within / (n * (n - 1)) - 2 * sum(k(x[i], y[j]) for i, j in pairs) / n**2


def test_kid_by_hand():
    r = np.random.default_rng(0)
    real, fake = r.normal(size=(9, 4)).astype(np.float32), r.normal(size=(12, 4)) + 1
    drawn = np.random.default_rng(3)
    values = []
    for _ in range(5):
        x = real[drawn.choice(9, 6, replace=False)].astype(np.float64)
        values.append(kid_by_hand(x, fake[drawn.choice(12, 6, replace=False)]))
    expected = np.mean(values), np.std(values)
    kid = scores.kid(real, fake, subsets=5, subset_size=6, seed=3)
    assert kid == pytest.approx(expected, rel=1e-12)


def test_kid_is_unbiased():
    r = np.random.default_rng(0)
    same = [
        scores.kid(r.normal(size=(30, 4)), r.normal(size=(30, 4)), 1, 30)[0] for _ in range(300)
    ]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(300)
    assert min(same) < 0


# ---- mistakes ----


@pytest.mark.parametrize(
    ('score', 'minimum'),
    [
        (scores.fid, 2),
        (lambda a, b: scores.frechet_distance(scores.moments(a), scores.moments(b)), 2),
        (lambda a, b: scores.kid(a, b, subset_size=5), 5),
        (scores.fid_infinity, 30),
    ],
)
def test_too_few_samples_are_refused(score, minimum):
    features = np.random.default_rng(0).normal(size=(40, 2))
    with pytest.raises(UserError, match=f'least {minimum} .* got 40 real and {minimum - 1} fake'):
        score(features, features[: minimum - 1])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        score(features, features[:minimum])


@pytest.mark.parametrize('score', [scores.fid, scores.kid, scores.fid_infinity])
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(score, value):
    features = np.random.default_rng(0).normal(size=(1000, 2))
    damaged = features.copy()
    damaged[3, 1] = value
    for real, fake in ((features, damaged), (damaged, features)):
        with pytest.raises(UserError, match='not finite'):
            score(real, fake)


def test_features_of_other_layers_are_refused():
    with pytest.raises(
        UserError, match=r'not \[4, 3\] and \[4, 2\]: take both from the same layer'
    ):
        scores.fid(np.zeros((4, 3)), np.zeros((4, 2)))


@pytest.mark.parametrize(
    ('count', 'name'), [(50_000, 'fid50k'), (1000, 'fid1k'), (2500, 'fid2500'), (11, 'fid11')]
)
def test_names_carry_the_count(count, name):
    assert scores.score_name('fid', count) == name


# ---- What is passed in. --------------------------------------------------------------------------


PAIRED = [
    *(scores.fid, lambda a, b: scores.fid_infinity(a, b), lambda a, b: scores.kid(a, b, 3, 10)),
    lambda a, b: scores.intra_fid(a, [0, 1] * 20, b, [1, 0] * 20),
    *(manifold.precision_recall, manifold.density_coverage),
    lambda a, b: scores.frechet_distance(scores.moments(a), scores.moments(b)),
]


@pytest.mark.parametrize('score', PAIRED)
@pytest.mark.parametrize('convert', [list, np.ndarray.tolist, lambda x: x.astype(np.float32)])
def test_scores_of_lists_are_those_of_arrays(score, convert):
    r = np.random.default_rng(0)
    real, fake = (r.integers(-9, 9, (40, 3)).astype(float) for _ in range(2))
    assert score(convert(real), convert(fake)) == score(real, fake)


@pytest.mark.parametrize('score', PAIRED)
@pytest.mark.parametrize(
    'values', [[1.0, 2.0], [[1.0, 2.0], [3.0]], [['a', 'b']] * 40, 3.0, [[[1.0]]] * 40, None]
)
def test_what_is_no_matrix_is_refused_in_a_sentence(score, values):
    real = np.random.default_rng(0).normal(size=(40, 3))
    for sides in ((values, real), (real, values)):
        with pytest.raises(UserError, match=r'(needs|compares) .*: (pass|take) '):
            score(*sides)


def test_labels_of_intra_fid_may_be_a_list_but_not_fewer():
    r = np.random.default_rng(0)
    real, fake, labels = r.normal(size=(40, 3)), r.normal(size=(40, 3)), np.arange(40) % 2
    assert scores.intra_fid(real, list(labels), fake, labels.tolist()) == scores.intra_fid(
        real, labels, fake, labels
    )
    with pytest.raises(UserError, match=r'labels of shape \[39\] for 40 samples'):
        scores.intra_fid(real, labels[1:], fake, labels)


def test_frechet_distance_of_features_names_the_right_function():
    features = np.random.default_rng(0).normal(size=(40, 3))
    with pytest.raises(TypeError, match='use fid for features'):
        scores.frechet_distance(features, features)


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
@pytest.mark.parametrize('classes', [1, 2, 10, 1008])
def test_inception_score_refuses_probabilities(classes, dtype):
    logits = np.random.default_rng(0).normal(size=(50, classes)) * 3
    probabilities = scipy.special.softmax(logits, axis=1).astype(dtype)
    for given in (probabilities, probabilities.tolist()):
        with pytest.raises(ValueError, match='takes logits, but these are probabilities'):
            scores.inception_score(given)
    with np.errstate(divide='ignore'):
        logarithms = np.maximum(np.log(probabilities.astype(np.float64)), -50)
    expected = scores.inception_score(logits)
    assert scores.inception_score(logarithms) == pytest.approx(expected, rel=0.02, abs=0.02)
    # Positive logits are no probabilities.
    shifted = logits - logits.min() + 1
    if classes > 1:
        assert scores.inception_score(shifted) == pytest.approx(expected)


def test_the_deviation_of_kid_needs_different_subsets():
    r = np.random.default_rng(0)
    real, fake = r.normal(size=(60, 4)), r.normal(size=(50, 4))
    assert np.isnan(scores.kid(real, fake, 1, 20)[1])
    for size in (20, 49):
        assert scores.kid(real, fake, 10, size)[1] > 1e-6
    for left, right in ((real, fake), (fake, real), (fake, fake)):
        with pytest.warns(UserWarning, match='KID over 10 subsets of 50 of .* has no error bar'):
            value, deviation = scores.kid(left, right, 10, 50)
        assert np.isfinite(value)
        assert np.isnan(deviation)

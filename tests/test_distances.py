"""The Frechet distance and the Inception score against closed forms, SciPy and pytorch-ignite."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from ignite.metrics import FID, InceptionScore

from vae.scoring.distances import KERNEL_IMAGES, Array, frechet_distance, inception_score, kernel_distance


def draw(seed: int, n: int, d: int) -> Array:
    return np.random.default_rng(seed).normal(size=(n, d))


def softmax_rows(seed: int, n: int, d: int) -> Array:
    return np.asarray(torch.softmax(torch.from_numpy(2 * draw(seed, n, d)), dim=1))


@pytest.mark.parametrize(("n", "d"), [(40, 7), (7, 40), (20, 20), (2, 5)])
def test_equal_covariances_give_the_squared_distance_of_the_means(n: int, d: int) -> None:
    features, shift = draw(0, n, d), draw(1, 1, d)
    assert frechet_distance(features, features + shift) == pytest.approx(np.square(shift).sum(), rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(40, 7), (7, 40)])
def test_scaled_covariances_give_the_squared_difference_of_the_deviations(n: int, d: int) -> None:
    features = draw(0, n, d)
    features -= features.mean(0)
    trace = np.square(features).sum() / (n - 1)
    assert frechet_distance(features, 3 * features) == pytest.approx((3 - 1) ** 2 * trace, rel=1e-12)


def test_one_dimension_gives_the_textbook_formula() -> None:
    a, b = draw(0, 50, 1), 2 * draw(1, 60, 1) + 1
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_equal_sets_are_at_distance_zero_and_never_below() -> None:
    features = softmax_rows(0, 30, 200)
    assert 0 <= frechet_distance(features, features[::-1]) < 1e-14


@pytest.mark.parametrize(("n", "m", "d"), [(300, 200, 20), (25, 31, 60), (10, 200, 50)])
def test_matches_the_matrix_square_root_of_scipy(n: int, m: int, d: int) -> None:
    a, b = draw(0, n, d), draw(1, m, d) * 1.5 + 0.3
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shift = a.mean(0) - b.mean(0)
    root = np.real(np.trace(scipy.linalg.sqrtm(cov_a @ cov_b)))
    expected = shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("n", "d"), [(120, 30), (48, 300)])
def test_matches_ignite_on_probabilities(n: int, d: int) -> None:
    a, b = softmax_rows(0, n, d), softmax_rows(1, n, d)
    metric = FID(num_features=d)
    metric.update((torch.from_numpy(a), torch.from_numpy(b)))
    assert frechet_distance(a, b) == pytest.approx(metric.compute(), rel=1e-6)


def test_probabilities_are_at_most_two_apart() -> None:
    a, b = np.zeros((8, 10)), np.zeros((8, 10))
    a[:, 0], b[:, 1] = 1, 1  # all mass on one class each
    assert frechet_distance(a, b) == pytest.approx(2)


def test_a_single_image_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="at least 2 images, given 1 and 5"):
        frechet_distance(draw(0, 1, 3), draw(1, 5, 3))


def test_inception_score_is_one_for_equal_rows_and_counts_certain_classes() -> None:
    assert inception_score(np.full((5, 4), 0.25)) == pytest.approx(1)
    assert inception_score(np.eye(6)) == pytest.approx(6)
    assert inception_score([[1, 0], [0.5, 0.5]]) == pytest.approx(
        math.exp(0.5 * (math.log(4 / 3) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2)))
    )


def test_inception_score_matches_ignite() -> None:
    p = softmax_rows(0, 50, 100)
    metric = InceptionScore(num_features=100)
    metric.update(torch.from_numpy(p))
    assert inception_score(p) == pytest.approx(metric.compute(), rel=1e-9)


@pytest.mark.parametrize(("n", "m", "d"), [(12, 9, 5), (3, 2, 40)])
def test_the_kernel_distance_is_the_mean_over_pairs_of_different_images(n: int, m: int, d: int) -> None:
    real, fake = draw(0, n, d), draw(1, m, d) + 0.3

    def kernel(x: Array, y: Array) -> float:
        return float((x @ y / d + 1) ** 3)

    among_real = np.mean([kernel(real[i], real[j]) for i in range(n) for j in range(n) if i != j])
    among_fake = np.mean([kernel(fake[i], fake[j]) for i in range(m) for j in range(m) if i != j])
    between = np.mean([kernel(x, y) for x in real for y in fake])
    assert kernel_distance(real, fake) == pytest.approx(among_real + among_fake - 2 * between, rel=1e-12)


def test_the_kernel_distance_of_one_law_is_0_on_average_and_never_needs_all_of_many_images() -> None:
    values = [kernel_distance(draw(k, 40, 6), draw(1000 + k, 40, 6)) for k in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(len(values))
    same = draw(0, 30, 6)
    assert kernel_distance(same, same) < 0  # its own copy is nearer than another image
    assert kernel_distance(same, same, are_pairs=True) == pytest.approx(0, abs=1e-12)
    many = np.repeat(draw(0, KERNEL_IMAGES, 2), 2, axis=0)
    assert kernel_distance(many, many + 1) > 0
    with pytest.raises(ValueError, match="at least 2 images, given 1 and 3"):
        kernel_distance(draw(0, 1, 4), draw(1, 3, 4))

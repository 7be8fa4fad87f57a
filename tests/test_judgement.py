"""What classifiers say in numbers, against counting by hand."""

import math

import numpy as np
import pytest

from vae.scoring.judgement import auc, best_threshold, brier, decide, judge, mean_auc, rates


def counted_auc(scores: np.ndarray, is_positive: np.ndarray) -> float:
    wins = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high in scores[is_positive]
        for low in scores[~is_positive]
    ]
    return float(np.mean(wins))


@pytest.mark.parametrize("digits", [1, 6])
def test_the_auc_is_how_often_a_positive_scores_above_a_negative(digits: int) -> None:
    """With one digit, half of the images tie."""
    generator = np.random.default_rng(0)
    scores = generator.uniform(size=60).round(digits)
    is_positive = generator.uniform(size=60) < 0.3
    assert auc(scores, is_positive) == pytest.approx(counted_auc(scores, is_positive), rel=1e-12)
    assert auc(is_positive.astype(float), is_positive) == 1
    assert auc(np.zeros(60), is_positive) == 0.5
    assert math.isnan(auc(scores, np.ones(60, bool)))


def test_of_several_classes_it_is_the_mean_of_one_against_the_rest() -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 3, 50)
    probabilities = generator.dirichlet(np.ones(3), 50)
    expected = np.mean([counted_auc(probabilities[:, k], labels == k) for k in range(3)])
    assert mean_auc(probabilities, labels) == pytest.approx(expected, rel=1e-12)
    two = probabilities[:, :2]
    assert mean_auc(two, labels % 2) == pytest.approx(counted_auc(two[:, 1], labels % 2 == 1))


def test_the_threshold_is_the_best_sum_of_sensitivity_and_specificity() -> None:
    generator = np.random.default_rng(2)
    labels = np.repeat([0, 1], 40)
    scores = np.clip(0.4 + 0.2 * labels + 0.15 * generator.normal(size=80), 0, 1)
    probabilities = np.stack((1 - scores, scores), 1)
    found = best_threshold(probabilities, labels)

    def total(threshold: float) -> float:
        return sum(rates(decide(probabilities, threshold), labels, 2))

    assert total(found) == pytest.approx(max(total(value) for value in np.linspace(0, 1, 2001)))
    assert best_threshold(probabilities, np.ones(80, int)) == 0.5


def test_rates_and_calibration_are_counted() -> None:
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]])
    labels = np.array([0, 0, 1, 1])
    assert decide(probabilities, 0.5).tolist() == [0, 1, 1, 0]
    assert rates(decide(probabilities, 0.5), labels, 2) == (0.5, 0.5)
    assert brier(probabilities, labels) == pytest.approx(2 * (0.01 + 0.36 + 0.04 + 0.49) / 4)
    three = np.eye(3)[[0, 1, 2, 2]]
    found = rates(decide(three, 0.5), np.array([0, 1, 2, 1]), 3)
    assert found == pytest.approx((2.5 / 3, (1 + 1 + 2 / 3) / 3))


def test_a_judgement_is_the_mean_over_classifiers() -> None:
    generator = np.random.default_rng(3)
    labels = np.repeat([0, 1], 20)
    real, copies = generator.dirichlet(np.ones(2), (2, 2, 40))
    found = judge(copies, real, labels, [0.5, 0.3])
    assert found.auc == pytest.approx(np.mean([mean_auc(each, labels) for each in copies]))
    assert found.auc_of_each == pytest.approx([mean_auc(each, labels) for each in copies])
    changed = [np.mean((copies[k, :, 1] >= t) != (real[k, :, 1] >= t)) for k, t in enumerate((0.5, 0.3))]
    assert found.decisions_changed == pytest.approx(np.mean(changed))
    assert judge(real, real, labels, [0.5, 0.3]).decisions_changed == 0

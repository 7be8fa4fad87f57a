"""What classifiers say of a set of images, in numbers: AUC, decisions, calibration. Imports no torch."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from data_prep.json_records import Record

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.integer]


# Probabilities that agree so far are one: the same image in a batch of another size differs behind that.
TIE_DIGITS = 6


class Judgement(Record, frozen=True):
    """Means over classifiers."""

    auc: float
    sensitivity: float
    specificity: float
    brier: float
    decisions_changed: float
    """Share of the decisions that differ from those on the real images."""
    auc_of_each: list[float]


def auc(scores: Array, is_positive: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half.

    nan where one of both is missing. By ranks (Hanley & McNeil 1982, Radiology 143, 29).
    """
    num_positive = int(is_positive.sum())
    num_negative = len(scores) - num_positive
    if not num_positive or not num_negative:
        return float("nan")
    _, inverse, counts = np.unique(scores.round(TIE_DIGITS), return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # the middle one of those that tie
    above = ranks[inverse][is_positive].sum() - num_positive * (num_positive + 1) / 2
    return float(above / (num_positive * num_negative))


def mean_auc(probabilities: Array, labels: Labels) -> float:
    """The AUC of probabilities [n, classes]: of the second of two classes, else the mean of one against the
    rest over the classes that `labels` has."""
    if probabilities.shape[1] == 2:
        return auc(probabilities[:, 1], labels == 1)
    found = [auc(column, labels == label) for label, column in enumerate(probabilities.T)]
    return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")


def decide(probabilities: Array, threshold: float) -> Labels:
    """The class that probabilities [n, classes] decide for: by the threshold if there are two, else the most
    probable one."""
    if probabilities.shape[1] == 2:
        return np.asarray(probabilities[:, 1] >= threshold, np.int64)
    return np.asarray(probabilities.argmax(1))


def best_threshold(probabilities: Array, labels: Labels) -> float:
    """Where sensitivity plus specificity is highest (Youden 1950); 0.5 where nothing can be chosen by."""
    scores, is_positive = probabilities[:, -1], labels == probabilities.shape[1] - 1
    if probabilities.shape[1] != 2 or is_positive.all() or not is_positive.any():
        return 0.5
    candidates = np.unique(scores)
    # between two neighbours, so that no image lies on it
    middles = (candidates[1:] + candidates[:-1]) / 2 if len(candidates) > 1 else candidates
    sensitivity = np.array([(scores[is_positive] >= middle).mean() for middle in middles])
    specificity = np.array([(scores[~is_positive] < middle).mean() for middle in middles])
    return float(middles[np.argmax(sensitivity + specificity)])


def rates(decisions: Labels, labels: Labels, num_classes: int) -> tuple[float, float]:
    """Sensitivity and specificity: of the second of two classes, else means of one against the rest."""
    classes = [1] if num_classes == 2 else range(num_classes)
    found = []
    for label in classes:
        is_one = labels == label
        if is_one.any() and not is_one.all():
            found.append(((decisions[is_one] == label).mean(), (decisions[~is_one] != label).mean()))
    if not found:
        return float("nan"), float("nan")
    sensitivity, specificity = np.mean(found, axis=0)
    return float(sensitivity), float(specificity)


def brier(probabilities: Array, labels: Labels) -> float:
    """Mean squared distance of the probabilities from the truth, summed over classes (Brier 1950), 0 to 2."""
    truth = np.eye(probabilities.shape[1])[labels]
    return float(np.square(probabilities - truth).sum(1).mean())


def judge(found: Array, real: Array, labels: Labels, thresholds: Sequence[float]) -> Judgement:
    """What classifiers with these thresholds say: `found` of images, `real` of the real ones they are copies
    of, both [classifiers, n, classes]."""
    num_classes = found.shape[2]
    decided = [decide(each, threshold) for each, threshold in zip(found, thresholds, strict=True)]
    before = [decide(each, threshold) for each, threshold in zip(real, thresholds, strict=True)]
    both = [rates(decisions, labels, num_classes) for decisions in decided]
    changed = [(new != old).mean() for new, old in zip(decided, before, strict=True)]
    of_each = [mean_auc(each, labels) for each in found]
    return Judgement(
        auc=float(np.mean(of_each)),
        sensitivity=float(np.mean([sensitivity for sensitivity, _ in both])),
        specificity=float(np.mean([specificity for _, specificity in both])),
        brier=float(np.mean([brier(each, labels) for each in found])),
        decisions_changed=float(np.mean(changed)),
        auc_of_each=of_each,
    )

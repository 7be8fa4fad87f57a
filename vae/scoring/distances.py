"""Distances between two sets of image features, and the Inception score; all in float64."""

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def frechet_distance(real: npt.ArrayLike, fake: npt.ArrayLike) -> float:
    """Squared Frechet distance of the Gaussians fitted to two feature sets, [n, d] and [m, d]; n, m >= 2.

    |mean - mean'|^2 + tr(S) + tr(S') - 2 tr((S S')^(1/2)) with covariances over n - 1 (Dowson & Landau 1982;
    "FID" in Heusel et al. 2017, arXiv 1706.08500).

    With centred features A, B the last trace is the nuclear norm of A B^T / sqrt((n-1)(m-1)). That needs no
    square root of a matrix, cannot turn complex, and is exact also where n < d makes covariances singular.
    """
    a, b = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    if len(a) < 2 or len(b) < 2:
        raise ValueError(f"a covariance needs at least 2 images, given {len(a)} and {len(b)}")
    shift = a.mean(0) - b.mean(0)
    a, b = _deviations(a), _deviations(b)
    overlap = np.linalg.svd(_shrink(a) @ _shrink(b).T, compute_uv=False).sum()
    distance = shift @ shift + np.square(a).sum() + np.square(b).sum() - 2 * overlap
    return max(0.0, float(distance))  # rounding may leave -1e-16 for equal sets


def _deviations(features: Array) -> Array:
    """X with X^T X = covariance, [n, d]."""
    deviations: Array = (features - features.mean(0)) / math.sqrt(len(features) - 1)
    return deviations


def _shrink(deviations: Array) -> Array:
    """A matrix with the same X^T X and at most d rows, so that the cost does not grow with n squared."""
    rows, columns = deviations.shape
    return np.asarray(np.linalg.qr(deviations, mode="r")) if rows > columns else deviations


def inception_score(probabilities: npt.ArrayLike) -> float:
    """exp of the mean KL divergence of each row from the mean row, [n, classes] -> 1 to min(n, classes).

    One split over all images (Salimans et al. 2016, arXiv 1606.03498, with 0 log 0 = 0).
    """
    p = np.asarray(probabilities, np.float64)
    marginal = p.mean(0)
    ratio = np.divide(p, marginal, out=np.ones_like(p), where=p > 0)
    return float(np.exp((p * np.log(ratio)).sum(1).mean()))

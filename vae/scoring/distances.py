"""Distances between two sets of image features, and the Inception score; all in float64."""

import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# A kernel distance takes at most so many images of a set, evenly spaced: its cost grows with their square.
KERNEL_IMAGES = 2000


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


def kernel_distance(real: npt.ArrayLike, fake: npt.ArrayLike, are_pairs: bool = False) -> float:
    """Squared maximum mean discrepancy of two feature sets, [n, d] and [m, d]; n, m >= 2; unbiased.

    With the kernel (x.y / d + 1)^3: "KID" in Binkowski et al. 2018, arXiv 1801.01401, with one subset of all
    images. May be negative where the sets are alike. `are_pairs`: each fake image is a copy of the real one
    in its row; these pairs are left out, or a perfect copy would score below 0.
    """
    a, b = (_at_most(np.asarray(features, np.float64), KERNEL_IMAGES) for features in (real, fake))
    if len(a) < 2 or len(b) < 2:
        raise ValueError(f"a kernel distance needs at least 2 images, given {len(a)} and {len(b)}")
    across = _kernel(a, b)
    between = _mean_off_diagonal(across) if are_pairs else float(across.mean())
    return _mean_off_diagonal(_kernel(a, a)) + _mean_off_diagonal(_kernel(b, b)) - 2 * between


def _mean_off_diagonal(kernel: Array) -> float:
    """The kernel's mean over pairs of images in different rows."""
    count = len(kernel)
    return float(kernel.sum() - np.trace(kernel)) / (count * (count - 1))


def _kernel(a: Array, b: Array) -> Array:
    kernel: Array = (a @ b.T / a.shape[1] + 1) ** 3
    return kernel


def _at_most(features: Array, count: int) -> Array:
    rows = np.linspace(0, len(features) - 1, min(count, len(features))).astype(int)
    chosen: Array = features[rows]
    return chosen


def inception_score(probabilities: npt.ArrayLike) -> float:
    """exp of the mean KL divergence of each row from the mean row, [n, classes] -> 1 to min(n, classes).

    One split over all images (Salimans et al. 2016, arXiv 1606.03498, with 0 log 0 = 0).
    """
    p = np.asarray(probabilities, np.float64)
    marginal = p.mean(0)
    ratio = np.divide(p, marginal, out=np.ones_like(p), where=p > 0)
    return float(np.exp((p * np.log(ratio)).sum(1).mean()))

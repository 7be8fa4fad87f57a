"""FID and Inception score as pytorch-ignite computes them; its FID checked against the exact one."""

import importlib.metadata
import inspect
import math
import warnings

import numpy as np
import scipy.linalg
import torch
from ignite.metrics import InceptionScore, Metric
from ignite.metrics.gan import fid
from torch import Tensor

IGNITE = f"pytorch-ignite {importlib.metadata.version('pytorch-ignite')}"
EXACT = "exact distance by the nuclear norm"
# What SciPy's square root of a singular matrix, inside ignite, loses to rounding (measured: 1e-8 and less).
AGREEMENT_REL, AGREEMENT_ABS = 1e-6, 1e-7


def ignite_fid(real: Tensor, fake: Tensor, exact: float) -> tuple[float, str]:
    """pytorch-ignite's FID of features [n, d] and [m, d], and its name.

    The exact distance, and why, where ignite's cannot be trusted.

    Its square root may fail, or end in values that are not finite, which it replaces by those of another
    formula without a word. It gets means and covariances: its own way to them is one outer product after
    another.
    """
    means, covariances = zip(*map(_moments, _in_span(real, fake)), strict=True)
    try:
        with warnings.catch_warnings():  # fewer images than probabilities is the usual case here
            warnings.filterwarnings("ignore", "Matrix is ", scipy.linalg.LinAlgWarning)
            value = fid.fid_score(*means, *covariances)
        problem = f"it gives {value:.9g}"
    except (ValueError, np.linalg.LinAlgError) as error:
        value, problem = math.nan, str(error)
    if math.isclose(value, exact, rel_tol=AGREEMENT_REL, abs_tol=AGREEMENT_ABS):
        return value, f"{IGNITE} FID"
    return exact, f"{EXACT}, because {IGNITE} FID failed: {problem}"


def _in_span(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Both in coordinates of the space that they span, where that has fewer dimensions: the same distance.

    The square root of 1000 x 1000 covariances takes over a second, whatever few images they are of.
    """
    count = len(real) + len(fake)
    if count >= real.shape[1]:
        return real, fake
    coordinates = torch.linalg.qr(torch.cat((real, fake)).double().T)[1].T
    return coordinates[: len(real)], coordinates[len(real) :]


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance over n - 1, float64 [d] and [d, d]."""
    return features.double().mean(0), features.double().T.cov()


def ignite_inception_score(probabilities: Tensor) -> tuple[float, str]:
    """pytorch-ignite's Inception score of class probabilities [n, classes], and its name."""
    metric = InceptionScore(num_features=probabilities.shape[1])
    metric.update(probabilities)
    return compute_alone(metric), f"{IGNITE} InceptionScore, one split"


def compute_alone(metric: Metric) -> float:
    """An ignite metric's value from what this process has fed it.

    Goes past ignite's own adding up over ranks: that starts communication of its own and reads SLURM's
    variables its own way, and here every rank holds the features of all images.
    """
    return float(inspect.unwrap(type(metric).compute)(metric))

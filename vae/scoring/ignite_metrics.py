"""FID and Inception score as pytorch-ignite computes them, checked against the exact ones."""

import importlib.metadata
import inspect
import math
import warnings

import numpy as np
import scipy.linalg
from ignite.metrics import InceptionScore, Metric
from ignite.metrics.gan import fid as ignite_fid
from msgspec.structs import replace
from torch import Tensor

from vae.scoring.distances import frechet_distance, inception_score
from vae.scoring.extractors import Features
from vae.scoring.score_cards import Score, ScoreCard, score

IGNITE = f"pytorch-ignite {importlib.metadata.version('pytorch-ignite')}"
EXACT = "exact distance by the nuclear norm"
PROBABILITIES, POOL = "softmax, 1000 probabilities", "last pooling layer, 2048 activations"

PAPER_FID_NOTE = (
    "on probabilities, so at most about 2 and not on the scale of a FID on 2048 activations; the published "
    "study does not say whether it scored reconstructions or samples, which split, 608 or 624 images, nor "
    "which latents"
)
POOL_FID_NOTE = (
    "not the number that pytorch-fid or clean-fid would give: network and input are those named here; biased "
    "upwards where there are fewer images than activations, so compare only equal numbers of images"
)
IS_NOTE = "ImageNet classes mean little on X-rays; the score of the real images is the only yardstick"

# What SciPy's square root of a singular matrix, inside ignite, loses to rounding (measured: 1e-8 and less).
AGREEMENT_REL, AGREEMENT_ABS = 1e-6, 1e-7


def frechet_scores(name: str, real: Features, fake: Features, card: ScoreCard) -> dict[str, Score]:
    """`NAME_paper` and `NAME_2048` for two sets of equally many images."""
    paper_key, pool_key = f"{name}_paper", f"{name}_2048"
    card = replace(card, n_real=len(real.pool), n_fake=len(fake.pool))
    exact = frechet_distance(real.probabilities, fake.probabilities)
    value, computed_by = _ignite_fid(real, fake, exact)
    paper = {"layer": PROBABILITIES, "computed_by": computed_by, "exact_value": exact, "note": PAPER_FID_NOTE}
    pool_card = replace(card, layer=POOL, computed_by=EXACT, note=POOL_FID_NOTE)
    return {
        paper_key: score(paper_key, value, replace(card, **paper)),
        pool_key: score(pool_key, frechet_distance(real.pool, fake.pool), pool_card),
    }


def _ignite_fid(real: Features, fake: Features, exact: float) -> tuple[float, str]:
    """pytorch-ignite's FID and its name; the exact distance, and why, where ignite's cannot be trusted.

    Its square root may fail, or end in values that are not finite, which it replaces by those of another
    formula without a word. It gets means and covariances: its own way to them is one outer product after
    another.
    """
    means, covariances = zip(_moments(real.probabilities), _moments(fake.probabilities), strict=True)
    try:
        with warnings.catch_warnings():  # fewer images than probabilities is the usual case here
            warnings.filterwarnings("ignore", "Matrix is ", scipy.linalg.LinAlgWarning)
            value = ignite_fid.fid_score(*means, *covariances)
        problem = f"it gives {value:.9g}"
    except (ValueError, np.linalg.LinAlgError) as error:
        value, problem = math.nan, str(error)
    if math.isclose(value, exact, rel_tol=AGREEMENT_REL, abs_tol=AGREEMENT_ABS):
        return value, f"{IGNITE} FID"
    return exact, f"{EXACT}, because {IGNITE} FID failed: {problem}"


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance over n - 1, float64 [d] and [d, d]."""
    return features.double().mean(0), features.double().T.cov()


def inception_scores(name: str, features: Features, card: ScoreCard) -> dict[str, Score]:
    """`is_NAME`, one split over all images."""
    metric = InceptionScore(num_features=features.probabilities.shape[1])
    metric.update(features.probabilities)
    card = replace(
        card,
        n_fake=len(features.probabilities),
        layer=PROBABILITIES,
        computed_by=f"{IGNITE} InceptionScore, one split",
        exact_value=inception_score(features.probabilities),
        note=IS_NOTE,
    )
    return {f"is_{name}": score(f"is_{name}", compute_alone(metric), card)}


def compute_alone(metric: Metric) -> float:
    """An ignite metric's value from what this process has fed it.

    Goes past ignite's own adding up over ranks: that starts communication of its own and reads SLURM's
    variables its own way, and here every rank holds the features of all images.
    """
    return float(inspect.unwrap(type(metric).compute)(metric))

"""What a score means: every number with the card that says how it was made.

paper   pytorch-ignite's own FID and InceptionScore on 1000 softmax probabilities, as in the report
2048    the usual Frechet distance on the 2048 activations of the last pooling layer
"""

from __future__ import annotations

import importlib.metadata
import inspect
import math
import warnings
from typing import Any

import numpy as np
import scipy.linalg
from ignite.metrics import FID, InceptionScore, Metric

from vae.scoring.distances import frechet_distance, inception_score
from vae.scoring.extractors import Features

Score = dict[str, Any]
"""{"value": float or None, "unit": str, "protocol": {...}} and, where there is no value, "reason"."""

IGNITE = f"pytorch-ignite {importlib.metadata.version('pytorch-ignite')}"
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
AGREEMENT = {"rel_tol": 1e-6, "abs_tol": 1e-7}


def score(value: float, unit: str, **protocol: Any) -> Score:
    """A number with its card; one that is not finite becomes a reason, for JSON has no such numbers."""
    if not math.isfinite(value):
        return no_score(f"the result is not finite ({value})", **protocol)
    return {"value": float(value), "unit": unit, "protocol": protocol}


def no_score(reason: str, **protocol: Any) -> Score:
    """The place of a number that cannot be had, and why."""
    return {"value": None, "unit": "", "reason": reason, "protocol": protocol}


def frechet_scores(name: str, real: Features, fake: Features, **card: Any) -> dict[str, Score]:
    """`NAME_paper` and `NAME_2048` for two sets of equally many images."""
    counts = {"n_real": len(real.pool), "n_fake": len(fake.pool)}
    exact = frechet_distance(real.probabilities, fake.probabilities)
    value, by = _ignite_fid(real, fake, exact)
    paper = {"layer": PROBABILITIES, "computed_by": by, "exact_value": exact, "note": PAPER_FID_NOTE}
    pool = {"layer": POOL, "computed_by": "exact distance by the nuclear norm", "note": POOL_FID_NOTE}
    return {
        f"{name}_paper": score(value, "", **counts, **card, **paper),
        f"{name}_2048": score(frechet_distance(real.pool, fake.pool), "", **counts, **card, **pool),
    }


def _ignite_fid(real: Features, fake: Features, exact: float) -> tuple[float, str]:
    """pytorch-ignite's FID and its name; the exact distance, and why, where ignite's cannot be trusted.

    Its square root may fail, or end in values that are not finite, which it replaces by those of another
    formula without a word.
    """
    metric = FID(num_features=real.probabilities.shape[1])
    metric.update((real.probabilities, fake.probabilities))
    try:
        with warnings.catch_warnings():  # fewer images than probabilities is the usual case here
            warnings.filterwarnings("ignore", "Matrix is ", scipy.linalg.LinAlgWarning)
            value = compute_alone(metric)
        problem = f"it gives {value:.9g}"
    except (ValueError, np.linalg.LinAlgError) as error:
        value, problem = math.nan, str(error)
    if math.isclose(value, exact, **AGREEMENT):
        return value, f"{IGNITE} FID"
    return exact, f"exact distance by the nuclear norm, because {IGNITE} FID failed: {problem}"


def inception_scores(name: str, features: Features, **card: Any) -> dict[str, Score]:
    """`is_NAME`, one split over all images."""
    metric = InceptionScore(num_features=features.probabilities.shape[1])
    metric.update(features.probabilities)
    by, exact = f"{IGNITE} InceptionScore, one split", inception_score(features.probabilities)
    own = {"layer": PROBABILITIES, "computed_by": by, "exact_value": exact, "note": IS_NOTE}
    count = len(features.probabilities)
    return {f"is_{name}": score(compute_alone(metric), "", n_fake=count, **card, **own)}


def compute_alone(metric: Metric) -> float:
    """An ignite metric's value from what this process has fed it.

    Goes past ignite's own adding up over ranks: that starts communication of its own and reads SLURM's
    variables its own way, and here every rank holds the features of all images.
    """
    return float(inspect.unwrap(type(metric).compute)(metric))

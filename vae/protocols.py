"""What a score means: every number with the card that says how it was made.

paper   pytorch-ignite's own FID and InceptionScore on 1000 softmax probabilities, as in the report
2048    the usual Frechet distance on the 2048 activations of the last pooling layer
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import warnings
from typing import Any

import numpy as np
import scipy.linalg
from ignite.metrics import FID, InceptionScore

from vae.distances import frechet_distance, inception_score
from vae.features import Features, own_rows

log = logging.getLogger(__name__)

Score = dict[str, Any]
"""{"value": float or None, "unit": str, "protocol": {...}} and, where there is no value, "reason"."""

IGNITE = f"pytorch-ignite {importlib.metadata.version('pytorch-ignite')}"
PROBABILITIES, POOL = "softmax, 1000 probabilities", "last pooling layer, 2048 activations"

PAPER_FID_NOTE = (
    "on probabilities, so at most about 2 and not on the scale of a FID on 2048 activations; the report does "
    "not say whether it scored reconstructions or samples, which split, 608 or 624 images, nor which latents"
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
    """`NAME_paper` and `NAME_2048` for two sets of equally many images. Every rank must call it."""
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
    """pytorch-ignite's FID, which adds up the parts of all ranks, and its name; `exact` where it fails."""
    rows = own_rows(len(real.probabilities))
    metric = FID(num_features=real.probabilities.shape[1])
    if rows.stop > rows.start:
        metric.update((real.probabilities[rows], fake.probabilities[rows]))
    try:
        with warnings.catch_warnings():  # fewer images than probabilities is the usual case here
            warnings.filterwarnings("ignore", "Matrix is ", scipy.linalg.LinAlgWarning)
            value = float(metric.compute())
    except (ValueError, np.linalg.LinAlgError) as error:  # the square root of a singular product
        log.warning("%s FID failed (%s); the exact distance stands in for it", IGNITE, error)
        return exact, f"exact distance by the nuclear norm, because {IGNITE} FID failed: {error}"
    if not math.isclose(value, exact, **AGREEMENT):
        log.warning("%s FID gives %.9g, the exact distance is %.9g", IGNITE, value, exact)
    return value, f"{IGNITE} FID"


def inception_scores(name: str, features: Features, **card: Any) -> dict[str, Score]:
    """`is_NAME`, one split over all images. Every rank must call it."""
    probabilities = features.probabilities
    rows = own_rows(len(probabilities))
    metric = InceptionScore(num_features=probabilities.shape[1])
    if rows.stop > rows.start:
        metric.update(probabilities[rows])
    by, exact = f"{IGNITE} InceptionScore, one split", inception_score(probabilities)
    own = {"layer": PROBABILITIES, "computed_by": by, "exact_value": exact, "note": IS_NOTE}
    return {f"is_{name}": score(metric.compute(), "", n_fake=len(probabilities), **card, **own)}

"""Sets of images compared by their features: FID-1000, FID-2048, KID and Inception score, with intervals."""

from functools import partial

import numpy as np
from msgspec.structs import replace

from vae.scoring.distances import KERNEL_IMAGES, frechet_distance, inception_score, kernel_distance
from vae.scoring.extractors import Features
from vae.scoring.ignite_metrics import ignite_fid, ignite_inception_score
from vae.scoring.resampling import NO_HALVES, Halves, Measured, measured, over_ranks
from vae.scoring.score_cards import ScoreCard

PROBABILITIES, POOL = "softmax, 1000 probabilities", "last pooling layer, 2048 activations"
EXACT_FID = "exact distance by the nuclear norm"
KID = f"unbiased MMD^2 with the kernel (x.y / d + 1)^3, one subset of all images, at most {KERNEL_IMAGES:,}"
KID_OF_PAIRS = f"{KID}, no image beside its own copy"

PAPER_FID_NOTE = (
    "on probabilities, so at most about 2 and not on the scale of a FID on 2048 activations; the published "
    "study does not say whether it scored reconstructions or samples, which split, 608 or 624 images, nor "
    "which latents"
)
POOL_FID_NOTE = (
    "not the number that pytorch-fid or clean-fid would give: network and input are those named here; biased "
    "upwards where there are fewer images than activations, so compare only equal numbers of images"
)
KID_NOTE = (
    "unbiased, so it may be compared between other numbers of images; about 0, also below it, for like sets"
)
IS_NOTE = "ImageNet classes mean little on X-rays; the score of the real images is the only yardstick"


def distance_scores(
    name: str,
    real: Features,
    fake: Features,
    card: ScoreCard,
    halves: tuple[Halves, Halves] = (NO_HALVES, NO_HALVES),
    *,
    by_ignite: bool = True,
) -> dict[str, Measured]:
    """`NAME_paper`, `NAME_2048` and `NAME_kid`; `halves` of the real and of the fake images, the same ones
    where each fake image is a copy of a real one. Every rank must call it.

    Not `by_ignite`, FID-1000 is the exact one, which ignite takes over a second for.
    """
    value = frechet_distance(real.probabilities, fake.probabilities)
    paper = replace(card, layer=PROBABILITIES, note=PAPER_FID_NOTE, computed_by=EXACT_FID)
    if by_ignite:
        paper = replace(paper, exact_value=value)
        value, computed_by = ignite_fid(real.probabilities, fake.probabilities, value)
        paper = replace(paper, computed_by=computed_by)
    pool = replace(card, layer=POOL, computed_by=EXACT_FID, note=POOL_FID_NOTE)
    found = {}
    are_pairs = halves[0] is halves[1] and halves[0] is not NO_HALVES
    kernel = partial(kernel_distance, are_pairs=are_pairs)
    kid = replace(pool, computed_by=KID_OF_PAIRS if are_pairs else KID, note=KID_NOTE)
    for key, layer, distance, card_of_key in (
        (f"{name}_paper", "probabilities", frechet_distance, paper),
        (f"{name}_2048", "pool", frechet_distance, pool),
        (f"{name}_kid", "pool", kernel, kid),
    ):
        a, b = (np.asarray(getattr(features, layer), np.float64) for features in (real, fake))
        pairs = list(zip(*(of_set.sets for of_set in halves), strict=False))
        if distance is kernel and len(a) > KERNEL_IMAGES:
            pairs = []  # of all images it takes so many only, and of a half as many
        draws = over_ranks(len(pairs), lambda k: distance(a[pairs[k][0]], b[pairs[k][1]]))  # noqa: B023
        whole = value if card_of_key is paper else distance(a, b)
        found[key] = measured(key, whole, card_of_key, halves[0], draws)
    return found


def inception_scores(key: str, features: Features, card: ScoreCard, halves: Halves) -> dict[str, Measured]:
    """The Inception score under that key, one split over all images."""
    value, computed_by = ignite_inception_score(features.probabilities)
    probabilities = np.asarray(features.probabilities, np.float64)
    card = replace(card, layer=PROBABILITIES, computed_by=computed_by, note=IS_NOTE)
    card = replace(card, exact_value=inception_score(probabilities))
    draws = [inception_score(probabilities[rows]) for rows in halves.sets]
    return {key: measured(key, value, card, halves, draws)}

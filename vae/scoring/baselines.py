"""What real images score, to read the other scores beside: floor_* and is_real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from accelerate import PartialState
from msgspec.structs import replace

from vae.scoring.extractors import Features
from vae.scoring.feature_cache import real_features
from vae.scoring.ignite_metrics import frechet_scores, inception_scores
from vae.scoring.score_cards import Score
from vae.scoring.subject import Subject
from vae.training.data_loader import ImageSplit

FLOOR_SEED = 0  # the same training images for every run of a study


def baseline_scores(subject: Subject, real: Features, train: ImageSplit, cache: Path) -> dict[str, Score]:
    """Scores of training images against as many test images, and the Inception score of the test images."""
    count = min(len(train), len(subject.test))
    chosen = np.sort(np.random.default_rng(FLOOR_SEED).permutation(len(train))[:count])
    features = real_features(subject, train, "train", chosen, cache)
    if not PartialState().is_main_process:
        return {}
    as_many = Features(*(tensor[:count] for tensor in real))
    card = subject.feature_card
    train_card = replace(
        card, images="real images of the train split, in the train split's balance of classes"
    )
    return {
        **frechet_scores("floor", as_many, features, train_card),
        **inception_scores("real", real, replace(card, images="real images of the test split")),
    }

"""Scores of real images, against what can be computed from the images alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import COUNTS

from vae.scoring.baselines import FLOOR_SEED
from vae.scoring.distances import frechet_distance, inception_score
from vae.scoring.extractors import load_extractor
from vae.scoring.score_cards import read_scores
from vae.study import Study
from vae.training.data_loader import load_split


def test_baselines_compare_as_many_training_images_with_the_test_images(
    scored_study: Path, shards: Path
) -> None:
    extractor = load_extractor(Study("x", extractor="smoke"), torch.device("cpu"))
    chosen = np.random.default_rng(FLOOR_SEED).permutation(COUNTS["train"])[: COUNTS["test"]]
    train = extractor(load_split(shards, "train").take(chosen))
    test = extractor(load_split(shards, "test").take(np.arange(COUNTS["test"])))
    expected = {
        "floor_paper": frechet_distance(test.probabilities, train.probabilities),
        "floor_2048": frechet_distance(test.pool, train.pool),
        "is_real": inception_score(test.probabilities),
    }
    scores = read_scores(scored_study / "linear-s0")
    assert scores is not None
    assert {key: scores.value(key) for key in expected} == pytest.approx(expected, rel=1e-4)

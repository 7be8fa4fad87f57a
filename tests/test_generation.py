"""Scores of samples: drawn from the seed of the run, or the reason why there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import COUNTS

from vae.scoring.distances import frechet_distance, inception_score
from vae.scoring.extractors import load_extractor, to_8bit
from vae.scoring.generation import prior_noise
from vae.scoring.score_cards import read_scores
from vae.study import Study
from vae.training.checkpoint import load_trained
from vae.training.data_loader import load_split

NUM_TEST = COUNTS["test"]


def test_samples_are_drawn_from_the_seed_of_the_run(scored_study: Path, shards: Path) -> None:
    model, _ = load_trained(scored_study / "linear-s0")
    extractor = load_extractor(Study("x", extractor="smoke"), torch.device("cpu"))
    noise = prior_noise(model, 0, NUM_TEST)
    assert noise.shape == (NUM_TEST, 8)
    assert not torch.equal(noise, prior_noise(model, 1, NUM_TEST))
    fake = extractor(to_8bit(model.sample(noise)))
    real = extractor(load_split(shards, "test").take(np.arange(NUM_TEST)))
    scores = read_scores(scored_study / "linear-s0")
    assert scores is not None
    assert scores.value("gfid_2048") == pytest.approx(frechet_distance(real.pool, fake.pool), rel=1e-4)
    assert scores.value("is_samples") == pytest.approx(inception_score(fake.probabilities), rel=1e-4)
    assert scores.scores["gfid_2048"].card.noise_seed == 0


def test_direct_cannot_sample_and_says_why(scored_study: Path) -> None:
    scores = read_scores(scored_study / "direct-s0")
    assert scores is not None
    for key in ("gfid_paper", "gfid_2048", "is_samples"):
        assert scores.scores[key].value is None
        assert "no prior to sample from" in scores.scores[key].reason

"""Scores of samples against what can be computed from the samples alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import COUNTS

from vae.scoring.distances import frechet_distance, inception_score, kernel_distance
from vae.scoring.extractors import load_extractor, to_8bit
from vae.scoring.generation import KEYS
from vae.scoring.score_cards import read_scores
from vae.scoring.subject import SAMPLE_STREAM
from vae.study import Study
from vae.training.checkpoint import load_trained
from vae.training.data_loader import load_split, mix

NUM_TEST = COUNTS["test"]


def test_samples_are_drawn_from_the_seed_of_the_run(scored_study: Path, shards: Path) -> None:
    model, _ = load_trained(scored_study / "linear-s0")
    extractor = load_extractor(Study("x", extractor="smoke"), torch.device("cpu"))
    generator = torch.Generator().manual_seed(mix(0, SAMPLE_STREAM))
    noise = torch.randn((NUM_TEST, *model.latent_shape), generator=generator)
    fake = extractor(to_8bit(model.sample(noise)))
    real = extractor(load_split(shards, "test").take(np.arange(NUM_TEST)))
    scores = read_scores(scored_study / "linear-s0")
    assert scores is not None
    expected = {
        "gfid_paper": frechet_distance(real.probabilities, fake.probabilities),
        "gfid_2048": frechet_distance(real.pool, fake.pool),
        "gfid_kid": kernel_distance(real.pool, fake.pool),
        "is_samples": inception_score(fake.probabilities),
    }
    assert {key: scores.value(key) for key in expected} == pytest.approx(expected, rel=1e-4)
    assert scores.scores["gfid_2048"].card.noise_seed == 0


def test_direct_cannot_sample_and_says_why(scored_study: Path) -> None:
    scores = read_scores(scored_study / "direct-s0")
    assert scores is not None
    for key in KEYS:
        assert scores.scores[key].value is None
        assert "no prior to sample from" in scores.scores[key].reason

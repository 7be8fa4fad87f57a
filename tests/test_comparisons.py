"""Scores of reconstructions, samples and real images against what can be computed from the images alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.metrics import PSNR, SSIM
from tiny import COUNTS

from vae.losses import bce_per_image, kl_per_image
from vae.scoring.comparisons import FLOOR_SEED, prior_noise
from vae.scoring.distances import frechet_distance, inception_score
from vae.scoring.extractors import load_extractor, to_8bit
from vae.scoring.score_cards import read_scores
from vae.study import Study
from vae.training.checkpoint import load_trained
from vae.training.data_loader import load_split, to_unit

NUM_TEST = COUNTS["test"]


@pytest.mark.parametrize("name", ["linear-s0", "direct-s0"])
def test_reconstruction_scores_follow_from_the_images(scored_study: Path, shards: Path, name: str) -> None:
    """One image at a time, so that means over images and not over batches must come out."""
    model, _ = load_trained(scored_study / name)
    extractor = load_extractor(Study("x", extractor="smoke"), torch.device("cpu"))
    packed = load_split(shards, "test").take(np.arange(NUM_TEST))
    images = to_unit(packed)
    with torch.no_grad():
        output = model(images)
    ssim, psnr = [], []
    reconstructions = model.reconstruct(images)
    for pair in zip(reconstructions.split(1), images.split(1), strict=True):
        for metric, values in ((SSIM(data_range=1.0), ssim), (PSNR(data_range=1.0), psnr)):
            metric.update(pair)
            values.append(metric.compute())
    real, fake = extractor(packed), extractor(to_8bit(reconstructions))
    expected = {
        "ssim": np.mean(ssim),
        "psnr": np.mean(psnr),
        "bce": bce_per_image(output.logits, images).mean().item(),
        "rfid_paper": frechet_distance(real.probabilities, fake.probabilities),
        "rfid_2048": frechet_distance(real.pool, fake.pool),
        "is_reconstructions": inception_score(fake.probabilities),
    }
    if model.can_sample:
        expected["kl"] = kl_per_image(output.mean, output.log_variance).mean().item()
    scores = read_scores(scored_study / name)
    assert scores is not None
    assert {key: scores.value(key) for key in expected} == pytest.approx(expected, rel=1e-4)


def test_direct_has_no_divergence_and_says_why(scored_study: Path) -> None:
    scores = read_scores(scored_study / "direct-s0")
    assert scores is not None
    assert scores.scores["kl"].value is None
    assert "no latent distribution" in scores.scores["kl"].reason
    assert (scores.value("rfid_paper") or 0) > 0


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


def test_baselines_compare_as_many_training_images_with_the_test_images(
    scored_study: Path, shards: Path
) -> None:
    extractor = load_extractor(Study("x", extractor="smoke"), torch.device("cpu"))
    chosen = np.random.default_rng(FLOOR_SEED).permutation(COUNTS["train"])[:NUM_TEST]
    train = extractor(load_split(shards, "train").take(chosen))
    test = extractor(load_split(shards, "test").take(np.arange(NUM_TEST)))
    expected = {
        "floor_paper": frechet_distance(test.probabilities, train.probabilities),
        "floor_2048": frechet_distance(test.pool, train.pool),
        "is_real": inception_score(test.probabilities),
    }
    scores = read_scores(scored_study / "linear-s0")
    assert scores is not None
    assert {key: scores.value(key) for key in expected} == pytest.approx(expected, rel=1e-4)

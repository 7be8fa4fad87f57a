"""Scores of reconstructions against what can be computed from the images alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.metrics import PSNR, SSIM
from tiny import COUNTS

from vae.losses import bce_per_image, kl_per_image
from vae.scoring.distances import frechet_distance, inception_score, kernel_distance
from vae.scoring.extractors import load_extractor, to_8bit
from vae.scoring.score_cards import read_scores
from vae.scoring.subject import LATENT_STREAM
from vae.study import Study
from vae.training.checkpoint import load_trained
from vae.training.data_loader import load_split, mix, to_unit

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
        "rfid_kid": kernel_distance(real.pool, fake.pool, are_pairs=True),
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


def test_sampled_latents_are_scored_beside_their_mean(scored_study: Path, shards: Path) -> None:
    model, _ = load_trained(scored_study / "linear-s0")
    extractor = load_extractor(Study("x", extractor="smoke"), torch.device("cpu"))
    packed = load_split(shards, "test").take(np.arange(NUM_TEST))
    generator = torch.Generator().manual_seed(mix(0, LATENT_STREAM))
    noise = torch.randn((NUM_TEST, *model.latent_shape), generator=generator)
    with torch.no_grad():
        output = model(to_unit(packed), noise)
    real, fake = extractor(packed), extractor(to_8bit(torch.sigmoid(output.logits)))
    scores = read_scores(scored_study / "linear-s0")
    assert scores is not None
    expected = {
        "rfid_sampled_2048": frechet_distance(real.pool, fake.pool),
        "rfid_sampled_kid": kernel_distance(real.pool, fake.pool, are_pairs=True),
        "bce_sampled": bce_per_image(output.logits, to_unit(packed)).mean().item(),
    }
    assert {key: scores.value(key) for key in expected} == pytest.approx(expected, rel=1e-4)
    assert scores.scores["bce_sampled"].card.latents == "drawn from q(z|x)"
    assert scores.scores["bce"].card.latents == "mean of q(z|x)"
    direct = read_scores(scored_study / "direct-s0")
    assert direct is not None
    assert "no latent distribution" in direct.scores["rfid_sampled_paper"].reason
    assert "no distribution" in direct.scores["bce"].card.latents

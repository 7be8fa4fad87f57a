"""What is said of the latents against what can be computed from the model alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import COUNTS, SIZE_PX

from vae.losses import bce_per_image, entropy_per_image
from vae.scoring.score_cards import read_scores
from vae.scoring.score_specs import health_warning
from vae.training.checkpoint import load_trained
from vae.training.data_loader import load_split, to_unit


def test_the_entropy_is_the_least_cross_entropy() -> None:
    images = torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64).reshape(1, 1, 2, 2)
    logits = torch.logit(images.clamp(1e-12, 1 - 1e-12))
    entropy = entropy_per_image(images)
    assert entropy.tolist() == pytest.approx(bce_per_image(logits, images).tolist(), abs=1e-9)
    assert (entropy < bce_per_image(logits + 0.1, images)).all()


def test_the_latents_are_described_as_they_are(scored_study: Path, shards: Path) -> None:
    model, _ = load_trained(scored_study / "linear-s0")
    images = to_unit(load_split(shards, "test").take(np.arange(COUNTS["test"])))
    with torch.no_grad():
        output = model(images)
    assert output.log_variance is not None
    mean, variance = output.mean.double(), output.log_variance.double().exp()
    whole = mean.var(0, correction=0) + variance.mean(0)
    excess = bce_per_image(output.logits, images).double() - entropy_per_image(images)
    expected = {
        "active_units": (mean.var(0, correction=0) > 0.01).double().mean().item(),
        "posterior_gap": 0.5 * (mean.mean(0).square() + whole - 1 - whole.log()).sum().item(),
        "bce_excess": excess.mean().item(),
        "latent_ratio": 8 / SIZE_PX**2,
    }
    scores = read_scores(scored_study / "linear-s0")
    assert scores is not None
    assert {key: scores.value(key) for key in expected} == pytest.approx(expected, rel=1e-4)


def test_direct_has_no_prior_but_a_number_of_latents(scored_study: Path) -> None:
    scores = read_scores(scored_study / "direct-s0")
    assert scores is not None
    assert scores.value("latent_ratio") == pytest.approx(16 * 2 * 2 / SIZE_PX**2)
    for key in ("kl", "active_units", "posterior_gap"):
        assert "no latent distribution" in scores.scores[key].reason


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.0, "posterior collapse"), (0.01, "only 1.0% of the latents"), (0.5, ""), (None, "")],
)
def test_collapse_is_told_in_plain_words(share: float | None, words: str) -> None:
    warning = health_warning({} if share is None else {"active_units": share})
    assert warning.startswith(words) if words.startswith("post") else words in warning
    assert bool(warning) == bool(words)

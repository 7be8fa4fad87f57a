"""FID and Inception score against pytorch-ignite run as its article runs it; what their cards say."""

import math
from pathlib import Path

import pytest
import torch
from ignite.metrics import FID, InceptionScore
from ignite.metrics.gan import fid as ignite_fid
from pictures import smooth_images
from PIL import Image
from torchvision import transforms

from vae.scoring import ignite_metrics
from vae.scoring.distances import frechet_distance
from vae.scoring.extractors import Features, load_extractor, to_8bit
from vae.scoring.feature_scores import distance_scores, inception_scores
from vae.scoring.resampling import NO_HALVES
from vae.scoring.score_cards import Score, ScoreCard
from vae.study import Study


def drawn(seed: int, count: int, classes: int = 200) -> Features:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, classes, generator=generator)
    return Features(torch.softmax(logits, 1), torch.randn(count, 2 * classes, generator=generator))


def frechet_scores(name: str, real: Features, fake: Features, card: ScoreCard) -> dict[str, Score]:
    """Without intervals."""
    return {key: entry.score for key, entry in distance_scores(name, real, fake, card).items()}


def inception_score_of(features: Features, card: ScoreCard) -> Score:
    return inception_scores("is_reconstructions", features, card, NO_HALVES)["is_reconstructions"].score


def blur(images: torch.Tensor) -> torch.Tensor:
    padded = torch.nn.functional.pad(images / 255, (3, 3, 3, 3), mode="replicate")
    return torch.nn.functional.avg_pool2d(padded, 7, 1)


def test_the_paper_protocol_is_that_of_ignite_from_pixels_to_numbers(
    inception_weights: Path, hub: Path
) -> None:
    """ignite's FID and InceptionScore with their own extractor, fed as the article feeds them."""

    def interpolate(batch: torch.Tensor) -> torch.Tensor:
        resized = [
            transforms.ToPILImage()(image).resize((299, 299), Image.Resampling.BILINEAR) for image in batch
        ]
        return torch.stack([transforms.ToTensor()(image) for image in resized])

    real = smooth_images(6)
    fake = blur(real)
    theirs, their_score = FID(), InceptionScore()
    for rows in (slice(0, 4), slice(4, 6)):
        rgb = (fake[rows].repeat(1, 3, 1, 1), (real[rows] / 255).repeat(1, 3, 1, 1))
        theirs.update((interpolate(rgb[0]), interpolate(rgb[1])))
        their_score.update(interpolate(rgb[0]))

    extractor = load_extractor(Study("x", inception_weights=str(inception_weights)), torch.device("cpu"))
    features = extractor(real), extractor(to_8bit(fake))
    ours, expected = frechet_scores("rfid", *features, ScoreCard())["rfid_paper"], theirs.compute()
    # the network's order of computing leaves more than the distance
    assert ours.value == pytest.approx(expected, rel=1e-5)
    assert ours.card.exact_value == pytest.approx(expected, rel=1e-5)
    assert ours.value is not None
    assert ours.value > 0.01  # far above what rounding leaves
    is_ours = inception_score_of(features[1], ScoreCard())
    assert is_ours.value == pytest.approx(their_score.compute(), rel=1e-5)


@pytest.mark.parametrize("count", [30, 37])
def test_a_ragged_last_batch_counts_like_any_other(count: int) -> None:
    real, fake = drawn(0, count), drawn(1, count)
    metric = FID(num_features=200)
    for start in range(0, count, 16):
        rows = slice(start, start + 16)
        metric.update((real.probabilities[rows], fake.probabilities[rows]))
    paper = frechet_scores("rfid", real, fake, ScoreCard())["rfid_paper"]
    assert paper.value == pytest.approx(metric.compute(), rel=1e-7)  # what its square root leaves
    assert paper.card.exact_value == pytest.approx(metric.compute(), rel=1e-6)


def test_the_2048_distance_is_exact_and_agrees_with_ignite() -> None:
    real, fake = drawn(0, 40), drawn(1, 40)
    metric = FID(num_features=400)
    metric.update((real.pool, fake.pool))
    value = frechet_scores("gfid", real, fake, ScoreCard())["gfid_2048"].value
    assert value == frechet_distance(real.pool, fake.pool)
    assert value == pytest.approx(metric.compute(), rel=1e-6)


def test_every_number_carries_its_card() -> None:
    card = ScoreCard(split="test", extractor="x", n_real=9, n_fake=9)
    scores = frechet_scores("rfid", drawn(0, 9), drawn(1, 9), card)
    scores["is_reconstructions"] = inception_score_of(drawn(1, 9), card)
    assert list(scores) == ["rfid_paper", "rfid_2048", "rfid_kid", "is_reconstructions"]
    for entry in scores.values():
        assert entry.value is not None
        assert math.isfinite(entry.value)
        assert (entry.card.split, entry.card.extractor, entry.card.n_fake) == ("test", "x", 9)
        assert {"layer", "computed_by", "note"} <= set(entry.card.facts())


@pytest.mark.parametrize("count", [9, 120])
def test_few_images_are_scored_in_the_space_that_they_span_with_the_same_result(count: int) -> None:
    """9 + 9 images of 200 probabilities span 18 dimensions; 120 + 120 span them all."""
    real, fake = drawn(0, count), drawn(1, count)
    means = [features.probabilities.double().mean(0) for features in (real, fake)]
    covariances = [features.probabilities.double().T.cov() for features in (real, fake)]
    expected = ignite_fid.fid_score(*means, *covariances)
    value, computed_by = ignite_metrics.ignite_fid(real.probabilities, fake.probabilities, expected)
    assert value == pytest.approx(expected, rel=1e-6)
    assert computed_by.startswith("pytorch-ignite")


@pytest.mark.parametrize("answer", [ValueError("Imaginary component 0.5"), float("nan"), 0.25])
def test_the_exact_distance_stands_in_where_ignite_fails(
    monkeypatch: pytest.MonkeyPatch, answer: Exception | float
) -> None:
    """An error, no number, and the wrong number that its diagonal formula may give."""

    def compute(*_moments: torch.Tensor) -> float:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ignite_fid, "fid_score", compute)
    paper = frechet_scores("rfid", drawn(0, 9), drawn(1, 9), ScoreCard())["rfid_paper"]
    assert paper.value == paper.card.exact_value != 0.25
    assert "because pytorch-ignite" in paper.card.computed_by
    assert f"{answer}" in paper.card.computed_by

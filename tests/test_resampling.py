"""Intervals: the halves, and whether 90 % of them hold what they are for, by simulation."""

import numpy as np
import pytest
import torch

from vae.scoring.distances import frechet_distance, kernel_distance
from vae.scoring.extractors import Features
from vae.scoring.feature_scores import distance_scores
from vae.scoring.resampling import (
    DRAWS,
    DRAWS_OF_MANY,
    MANY_IMAGES,
    MIN_PATIENTS,
    Halves,
    mean_score,
    measured,
)
from vae.scoring.score_cards import ScoreCard


def test_halves_hold_all_images_of_half_of_the_patients_and_are_the_same_every_time() -> None:
    patients = np.repeat(np.arange(20), 3)
    halves = Halves(patients)
    assert len(halves.sets) == DRAWS
    for chosen in halves.sets:
        assert len(chosen) == 30
        assert np.bincount(patients[chosen]).max() == 3
    assert all(np.array_equal(a, b) for a, b in zip(halves.sets, Halves(patients).sets, strict=True))
    assert not np.array_equal(halves.sets[0], Halves(patients, stream=1).sets[0])
    assert "random halves of 20 patients" in halves.words


def test_of_many_images_there_are_fewer_halves() -> None:
    halves = Halves(np.arange(MANY_IMAGES + 1))
    assert len(halves.sets) == DRAWS_OF_MANY
    assert f"by {DRAWS_OF_MANY} random halves of 2,001 patients" in halves.words


def test_with_few_patients_there_is_a_score_and_no_interval() -> None:
    few = Halves(np.arange(MIN_PATIENTS - 1))
    entry = mean_score("ssim", np.arange(9.0), ScoreCard(), few)
    assert (entry.score.value, entry.score.low, entry.draws) == (4.0, None, None)
    assert entry.score.card.interval == ""


def test_a_score_that_is_not_finite_on_a_half_has_no_interval() -> None:
    halves = Halves(np.arange(12))
    entry = measured("ssim", 1.0, ScoreCard(), halves, [*np.ones(DRAWS - 1), np.inf])
    assert (entry.score.value, entry.score.low) == (1.0, None)


def covered(low: list[float], high: list[float], truth: float) -> float:
    return float(np.mean([a <= truth <= b for a, b in zip(low, high, strict=True)]))


@pytest.mark.parametrize("per_patient", [1, 4])
def test_intervals_of_means_cover_as_often_as_they_say(per_patient: int) -> None:
    """Images of one patient are alike, so intervals over images would be far too short."""
    generator, low, high = np.random.default_rng(0), [], []
    for _ in range(300):
        of_patient = generator.normal(size=(60, 1))
        values = (of_patient + 0.3 * generator.normal(size=(60, per_patient))).ravel()
        patients = np.repeat(np.arange(60), per_patient)
        score = mean_score("psnr", values, ScoreCard(), Halves(patients)).score
        low.append(score.low or 0.0)
        high.append(score.high or 0.0)
    assert 0.85 <= covered(low, high, 0.0) <= 0.95


@pytest.mark.parametrize("kind", ["2048", "kid"])
@pytest.mark.parametrize(
    ("width", "shift", "at_most"),
    [(6, 0.4, 0.95), (120, 0.4, 0.97), (6, 0.0, 1.0)],
    ids=["n > d", "n < d", "alike"],
)
def test_intervals_of_distances_cover_the_score_expected_at_this_number_of_images(
    kind: str, width: int, shift: float, at_most: float
) -> None:
    """A distance of so many images is biased; the interval is for that, not for one of infinitely many. Of
    sets that are alike it is too long."""
    generator = np.random.default_rng(1)
    count, scores = 80, []
    for _ in range(200):
        real = generator.normal(size=(count, width))
        fake = (1 + shift / 2) * real + 0.5 * generator.normal(size=(count, width)) + shift
        features = [Features(*(2 * [torch.from_numpy(values)])) for values in (real, fake)]
        halves = Halves(np.arange(count))
        scores.append(distance_scores("rfid", *features, ScoreCard(), (halves, halves))[f"rfid_{kind}"].score)
    expected = float(np.mean([score.value for score in scores]))
    low, high = ([getattr(score, end) for score in scores] for end in ("low", "high"))
    assert 0.85 <= covered(low, high, expected) <= at_most


def test_distances_of_halves_are_those_of_their_images() -> None:
    generator = np.random.default_rng(2)
    real, fake = (Features(*(2 * [torch.from_numpy(generator.normal(size=(24, 5)))])) for _ in range(2))
    of_real, of_fake = Halves(np.arange(24)), Halves.of_images(24, stream=2)
    found = distance_scores("gfid", real, fake, ScoreCard(), (of_real, of_fake))
    for key, distance in (("gfid_2048", frechet_distance), ("gfid_kid", kernel_distance)):
        draws = found[key].draws
        assert draws is not None
        expected = [
            distance(real.pool[a], fake.pool[b]) for a, b in zip(of_real.sets, of_fake.sets, strict=True)
        ]
        assert draws.tolist() == pytest.approx(expected, rel=1e-12)

"""What real images score: training images beside the test images, and beside other training images."""

from itertools import pairwise
from statistics import mean
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from accelerate import PartialState
from msgspec.structs import replace

from vae.scoring.extractors import Features
from vae.scoring.feature_scores import distance_scores, inception_scores
from vae.scoring.resampling import Measured
from vae.scoring.score_cards import ScoreCard
from vae.scoring.subject import Subject
from vae.training.data_loader import ImageSplit

DRAWS = 5
MIN_IMAGES = 2  # of a Frechet distance
SEED = 0  # the same training images for every run of a study


class Drawn(NamedTuple):
    """Sets of training images, as indices; no image is in two."""

    sets: list[npt.NDArray[np.int64]]
    words: str


def draw_like(labels: npt.NDArray[np.uint8], wanted: npt.NDArray[np.uint8], at_most: int) -> Drawn:
    """Up to so many sets with as many images of each class as `wanted`; one, if smaller, where there are few.

    Without regard to class where one of `wanted` is missing.
    """
    classes, counts = np.unique(wanted, return_counts=True)
    there = np.array([np.count_nonzero(labels == label) for label in classes])
    counts = np.floor(counts * min(1.0, (there / counts).min())).astype(int)
    if counts.sum() < MIN_IMAGES:
        return Drawn(draw_like(np.zeros_like(labels), np.zeros_like(wanted), at_most).sets, "of any class")
    generator = np.random.default_rng(SEED)
    order = [generator.permutation(np.flatnonzero(labels == label)) for label in classes]
    num_sets = min(at_most, int((there[counts > 0] / counts[counts > 0]).min()))
    sets = [
        [indices[k * count : (k + 1) * count] for indices, count in zip(order, counts, strict=True)]
        for k in range(num_sets)
    ]
    return Drawn([np.sort(np.concatenate(parts)) for parts in sets], "in the test images' balance of classes")


def floor_scores(subject: Subject, real: Features, train: ImageSplit, draws: int) -> dict[str, Measured]:
    """floor_* of training images, floor_train_* between two sets of them (from two draws on), is_real."""
    drawn = draw_like(train.labels, subject.test.labels, draws)
    features = [subject.real_features(train, "train", chosen) for chosen in drawn.sets]
    if not PartialState().is_main_process:
        return {}
    count = len(drawn.sets[0])
    rows = np.linspace(0, len(subject.test) - 1, count).astype(int)
    as_many = Features(*(tensor[rows] for tensor in real))
    card = subject.feature_card
    beside_test = replace(card, n_real=count, n_train=count, images=f"training images {drawn.words}")
    beside_train = replace(
        card, n_train=count, split="train", images="training images, beside as many others"
    )
    is_real = replace(card, n=len(subject.test), images="test images")
    scores = over_draws("floor", [(as_many, of_set) for of_set in features], beside_test)
    if len(features) > 1:
        scores |= over_draws("floor_train", [*pairwise(features)], beside_train)
    return scores | inception_scores("is_real", real, is_real, subject.halves)


def over_draws(name: str, pairs: list[tuple[Features, Features]], card: ScoreCard) -> dict[str, Measured]:
    """The mean over draws, between the lowest and the highest."""
    drawn = [distance_scores(name, real, fake, card, by_ignite=False) for real, fake in pairs]
    if len(drawn) == 1:
        return drawn[0]
    scores = {}
    for key, first in drawn[0].items():
        values = [of_draw[key].score.value for of_draw in drawn]
        found = [value for value in values if value is not None]
        if len(found) < len(values):
            scores[key] = first
            continue
        words = f"lowest and highest of {len(found)} draws, of which the score is the mean"
        its_card = replace(first.score.card, interval=words)
        entry = replace(first.score, value=mean(found), low=min(found), high=max(found), card=its_card)
        scores[key] = Measured(entry)
    return scores

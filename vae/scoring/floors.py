"""What real images score: training images beside the test images, and beside other training images."""

from itertools import pairwise
from statistics import mean
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from vae.scoring.extractors import Features
from vae.scoring.feature_scores import distance_scores, inception_scores
from vae.scoring.intervals import RANGE
from vae.scoring.resampling import Measured
from vae.scoring.score_cards import ScoreCard
from vae.scoring.subject import Subject
from vae.training.data_loader import ImageSplit

DRAWS = 5
MIN_IMAGES = 2  # of a Frechet distance
SEED = 0  # the same training images for every run of a study


Labels = npt.NDArray[np.uint8]
Patients = npt.NDArray[np.int64]


class Drawn(NamedTuple):
    """Sets of training images, as indices; no patient is in two."""

    sets: list[npt.NDArray[np.int64]]
    words: str


def draw_like(labels: Labels, patients: Patients, wanted: Labels, at_most: int) -> Drawn:
    """Up to so many sets with as many images of each class as `wanted`, no patient in two of them.

    One set, smaller by the same share in each class, where the images are few; without regard to class where
    one of `wanted` is missing.
    """
    classes, counts = np.unique(wanted, return_counts=True)
    names, firsts = np.unique(patients, return_index=True)
    order = np.random.default_rng(SEED).permutation(len(names))
    names = names[order][np.argsort(labels[firsts][order], kind="stable")]  # dealt out class by class
    for num_sets in range(at_most, 0, -1):
        parts = [np.flatnonzero(np.isin(patients, names[k::num_sets])) for k in range(num_sets)]
        there = [[np.count_nonzero(labels[part] == label) for label in classes] for part in parts]
        if (np.min(there, axis=0) >= counts).all():
            break
    else:
        scarcest = np.argmin(np.array(there[0]) / counts)
        counts = counts * there[0][scarcest] // counts[scarcest]
        if counts.sum() < MIN_IMAGES:
            nothing = np.zeros_like
            return Drawn(draw_like(nothing(labels), patients, nothing(wanted), at_most).sets, "of any class")
    generator = np.random.default_rng(SEED)
    sets = [
        np.concatenate(
            [
                generator.permutation(part[labels[part] == label])[:count]
                for label, count in zip(classes, counts, strict=True)
            ]
        )
        for part in parts
    ]
    return Drawn([np.sort(chosen) for chosen in sets], "in the test images' balance of classes")


def floor_scores(
    subject: Subject, real: Features, train: ImageSplit, patients: Patients, draws: int
) -> dict[str, Measured]:
    """floor_* of training images, floor_train_* between two sets of them (from two draws on), is_real."""
    drawn = draw_like(train.labels, patients, subject.test.labels, draws)
    features = [subject.real_features(train, "train", chosen) for chosen in drawn.sets]
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
        words = f"{RANGE} of {len(found)} draws, of which the score is the mean"
        its_card = replace(first.score.card, interval=words)
        entry = replace(first.score, value=mean(found), low=min(found), high=max(found), card=its_card)
        scores[key] = Measured(entry)
    return scores

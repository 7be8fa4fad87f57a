"""What real images score: which training images are drawn, and what several draws say."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import COUNTS

from vae.scoring.distances import frechet_distance, inception_score, kernel_distance
from vae.scoring.extractors import load_extractor
from vae.scoring.floors import DRAWS, draw_like
from vae.scoring.score_cards import read_scores
from vae.study import Study
from vae.training.data_loader import load_split

NUM_TEST = COUNTS["test"]


def test_draws_have_the_test_images_balance_and_share_no_image() -> None:
    labels = np.repeat(np.array([0, 1], np.uint8), (30, 100))
    drawn = draw_like(labels, np.repeat(np.array([0, 1], np.uint8), (7, 13)), 5)
    assert len(drawn.sets) == 4  # of 30 images of the first class, 7 each
    assert [np.bincount(labels[chosen]).tolist() for chosen in drawn.sets] == [[7, 13]] * 4
    assert len(np.unique(np.concatenate(drawn.sets))) == 4 * 20
    assert "balance" in drawn.words


def test_fewer_training_than_test_images_give_one_smaller_draw_in_their_balance() -> None:
    labels = np.repeat(np.array([0, 1], np.uint8), (5, 40))
    drawn = draw_like(labels, np.repeat(np.array([0, 1], np.uint8), (10, 20)), 5)
    assert [np.bincount(labels[chosen]).tolist() for chosen in drawn.sets] == [[5, 10]]


def test_where_a_class_is_missing_the_draw_is_of_any_class() -> None:
    drawn = draw_like(np.ones(12, np.uint8), np.array([0, 1, 1, 1], np.uint8), 2)
    assert [len(chosen) for chosen in drawn.sets] == [4, 4]
    assert drawn.words == "of any class"


def test_floors_are_means_over_draws_between_their_ends(scored_study: Path, shards: Path) -> None:
    extractor = load_extractor(Study("x", extractor="smoke"), torch.device("cpu"))
    split, wanted = load_split(shards, "train"), load_split(shards, "test")
    test = extractor(wanted.take(np.arange(NUM_TEST)))
    sets = [extractor(split.take(chosen)) for chosen in draw_like(split.labels, wanted.labels, DRAWS).sets]
    assert len(sets) == DRAWS
    distances = {
        "floor_paper": [frechet_distance(test.probabilities, train.probabilities) for train in sets],
        "floor_2048": [frechet_distance(test.pool, train.pool) for train in sets],
        "floor_kid": [kernel_distance(test.pool, train.pool) for train in sets],
        "floor_train_2048": [frechet_distance(a.pool, b.pool) for a, b in itertools.pairwise(sets)],
    }
    scores = read_scores(scored_study / "linear-s0")
    assert scores is not None
    for key, values in distances.items():
        entry = scores.scores[key]
        assert (entry.value, entry.low, entry.high) == pytest.approx(
            (np.mean(values), min(values), max(values)), rel=1e-4
        )
        assert f"{len(values)} draws" in entry.card.interval
    assert scores.value("is_real") == pytest.approx(inception_score(test.probabilities), rel=1e-4)

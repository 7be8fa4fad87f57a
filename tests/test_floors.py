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


def of_class(*counts: int) -> np.ndarray:
    return np.repeat(np.arange(len(counts), dtype=np.uint8), counts)


def test_draws_have_the_test_images_balance_and_share_no_patient() -> None:
    labels = of_class(60, 200)
    patients = np.arange(260) // 4
    drawn = draw_like(labels, patients, of_class(7, 13), 5)
    assert len(drawn.sets) == 5
    assert [np.bincount(labels[chosen]).tolist() for chosen in drawn.sets] == [[7, 13]] * 5
    seen = [set(patients[chosen].tolist()) for chosen in drawn.sets]
    assert sum(map(len, seen)) == len(set().union(*seen))
    assert "balance" in drawn.words


def test_there_are_as_many_draws_as_the_scarcest_class_gives() -> None:
    labels = of_class(30, 100)
    drawn = draw_like(labels, np.arange(130), of_class(7, 13), 5)
    assert 2 <= len(drawn.sets) <= 4
    assert [np.bincount(labels[chosen]).tolist() for chosen in drawn.sets] == [[7, 13]] * len(drawn.sets)


@pytest.mark.parametrize(
    ("train", "test", "expected"), [((5, 40), (10, 20), [5, 10]), ((2,), (49,), [2]), ((49,), (98,), [49])]
)
def test_fewer_training_than_test_images_give_one_smaller_draw_in_their_balance(
    train: tuple[int, ...], test: tuple[int, ...], expected: list[int]
) -> None:
    labels = of_class(*train)
    drawn = draw_like(labels, np.arange(len(labels)), of_class(*test), 5)
    assert [np.bincount(labels[chosen]).tolist() for chosen in drawn.sets] == [expected]


def test_where_a_class_is_missing_the_draw_is_of_any_class() -> None:
    drawn = draw_like(np.ones(12, np.uint8), np.arange(12), np.array([0, 1, 1, 1], np.uint8), 2)
    assert [len(chosen) for chosen in drawn.sets] == [4, 4]
    assert drawn.words == "of any class"


def test_floors_are_means_over_draws_between_their_ends(scored_study: Path, shards: Path) -> None:
    extractor = load_extractor(Study("x", extractor="smoke"), torch.device("cpu"))
    split, wanted = load_split(shards, "train"), load_split(shards, "test")
    test = extractor(wanted.take(np.arange(NUM_TEST)))
    drawn = draw_like(split.labels, np.arange(len(split)), wanted.labels, DRAWS)
    sets = [extractor(split.take(chosen)) for chosen in drawn.sets]
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
